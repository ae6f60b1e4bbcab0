"""Compare base, CPT and SFT on the same questions, with one base model in memory.

Reads:   models/<4-bit folder>, the CPT and SFT adapters, data/<document>/eval.jsonl (split test)
         and data/general/probes.jsonl, or the file given with --questions
Writes:  results/<profile>_<document>/report.json, report.md, answers.jsonl, and base.json: the
         base model's answers, asked again only when the base or the questions change
Command: python 30_evaluation/compare_hcx_stages.py
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection import gate, golden, grading, measure, models, refusal, report, runtime
from injection.files import (
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

# Kinds of questions that the document answers.
KNOWN = ("paraphrase", "reverse", "bare")


def test_questions(project: Project, file: Path | None) -> list[dict]:
    if file:
        return grading.read_questions(file)
    rows = grading.read_questions(project.questions)
    rows += grading.read_questions(project.general / "probes.jsonl")
    return [r for r in rows if r["split"] == "test"]


def ask_stage(model, stage: str, project: Project, rows: list[dict], full: bool) -> dict:
    """What the model as it stands says and scores; every list is in the order of its questions."""
    bar = Progress(f"{report.STAGE_NAMES[stage]:<14}", len(rows))
    started = time.monotonic()
    settings = project.profile.generation
    replies = model.answer_all([r["question"] for r in rows], settings, bar.update)
    seconds = time.monotonic() - started
    keys = model.answer_all([k.question for k in project.document.key_questions], settings)
    return {
        "replies": [r.text for r in replies],
        "keys": [r.text for r in keys],
        "windows": measure.window_losses(model.model, model.tokenizer, general_text(project)),
        "choices": multiple_choice(model, project, rows) if full else None,
        "answers_per_minute": 60 * len(rows) / seconds,
    }


def ask_base(model, project: Project, rows: list[dict], file: Path, made_from: dict, full: bool):
    """The base model's answers, from `file` when they were made from the same."""
    if is_current(file, made_from):
        print(f"{report.STAGE_NAMES['base']}: answers taken from {shown(file)}", flush=True)
        # Measured on another day, beside other work.
        return read_json(file) | {"answers_per_minute": None}
    said = ask_stage(model, "base", project, rows, full)
    write_json(file, said)
    mark_current(file, made_from)
    return said


def behind_gate(model, project: Project, rows: list[dict], base: dict, sft: dict) -> dict:
    """What the gate lets through: SFT's where it opens, the base's elsewhere. Exact, no new run."""

    def choose(opened: list[bool], key: str) -> list:
        return [s if o else b for o, b, s in zip(opened, base[key], sft[key], strict=True)]

    def opens(questions: list[str]) -> list[bool]:
        conversations = [[{"role": "user", "content": q}] for q in questions]
        return model.gate_opens(conversations, project.profile.generation.batch_size)

    windows = measure.windows(model.tokenizer, general_text(project))
    opened = opens([r["question"] for r in rows])
    result = {
        "opened": opened,
        "replies": choose(opened, "replies"),
        "keys": choose(opens([k.question for k in project.document.key_questions]), "keys"),
        "windows": choose(model.gate_opens_texts(windows), "windows"),
        "adapter": sft["adapter"],
        "best_step": sft["best_step"],
        "choices": None,
        "answers_per_minute": None,
    }
    if sft["choices"]:
        known = dict(zip((r["id"] for r in rows), opened, strict=True))
        asked, _ = choice_questions(project, rows)
        result["choices"] = choose([known[r["id"]] for r in asked], "choices")
    return result


def summarise_stage(project: Project, rows: list[dict], said: dict, answers: list[dict]) -> dict:
    """The figures of one stage in report.json."""
    kinds = [k for k in grading.KINDS if any(a["kind"] == k for a in answers)]
    summary = {
        "kinds": {k: grading.summarise([a for a in answers if a["kind"] == k]) for k in kinds},
        "key_questions": judge_key_questions(project, said["keys"]),
        "answers_per_minute": said["answers_per_minute"],
        "adapter": said["adapter"],
        "best_step": said["best_step"],
        "collapse": grading.collapse([a["answer"] for a in answers]),
        "perplexity": measure.perplexity(said["windows"]),
        "over_refusal": over_refusal(answers, project.document.refusal),
        "multiple_choice": None,
    }
    if said["choices"]:
        asked, _ = choice_questions(project, rows)
        graded = [{**r, "passed": ok} for r, ok in zip(asked, said["choices"], strict=True)]
        summary["multiple_choice"] = grading.summarise(graded)
    if "opened" in said:
        summary["gate"] = gate_shares(rows, said["opened"])
    return summary


def gate_shares(rows: list[dict], opened: list[bool]) -> dict:
    """{kind: share of its questions for which the gate opened}."""
    by_kind: dict[str, list[bool]] = {}
    for row, o in zip(rows, opened, strict=True):
        by_kind.setdefault(row["kind"], []).append(o)
    return {kind: sum(v) / len(v) for kind, v in by_kind.items()}


