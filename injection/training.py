"""LoRA training of one stage: CPT (continued pre-training) or SFT (from the CPT adapter).

Reads:   data/<document>/<stage>/<profile>/{train,valid}.jsonl, for SFT also dev.jsonl, other.jsonl
         (for the gate only, if there) and the CPT adapter
Writes:  adapters_<profile>_<document>_<stage>/  adapters.safetensors, adapter_config.json (both in
         mlx-lm's format), metrics.jsonl, for SFT gate.safetensors and answers.jsonl, and
         manifest.json last
Command: python -m injection.training cpt --profile smollm2_135m --document paper

A killed run goes on where it was: weights, optimizer, step and data order are kept in
adapters_...partial/ while it runs.
"""

import json
import math
import shutil
import time
from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import TextIO

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from injection import batches, generation, grading, losses, models, prompts, tensors
from injection.checkpoints import State, resume, save_checkpoint
from injection.files import (
    ROOT,
    InputError,
    claim,
    forget,
    inputs,
    is_current,
    mark_current,
    read_jsonl,
    require,
    run,
    sha256,
    shown,
)
from injection.finishing import finish
from injection.profiles import Project, Training, open_project, parser
from injection.progress import Progress

CHECKPOINT_SECONDS = 60
# Kinds of dev questions that the gate sends to the base: they are reported, and choose nothing.
NOT_THE_ADAPTERS = ("spillover", "general")
BUILD_STEP = {
    "cpt": "run 10_stage1_cpt/prepare_cpt_data.py first",
    "sft": "run 20_stage2_sft/build_sft_data.py first",
}


