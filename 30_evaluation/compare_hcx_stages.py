"""Compare base, CPT and SFT on the same questions, with one base model in memory.

Reads:   models/<4-bit folder>, the CPT and SFT adapters, data/<document>/eval.jsonl (split test)
         and data/general/probes.jsonl, or the file given with --questions
Writes:  results/<profile>_<document>/report.json, report.md, answers.jsonl
Command: python 30_evaluation/compare_hcx_stages.py
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection import golden, grading, runtime
from injection.files import (
    ROOT,
    inputs,
    is_current,
    mark_current,
    read_json,
    read_jsonl,
    read_text,
    require,
    run,
    shown,
    write_json,
    write_jsonl,
    write_text,
)
from injection.profiles import Project, open_project, parser
from injection.progress import Progress

STAGES = ("base", "cpt", "sft")
STAGE_NAMES = {"base": "Base model", "cpt": "Stage 1 (CPT)", "sft": "Stage 2 (SFT)"}
KIND_NOTES = {
    "paraphrase": "held-out wordings of the facts",
    "reverse": "value given, subject asked",
    "bare": "short definition questions",
    "unknown": "not in the document: refusing is right",
    "spillover": "other topics: document words are wrong",
    "general": "general knowledge",
}


def test_questions(project: Project, file: Path | None) -> list[dict]:
    if file:
        return grading.read_questions(file)
    rows = grading.read_questions(project.questions)
    rows += grading.read_questions(project.general / "probes.jsonl")
    return [r for r in rows if r["split"] == "test"]


def ask_stage(
    model, stage: str, project: Project, adapter: Path | None, rows: list[dict], full: bool
):
    """(summary, answers) of one stage."""
    import mlx.core as mx

    mx.reset_peak_memory()
    manifest = model.attach(adapter)
    bar = Progress(f"{STAGE_NAMES[stage]:<14}", len(rows))
    started = time.monotonic()
    replies = model.answer_all(
        [r["question"] for r in rows], project.profile.generation, bar.update
    )
    seconds = time.monotonic() - started
    answers = []
    for row, reply in zip(rows, replies, strict=True):
        passed, why = grading.grade(row, reply.text)
        kept = {k: row[k] for k in ("id", "fact_id", "kind", "question")}
        answers.append({"stage": stage, **kept, "answer": reply.text, "passed": passed, "why": why})
    summary = {
        "kinds": {
            kind: grading.summarise([a for a in answers if a["kind"] == kind])
            for kind in grading.KINDS
            if any(a["kind"] == kind for a in answers)
        },
        "key_questions": judge_key_questions(model, project),
        "answers_per_minute": 60 * len(rows) / seconds,
        "collapse": grading.collapse([a["answer"] for a in answers]),
        "perplexity": general_perplexity(model, project),
        "over_refusal": over_refusal(answers),
        "multiple_choice": multiple_choice(model, project, rows) if full else None,
        "adapter": shown(adapter) if adapter else None,
        "best_step": manifest["best_step"] if manifest else None,
    }
    return summary, answers


def judge_key_questions(model, project: Project) -> list[dict]:
    keys = project.document.key_questions
    replies = model.answer_all([k.question for k in keys], project.profile.generation)
    judged = []
    for key, reply in zip(keys, replies, strict=True):
        passed, _ = grading.grade(key.model_dump(), reply.text)
        judged.append({"column": key.column, "passed": passed, "answer": reply.text})
    return judged


def general_perplexity(model, project: Project) -> float:
    from injection import measure

    text = read_text(project.general / "perplexity.txt")
    return measure.perplexity(model.model, model.tokenizer, text)


def multiple_choice(model, project: Project, rows: list[dict]) -> dict | None:
    """Share of facts whose right sentence is likelier than three with another answer in it."""
    from injection import measure

    facts = {f.id: f for f in golden.read_facts(project)}
    options = measure.choices(list(facts.values()))
    asked = first_paraphrases(rows, facts)
    if not asked:
        return None
    items = [(r["question"], options[r["fact_id"]]) for r in asked]
    right = measure.multiple_choice(model.model, model.tokenizer, model.chat, items)
    graded = [{**r, "passed": ok} for r, ok in zip(asked, right, strict=True)]
    return grading.summarise(graded)


def open_book(model, project: Project, rows: list[dict]) -> dict | None:
    """The base model's score with the passage that states the fact in the prompt."""
    from injection import measure

    facts = {f.id: f for f in golden.read_facts(project)}
    chunks = read_jsonl(require(project.chunks, "run 10_stage1_cpt/chunk_pdf.py first"))
    asked = [
        (r, measure.open_book_question(r["question"], facts[r["fact_id"]], chunks))
        for r in first_paraphrases(rows, facts)
    ]
    asked = [(r, q) for r, q in asked if q]
    if not asked:
        return None
    replies = model.answer_all([q for _, q in asked], project.profile.generation)
    graded = [
        {**r, "passed": grading.grade(r, a.text)[0]}
        for (r, _), a in zip(asked, replies, strict=True)
    ]
    return grading.summarise(graded)


def first_paraphrases(rows: list[dict], facts: dict) -> list[dict]:
    """One held-out wording per fact."""
    seen: dict[str, dict] = {}
    for row in rows:
        if row["kind"] == "paraphrase" and row["fact_id"] in facts:
            seen.setdefault(row["fact_id"], row)
    return list(seen.values())


def over_refusal(answers: list[dict]) -> float | None:
    """Share of answerable document questions that were refused."""
    known = [a for a in answers if a["kind"] in ("paraphrase", "reverse", "bare")]
    return sum(grading.is_refusal(a["answer"]) for a in known) / len(known) if known else None