def grade_all(project: Project, stage: str, rows: list[dict], replies: list[str]) -> list[dict]:
    answers = []
    for row, reply in zip(rows, replies, strict=True):
        passed, why = grading.grade(row, reply, project.document.refusal)
        kept = {k: row[k] for k in ("id", "fact_id", "kind", "question")}
        answers.append({"stage": stage, **kept, "answer": reply, "passed": passed, "why": why})
    return answers


def judge_key_questions(project: Project, replies: list[str]) -> list[dict]:
    judged = []
    for key, reply in zip(project.document.key_questions, replies, strict=True):
        passed, _ = grading.grade(key.model_dump(), reply, project.document.refusal)
        judged.append({"column": key.column, "passed": passed, "answer": reply})
    return judged


def general_text(project: Project) -> str:
    return read_text(project.general / "perplexity.txt")


def multiple_choice(model, project: Project, rows: list[dict]) -> list[bool]:
    """Per fact, whether its right sentence is likelier than three with another answer in it."""
    asked, options = choice_questions(project, rows)
    items = [(r["question"], options[r["fact_id"]]) for r in asked]
    bar = Progress("choices", len(items))
    return measure.multiple_choice(model.model, model.tokenizer, model.chat, items, bar.update)


def choice_questions(project: Project, rows: list[dict]) -> tuple[list[dict], dict]:
    """(questions, {fact id: options}) of the facts for which there are four different options."""
    facts = golden.read_facts(project)
    options = {i: o for i, o in measure.choices(facts).items() if len(set(o)) == measure.OPTIONS}
    asked = first_paraphrases(rows, facts)
    return [r for r in asked if r["fact_id"] in options], options


def open_book(model, project: Project, rows: list[dict]) -> dict | None:
    """The base model's score with the passage that states the fact in the prompt."""
    facts = {f.id: f for f in golden.read_facts(project)}
    chunks = read_jsonl(require(project.chunks, "run 10_stage1_cpt/chunk_pdf.py first"))
    asked = [
        (r, measure.open_book_question(r["question"], facts[r["fact_id"]], chunks))
        for r in first_paraphrases(rows, list(facts.values()))
    ]
    asked = [(r, q) for r, q in asked if q]
    if not asked:
        return None
    bar = Progress("open book", len(asked))
    replies = model.answer_all([q for _, q in asked], project.profile.generation, bar.update)
    graded = [
        {**r, "passed": grading.grade(r, a.text, project.document.refusal)[0]}
        for (r, _), a in zip(asked, replies, strict=True)
    ]
    return grading.summarise(graded) | {"asked": [r["id"] for r, _ in asked]}


def note_same_questions(result: dict, answers: list[dict]) -> None:
    """Each stage's closed-book score on the questions that were asked open book."""
    asked = set(result["open_book"].pop("asked")) if result["open_book"] else ()
    for stage, summary in result["stages"].items():
        same = [a for a in answers if a["stage"] == stage and a["id"] in asked]
        summary["closed_book"] = grading.summarise(same) if same else None


def first_paraphrases(rows: list[dict], facts: list) -> list[dict]:
    """One held-out wording per fact."""
    known, seen = {f.id for f in facts}, {}
    for row in rows:
        if row["kind"] == "paraphrase" and row["fact_id"] in known:
            seen.setdefault(row["fact_id"], row)
    return list(seen.values())


def over_refusal(answers: list[dict], sentence: str) -> float | None:
    """Share of answerable document questions that were refused."""
    known = [grading.is_refusal(a["answer"], sentence) for a in answers if a["kind"] in KNOWN]
    return sum(known) / len(known) if known else None


def refusal_tradeoff(model, project: Project, rows: list[dict], manifest: dict | None):
    """Points of refusal.tradeoff() on the evaluated questions; None where no refusal is set."""
    found = (manifest or {}).get("refusal")
    known = [r["question"] for r in rows if r["kind"] in KNOWN]
    unknown = [r["question"] for r in rows if r["kind"] == "unknown"]
    if not found or not known or not unknown:
        return None
    size = project.profile.generation.batch_size
    shared = (model.model, model.tokenizer, model.chat)
    margins = [refusal.margins(*shared, q, found["token"], size) for q in (known, unknown)]
    return refusal.tradeoff(*margins)


def measure_speed(model, project: Project, adapters: dict) -> dict[str, tuple[float, float]]:
    """(tokens per second, peak GB) of each stage, one stream, the stages in turn, best of 5."""
    import mlx.core as mx

    best: dict[str, tuple[float, float]] = {}
    for _ in range(5):
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


