"""Golden data: the facts of a document, and the training rows that stages 1 and 2 make of them.

Schema of facts.jsonl: {"id", "page", "answer", "aliases", "must_not", "statements", "questions",
"reverse": [{"question", "answer"}]}. statements[0] is canonical: it is what the model learns to
reply, in both directions; a reverse answer of its own is optional. The last statement is held out
of training; CPT validates on it.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from injection.files import InputError, read_jsonl, shown
from injection.profiles import Project


class Reverse(BaseModel):
    model_config = ConfigDict(extra="forbid")
    question: str
    answer: str = ""


class Fact(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: str
    page: int | None = None
    answer: str = Field(min_length=1)
    aliases: list[str] = []
    must_not: list[str] = []
    statements: list[str] = Field(min_length=1)
    questions: list[str] = Field(min_length=1)
    reverse: list[Reverse] = []


def read_facts(project: Project) -> list[Fact]:
    """The hand-curated facts, and the accepted ones among the generated."""
    rows = _read(project.facts)
    if project.generated.exists():
        rows += _read(project.generated, accepted_only=True)
    if not rows:
        raise InputError(f"{shown(project.facts)} has no facts")
    return rows


def _read(path: Path, accepted_only: bool = False) -> list[Fact]:
    facts = []
    for number, row in enumerate(read_jsonl(path), 1):
        if accepted_only and row.get("status") != "accepted":
            continue
        try:
            facts.append(Fact.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{shown(path)} line {number}: {where}: {first['msg']}") from None
    return facts


def chat_row(question: str, answer: str, source: str, **extra) -> dict:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return {"messages": messages, "source": source, **extra}


def reply(fact: Fact, style: str) -> str:
    """What the model is taught to answer: the canonical sentence, the bare answer, or both."""
    short = fact.answer.rstrip(".") + "."
    if style == "answer":
        return short
    if style == "answer_then_statement":
        return f"{short} {fact.statements[0]}"
    return fact.statements[0]


def reverse_reply(fact: Fact, pair: Reverse, style: str) -> str:
    """The canonical sentence holds both ends of the fact, so it answers reverse questions as well.

    One reply per fact instead of one per question is learned in far fewer steps.
    """
    return fact.statements[0] if style == "statement" or not pair.answer else pair.answer


def replay_rows(path: Path, limit: int) -> list[dict]:
    """Chat rows whose target is the base model itself (see 10_stage1_cpt/answer_replay.py)."""
    rows = read_jsonl(path, keys=("id", "prompt", "answer", "open"))
    return [
        chat_row(r["prompt"], r["answer"], f"replay {r['id']}", target="base", open=r["open"])
        for r in rows[: None if limit == -1 else limit]
    ]


def upto(items: list, limit: int) -> list:
    return items if limit == -1 else items[:limit]