class Run:
    """One training run: model, rows, optimizer, and where its files go."""

    def __init__(self, project: Project, stage: str, data: Path, output: Path, parent: Path | None):
        self.project, self.stage, self.output, self.parent = project, stage, output, parent
        self.settings: Training = project.training(stage)
        self.work = output.with_name(f"{output.name}.partial")
        self.state = State()
        self.claim: TextIO | None = None
        self.model, self.tokenizer = models.load_base(project.base)
        self.rows = self._read(data / "train.jsonl")
        self.valid = self._read(data / "valid.jsonl")
        self.dev = read_jsonl(data / "dev.jsonl") if (data / "dev.jsonl").exists() else []
        # Summed loss of every row when last trained on, over that of a usual token at the time.
        self.hardness = np.zeros(len(self.rows), dtype=np.float32)
        self.chosen = np.arange(len(self.rows))

    def _read(self, path: Path) -> list[batches.Row]:
        limit = self.settings.max_tokens
        rows = read_jsonl(require(path, BUILD_STEP[self.stage]))
        return batches.tokenize(rows, self.tokenizer, self.project.profile.chat, limit)

    def prepare(self) -> None:
        """Fresh LoRA layers, frozen hidden states, then the parent adapter's weights."""
        mx.random.seed(self.settings.seed)
        lora = self.project.profile.lora
        models.add_lora(self.model, lora)
        layers = models.adapted_layers(lora, self.model)
        self.upper = batches.Upper(self.model, layers, self.settings.gradient_checkpointing)
        self.model.eval()
        everything = self.rows + self.valid
        bar = Progress("hidden states", len(everything))
        kept = batches.fill_cache(self.upper, everything, self.settings.batch_size, bar.update)
        print(f"{len(everything)} rows, {kept / 1e6:.0f} MB of hidden states kept", flush=True)
        if self.parent:
            self._continue_from(self.parent)
        self.optimizer = optim.AdamW(
            learning_rate=self._rate(), weight_decay=self.settings.weight_decay
        )
        self.optimizer.init(self.model.trainable_parameters())

    def _continue_from(self, parent: Path) -> None:
        """Load the CPT adapter and prove it: its own validation loss must come out again."""
        weights, config, manifest = models.read_adapter(parent, self.project.base)
        ours = models.adapter_parameters(self.project.profile.lora)
        if config["lora_parameters"] != ours:
            raise InputError(
                f"{shown(parent)} has LoRA shape {config['lora_parameters']}, the profile says "
                f"{ours}: train CPT again"
            )
        expected = dict(tree_flatten(self.model.trainable_parameters()))
        models.check_same_tensors(expected, weights, shown(parent))
        rows = self._read_parent_validation(manifest)
        self.model.update(tree_unflatten(list(weights.items())))
        mx.eval(self.model.parameters())
        recorded = manifest["best_validation"]["loss"]
        found = self.validation_loss(rows)["loss"]
        if abs(found - recorded) > 1e-2 * max(1.0, recorded):
            raise InputError(
                f"{shown(parent)} gives validation loss {found:.4f}, its manifest says "
                f"{recorded:.4f}: train CPT again"
            )
        print(f"continues from {shown(parent)}: its validation loss {found:.4f} reproduced")

    def _read_parent_validation(self, manifest: dict) -> list[batches.Row]:
        path = require(ROOT / manifest["data"]["valid"]["path"], BUILD_STEP["cpt"])
        if sha256(path) != manifest["data"]["valid"]["sha256"]:
            raise InputError(f"{shown(path)} changed since CPT was trained: train CPT again")
        limit = manifest["settings"]["max_tokens"]
        rows = batches.tokenize(read_jsonl(path), self.tokenizer, self.project.profile.chat, limit)
        batches.fill_cache(self.upper, rows, self.settings.batch_size, lambda done: None)
        return rows

    def epoch_ends(self) -> list[int]:
        """The step at which each epoch is over: the first takes all rows, others the hardest."""
        size, share = self.settings.batch_size, self.settings.hard_share
        hardest = [self.rows[i] for i in batches.hardest(self.rows, self.hardness, share)]
        first = len(batches.epoch_batches(self.rows, size, 0, 0))
        later = len(batches.epoch_batches(hardest, size, 0, 0))
        epochs = self.settings.all_epochs(first, later)
        return list(accumulate([first] + [later] * (epochs - 1)))

    def total_steps(self) -> int:
        return self.epoch_ends()[-1]

    def choose_rows(self, epoch: int) -> None:
        """What this epoch trains on (`hard_share`)."""
        share = self.settings.hard_share if epoch else 1.0
        self.chosen = batches.hardest(self.rows, self.hardness, share)

    def epoch_order(self, epoch: int) -> list[list[int]]:
        """Batches of indices into self.rows."""
        rows = [self.rows[i] for i in self.chosen]
        settings = self.settings
        order = batches.epoch_batches(rows, settings.batch_size, settings.seed, epoch)
        return [self.chosen[batch].tolist() for batch in order]

    def note_hardness(self, batch: list[int], each: mx.array, loss: float) -> None:
        """Keep the losses of these rows, relative to a running mean, so that rows seen early in an
        epoch, when every loss was higher, do not look harder than others."""
        usual = self.state.usual_loss or loss
        self.state.usual_loss = 0.98 * usual + 0.02 * loss
        self.hardness[batch] = np.array(each) / self.state.usual_loss

    def _rate(self):
        """Linear warm-up, then cosine down to final_rate * learning_rate."""
        settings, total = self.settings, self.total_steps()
        warmup = max(1, int(settings.warmup * total))
        first = settings.learning_rate / (warmup + 1)
        rise = optim.linear_schedule(first, settings.learning_rate, warmup)
        fall = optim.cosine_decay(
            settings.learning_rate,
            max(1, total - warmup),
            settings.final_rate * settings.learning_rate,
        )
        return optim.join_schedules([rise, fall], [warmup])

    def losses_of(self, rows: list[batches.Row]) -> mx.array:
        """Loss of every row (rows,), summed over its supervised positions: cross-entropy, or KL to
        the base where the base is the target."""
        hidden, row, column, target = batches.stack(rows)
        final = self.upper.forward(hidden, self.upper.prefix_of(rows[0])[0])
        supervised = self.model.model.norm(final[row, column])
        each = mx.zeros(len(rows))
        for from_base in (False, True):
            places = [i for i, r in enumerate(row.tolist()) if rows[r].from_base == from_base]
            if places:
                index = mx.array(places)
                teacher = [r.teacher for r in rows if r.from_base] if from_base else None
                found = losses.frozen_head_loss(
                    self.model,
                    supervised[index],
                    target[index],
                    mx.concatenate(teacher) if teacher else None,
                )
                each = each.at[row[index]].add(found)
        return each

    def validation_loss(self, rows: list[batches.Row]) -> dict:
        """Token-weighted mean loss of the whole set: {"loss", "kl"}."""
        self.model.eval()
        sums: Counter = Counter()
        for batch in batches.epoch_batches(rows, self.settings.batch_size, 0, 0):
            chosen = [rows[i] for i in batch]
            _count(sums, chosen, self.losses_of(chosen))
        return _means(sums)

    def dev_accuracy(self) -> dict:
        """Share of the dev questions answered right, by kind (greedy, the rubric of grading)."""
        self.model.eval()
        generation_settings, chat = self.project.profile.generation, self.project.profile.chat
        stop = {*self.tokenizer.eos_token_ids, *prompts.stop_ids(self.tokenizer, chat)}
        questions = [r["question"] for r in self.dev]
        replies = generation.answer_questions(
            self.model, self.tokenizer, chat, questions, generation_settings, stop
        )
        kinds: dict[str, list[bool]] = {}
        for row, reply in zip(self.dev, replies, strict=True):
            right, _ = grading.grade(row, reply.text, self.project.document.refusal)
            kinds.setdefault(row["kind"], []).append(right)
        return {kind: sum(v) / len(v) for kind, v in kinds.items()}

    def validate(self) -> dict:
        """Validation losses, dev accuracy where there are dev questions, and the score to beat."""
        report = self.validation_loss(self.valid)
        report["score"] = -report["loss"]
        # Before the first step nothing can be kept, so the dev questions are not asked.
        if self.dev and self.state.step:
            report["dev"] = self.dev_accuracy()
            counts = Counter(r["kind"] for r in self.dev if r["kind"] not in NOT_THE_ADAPTERS)
            right = sum(report["dev"][kind] * n for kind, n in counts.items())
            report["score"] = right / counts.total()
        return report


