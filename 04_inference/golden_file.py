"""Golden data as a person edits it: facts.jsonl and generated.jsonl as a table, checked and saved.

Reads:   data/<document>/facts.jsonl, generated.jsonl, eval.jsonl; data/general/probes.jsonl
Writes:  the same facts.jsonl or generated.jsonl, the version before it as <name>.bak
Command: none of its own; the views use it

Schema of both: injection/golden.py. Keys that the table does not show stay as they are.
"""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from injection import golden, grading
from injection.files import (
    InputError,
    read_jsonl,
    sha256,
    shown,
    write_bytes,
    write_jsonl,
)
from injection.golden import Fact, GeneratedFact

STATUSES = ("draft", "accepted", "rejected")
COLUMNS = ("id", "page", "question", "answer", "sentence", "aliases", "wordings")
SEPARATOR = " | "
# Keys of a fact as the table calls them.
NAMES = {"statements": "sentence", "questions": "question"}


@dataclass
class GoldenFile:
    """A file as it was when it was read."""

    path: Path
    rows: list[dict]
    sha256: str


@dataclass
class Editing:
    """A file that somebody is editing. `base` is what the table on the page began with, `lists`
    what was changed in the text areas beside it, `rows` what a save would write. Every table that
    begins anew has another `version`."""

    golden: GoldenFile
    base: list[dict]
    rows: list[dict]
    lists: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    version: int = 0

    @property
    def outdated(self) -> bool:
        """True when the file is another one by now and nothing would be lost by reading it."""
        file = self.golden
        return self.rows == file.rows and file.sha256 != _digest(file.path)

    def update(self, edited: pd.DataFrame) -> None:
        """Take over the table as the user left it."""
        before = {row["id"]: row for row in self.base}
        self.rows = []
        for row in merged(self.base, edited):
            for name, lines in self.lists.get(row["id"], {}).items():
                first = row[name][:1]
                # The table shows the first line, so it may have been changed there as well.
                in_table = first != before.get(row["id"], {}).get(name, first)[:1]
                row = {**row, name: first + lines[1:] if in_table else lines}
            self.rows.append(row)

    def decide(self, fact: str, status: str) -> None:
        """Accept or reject a generated fact; a new table begins with it."""
        self.rows = [{**r, "status": status} if r["id"] == fact else r for r in self.rows]
        self.base, self.version = self.rows, self.version + 1

    def next_draft(self, fact: str) -> str:
        """The first draft behind a fact, or else the first one, or else the fact itself."""
        ids = [row["id"] for row in self.rows]
        at = ids.index(fact)
        drafts = [r["id"] for r in self.rows[at:] + self.rows[:at] if r["status"] == "draft"]
        return next(iter(drafts), fact)


def edit(path: Path) -> Editing:
    golden = read(path)
    return Editing(golden, golden.rows, golden.rows)


def read(path: Path) -> GoldenFile:
    digest = _digest(path)
    return GoldenFile(path, read_jsonl(path, keys=("id",)), digest)


def _digest(path: Path) -> str:
    return sha256(path) if path.exists() else ""


def save(golden: GoldenFile, rows: list[dict]) -> GoldenFile:
    """Write rows in the place of the file and keep what was there as a backup.

    Raises InputError when a row is no valid fact or somebody else changed the file meanwhile.
    """
    check(rows)
    path = golden.path
    if _digest(path) != golden.sha256:
        raise InputError(f"{shown(path)} was changed by somebody else meanwhile: read it again")
    if path.exists():
        write_bytes(path.with_name(f"{path.name}.bak"), path.read_bytes())
    write_jsonl(path, rows)
    return read(path)


def check(rows: list[dict]) -> None:
    """InputError for the first row that is incomplete or has another row's id."""
    seen = set()
    for row in rows:
        if row["id"] in seen:
            raise InputError(f"{row['id']} occurs twice: give one of them another id")
        seen.add(row["id"])
        try:
            (GeneratedFact if "status" in row else Fact).model_validate(row)
        except ValidationError as error:
            wrong = str(error.errors()[0]["loc"][0])
            name = NAMES.get(wrong, wrong)
            raise InputError(f"{row['id']}: the {name} is missing or wrong") from None


def doubt(row: dict) -> str:
    """What a person should look at twice before accepting a generated fact; empty for nothing."""
    try:
        check([row])
    except InputError as error:
        return str(error)
    return golden.doubt(GeneratedFact.model_validate(row))