def measure_speed(model, project: Project, adapters: dict) -> dict[str, tuple[float, float]]:
    """(tokens per second, peak GB) of each stage, one stream, the stages in turn, best of 3."""
    import mlx.core as mx

    best: dict[str, tuple[float, float]] = {}
    for _ in range(3):
        for stage, adapter in adapters.items():
            model.attach(adapter)
            mx.reset_peak_memory()
            speed, peak = model.speed("Write a short story about a dog and a river.", 40)
            best[stage] = max(best.get(stage, (0.0, 0.0)), (speed, peak))
    return best


def retention(answers: list[dict], stage: str) -> float | None:
    """Share of the general questions the base answers right that the stage answers right."""
    right = {
        s: {a["id"] for a in answers if a["stage"] == s and a["kind"] == "general" and a["passed"]}
        for s in ("base", stage)
    }
    return len(right["base"] & right[stage]) / len(right["base"]) if right["base"] else None


def first_table(report: dict) -> str:
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


def second_table(report: dict) -> str:
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
    if book := report.get("open_book"):
        before, bound = stages["base"]["kinds"]["paraphrase"]["score"], book["score"]
        gaps = [
            f"{(d['kinds']['paraphrase']['score'] - before) / (bound - before):.0%}"
            for d in stages.values()
        ]
        lines.append(
            f"| base with the passage in the prompt | {book['n']} | {interval_cell(book)} | | |"
        )
        lines.append("| share of the open-book gap closed | | " + " | ".join(gaps) + " |")
    for title, key, form in (
        ("general: share of the base's right answers kept", "retention", "{:.1%}"),
        ("over-refusal on what the document says", "over_refusal", "{:.1%}"),
        ("perplexity of general text", "perplexity", "{:.2f}"),
        ("perplexity ratio to base", "perplexity_ratio", "{:.3f}"),
        ("answers per minute, batched", "answers_per_minute", "{:.0f}"),
        ("peak memory, GB", "peak_memory_gb", "{:.2f}"),
    ):
        values = [data[key] for data in stages.values()]
        if any(v is not None for v in values):
            cells = [form.format(v) if v is not None else "-" for v in values]
            lines.append(f"| {title} | | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def interval_cell(s: dict) -> str:
    return f"{s['score']:.1%} [{s['low']:.1%}, {s['high']:.1%}]"


def commit() -> str:
    if not shutil.which("git"):
        return "unknown"
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def report_text(report: dict) -> str:
    facts = (
        f"{report['profile']} on {report['document']}, {report['date']}, commit "
        f"{report['commit']}, {report['machine']}. Scores are means over facts with 95% bootstrap "
        f"intervals over facts; questions: {report['questions']}."
    )
    return f"{first_table(report)}\n\n{second_table(report)}\n\n{facts}\n"


def build_report(project: Project, adapters: dict, rows: list[dict], source: str, full: bool):
    from injection.models import ChatModel

    model = ChatModel(project.base, project.profile.chat)
    report = {
        "profile": project.profile_name,
        "document": project.document_name,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": runtime.machine(),
        "questions": source,
        "stages": {},
    }
    answers: list[dict] = []
    for stage, adapter in adapters.items():
        summary, given = ask_stage(model, stage, project, adapter, rows, full)
        report["stages"][stage] = summary
        answers += given
    if full:
        model.attach(None)
        report["open_book"] = open_book(model, project, rows)
    speeds = measure_speed(model, project, adapters)
    for stage, summary in report["stages"].items():
        summary["tokens_per_second"], summary["peak_memory_gb"] = speeds[stage]
        summary["retention"] = retention(answers, stage)
        base = report["stages"]["base"]["perplexity"]
        summary["perplexity_ratio"] = summary["perplexity"] / base
    return report, answers


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--questions", type=Path, help="JSONL in the format of eval.jsonl")
    args.add_argument("--output", type=Path, help="folder (default: results/<profile>_<document>)")
    for stage in ("cpt", "sft"):
        args.add_argument(f"--{stage}-adapter", type=Path, help=f"default: the {stage} adapter")
    args.add_argument("--full", action="store_true", help="also multiple choice and open book")
    args.add_argument("--force", action="store_true", help="ask again")
    args = args.parse_args()
    project = open_project(args)
    adapters = {
        "base": None,
        "cpt": args.cpt_adapter or project.adapter("cpt"),
        "sft": args.sft_adapter or project.adapter("sft"),
    }
    require(project.base / "config.json", "run 03_quantization/quantize.py first")
    for stage in ("cpt", "sft"):
        require(adapters[stage] / "manifest.json", f"train the {stage} adapter first")
    # A question set of its own gets a folder of its own: the main report stays.
    default = project.results / args.questions.stem if args.questions else project.results
    output = args.output or default
    rows = test_questions(project, args.questions)
    asked = (
        [args.questions]
        if args.questions
        else [project.questions, project.general / "probes.jsonl"]
    )
    settings = {"full": args.full, "generation": project.profile.generation.model_dump()}
    weights = [adapters[s] / "adapters.safetensors" for s in ("cpt", "sft")]
    made_from = inputs(settings, *asked, project.document_file, project.base, *weights)
    if not args.force and is_current(output / "report.json", made_from):
        print(f"up to date: {shown(output)}\n")
        print(report_text(read_json(output / "report.json")))
        return
    source = shown(args.questions) if args.questions else f"{shown(project.questions)}, split test"
    report, answers = build_report(project, adapters, rows, source, args.full)
    write_jsonl(output / "answers.jsonl", answers)
    write_text(output / "report.md", report_text(report))
    write_json(output / "report.json", report)
    mark_current(output / "report.json", made_from)
    print(report_text(report))
    print(f"wrote {shown(output)}/report.json, report.md, answers.jsonl")


if __name__ == "__main__":
    run(main)