def train(run_: Run, max_steps: int | None = None) -> None:
    """The loop: whole epochs, best weights kept, early stop, NaN guard."""
    settings, state = run_.settings, run_.state
    loss_and_grad = nn.value_and_grad(run_.model, lambda rows: _mean_loss(run_, rows))
    ends = run_.epoch_ends()
    total = min(ends[-1], max_steps) if max_steps else ends[-1]
    every = max(1, math.ceil(total / settings.validations))
    bar = Progress(run_.stage, total)
    window: Counter = Counter()
    saved = time.monotonic()
    order: list[list[int]] = []
    if state.step == 0:
        _note_validation(run_, total)
    while state.step < total and not state.stopped:
        epoch = bisect_right(ends, state.step)
        position = state.step - (ends[epoch - 1] if epoch else 0)
        if position == 0:
            run_.choose_rows(epoch)
        if not order or position == 0:
            order = run_.epoch_order(epoch)
        started = time.monotonic()
        rows = [run_.rows[i] for i in order[position]]
        # Reseeding by step makes dropout the same after a resume.
        mx.random.seed(settings.seed * 1_000_003 + state.step)
        run_.model.train()
        (loss, each), gradient = loss_and_grad(rows)
        gradient, norm = optim.clip_grad_norm(gradient, settings.max_grad_norm)
        mx.eval(loss, each, gradient, norm)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            state.stopped = f"loss is not a number at step {state.step + 1}"
            break
        run_.optimizer.update(run_.model, gradient)
        mx.eval(run_.model.trainable_parameters(), run_.optimizer.state)
        state.step += 1
        run_.note_hardness(order[position], each, loss.item())
        _count(window, rows, each)
        window["tokens"] += sum(len(r.tokens) for r in rows)
        window["seconds"] += time.monotonic() - started
        state.seconds += time.monotonic() - started
        if state.step % 10 == 0 or state.step == total:
            _report_step(run_, window, total)
        bar.update(state.step, f"loss {loss.item():.3f}")
        if state.step % every == 0 or state.step == total:
            _note_validation(run_, total)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(run_)
            saved = time.monotonic()
    save_checkpoint(run_)


def _mean_loss(run_: Run, rows: list[batches.Row]):
    """(what is minimised: mean over the supervised tokens, losses of the rows)."""
    each = run_.losses_of(rows)
    tokens = sum(len(r.targets) for r in rows)
    return (each * weights_of(rows, run_.settings.replay_weight)).sum() / tokens, each


def weights_of(rows: list[batches.Row], replay_weight: float) -> mx.array:
    return mx.array([replay_weight if r.from_base else r.weight for r in rows])


def _count(sums: Counter, rows: list[batches.Row], each: mx.array) -> None:
    """Add up losses and supervised tokens of rows: "loss" of those with a text as the target, "kl"
    of those whose target is the base."""
    for row, loss in zip(rows, each.tolist(), strict=True):
        kind = "kl" if row.from_base else "loss"
        sums[kind] += loss
        sums[f"{kind}_tokens"] += len(row.targets)


def _means(sums: Counter) -> dict[str, float]:
    return {kind: sums[kind] / max(1, sums[f"{kind}_tokens"]) for kind in ("loss", "kl")}


