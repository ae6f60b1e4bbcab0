"""A draft of eval.jsonl from the held-out wordings of generated facts.

generate_qa.py writes it for all drafts, build_sft_data.py narrows it to the accepted facts. A file
that a person wrote or changed is never touched: only one that equals what was last written here.
"""

from qa_filters import bare

from injection import golden, grading
from injection.files import is_current, mark_current, read_jsonl, shown, write_jsonl
from injection.profiles import Project

MADE_BY = {"made_by": "draft_eval"}


def rows_of(fact: golden.GeneratedFact) -> list[dict]:
    """The second wording of each kind is for choosing the checkpoint (dev), the others for test."""
    rows, seen = [], {"paraphrase": 0, "reverse": 0}
    for item in fact.held_out:
        seen[item.kind] += 1
        wanted = [bare(fact.subject)] if item.kind == "reverse" else [fact.answer, *fact.aliases]
        rows.append(
            {
                "id": f"{fact.id}-{item.kind[0]}{seen[item.kind]}",
                "fact_id": fact.id,
                "kind": item.kind,
                "split": "dev" if seen[item.kind] == 2 else "test",
                "question": item.question,
                "must_include": [wanted],
                "must_not_include": [] if item.kind == "reverse" else fact.must_not,
                "expect": "answer",
            }
        )
    return rows


def trained_questions(project: Project, generated: list) -> list[str]:
    """Every question that may become a training row."""
    facts = golden.read_hand_made(project) + generated
    questions = [q for f in facts for q in [*f.questions, *(r.question for r in f.reverse)]]
    for path, key in (
        (project.unknowns, "question"),
        (project.contrasts, "prompt"),
        (project.general / "replay.jsonl", "prompt"),
    ):
        questions += [r[key] for r in read_jsonl(path, keys=(key,))] if path.exists() else []
    return questions


def without_leaks(rows: list[dict], trained: list[str]) -> list[dict]:
    """The rows whose question no training question repeats or nearly repeats."""
    found, _ = grading.leaks(rows, trained) if rows else ([], "")
    leaking = {line.split(":", 1)[0] for line in found}
    return [r for r in rows if r["id"] not in leaking]


def with_dev(rows: list[dict]) -> list[dict]:
    """At least one dev paraphrase, if there are two: training chooses its checkpoint by them."""
    paraphrases = [r for r in rows if r["kind"] == "paraphrase"]
    if len(paraphrases) > 1 and not any(r["split"] == "dev" for r in paraphrases):
        paraphrases[0]["split"] = "dev"
    return rows


def refresh(project: Project) -> None:
    """Write eval.jsonl anew, from the accepted facts or, while there are none, from all drafts."""
    generated = golden.read_generated(project)
    if not generated:
        return
    if project.questions.exists() and not is_current(project.questions, MADE_BY):
        print(f"kept as it is: {shown(project.questions)} (not a draft of this step)")
        return
    accepted = [f for f in generated if f.status == "accepted"]
    used = accepted or [f for f in generated if f.status == "draft"]
    if not used:
        project.questions.unlink(missing_ok=True)
        return
    rows = [row for fact in used for row in rows_of(fact)]
    kept = with_dev(without_leaks(rows, trained_questions(project, used)))
    write_jsonl(project.questions, kept)
    mark_current(project.questions, MADE_BY)
    print(
        f"wrote {shown(project.questions)}: {len(kept)} held-out questions of {len(used)} facts "
        f"({len(rows) - len(kept)} left out: too close to a training question)"
    )