def table(rows: list[dict]) -> pd.DataFrame:
    """One line a fact: the first of its questions and statements, and how many wordings it has."""
    lines = []
    for row in rows:
        questions, statements = row.get("questions") or [""], row.get("statements") or [""]
        line = {
            "id": row["id"],
            "page": row.get("page"),
            "question": questions[0],
            "answer": row.get("answer", ""),
            "sentence": statements[0],
            "aliases": SEPARATOR.join(row.get("aliases", [])),
            "wordings": len(questions),
        }
        lines.append(({"status": row["status"]} if "status" in row else {}) | line)
    names = (["status"] if any("status" in r for r in rows) else []) + list(COLUMNS)
    frame = pd.DataFrame(lines, columns=names)
    frame["page"] = frame["page"].astype("Int64")
    return frame


def merged(rows: list[dict], edited: pd.DataFrame) -> list[dict]:
    """The rows with what was changed, added and removed in the table of them."""
    by_id = {row["id"]: row for row in rows}
    lines = edited.astype(object).where(edited.notna(), None).to_dict("records")
    result = []
    for line in lines:
        row = by_id.get(line["id"])
        if row is None:
            row = {"id": next_id([*rows, *result]), "page": None, "answer": "", "aliases": []}
            row |= {"must_not": [], "statements": [], "questions": [], "reverse": []}
            row |= {"status": "draft"} if "status" in line else {}
        result.append(_with_line(row, line))
    return result


def _with_line(row: dict, line: dict) -> dict:
    before = table([row]).astype(object).where(lambda f: f.notna(), None).to_dict("records")[0]
    row = copy.deepcopy(row)
    for name, value in line.items():
        value = value or "" if name in ("question", "answer", "sentence", "aliases") else value
        if value == before.get(name) or name in ("id", "wordings"):
            continue
        if name in ("question", "sentence"):
            key = "questions" if name == "question" else "statements"
            row[key] = [value.strip(), *row.get(key, [])[1:]]
        elif name == "aliases":
            row["aliases"] = lines_of(value.replace(SEPARATOR.strip(), "\n"))
        elif name == "page":
            row["page"] = None if value is None else int(value)
        else:
            row[name] = value
    return row


def lines_of(text: str) -> list[str]:
    """The lines of a text area, without empty ones and without repeats."""
    return list(dict.fromkeys(line.strip() for line in text.split("\n") if line.strip()))


def next_id(rows: list[dict]) -> str:
    numbers = [int(m[1]) for r in rows if (m := re.fullmatch(r"F(\d+)", r["id"]))]
    return f"F{max(numbers, default=0) + 1:03d}"


def asked(row: dict) -> list[str]:
    """Every question that a row makes the model train on."""
    return [*row.get("questions", []), *(pair["question"] for pair in row.get("reverse", []))]


def leaks(folder: Path, questions: list[str]) -> list[str]:
    """Which of the questions are, or nearly are, held-out ones of the document in folder."""
    files = [folder / "eval.jsonl", folder.parent / "general" / "probes.jsonl"]
    held_out = [row for file in files if file.exists() for row in grading.read_questions(file)]
    return grading.leaks(held_out, questions)[0] if held_out and questions else []


def new_questions(before: list[dict], after: list[dict]) -> list[str]:
    """What is asked now and was not before: only that can be a new leak."""
    known = {q for row in before for q in asked(row) if _trained(row)}
    return [q for row in after for q in asked(row) if _trained(row) and q not in known]


def _trained(row: dict) -> bool:
    return row.get("status", "accepted") == "accepted"


def add_question(
    golden: GoldenFile, question: str, fact_id: str, answer: str = "", sentence: str = ""
) -> GoldenFile:
    """Save a question as another wording of a fact, or as a fact of its own without an id."""
    question = question.strip()
    if not question:
        raise InputError("the question is empty")
    if found := leaks(golden.path.parent, [question]):
        raise InputError(f"too close to the held-out question {found[0]}: reword it")
    rows = copy.deepcopy(golden.rows)
    if fact_id:
        row = next(r for r in rows if r["id"] == fact_id)
        row["questions"] = list(dict.fromkeys([*row["questions"], question]))
    else:
        fact = {"id": next_id(rows), "page": None, "answer": answer.strip(), "aliases": []}
        fact |= {"must_not": [], "statements": lines_of(sentence), "questions": [question]}
        rows.append(fact | {"reverse": []})
    return save(golden, rows)
