"""What the benchmarks share: workers in fresh processes, the training run, steps, reports.

A worker is a function of one job (a dict) in one of the scripts. It runs as
`<python> <script> --worker <name> <job.json> <result.json>`, the project's in this interpreter and
the peers' in benchmarks/.venv. `injection` is imported inside functions only: importing it changes
the BLAS and malloc of the process, which no peer may profit or suffer from.
"""

import importlib.metadata
import importlib.util
import itertools
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
OURS = Path(sys.executable)
PEERS = HERE / ".venv" / "bin" / "python"
sys.path.insert(0, str(ROOT))


def start(main: Callable[[], int | None], workers: dict[str, Callable[[dict], dict]]) -> None:
    """Run main(), or in a worker process the worker that the command line names."""
    if sys.argv[1:2] != ["--worker"]:
        from injection.files import run

        run(main)
    name, job, result = sys.argv[2:5]
    found = workers[name](json.loads(Path(job).read_text()))
    found["peak_gb"] = peak_gigabytes()
    Path(result).write_text(json.dumps(found))


def peak_gigabytes() -> float:
    """Peak resident memory of this process."""
    try:
        # ru_maxrss of a started process would begin at the size of the process that started it.
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def work(python: Path, script: str, name: str, job: dict, limit: float | None = None) -> dict:
    """Result of a worker in a process of its own, or {"failed": why}; limit is in seconds."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = _work(python, script, name, job, limit, Path(folder))
    ended = result.get("failed", "done")
    print(f"{name}: {ended}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return result


def _work(python, script, name, job, limit, folder: Path) -> dict:
    job_file, result_file = folder / "job.json", folder / "result.json"
    job_file.write_text(json.dumps(job))
    command = [python, script, "--worker", name, job_file, result_file]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"nothing within {limit:.0f} s", "limit": limit}
    if done.returncode or not result_file.exists():
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        return {"failed": f"exit code {done.returncode}: {lines[-1]}"}
    return json.loads(result_file.read_text())


def parser(doc: str, pairs: int):
    """The arguments that the benchmarks share: --profile, --document, --set, --pairs, --output."""
    from injection import profiles

    args = profiles.parser(doc)
    args.add_argument("--pairs", type=int, default=pairs, help=f"repeats (default: {pairs})")
    args.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return args


def open_project(args):
    """The project of --profile and --document, once the peers are installed."""
    from injection import profiles
    from injection.files import require

    require(PEERS, "run benchmarks/setup.sh first")
    return profiles.open_project(args)


def load_script(path: str):
    """A numbered script as a module: its folder is no valid package name."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in names}


def train_ours(job: dict) -> dict:
    """One epoch of this project's trainer on job["data"]/train.jsonl.

    job: profile, document, overrides, data (folder), lora_a (file of initial weights or null).
    Returns seconds of the cache fill and of each step, the loss of each step, the row tokens.
    """
    from injection import training
    from injection.profiles import Project

    class Recorded(training.Run):
        def losses_of(self, rows):
            each = super().losses_of(rows)
            if self.model.training:
                seen.append((each.sum(), sum(len(r.targets) for r in rows)))
            return each

        def note_hardness(self, *args):
            # Called at the end of every step.
            super().note_hardness(*args)
            ends.append(time.perf_counter())

    seen: list = []
    ends: list[float] = []
    project = Project(job["profile"], job["document"], job["overrides"])
    with tempfile.TemporaryDirectory() as folder:
        run_ = Recorded(project, "sft", Path(job["data"]), Path(folder, "adapter"), None)
        started = time.perf_counter()
        run_.prepare()
        fill = time.perf_counter() - started
        if job["lora_a"]:
            _load_weights(run_.model, job["lora_a"])
        ends.append(time.perf_counter())
        training.train(run_)
    return {
        "fill_seconds": fill,
        "step_seconds": [after - before for before, after in itertools.pairwise(ends)],
        "losses": [loss.item() / targets for loss, targets in seen],
        "tokens": sum(len(r.tokens) for r in run_.rows),
        "versions": versions("mlx", "mlx-lm"),
    }


def _load_weights(model, path: str) -> None:
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    model.update(tree_unflatten(list(mx.load(path).items())))
    mx.eval(model.parameters())


def export_base(model, project, folder: Path) -> Path:
    """The 4-bit base, expanded to fp32, as a Hugging Face folder: peers compute on equal values."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder.mkdir()
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    config = json.loads((project.source / "config.json").read_text())
    config["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def commit() -> str:
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=8"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def heading(script: str) -> dict:
    """Where the numbers come from: the first part of every report."""
    from injection import runtime

    return {
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]]),
        "machine": runtime.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        # Above zero, something else was running: the numbers are not for quoting.
        "load_before": os.getloadavg()[0],
    }


def publish(script: str, report: dict, table: str, output: Path, name: str = "") -> None:
    """Write <script>.json and .png (or <name>), print the table with its origin."""
    from injection.files import shown, write_json

    # Workers run in the repository root.
    name, output = name or Path(script).stem, output.resolve()
    write_json(output / f"{name}.json", report)
    plot = work(PEERS, script, "plot", {"report": report, "file": str(output / f"{name}.png")})
    origin = "`{command}`, {machine}, {date}, commit {commit}, load before the start {load:.1f}"
    print(f"\n{table}\n\n{origin.format(load=report['load_before'], **report)}\n")
    if "failed" in plot:
        print(f"no plot: {plot['failed']}", file=sys.stderr)
    print(f"wrote {shown(output)}/{name}.json and .png", file=sys.stderr)


def step(*command: str) -> None:
    """Run one step of the pipeline, as run.sh does; stop with its message if it fails."""
    from injection.files import InputError

    print("==", *command, flush=True)
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise InputError(f"{command[0]} failed, see above")


def markdown(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def median(runs: list[dict], key: str) -> float | None:
    """Median of what the successful runs measured; None when there was none."""
    values = [r[key] for r in runs if "failed" not in r]
    return statistics.median(values) if values else None


def number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def label_bars(axis, bars, values: list[float | None], form: str) -> None:
    """The number on each bar; what failed says so instead of passing for zero."""
    axis.bar_label(bars, ["failed" if v is None else format(v, form) for v in values])


def figure(columns: int = 1):
    """(figure, axes) of a plot without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(1, columns, figsize=(5.5 * columns, 4), layout="constrained")
