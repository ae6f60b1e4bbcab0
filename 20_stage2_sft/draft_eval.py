"""A draft of eval.jsonl, and of the key questions of document.yaml, from the held-out wordings of
generated facts.

generate_qa.py writes them for all drafts, build_sft_data.py narrows them to the accepted facts. A
file that a person wrote or changed is never touched: only one that equals what was last written.
"""

from collections import Counter

import yaml
from qa_filters import bare

from injection import golden, grading
from injection.files import (
    is_current,
    mark_current,
    read_jsonl,
    read_text,
    read_yaml,
    shown,
    write_jsonl,
    write_text,
)
from injection.profiles import Project

MADE_BY = {"made_by": "draft_eval"}
NEW_DOCUMENT = {"made_by": "new_document"}


def rows_of(fact: golden.GeneratedFact, shared: set[str]) -> list[dict]:
    """The second wording of each kind is for choosing the checkpoint (dev), the others for test.

    shared: subjects of several facts. There a reverse answer has to name the value as well.
    """
    rows, seen = [], {"paraphrase": 0, "reverse": 0}
    subject, value = [bare(fact.subject)], [fact.answer, *fact.aliases]
    both = [subject, value] if grading.normalise(subject[0]) in shared else [subject]
    for item in fact.held_out:
        seen[item.kind] += 1
        rows.append(
            {
                "id": f"{fact.id}-{item.kind[0]}{seen[item.kind]}",
                "fact_id": fact.id,
                "kind": item.kind,
                "split": "dev" if seen[item.kind] == 2 else "test",
                "question": item.question,
                "must_include": both if item.kind == "reverse" else [value],
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
    subjects = Counter(grading.normalise(bare(fact.subject)) for fact in used)
    shared = {subject for subject, n in subjects.items() if n > 1}
    rows = [row for fact in used for row in rows_of(fact, shared)]
    kept = with_dev(without_leaks(rows, trained_questions(project, used)))
    write_jsonl(project.questions, kept)
    mark_current(project.questions, MADE_BY)
    refresh_key_questions(project, kept, {fact.id: fact.subject for fact in used})
    print(
        f"wrote {shown(project.questions)}: {len(kept)} held-out questions of {len(used)} facts "
        f"({len(rows) - len(kept)} left out: too close to a training question)"
    )


def refresh_key_questions(project: Project, rows: list[dict], subjects: dict[str, str]) -> None:
    """A held-out question of each of the first two facts, in document.yaml as it was drafted."""
    file = project.document_file
    asked = {r["fact_id"]: r for r in reversed(rows) if r["kind"] == "paraphrase"}
    first = [asked[fact] for fact in subjects if fact in asked][:2]
    if not first or not is_current(file, NEW_DOCUMENT):
        return
    kept = ("question", "must_include", "must_not_include")
    keys = [{"column": subjects[r["fact_id"]], **{k: r[k] for k in kept}} for r in first]
    comments = [line for line in read_text(file).splitlines(keepends=True) if line[0] == "#"]
    values = yaml.safe_dump(
        read_yaml(file) | {"key_questions": keys}, allow_unicode=True, sort_keys=False, width=100
    )
    write_text(file, "".join(comments) + values)
    mark_current(file, NEW_DOCUMENT)
