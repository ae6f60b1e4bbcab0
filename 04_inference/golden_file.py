"""Golden data as a person edits it: facts.jsonl and generated.jsonl as a table, checked and saved.

Reads:   data/<document>/facts.jsonl, generated.jsonl, eval.jsonl; data/general/probes.jsonl
Writes:  the same facts.jsonl or generated.jsonl, the version before it as <name>.bak
Command: none of its own; the views use it

Schema of both: injection/golden.py. Keys that the table does not show stay as they are.
"""

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import StrictInt, ValidationError

from injection import golden, grading
from injection.files import (
    InputError,
    read_jsonl,
    read_text,
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


class Row(Fact):
    """A fact that somebody is writing: what is there has the right type, but any of it may lack."""

    page: StrictInt | None = None
    answer: str = ""
    statements: list[str] = []
    questions: list[str] = []


@dataclass
class GoldenFile:
    """A file as it was when it was read."""

    path: Path
    rows: list[dict]
    sha256: str

    @property
    def generated(self) -> bool:
        """Whether its rows were drafted and have a status. An empty file must say so as well."""
        return self.path.name == "generated.jsonl"


@dataclass
class Editing:
    """A file that somebody is editing.

    `base` is what the table on the page began with, `in_table` what it says now. `lists` is what
    was typed in the text areas beside it, each with the first line that the table had then, and
    `rows` what a save would write. Every table that begins anew has another `version`: the page
    would give one of the same name its old edits again.
    """

    golden: GoldenFile
    base: list[dict]
    version: int = 0
    saved: bool = False

    def __post_init__(self):
        self.rows = self.in_table = self.base
        self.lists: dict[str, dict[str, tuple[list[str], list[str]]]] = {}

    @property
    def outdated(self) -> bool:
        """True when the file is another one by now and nothing would be lost by reading it."""
        file = self.golden
        return self.rows == file.rows and file.sha256 != _digest(file.path)

    def update(self, edited: pd.DataFrame) -> None:
        """Take over the table as the user left it."""
        self.in_table = merged(self.base, edited)
        self.rows = [self._with_lists(row) for row in self.in_table]

    def _with_lists(self, row: dict) -> dict:
        for name, (seen, lines) in self.lists.get(row["id"], {}).items():
            first = row.get(name, [])[:1]
            # The table shows the first line: where it was changed there since, that counts.
            row = {**row, name: lines if first == seen else first + lines[1:]}
        return row

    def first_line(self, fact: str, name: str) -> list[str]:
        """The first line of a list as the table has it."""
        return next((r.get(name, [])[:1] for r in self.in_table if r["id"] == fact), [])

    def set_list(self, fact: str, name: str, lines: list[str]) -> None:
        """Take over a text area as the user left it."""
        self.lists.setdefault(fact, {})[name] = (self.first_line(fact, name), lines)

    def begin_table(self) -> None:
        """A new table begins with all that was changed so far."""
        self.base = self.in_table = self.rows
        self.lists, self.version = {}, self.version + 1

    def decide(self, fact: str, status: str) -> None:
        """Accept or reject a generated fact."""
        self.rows = [{**r, "status": status} if r["id"] == fact else r for r in self.rows]
        self.begin_table()

    def next_draft(self, fact: str) -> str:
        """The first draft behind a fact, or else the first one, or else the fact itself."""
        ids = [row["id"] for row in self.rows]
        at = ids.index(fact)
        drafts = [r["id"] for r in self.rows[at:] + self.rows[:at] if r["status"] == "draft"]
        return next(iter(drafts), fact)


def edit(path: Path, version: int = 0) -> Editing:
    golden = read(path)
    return Editing(golden, golden.rows, version)


def read(path: Path) -> GoldenFile:
    """The file, its rows checked as far as the table needs it. Raises InputError."""
    digest = _digest(path)
    rows = read_jsonl(path, keys=("id",))
    numbers = [n for n, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    seen = set()
    for number, row in zip(numbers, rows, strict=True):
        try:
            Row.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{shown(path)} line {number}: {where}: {first['msg']}") from None
        # The table tells its rows apart by the id.
        if row["id"] in seen:
            raise InputError(f"{shown(path)} line {number}: the id {row['id']} occurs twice")
        seen.add(row["id"])
    return GoldenFile(path, rows, digest)


def _digest(path: Path) -> str:
    return sha256(path) if path.exists() else ""


def save(golden: GoldenFile, rows: list[dict]) -> GoldenFile:
    """Write rows in the place of the file and keep what was there as a backup.

    Raises InputError when a row is no valid fact or somebody else changed the file meanwhile.
    """
    check(rows, golden.generated)
    path = golden.path
    if _digest(path) != golden.sha256:
        raise InputError(f"{shown(path)} was changed by somebody else meanwhile: read it again")
    if path.exists():
        write_bytes(path.with_name(f"{path.name}.bak"), path.read_bytes())
    write_jsonl(path, rows)
    return read(path)


def check(rows: list[dict], generated: bool) -> None:
    """InputError for the first row that is incomplete or has another row's id."""
    seen = set()
    for row in rows:
        if row["id"] in seen:
            raise InputError(f"{row['id']} occurs twice: give one of them another id")
        seen.add(row["id"])
        try:
            (GeneratedFact if generated else Fact).model_validate(row)
        except ValidationError as error:
            wrong = str(error.errors()[0]["loc"][0])
            name = NAMES.get(wrong, wrong)
            raise InputError(f"{row['id']}: the {name} is missing or wrong") from None


def doubt(row: dict) -> str:
    """What a person should look at twice before accepting a generated fact; empty for nothing."""
    try:
        check([row], generated=True)
    except InputError as error:
        return str(error)
    return golden.doubt(GeneratedFact.model_validate(row))


def table(rows: list[dict], generated: bool = False) -> pd.DataFrame:
    """One line a fact: the first of its questions and statements, and how many wordings it has.

    Of generated ones the status too.
    """
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
        lines.append({"status": row.get("status"), **line})
    frame = pd.DataFrame(lines, columns=["status", *COLUMNS] if generated else list(COLUMNS))
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
        result.append(_with_line(row, line))
    return result


def _with_line(row: dict, line: dict) -> dict:
    frame = table([row], "status" in line).astype(object)
    before = frame.where(frame.notna(), None).to_dict("records")[0]
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
        row["questions"] = list(dict.fromkeys([*row.get("questions", []), question]))
    else:
        fact = {"id": next_id(rows), "page": None, "answer": answer.strip(), "aliases": []}
        fact |= {"must_not": [], "statements": lines_of(sentence), "questions": [question]}
        rows.append(fact | {"reverse": []})
    return save(golden, rows)
