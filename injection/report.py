"""The tables of report.md, made from report.json (both written by compare_hcx_stages.py)."""

import shutil
import subprocess

from injection.files import ROOT

STAGE_NAMES = {
    "base": "Base model",
    "cpt": "Stage 1 (CPT)",
    "sft": "Stage 2 (SFT), no gate",
    "gated": "Stage 2 (SFT)",
}
KIND_NOTES = {
    "paraphrase": "held-out wordings of the facts",
    "reverse": "value given, subject asked",
    "bare": "short definition questions",
    "unknown": "not in the document: refusing is right",
    "spillover": "other topics: document words are wrong",
    "general": "general knowledge",
}


def commit() -> str:
    """The commit of this checkout for a report, marked when files have changed since."""
    if not shutil.which("git"):
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def report_text(report: dict) -> str:
    facts = (
        f"{report['profile']} on {report['document']}, {report['date']}, commit "
        f"{report['commit']}, {report['machine']}. Scores are means over facts with 95% bootstrap "
        f"intervals over facts; questions: {report['questions']}."
    )
    tables = [key_question_table(report), kinds_table(report)]
    if "gated" in report["stages"]:
        tables.append(gate_table(report))
    if report.get("refusal"):
        tables.append(refusal_table(report["refusal"]))
    return "\n\n".join([*tables, facts]) + "\n"


def key_question_table(report: dict) -> str:
    columns = [k["column"] for k in report["stages"]["base"]["key_questions"]]
    lines = [
        "| Model Stage | " + " | ".join(columns) + " | Inference Speed |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for stage, data in report["stages"].items():
        cells = []
        for key in data["key_questions"]:
            verdict = "Correct" if key["passed"] else "Wrong"
            cells.append(f'{verdict}: "{cell(key["answer"])}"')
        speed = f"{data['tokens_per_second']:.1f} tokens/s"
        lines.append(f"| {STAGE_NAMES[stage]} | " + " | ".join(cells) + f" | {speed} |")
    return "\n".join(lines)


def cell(text: str, limit: int = 110) -> str:
    text = " ".join(text.replace("|", "\\|").split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def kinds_table(report: dict) -> str:
    stages = report["stages"]
    lines = [
        "| Questions | n | " + " | ".join(STAGE_NAMES[s] for s in stages) + " |",
        "|---|---|" + "---|" * len(stages),
    ]
    for kind in stages["base"]["kinds"]:
        row = [interval_cell(data["kinds"][kind]) for data in stages.values()]
        n = stages["base"]["kinds"][kind]["n"]
        lines.append(f"| {kind} ({KIND_NOTES[kind]}) | {n} | " + " | ".join(row) + " |")
        if kind == "paraphrase":
            every = [f"{data['kinds'][kind]['every_wording']:.1%}" for data in stages.values()]
            lines.append("| facts right in every wording | | " + " | ".join(every) + " |")
    if any(data["multiple_choice"] for data in stages.values()):
        cells = [interval_cell(data["multiple_choice"]) for data in stages.values()]
        n = stages["base"]["multiple_choice"]["n"]
        lines.append(
            f"| multiple choice by likelihood (chance 25%) | {n} | " + " | ".join(cells) + " |"
        )
    if report.get("open_book"):
        lines += open_book_lines(report["open_book"], stages)
    lines += collapse_lines(stages)
    for title, key, form in (
        ("general: share of the base's right answers kept", "retention", "{:.1%}"),
        ("over-refusal on what the document says", "over_refusal", "{:.1%}"),
        ("perplexity of general text", "perplexity", "{:.2f}"),
        ("perplexity ratio to base", "perplexity_ratio", "{:.3f}"),
        ("answers per minute, batched", "answers_per_minute", "{:.0f}"),
        ("peak memory of one answer, GB", "peak_memory_gb", "{:.2f}"),
    ):
        values = [data[key] for data in stages.values()]
        if any(v is not None for v in values):
            cells = [form.format(v) if v is not None else "-" for v in values]
            lines.append(f"| {title} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def open_book_lines(book: dict, stages: dict) -> list[str]:
    """What the base reaches with the passage before it, and how much of that gain a stage has."""
    cells = [interval_cell(book), *[""] * (len(stages) - 1)]
    lines = [f"| base with the passage in the prompt | {book['n']} | " + " | ".join(cells) + " |"]
    before = stages["base"]["closed_book"]["score"]
    closed = [interval_cell(d["closed_book"]) for d in stages.values()]
    lines.append(f"| the same questions without it | {book['n']} | " + " | ".join(closed) + " |")
    if book["score"] > before:
        gains = [d["closed_book"]["score"] - before for d in stages.values()]
        gaps = [f"{gain / (book['score'] - before):.0%}" for gain in gains]
        lines.append("| share of the open-book gap closed | | " + " | ".join(gaps) + " |")
    return lines


def collapse_lines(stages: dict) -> list[str]:
    lines = []
    for title, key in (
        ("most frequent answer, share of all", "most_frequent"),
        ("answers with a repeated 6-gram", "looping"),
    ):
        cells = [f"{data['collapse'][key]:.1%}" for data in stages.values()]
        lines.append(f"| {title} | | " + " | ".join(cells) + " |")
    return lines


def gate_table(report: dict) -> str:
    """For how many questions of each kind the gate let the adapter speak."""
    shares = report["stages"]["gated"]["gate"]
    return (
        "| The gate opens for | " + " | ".join(shares) + " |\n"
        "|---|" + "---|" * len(shares) + "\n"
        "| share of questions | " + " | ".join(f"{v:.1%}" for v in shares.values()) + " |"
    )


def refusal_table(points: list[dict]) -> str:
    """What another threshold for refusals (refusal.py) would cost and bring."""
    rows = (("answerable refused", "known"), ("unanswerable refused", "unknown"))
    lines = [
        "| If the threshold were | " + " | ".join(f"{p['bias']:+.1f}" for p in points) + " |",
        "|---|" + "---|" * len(points),
        *(f"| {name} | " + " | ".join(f"{p[k]:.1%}" for p in points) + " |" for name, k in rows),
    ]
    return "\n".join(lines)


def interval_cell(s: dict) -> str:
    return f"{s['score']:.1%} [{s['low']:.1%}, {s['high']:.1%}]"
