"""What the evaluation scripts found, as tables for the Report view.

Reads:   results/<profile>_<document>/report.json, answers.jsonl (compare_hcx_stages.py);
         results/reference/, what the README quotes; results/ablations/*.json;
         results/*/fidelity.json, what quantization cost
Command: none of its own; views/report.py uses it
"""

from pathlib import Path

import pandas as pd

from injection.files import ROOT, InputError, read_json, read_jsonl, shown
from injection.report import KIND_NOTES, STAGE_NAMES, interval_cell

# (title, key of a stage in report.json, format, note)
FORGETTING = (
    ("kept of the base's right answers", "retention", "{:.1%}"),
    ("perplexity of general text", "perplexity", "{:.2f}"),
    ("perplexity ratio to base", "perplexity_ratio", "{:.3f}"),
    ("over-refusal on what the document says", "over_refusal", "{:.1%}"),
    ("tokens/s", "tokens_per_second", "{:.1f}"),
    ("answers per minute, batched", "answers_per_minute", "{:.0f}"),
    ("peak memory, GB", "peak_memory_gb", "{:.2f}"),
)
COLLAPSE = (
    ("most frequent answer, share of all", "most_frequent"),
    ("answers with a repeated 6-gram", "looping"),
)


def reports() -> list[Path]:
    """Folders with a report, newest first; the shipped ones last, CLaRa before other documents."""
    found = [file.parent for file in (ROOT / "results").glob("**/report.json")]
    shipped = ROOT / "results/reference"
    own = [folder for folder in found if not folder.is_relative_to(shipped)]
    newest = sorted(own, key=lambda folder: (folder / "report.json").stat().st_mtime, reverse=True)
    return newest + sorted(folder for folder in found if folder.is_relative_to(shipped))


def read_report(folder: Path) -> dict:
    """report.json, checked for what the view needs. Raises InputError."""
    report = read_json(folder / "report.json")
    stages = report.get("stages") if isinstance(report, dict) else None
    if not isinstance(stages, dict) or "base" not in stages:
        raise InputError(f"{shown(folder)}/report.json has no stages: run the comparison again")
    for name, stage in stages.items():
        if name not in STAGE_NAMES or not isinstance(stage.get("kinds"), dict):
            raise InputError(f"{shown(folder)}/report.json: stage {name} is not readable")
    return report


def read_answers(folder: Path) -> pd.DataFrame:
    """answers.jsonl, one line per question and stage."""
    keys = ("stage", "id", "kind", "question", "answer", "passed", "why")
    return pd.DataFrame(read_jsonl(folder / "answers.jsonl", keys=keys))


def scores(report: dict) -> pd.DataFrame:
    """kind, n, stage, score, low, high: one line per kind and stage."""
    return pd.DataFrame(
        [
            {"kind": kind, "stage": STAGE_NAMES[stage], **found}
            for kind in report["stages"]["base"]["kinds"]
            for stage, data in report["stages"].items()
            if (found := data["kinds"].get(kind))
        ]
    )


def score_table(report: dict) -> pd.DataFrame:
    """The stage table with 95% intervals."""
    stages = report["stages"]
    lines = []
    for kind, base in stages["base"]["kinds"].items():
        line = {"questions": f"{kind}: {KIND_NOTES.get(kind, '')}", "n": str(base["n"])}
        for stage, data in stages.items():
            found = data["kinds"].get(kind)
            line[STAGE_NAMES[stage]] = interval_cell(found) if found else "-"
        lines.append(line)
    return pd.DataFrame(lines)


def forgetting_table(report: dict) -> pd.DataFrame:
    """What the training cost, and other figures of a whole stage."""
    stages, lines = report["stages"], []
    for title, key, form in FORGETTING:
        values = {STAGE_NAMES[s]: data.get(key) for s, data in stages.items()}
        if any(v is not None for v in values.values()):
            cells = {stage: _number(v, form) for stage, v in values.items()}
            lines.append({"figure": title, **cells})
    for title, key in COLLAPSE:
        cells = {
            STAGE_NAMES[s]: _number(data.get("collapse", {}).get(key)) for s, data in stages.items()
        }
        lines.append({"figure": title, **cells})
    return pd.DataFrame(lines)


def _number(value: float | None, form: str = "{:.1%}") -> str:
    return "-" if value is None else form.format(value)


def gate_shares(report: dict) -> dict[str, str]:
    """For how many questions of each kind the gate let the adapter speak."""
    shares = report["stages"].get("gated", {}).get("gate", {})
    return {kind: f"{share:.1%}" for kind, share in shares.items()}


def questions(answers: pd.DataFrame) -> pd.DataFrame:
    """One line per question: pass or miss of every stage."""
    verdicts = answers.assign(verdict=answers.passed.map({True: "pass", False: "miss"}))
    wide = verdicts.pivot_table(
        index=["id", "kind", "question"],
        columns="stage",
        values="verdict",
        aggfunc="first",
        sort=False,
    )
    order = [stage for stage in STAGE_NAMES if stage in wide.columns]
    return wide[order].rename(columns=STAGE_NAMES).reset_index()


def ablations() -> dict[str, pd.DataFrame]:
    """{where: table} of results/ablations/*.json (benchmarks/ablations.py) and the shipped one."""
    own = sorted((ROOT / "results/ablations").glob("*.json"))
    found = {}
    for file in [*own, ROOT / "results/reference/ablations.json"]:
        if file.exists():
            measured = read_json(file)
            runs = measured.get("runs", {}).values()
            rows = f"first {measured.get('facts')} facts"
            title = f"{shown(file)} · {rows} · behind the gate where there is one"
            found[title] = pd.DataFrame([_ablation(run) for run in runs])
    return found


def _ablation(run: dict) -> dict:
    """One recipe; without rehearsal rows there is no gate, and the adapter always speaks."""
    stages = run["stages"]
    last = stages.get("gated") or stages["sft"]
    kinds = {kind: f"{s['score']:.1%}" for kind, s in last["kinds"].items()}
    return {
        "recipe": run["what"],
        **kinds,
        "kept of general": _number(last.get("retention")),
        "perplexity ratio": _number(last.get("perplexity_ratio"), "{:.3f}"),
        "over-refusal": _number(last.get("over_refusal")),
    }


def quantization() -> dict[str, pd.DataFrame]:
    """{origin: table} of results/*/fidelity.json (30_evaluation/quantization_fidelity.py)."""
    found = {}
    own_first = {"key": lambda file: (file.parent.name == "reference", file)}
    for file in sorted((ROOT / "results").glob("*/fidelity.json"), **own_first):
        measured = read_json(file)
        origin = " · ".join(
            str(measured.get(n, "")) for n in ("title", "command", "date", "commit")
        )
        found[origin] = pd.DataFrame([_weights(row) for row in measured.get("rows", [])])
    return found


def _weights(row: dict) -> dict:
    return {
        "weights": str(row["bits"]).replace("_", " "),
        "bits per weight": _number(row.get("bits_per_weight"), "{:.2f}"),
        "GB": _number(row.get("size", 0) / 1e9, "{:.3f}"),
        "mean KL to the source": _number(row.get("kl"), "{:.4f}"),
        "same most likely token": _number(row.get("top1"), "{:.1%}"),
        "perplexity": _number(row.get("perplexity"), "{:.2f}"),
        "ratio": _number(row.get("perplexity_ratio"), "{:.3f}"),
    }