def _report_step(run_: Run, window: Counter, total: int) -> None:
    row = {
        "step": run_.state.step,
        "steps": total,
        **_means(window),
        "learning_rate": run_.optimizer.learning_rate.item(),
        "tokens_per_second": window["tokens"] / window["seconds"],
        "peak_memory_gb": mx.get_peak_memory() / 1e9,
        "seconds": round(run_.state.seconds, 1),
    }
    _append_metrics(run_, row)
    window.clear()


def _note_validation(run_: Run, total: int) -> None:
    """Validate; keep the weights if they are the best so far; count towards patience."""
    state = run_.state
    started = time.monotonic()
    report = {"step": state.step, **run_.validate()}
    if not math.isfinite(report["loss"]):
        state.stopped = f"validation loss is not a number at step {state.step}"
        return
    report["validation_seconds"] = round(time.monotonic() - started, 1)
    state.history.append(report)
    _append_metrics(run_, {**report, "validation": True})
    dev = "".join(f"  {k} {v:.0%}" for k, v in report.get("dev", {}).items())
    print(f"step {state.step}/{total}  validation loss {report['loss']:.4f}{dev}", flush=True)
    if state.step and (not state.best or _rank(report) > _rank(state.best)):
        state.best, state.bad_validations = report, 0
        _save_weights(run_.work / "best.safetensors", run_.model)
    elif state.step:
        state.bad_validations += 1
        if state.bad_validations >= run_.settings.patience:
            state.stopped = f"no better validation in {state.bad_validations}"


def _rank(report: dict) -> tuple[float, float]:
    """As many dev questions right: the lower loss on held-out wordings decides."""
    return report["score"], -report["loss"]


def _append_metrics(run_: Run, row: dict) -> None:
    run_.work.mkdir(parents=True, exist_ok=True)
    with open(run_.work / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")


def _save_weights(path: Path, model: nn.Module) -> None:
    tensors.save(path, dict(tree_flatten(model.trainable_parameters())))


def arguments():
    args = parser(__doc__)
    args.add_argument("stage", choices=("cpt", "sft"))
    args.add_argument("--data", type=Path, help="folder of the rows (default: the stage's)")
    args.add_argument("--output", type=Path, help="adapter folder (default: adapters_...)")
    args.add_argument("--from-adapter", help="adapter to continue from, or none (default: CPT's)")
    args.add_argument("--max-steps", type=int, help="stop after so many steps")
    args.add_argument("--force", action="store_true", help="train again what is finished")
    return args.parse_args()


def parent_adapter(project: Project, stage: str, choice: str | None) -> Path | None:
    if choice == "none" or (choice is None and stage == "cpt"):
        return None
    path = Path(choice) if choice else project.adapter("cpt")
    if not (path / "manifest.json").exists():
        raise InputError(
            f"missing {shown(path)}: run python -m injection.training cpt --profile "
            f"{project.profile_name} --document {project.document_name} first, or pass "
            "--from-adapter none"
        )
    return path


def main() -> None:
    args = arguments()
    project = open_project(args)
    data, output = args.data or project.data(args.stage), args.output or project.adapter(args.stage)
    parent = parent_adapter(project, args.stage, args.from_adapter)
    settings = {
        "stage": args.stage,
        "training": project.training(args.stage).model_dump(),
        "lora": project.profile.lora.model_dump(),
        "chat": project.profile.chat.model_dump(),
        "max_steps": args.max_steps,
    }
    data, output = data.resolve(), output.resolve()
    require(data / "train.jsonl", BUILD_STEP[args.stage])
    require(project.base / "config.json", "run 03_quantization/quantize.py first")
    used = [data / f"{name}.jsonl" for name in ("train", "valid", "dev", "other")] + [project.base]
    made_from = inputs(settings, *used, *([parent / "adapters.safetensors"] if parent else []))
    if not args.force and is_current(output, made_from):
        print(f"up to date: {shown(output)}")
        return
    run_ = Run(project, args.stage, data, output, parent)
    run_.claim = claim(run_.work)
    forget(output)  # so that a killed run goes on where it was, with --force as well
    run_.prepare()
    resume(run_, made_from)
    plan = batches.epoch_batches(run_.rows, run_.settings.batch_size, 0, 0)
    waste = batches.pad_waste(run_.rows, plan)
    print(f"{run_.total_steps()} steps, {waste:.1%} of positions are padding", flush=True)
    train(run_, args.max_steps)
    finish(run_, data)
    mark_current(output, made_from)
    shutil.rmtree(run_.work)
    state = run_.state
    why = f" ({state.stopped})" if state.stopped else ""
    print(f"wrote {shown(output)}: best at step {state.best['step']} of {state.step}{why}")


if __name__ == "__main__":
    run(main)