def build_report(project: Project, adapters: dict, rows: list[dict], source: str, ask, full: bool):
    """(report.json, rows of answers.jsonl). `ask(model)` gives the base model's answers."""
    model = models.ChatModel(project.base, project.profile.chat)
    # The gate's effect is put together afterwards, from what both sides say without it.
    model.use_gate = False
    said, result = {}, head(project, source)
    for stage, adapter in adapters.items():
        manifest = model.attach(adapter)
        said[stage] = ask_stage(model, stage, project, rows, full) if adapter else ask(model)
        said[stage]["adapter"] = shown(adapter) if adapter else None
        said[stage]["best_step"] = manifest["best_step"] if manifest else None
        if stage == "sft":
            result["refusal"] = refusal_tradeoff(model, project, rows, manifest)
    if model.gate:
        said["gated"] = behind_gate(model, project, rows, said["base"], said["sft"])
    answers = [a for s in said for a in grade_all(project, s, rows, said[s]["replies"])]
    for stage in said:
        given = [a for a in answers if a["stage"] == stage]
        result["stages"][stage] = summarise_stage(project, rows, said[stage], given)
    if full:
        model.attach(None)
        result["open_book"] = open_book(model, project, rows)
        note_same_questions(result, answers)
    add_comparisons(result, answers, measure_speed(model, project, adapters))
    return result, answers


def head(project: Project, source: str) -> dict:
    return {
        "profile": project.profile_name,
        "document": project.document_name,
        "commit": report.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": runtime.machine(),
        "questions": source,
        "stages": {},
    }


def add_comparisons(result: dict, answers: list[dict], speeds: dict) -> None:
    base = result["stages"]["base"]["perplexity"]
    for stage, summary in result["stages"].items():
        # Where the gate opens the adapter speaks; it has decided before the first word.
        speed = speeds["sft" if stage == "gated" else stage]
        summary["tokens_per_second"], summary["peak_memory_gb"] = speed
        summary["retention"] = retention(answers, stage)
        summary["perplexity_ratio"] = summary["perplexity"] / base


def made_from_what(
    project: Project, questions: Path | None, adapters: dict, full: bool
) -> tuple[dict, dict]:
    """What the base model's answers, and what the whole report, depend on."""
    profile = project.profile
    settings = {
        "full": full,
        "generation": profile.generation.model_dump(),
        "chat": profile.chat.model_dump(),
    }
    asked = [questions] if questions else [project.questions, project.general / "probes.jsonl"]
    common = [*asked, project.document_file, project.general / "perplexity.txt", project.base]
    if full:
        common += [project.facts, project.generated, project.chunks]
    folders = [folder for folder in adapters.values() if folder]
    weights = [f / name for f in folders for name in ("adapters.safetensors", "manifest.json")]
    weights += [f for f in [adapters["sft"] / gate.FILE] if f.exists()]
    return inputs(settings, *common), inputs(settings, *common, *weights)


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--questions", type=Path, help="JSONL in the format of eval.jsonl")
    args.add_argument("--output", type=Path, help="folder (default: results/<profile>_<document>)")
    for stage in ("cpt", "sft"):
        args.add_argument(f"--{stage}-adapter", type=Path, help=f"default: the {stage} adapter")
    args.add_argument("--skip-cpt", action="store_true", help="leave the CPT stage out")
    args.add_argument("--full", action="store_true", help="also multiple choice and open book")
    args.add_argument("--force", action="store_true", help="ask again")
    args = args.parse_args()
    project = open_project(args)
    stages = ("sft",) if args.skip_cpt else ("cpt", "sft")
    chosen = {"cpt": args.cpt_adapter, "sft": args.sft_adapter}
    adapters = {"base": None} | {s: chosen[s] or project.adapter(s) for s in stages}
    require(project.base / "config.json", "run 03_quantization/quantize.py first")
    for stage in stages:
        require(adapters[stage] / "manifest.json", f"train the {stage} adapter first")
    # A question set of its own gets a folder of its own: the main report stays.
    default = project.results / args.questions.stem if args.questions else project.results
    output = args.output or default
    rows = test_questions(project, args.questions)
    made_from = made_from_what(project, args.questions, adapters, args.full)
    # A report made with --full has all that one without it has.
    fuller = made_from_what(project, args.questions, adapters, True)
    if not args.force and any(
        is_current(output / "report.json", m[1]) for m in (made_from, fuller)
    ):
        print(f"up to date: {shown(output)}\n")
        print(report.report_text(read_json(output / "report.json")))
        return
    source = shown(args.questions) if args.questions else f"{shown(project.questions)}, split test"

    def ask(model) -> dict:
        return ask_base(model, project, rows, output / "base.json", made_from[0], args.full)

    found, answers = build_report(project, adapters, rows, source, ask, args.full)
    write_jsonl(output / "answers.jsonl", answers)
    write_text(output / "report.md", report.report_text(found))
    write_json(output / "report.json", found)
    mark_current(output / "report.json", made_from[1])
    print(report.report_text(found))
    print(f"wrote {shown(output)}/report.json, report.md, answers.jsonl")


if __name__ == "__main__":
    run(main)
