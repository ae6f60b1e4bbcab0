"""Training speed: this trainer, transformers + PEFT (torch CPU, fp32 or bf16), stock `mlx_lm lora`.

One epoch on the same rows, tokens, loss masks, batches, LoRA shape, initial weights and learning
rates, for the LoRA layers of the profile and for all layers. This trainer (fp32) and PEFT take
turns in fresh processes; the table gives medians. Loading and the first steps are not timed. The
hidden-state cache fill is paid once, so a job that goes over its rows E times costs
fill + E * epoch. Loss curves in fp32 must agree within 2%. Stock mlx_lm gets a few of the shortest
rows and a time limit.

Reads:   models/<4-bit folder>, data/<document>/sft/<profile>/train.jsonl (rows with a hard target)
Writes:  benchmarks/results/training_speed.json and .png; prints one Markdown table
Command: python benchmarks/training_speed.py
"""

import contextlib
import io
import math
import statistics
import tempfile
import time
from pathlib import Path

import common

TOLERANCE = 0.02
# Steps that are not counted: buffers are first allocated then, in a job of hundreds of steps.
WARM_UP = 2
NAMES = {
    "ours": "this trainer, fp32",
    "peft": "transformers + PEFT, fp32",
    "peft_bf16": "transformers + PEFT, bf16",
}


