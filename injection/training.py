"""LoRA training of one stage: CPT (continued pre-training) or SFT (from the CPT adapter).

Reads:   data/<document>/<stage>/<profile>/{train,valid}.jsonl, for SFT also dev.jsonl and the
         CPT adapter
Writes:  adapters_<profile>_<document>_<stage>/  adapters.safetensors, adapter_config.json (both in
         mlx-lm's format), metrics.jsonl, for SFT gate.safetensors, and manifest.json last
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
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from injection import (
    batches,
    gate,
    generation,
    grading,
    licence,
    losses,
    models,
    prompts,
    refusal,
    tensors,
)
from injection.files import (
    ROOT,
    InputError,
    inputs,
    is_current,
    mark_current,
    model_fingerprint,
    read_json,
    read_jsonl,
    require,
    run,
    sha256,
    shown,
    staged_folder,
    write_bytes,
    write_json,
)
from injection.profiles import Project, Training, open_project, parser
from injection.progress import Progress

CHECKPOINT_SECONDS = 60
MIN_GATE_QUESTIONS = 20
MIN_REFUSAL_QUESTIONS = 50
BUILD_STEP = {
    "cpt": "run 10_stage1_cpt/prepare_cpt_data.py first",
    "sft": "run 20_stage2_sft/build_sft_data.py first",
}


@dataclass
class State:
    """What a resumed run needs besides the arrays."""

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    bad_validations: int = 0
    stopped: str = ""
    seconds: float = 0.0
    usual_loss: float = 0.0
    history: list[dict] = field(default_factory=list)


class Run:
    """One training run: model, rows, optimizer, and where its files go."""

    def __init__(self, project: Project, stage: str, data: Path, output: Path, parent: Path | None):
        self.project, self.stage, self.output, self.parent = project, stage, output, parent
        self.settings: Training = project.training(stage)
        self.work = output.with_name(f"{output.name}.partial")
        self.state = State()
        self.model, self.tokenizer = models.load_base(project.base)
        self.rows = self._read(data / "train.jsonl")
        self.valid = self._read(data / "valid.jsonl")
        self.dev = read_jsonl(data / "dev.jsonl") if (data / "dev.jsonl").exists() else []
        # Loss of every row when last trained on, in units of the usual loss at that time.
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
            kinds.setdefault(row["kind"], []).append(grading.grade(row, reply.text)[0])
        return {kind: sum(v) / len(v) for kind, v in kinds.items()}

    def validate(self) -> dict:
        """Validation losses, dev accuracy where there are dev questions, and the score to beat."""
        report = self.validation_loss(self.valid)
        report["score"] = -report["loss"]
        # Before the first step nothing can be kept, so the dev questions are not asked.
        if self.dev and self.state.step:
            report["dev"] = self.dev_accuracy()
            counts = Counter(row["kind"] for row in self.dev)
            right = sum(share * counts[kind] for kind, share in report["dev"].items())
            report["score"] = right / len(self.dev)
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
    if state.step and report["score"] > state.best:
        state.best, state.best_step, state.bad_validations = report["score"], state.step, 0
        _save_weights(run_.work / "best.safetensors", run_.model)
    elif state.step:
        state.bad_validations += 1
        if state.bad_validations >= run_.settings.patience:
            state.stopped = f"no better validation in {state.bad_validations}"


def _append_metrics(run_: Run, row: dict) -> None:
    run_.work.mkdir(parents=True, exist_ok=True)
    with open(run_.work / "metrics.jsonl", "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")


def _save_weights(path: Path, model: nn.Module) -> None:
    tensors.save(path, dict(tree_flatten(model.trainable_parameters())))


def save_checkpoint(run_: Run) -> None:
    """Everything a resumed run needs, in one file that is replaced in one step."""
    arrays = {f"model.{k}": v for k, v in tree_flatten(run_.model.trainable_parameters())}
    arrays |= {f"optimizer.{k}": v for k, v in tree_flatten(run_.optimizer.state)}
    arrays |= {"rows.hardness": mx.array(run_.hardness), "rows.chosen": mx.array(run_.chosen)}
    state = json.dumps(vars(run_.state))
    tensors.save(run_.work / "checkpoint.safetensors", arrays, {"state": state})


def resume(run_: Run, made_from: dict) -> None:
    """Take up an interrupted run of the same inputs; forget one of others."""
    origin, checkpoint = run_.work / "made_from.json", run_.work / "checkpoint.safetensors"
    if not (checkpoint.exists() and origin.exists() and read_json(origin) == made_from):
        shutil.rmtree(run_.work, ignore_errors=True)
        run_.work.mkdir(parents=True)
        write_json(origin, made_from)
        return
    arrays, metadata = mx.load(str(checkpoint), return_metadata=True)
    run_.state = State(**json.loads(metadata["state"]))
    run_.hardness = np.array(arrays.pop("rows.hardness"))
    run_.chosen = np.array(arrays.pop("rows.chosen"))
    parts = {"model": [], "optimizer": []}
    for name, array in arrays.items():
        kind, rest = name.split(".", 1)
        parts[kind].append((rest, array))
    run_.model.update(tree_unflatten(parts["model"]))
    run_.optimizer.state = tree_unflatten(parts["optimizer"])
    _forget_later_metrics(run_)
    print(f"resumes at step {run_.state.step}", flush=True)


def _forget_later_metrics(run_: Run) -> None:
    """Drop metrics that were written after the checkpoint: those steps run again."""
    path = run_.work / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = []
    for line in lines:
        # The last line may be cut off by the kill.
        if line.endswith("}") and json.loads(line)["step"] <= run_.state.step:
            kept.append(line + "\n")
    write_bytes(path, "".join(kept).encode())


def finish(run_: Run, data: Path) -> None:
    """Put the best weights in place as an mlx-lm adapter folder; the manifest goes in last."""
    best = run_.work / "best.safetensors"
    if not best.exists():
        raise InputError(f"{run_.stage}: {run_.state.stopped or 'no validation'}: nothing to keep")
    weights = tensors.load(best)
    project, lora = run_.project, run_.project.profile.lora
    with staged_folder(run_.output) as folder:
        tensors.save(folder / "adapters.safetensors", weights)
        config = {
            "fine_tune_type": "lora",
            "num_layers": models.adapted_layers(lora, run_.model),
            "lora_parameters": models.adapter_parameters(lora),
            "model": shown(project.base),
        }
        write_json(folder / "adapter_config.json", config)
        shutil.copyfile(run_.work / "metrics.jsonl", folder / "metrics.jsonl")
        change = f"LoRA adapter trained on {project.document_name} ({run_.stage.upper()})"
        licence.pass_on(project.base, folder, project.profile, change)
        fitted = {}
        if run_.stage == "sft":
            run_.model.update(tree_unflatten(list(weights.items())))
            fitted = {"gate": fit_gate(run_, data, folder), "refusal": fit_refusal(run_)}
        write_json(folder / "manifest.json", manifest(run_, data, folder) | fitted)
        models.read_adapter(folder, project.base)


def fit_gate(run_: Run, data: Path, folder: Path) -> dict | None:
    """Fit and save the gate on the training questions; its error rates. None without replay."""
    rows = [r for r in run_.rows if r.question is not None]
    about = np.array([not r.from_base for r in rows])
    if min(about.sum(), (~about).sum()) < MIN_GATE_QUESTIONS:
        return None
    features = np.stack(
        [np.array(r.hidden[r.question - r.prefix : r.start - r.prefix]).mean(0) for r in rows]
    )
    texts = plain_texts(read_jsonl(data / "train.jsonl"))
    tokens = [run_.tokenizer.encode(t, add_special_tokens=False) for t in texts]
    print(f"fits the gate on {len(rows)} questions and {len(texts)} other texts", flush=True)
    found = gate.text_features(run_.upper.lower, tokens, run_.settings.batch_size)
    features = np.concatenate([features, found])
    about = np.concatenate([about, np.zeros(len(texts), dtype=bool)])
    gate.fit(features, about).save(folder)
    counts = {"document": int(about.sum()), "other": int((~about).sum())}
    return counts | gate.cross_validate(features, about)


def fit_refusal(run_: Run) -> dict | None:
    """How readily to refuse (refusal.py); None without enough dev questions, or where a refusal
    begins like an answer, so that its first token decides nothing."""
    project, tokenizer = run_.project, run_.tokenizer
    token = prompts.first_token(tokenizer, project.document.refusal)
    answers = {r.tokens[r.start] for r in run_.rows if r.kind == "fact" and r.question is not None}
    known = [r["question"] for r in run_.dev if r.get("fact_id")]
    if token in answers or len(known) < MIN_REFUSAL_QUESTIONS:
        return None
    run_.model.eval()
    size = project.profile.generation.batch_size
    chat = project.profile.chat
    found = refusal.margins(run_.model, tokenizer, chat, known, token, size)
    bias = refusal.calibrate(found)
    print(f"refuses {(found < bias).mean():.1%} of {len(known)} known dev questions", flush=True)
    return {"token": token, "bias": bias, "known_refused": float((found < bias).mean())}


def plain_texts(rows: list[dict]) -> list[str]:
    """Texts of other subjects, short and long: fitted on questions alone, the gate took any long
    text for the document's. Only questions shall open it, so the document's texts are not here."""
    from_base = [r["messages"] for r in rows if r.get("target") == "base"]
    others = [" ".join(m["content"] for m in messages) for messages in from_base]
    joined = [" ".join(others[i : i + 8]) for i in range(0, len(others), 8)]
    return others + joined


def manifest(run_: Run, data: Path, folder: Path) -> dict:
    state, project = run_.state, run_.project
    best = next(h for h in state.history if h["step"] == state.best_step)
    parent = run_.parent
    return {
        "stage": run_.stage,
        "profile": project.profile_name,
        "document": project.document_name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "base": {"path": shown(project.base), "fingerprint": model_fingerprint(project.base)},
        "parent": {"path": shown(parent), "sha256": sha256(parent / "adapters.safetensors")}
        if parent
        else None,
        "weights_sha256": sha256(folder / "adapters.safetensors"),
        "lora": project.profile.lora.model_dump(),
        "settings": run_.settings.model_dump(),
        "data": {
            name: {"path": shown(data / f"{name}.jsonl"), "sha256": sha256(data / f"{name}.jsonl")}
            for name in ("train", "valid")
        },
        "steps": state.step,
        "best_step": state.best_step,
        "best_validation": best,
        "stopped": state.stopped or "all epochs done",
        "training_seconds": round(state.seconds, 1),
        "history": state.history,
        "peak_memory_gb": mx.get_peak_memory() / 1e9,
        "versions": {"mlx": mx.__version__},
        "notice": project.profile.notice,
    }


def arguments():
    args = parser(__doc__)
    args.add_argument("stage", choices=("cpt", "sft"))
    args.add_argument("--data", type=Path, help="folder of the rows (default: the stage's)")
    args.add_argument("--output", type=Path, help="adapter folder (default: adapters_...)")
    args.add_argument("--from-adapter", help="adapter to continue from, or none (default: CPT's)")
    args.add_argument("--max-steps", type=int, help="stop after so many steps")
    args.add_argument("--force", action="store_true", help="train again")
    return args.parse_args()


def parent_adapter(project: Project, stage: str, choice: str | None) -> Path | None:
    if choice == "none" or (choice is None and stage == "cpt"):
        return None
    path = Path(choice) if choice else project.adapter("cpt")
    if not (path / "manifest.json").exists():
        raise InputError(
            f"missing {shown(path)}: run 10_stage1_cpt/train_{project.profile_name}_"
            f"{project.document_name}_cpt.sh first, or pass --from-adapter none"
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
    used = [data / "train.jsonl", data / "valid.jsonl", data / "dev.jsonl", project.base]
    made_from = inputs(settings, *used, *([parent / "adapters.safetensors"] if parent else []))
    if not args.force and is_current(output, made_from):
        print(f"up to date: {shown(output)}")
        return
    run_ = Run(project, args.stage, data, output, parent)
    if args.force:
        shutil.rmtree(run_.work, ignore_errors=True)
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
    print(f"wrote {shown(output)}: best at step {state.best_step} of {state.step}{why}")


if __name__ == "__main__":
    run(main)
