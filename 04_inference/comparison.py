"""One question, or a set of them, put to several stages with the same settings.

Reads:   data/<document>/eval.jsonl, facts.jsonl, data/general/probes.jsonl
Command: none of its own; views/compare.py uses it
"""

import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine import Answer, Engine, Request
from text import escape

from injection import golden, grading
from injection.profiles import Project


@dataclass(frozen=True)
class Column:
    """One side of the comparison: the base model, or it with an adapter."""

    label: str
    adapter: Path | None


@dataclass
class Comparison:
    """answers[row][column]; order is how the columns stand on the page; votes[row] is a column.

    Rows have the schema of eval.jsonl, "expected", a sentence for people, and "refusal", how the
    document says "I don't know".
    """

    columns: list[Column]
    rows: list[dict]
    answers: list[list[Answer]]
    order: list[int]
    blind: bool = False
    votes: dict[int, int | None] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return all(a.finished for row in self.answers for a in row)

    @property
    def done(self) -> int:
        return sum(a.finished for row in self.answers for a in row)

    def cancel(self) -> None:
        for row in self.answers:
            for answer in row:
                if not answer.finished:
                    answer.cancel()

    @property
    def hidden(self) -> bool:
        """Whether the names of the columns, the same in every row, are still a secret."""
        return self.blind and len(self.votes) < len(self.rows)

    def reveal(self) -> None:
        self.blind = False

    def name(self, column: int) -> str:
        if self.hidden:
            return "ABCDEFGH"[self.order.index(column)]
        return self.columns[column].label

    def vote(self, row: int) -> str:
        """What was voted for, as the page calls it; empty before the vote."""
        if row not in self.votes:
            return ""
        return "a tie" if self.votes[row] is None else self.name(self.votes[row])


def start(
    engine: Engine, columns: list[Column], rows: list[dict], request: Request, blind: bool = False
) -> Comparison:
    """Queue every question for every column. Column by column, so that an adapter is swapped once.

    A set waits behind whatever else is asked; a single question does not.
    """
    request = replace(request.seeded(), view="compare")
    order = random.sample(range(len(columns)), len(columns)) if blind else list(range(len(columns)))
    by_column: dict[int, list[Answer]] = {}
    # In the order shown: that the base model always answers first would tell which one it is.
    for i in order:
        asked = replace(request, adapter=columns[i].adapter, label=columns[i].label)
        by_column[i] = [
            engine.submit(replace(asked, question=row["question"]), later=len(rows) > 1)
            for row in rows
        ]
    answers = [[by_column[i][row] for i in range(len(columns))] for row in range(len(rows))]
    return Comparison(columns, rows, answers, order, blind)


def verdict(row: dict, answer: Answer) -> tuple[bool, str] | None:
    """(passed, why) of a finished answer; None where nothing is known about the right one."""
    known = row.get("must_include") or row.get("must_not_include") or row.get("expect") == "refusal"
    if answer.state != "done" or not known:
        return None
    return grading.grade(row, answer.text, row["refusal"])


def passed(comparison: Comparison, column: int) -> tuple[int, int]:
    """(passed, graded) answers of a column."""
    found = [
        verdict(row, answers[column])
        for row, answers in zip(comparison.rows, comparison.answers, strict=True)
    ]
    graded = [v for v in found if v]
    return sum(ok for ok, _ in graded), len(graded)


def held_out(project: Project, kinds: list[str], number: int, seed: int = 0) -> list[dict]:
    """A sample of the test questions of these kinds, each with what is expected."""
    rows = [r for r in known_questions(project) if r["kind"] in kinds and r["split"] == "test"]
    return random.Random(seed).sample(rows, min(number, len(rows)))


def key_questions(project: Project) -> list[dict]:
    return [
        {"id": key.column, "kind": "key", **key.model_dump(exclude={"column"})}
        | {"expected": _any_of(key.must_include), "refusal": project.document.refusal}
        for key in project.document.key_questions
    ]


def typed(project: Project, lines: list[str]) -> list[dict]:
    """Rows of questions that somebody typed; those of the golden or held-out data are graded."""
    known = {grading.normalise(row["question"]): row for row in _from_facts(project)}
    rubrics = [*known_questions(project), *key_questions(project)]
    known |= {grading.normalise(row["question"]): row for row in rubrics}
    plain = {"kind": "", "refusal": project.document.refusal}
    return [
        {"id": str(i), **plain, **known.get(grading.normalise(line), {}), "question": line}
        for i, line in enumerate(lines, 1)
    ]


def known_questions(project: Project) -> list[dict]:
    """Every held-out question and general probe there is, with "expected" and "refusal"."""
    files = [project.questions, project.general / "probes.jsonl"]
    rows = [row for file in files if file.exists() for row in grading.read_questions(file)]
    sentences = {f.id: f.statements[0] for f in _facts(project)}
    for row in rows:
        row["refusal"] = project.document.refusal
        if row["expect"] == "refusal":
            row["expected"] = project.document.refusal
        elif row["kind"] == "spillover":
            row["expected"] = "Anything but words of the document."
        else:
            row["expected"] = sentences.get(row["fact_id"]) or _any_of(row["must_include"])
    return rows


def _facts(project: Project) -> list[golden.Fact]:
    # A new document has none before its drafts are reviewed, and can be asked about all the same.
    return golden.read_facts(project, may_be_empty=True)


def _from_facts(project: Project) -> list[dict]:
    """The training questions, graded by the fact's own answer."""
    return [
        {
            "fact_id": fact.id,
            "question": question,
            "must_include": [[fact.answer, *fact.aliases]],
            "must_not_include": fact.must_not,
            "expected": fact.statements[0],
        }
        for fact in _facts(project)
        for question in fact.questions
    ]


def _any_of(groups: list[list[str]]) -> str:
    return ", and ".join(" or ".join(group) for group in groups)


def as_jsonl(comparison: Comparison) -> str:
    lines = []
    for row, answers in zip(comparison.rows, comparison.answers, strict=True):
        for column, answer in zip(comparison.columns, answers, strict=True):
            found, request = verdict(row, answer), answer.request
            line = {
                "id": row["id"],
                "question": row["question"],
                "expected": row.get("expected"),
                "column": column.label,
                "adapter": column.adapter.name if column.adapter else None,
                "answer": answer.text,
                "state": answer.state,
                "passed": found[0] if found else None,
                "why": found[1] if found else None,
                "seed": request.seed,
                "temperature": request.temperature,
                "top_p": request.top_p,
                **(vars(answer.stats) if answer.stats else {}),
            }
            lines.append(json.dumps(line, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def as_markdown(comparison: Comparison) -> str:
    """One table a question. What a model said is escaped: nothing of it is Markdown any more."""
    pieces = []
    for row, answers in zip(comparison.rows, comparison.answers, strict=True):
        lines = [f"## {_cell(row['question'])}", ""]
        if row.get("expected"):
            lines += [f"Expected: {_cell(row['expected'])}", ""]
        lines += ["| stage | verdict | answer |", "|---|---|---|"]
        for column, answer in zip(comparison.columns, answers, strict=True):
            found = verdict(row, answer)
            mark = "" if found is None else "pass" if found[0] else f"miss: {_cell(found[1])}"
            lines.append(f"| {_cell(column.label)} | {mark} | {_cell(answer.text)} |")
        pieces.append("\n".join(lines))
    return "\n\n".join(pieces) + "\n"


def _cell(text: str) -> str:
    return escape(" ".join(text.split())).replace("\u2060", "")