def train_peft(job: dict, precision: str = "float32") -> dict:
    """The usual transformers + PEFT loop over job["batches"], rows of tokens and answer starts.

    In bf16 the base is in bf16 and autocast computes in it; LoRA weights stay in fp32.
    """
    import torch

    torch.manual_seed(0)
    dtype = getattr(torch, precision)
    model = _peft_model(job, dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=job["weight_decay"])
    losses, seconds = [], []
    for step, batch in enumerate(job["batches"], 1):
        started = time.perf_counter()
        # mlx's AdamW has no bias correction; torch's is cancelled by the rate.
        optimizer.param_groups[0]["lr"] = (
            job["rates"][step - 1] * (1 - 0.9**step) / (1 - 0.999**step) ** 0.5
        )
        with torch.autocast("cpu", dtype, enabled=precision != "float32"):
            loss = model(**_tensors(batch), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, job["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - started)
    found = {"fill_seconds": 0.0, "step_seconds": seconds, "losses": losses}
    tokens = sum(len(ids) for batch in job["batches"] for ids, _ in batch)
    return {**found, "tokens": tokens, "versions": common.versions("torch", "transformers", "peft")}


def _peft_model(job: dict, dtype):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(job["weights"], dtype=dtype)
    lora, layers = job["lora"], base.config.num_hidden_layers
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["scale"] * lora["rank"],
        lora_dropout=0.0,
        target_modules=[key.split(".")[-1] for key in lora["keys"]],
        layers_to_transform=list(range(layers - job["layers"], layers)),
        layers_pattern="layers",
    )
    model = get_peft_model(base, config).train()
    ours = load_file(job["lora_a"])
    wanted = {name: p for name, p in model.named_parameters() if "lora_A" in name}
    assert len(wanted) == len(ours), "the LoRA layers of PEFT are not those of this project"
    for name, parameter in wanted.items():
        stem = name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
        parameter.data.copy_(ours[f"{stem}.lora_a"].T)
    return model


def _tensors(batch: list) -> dict:
    import torch

    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (tokens, start) in enumerate(batch):
        row = torch.tensor(tokens)
        ids[i, : len(tokens)], mask[i, : len(tokens)] = row, 1
        labels[i, start : len(tokens)] = row[start:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train_stock(job: dict) -> dict:
    """What `mlx_lm lora` does, with its wheels as they are: a few steps on one batch."""
    import mlx.optimizers as optim
    from mlx_lm import load
    from mlx_lm.tuner.trainer import TrainingArgs, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model, _ = load(job["base"])
    model.freeze()
    lora = {key: job["lora"][key] for key in ("rank", "scale", "dropout", "keys")}
    linear_to_lora_layers(model, job["layers"], lora)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        args = TrainingArgs(
            batch_size=len(job["rows"]),
            iters=job["steps"],
            steps_per_report=1,
            adapter_file=str(Path(folder, "adapters.safetensors")),
        )
        started = time.perf_counter()
        train(model, optim.AdamW(learning_rate=1e-4), job["rows"], args=args)
        seconds = [(time.perf_counter() - started) / job["steps"]] * job["steps"]
    tokens = job["steps"] * sum(len(ids) for ids, _ in job["rows"])
    found = {"fill_seconds": 0.0, "step_seconds": seconds, "tokens": tokens}
    return {**found, "versions": common.versions("mlx", "mlx-lm")}


def plot(job: dict) -> dict:
    report = job["report"]
    figure, axes = common.figure(2)
    panels = (("tokens_per_second", "tokens/s"), ("job_seconds", f"s, {report['passes']:g} passes"))
    for axis, (key, label) in zip(axes, panels, strict=True):
        for number, (name, title) in enumerate(NAMES.items()):
            values = [case[name][key] for case in report["cases"].values()]
            places = [i + 0.27 * (number - 1) for i in range(len(values))]
            bars = axis.bar(places, [v or 0 for v in values], 0.27, label=title)
            common.label_bars(axis, bars, values, ".0f")
        axis.set_xticks(range(len(report["cases"])), [f"LoRA on {c}" for c in report["cases"]])
        axis.set_ylabel(label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(job["file"], dpi=120)
    return {}


def write_rows(project, count: int, folder: Path) -> Path:
    """The first `count` rows with a hard target, as a data folder without validation rows."""
    from injection.files import read_jsonl, require, write_jsonl

    source = project.data("sft") / "train.jsonl"
    rows = read_jsonl(require(source, "run 20_stage2_sft/build_sft_data.py first"))
    write_jsonl(folder / "train.jsonl", [r for r in rows if r.get("target") != "base"][:count])
    write_jsonl(folder / "valid.jsonl", [])
    return folder


def make_jobs(args, project, layers: int, folder: Path) -> dict[str, dict]:
    """Jobs of the three trainers for one number of LoRA layers (-1: all)."""
    from injection import models, training
    from injection.profiles import Project

    fixed = ["sft.epochs=1", "sft.min_steps=0", "sft.validations=1"]
    fixed += ["lora.dropout=0.0", f"lora.layers={layers}"]
    names = {"profile": project.profile_name, "document": project.document_name}
    ours = {**names, "overrides": [*args.set, *fixed]}
    project = Project(**ours)
    ours["data"] = str(write_rows(project, args.rows, folder / "rows"))
    ours["lora_a"] = str(folder / f"lora_a_{layers}.safetensors")
    run_ = training.Run(project, "sft", Path(ours["data"]), folder / "adapter", None)
    lora = project.profile.lora
    shape = {"lora": lora.model_dump(), "layers": models.adapted_layers(lora, run_.model)}
    weights = folder / "weights"
    if not weights.exists():
        common.export_base(run_.model, project, weights)
    save_lora_a(run_.model, lora, ours["lora_a"])
    peft = {**shape, **schedule(run_), "weights": str(weights), "lora_a": ours["lora_a"]}
    rows = sorted(run_.rows, key=lambda r: len(r.tokens))[: args.stock_rows]
    stock = {**shape, "base": str(project.base), "steps": args.stock_steps}
    stock["rows"] = [(r.tokens, r.start) for r in rows]
    return {"ours": ours, "peft": peft, "peft_bf16": peft, "stock": stock}


def schedule(run_) -> dict:
    """Batches of (tokens, answer start) and learning rates of every step, as the trainer's."""
    import mlx.core as mx

    from injection import batches

    settings, rate = run_.settings, run_._rate()
    order = batches.epoch_batches(run_.rows, settings.batch_size, settings.seed, 0)
    return {
        "batches": [[(run_.rows[i].tokens, run_.rows[i].start) for i in batch] for batch in order],
        "rates": [rate(mx.array(step)).item() for step in range(len(order))],
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
    }


def save_lora_a(model, lora, path: str) -> None:
    """Random LoRA A of a fresh adapter; every B is zero."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from injection import models

    mx.random.seed(0)
    models.add_lora(model, lora)
    fresh = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(path, {k: v for k, v in fresh.items() if k.endswith("lora_a")})


def measure(jobs: dict[str, dict], pairs: int) -> dict[str, list[dict]]:
    runs: dict[str, list[dict]] = {name: [] for name in NAMES}
    for _ in range(pairs):
        for name, found in runs.items():
            python = common.OURS if name == "ours" else common.PEERS
            found.append(common.work(python, __file__, name, jobs[name]))
    return runs


def summarise(runs: list[dict], passes: float) -> dict:
    """Medians of one trainer. An epoch is its steps at their mean, without the first WARM_UP;
    job_seconds is fill + passes * epoch."""
    good = [r for r in runs if "failed" not in r]
    for r in good:
        steps = r["step_seconds"]
        r["epoch_seconds"] = len(steps) * statistics.mean(steps[WARM_UP:] or steps)
        r["job_seconds"] = r["fill_seconds"] + passes * r["epoch_seconds"]
        r["tokens_per_second"] = r["tokens"] / r["epoch_seconds"]
    keys = ("fill_seconds", "epoch_seconds", "tokens_per_second", "job_seconds", "peak_gb")
    summary = {key: common.median(runs, key) for key in keys}
    return {**summary, "runs": runs, "failed": [r["failed"] for r in runs if "failed" in r]}


def compare(ours: dict, peft: dict, check_steps: int) -> dict:
    """Medians of the pairs' ratios, and the largest relative difference of the first losses."""
    pairs = [
        (a, b)
        for a, b in zip(ours["runs"], peft["runs"], strict=True)
        if "failed" not in a and "failed" not in b
    ]
    if not pairs:
        return {"step_speedup": None, "job_speedup": None, "loss_difference": None}
    losses = zip(pairs[0][0]["losses"][:check_steps], pairs[0][1]["losses"], strict=False)
    return {
        "step_speedup": median_ratio(pairs, "epoch_seconds"),
        "job_speedup": median_ratio(pairs, "job_seconds"),
        "loss_difference": max(abs(a - b) / b for a, b in losses),
    }


def median_ratio(pairs: list[tuple[dict, dict]], key: str) -> float:
    return statistics.median(peft[key] / ours[key] for ours, peft in pairs)


def table(report: dict) -> str:
    header = ["LoRA layers", "trainer", "cache fill, s", "epoch, s", "tokens/s"]
    header += [f"job of {report['passes']:g} passes, s", "peak GB", "notes"]
    rows = []
    for layers, case in report["cases"].items():
        for name, title in NAMES.items():
            notes = [against(case["versus"][name])] if name in case["versus"] else []
            notes += case[name]["failed"]
            rows.append([layers, title, *cells(case[name]), "; ".join(notes)])
    stock = report["stock"]
    first = next(iter(report["cases"]))
    rows.append([first, "stock mlx_lm lora", *cells(stock), stock["note"]])
    return common.markdown(header, rows)


def against(versus: dict) -> str:
    times = "this trainer is {:.2f}x (steps), {:.2f}x (job); losses differ by {:.2%} at most"
    return times.format(*versus.values()) if versus["job_speedup"] else "no pair to compare"


def cells(s: dict) -> list[str]:
    keys = ("fill_seconds", "epoch_seconds", "tokens_per_second", "job_seconds")
    return [*(common.number(s[key]) for key in keys), common.number(s["peak_gb"], ".2f")]


def measure_stock(job: dict, limit: float) -> dict:
    """The few steps of stock mlx_lm; its epoch and job are no epoch of the others' and left out."""
    tokens = job["steps"] * sum(len(ids) for ids, _ in job["rows"])
    summary = summarise([common.work(common.PEERS, __file__, "stock", job, limit)], 1)
    seconds = summary["epoch_seconds"]
    summary["note"] = (
        f"{job['steps']} step(s) of {len(job['rows'])} short rows, {tokens} tokens: "
        + (f"{seconds:.0f} s" if seconds else summary["failed"][0])
    )
    if not seconds and "limit" in summary["runs"][0]:
        summary["note"] += f", below {tokens / limit:.2f} tokens/s"
    return {**summary, "fill_seconds": None, "epoch_seconds": None, "job_seconds": None}


def arguments():
    args = common.parser(__doc__, pairs=5)
    args.add_argument("--rows", type=int, default=160, help="rows of the epoch (default: 160)")
    args.add_argument("--check-steps", type=int, default=10, help="losses to compare (default: 10)")
    args.add_argument("--stock-rows", type=int, default=2, help="rows for mlx_lm (default: 2)")
    args.add_argument("--stock-steps", type=int, default=1, help="steps for mlx_lm (default: 1)")
    args.add_argument("--stock-limit", type=float, default=900, help="its seconds (default: 900)")
    return args.parse_args()


def main() -> int:
    args = arguments()
    project = common.open_project(args)
    profile = project.profile
    with open(project.data("sft") / "train.jsonl", encoding="utf-8") as f:
        rows = sum(1 for _ in f)
    passes = profile.sft.passes(math.ceil(rows / profile.sft.batch_size))
    report = {**common.heading(__file__), "rows": args.rows, "passes": passes}
    report |= {"lora": profile.lora.model_dump(), "batch_size": profile.sft.batch_size, "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, layers in ((f"top {profile.lora.layers}", profile.lora.layers), ("all", -1)):
            jobs = make_jobs(args, project, layers, Path(folder))
            runs = measure(jobs, args.pairs)
            case = {who: summarise(found, passes) for who, found in runs.items()}
            case["versus"] = {
                name: compare(case["ours"], case[name], args.check_steps)
                for name in ("peft", "peft_bf16")
            }
            report["cases"][name] = case
            if "stock" not in report:
                report["stock"] = measure_stock(jobs["stock"], args.stock_limit)
    common.publish(__file__, report, table(report), args.output)
    # In bf16 the losses differ by its rounding; the table says how much.
    differences = [c["versus"]["peft"]["loss_difference"] for c in report["cases"].values()]
    if not all(d is not None and d <= TOLERANCE for d in differences):
        print(f"error: losses do not agree within {TOLERANCE:.0%}: the times compare nothing")
        return 1
    return 0


WORKERS = {
    "ours": common.train_ours,
    "peft": train_peft,
    "peft_bf16": lambda job: train_peft(job, "bfloat16"),
    "stock": train_stock,
    "plot": plot,
}

if __name__ == "__main__":
    common.start(main, WORKERS)
