"""Training runs, finished or going on, from the files that injection/training.py writes.

Reads:   adapters_*/metrics.jsonl and manifest.json; of a run that goes on
         adapters_*.partial/metrics.jsonl and process
Command: none of its own; views/training.py uses it
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from injection.files import ROOT, InputError, owner, read_json

PARTIAL = ".partial"
# (column of the table below, title)
SERIES = (
    ("loss", "Training loss"),
    ("kl", "KL to the base model on rehearsal"),
    ("learning_rate", "Learning rate"),
    ("tokens_per_second", "Tokens/s"),
    ("peak_memory_gb", "Peak memory, GB"),
)


@dataclass(frozen=True)
class Run:
    """rows: lines of metrics.jsonl; manifest: empty while the run goes on; live: it does now."""

    folder: Path
    rows: list[dict]
    manifest: dict
    live: bool

    @property
    def name(self) -> str:
        return self.folder.name.removeprefix("adapters_")

    @property
    def unfinished(self) -> bool:
        return self.folder.name.endswith(PARTIAL)

    @property
    def validations(self) -> list[dict]:
        return [row for row in self.rows if row.get("validation")]

    @property
    def step(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    @property
    def total(self) -> int | None:
        """Steps of the whole run, where the run says so."""
        return next((row["steps"] for row in reversed(self.rows) if "steps" in row), None)

    @property
    def best_step(self) -> int | None:
        if "best_step" in self.manifest:
            return self.manifest["best_step"]
        judged = [row for row in self.validations if row["step"]]
        return max(judged, key=lambda row: row["score"])["step"] if judged else None

    def seconds_left(self) -> float | None:
        """By the speed so far; None before there is any."""
        timed = [row for row in self.rows if row.get("seconds")]
        if not timed or not self.total:
            return None
        last = timed[-1]
        return last["seconds"] / last["step"] * (self.total - last["step"])


def runs() -> list[Run]:
    """Every adapter folder with metrics: those going on first, then the newest."""
    found = [_run(folder) for folder in ROOT.glob("adapters_*") if folder.is_dir()]
    return sorted(
        [run for run in found if run.rows or run.unfinished],
        key=lambda run: (run.unfinished, run.manifest.get("created", "")),
        reverse=True,
    )


def state() -> list[tuple]:
    """Compares equal as long as nothing that the view shows has changed."""
    return [(run.folder.name, run.live, len(run.rows), bool(run.manifest)) for run in runs()]


def _run(folder: Path) -> Run:
    return Run(
        folder=folder,
        rows=_rows(folder / "metrics.jsonl"),
        manifest=_manifest(folder / "manifest.json"),
        live=owner(folder) is not None,
    )


def _rows(metrics: Path) -> list[dict]:
    """Lines of metrics.jsonl; the last one may be half written."""
    rows = []
    for line in metrics.read_text(encoding="utf-8").split("\n") if metrics.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _manifest(path: Path) -> dict:
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def table(chosen: list[Run]) -> pd.DataFrame:
    """Long form for the charts: run, step, minutes, name of the figure, value.

    A validation has the time of the last step before it.
    """
    lines = []
    for run in chosen:
        seconds = 0.0
        for row in run.rows:
            seconds = row.get("seconds", seconds)
            place = {"run": run.name, "step": row["step"], "minutes": seconds / 60}
            lines += [{**place, "name": n, "value": v} for n, v in _figures(row)]
    return pd.DataFrame(lines, columns=["run", "step", "minutes", "name", "value"])


def _figures(row: dict) -> list[tuple[str, float]]:
    if row.get("validation"):
        dev = [(f"dev {kind}", share) for kind, share in row.get("dev", {}).items()]
        return [("validation loss", row["loss"]), *dev]
    return [(name, row[name]) for name, _ in SERIES if name in row]
