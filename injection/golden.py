"""Golden data: the facts of a document, and the training rows that stages 1 and 2 make of them.

Schema of facts.jsonl: {"id", "page", "answer", "aliases", "must_not", "statements", "questions",
"reverse": [{"question", "answer"}]}. statements[0] is canonical: it is what the model learns to
reply, in both directions; a reverse answer of its own is optional. The last statement is held out
of training, unless it is the only one; CPT validates on it.

Schema of generated.jsonl, what a teacher model drafted: the same, and "subject" (what the fact is
about), "quote" (the sentence of the document it rests on), "chunk" (its id in chunks.jsonl),
"held_out": [{"kind", "question"}] (wordings for eval.jsonl), "status". Only accepted rows count.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from injection.files import (
    InputError,
    read_jsonl,
    refuse_repeated,
    shown,
    write_bytes,
    write_jsonl,
)
from injection.grading import contains
from injection.profiles import Project


class Reverse(BaseModel):
    model_config = ConfigDict(extra="forbid")
    question: str
    answer: str = ""


class Fact(BaseModel):
    model_config = ConfigDict(extra="ignore")  # a row of generated.jsonl may be moved here
    id: str
    page: int | None = None
    answer: str = Field(min_length=1)
    aliases: list[str] = []
    must_not: list[str] = []
    statements: list[str] = Field(min_length=1)
    questions: list[str] = Field(min_length=1)
    reverse: list[Reverse] = []


class HeldOut(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["paraphrase", "reverse"]
    question: str


class GeneratedFact(Fact):
    model_config = ConfigDict(extra="forbid")
    subject: str = Field(min_length=1)
    quote: str = Field(min_length=1)
    chunk: str
    held_out: list[HeldOut] = []
    status: Literal["draft", "accepted", "rejected"]


def read_facts(project: Project, may_be_empty: bool = False) -> list[Fact]:
    """The hand-made facts, and the accepted ones among the generated (GeneratedFact)."""
    facts = read_hand_made(project)
    facts += [f for f in read_generated(project) if f.status == "accepted"]
    if not facts and not may_be_empty:
        raise InputError(
            f"no facts: write {shown(project.facts)}, or draft some with generate_qa.py and accept "
            "them with review_facts.py (20_stage2_sft)"
        )
    return facts


def read_hand_made(project: Project) -> list[Fact]:
    return _read(project.facts, Fact) if project.facts.exists() else []


def read_generated(project: Project) -> list[GeneratedFact]:
    return _read(project.generated, GeneratedFact) if project.generated.exists() else []


def update_generated(project: Project, changes: dict[str, GeneratedFact]) -> None:
    """Replace the rows with these ids; the file as it was stays beside it as generated.jsonl.bak.

    The file is read anew, so that what another process has written meanwhile is kept.
    """
    rows = [changes.get(fact.id, fact) for fact in read_generated(project)]
    write_bytes(project.generated.with_name("generated.jsonl.bak"), project.generated.read_bytes())
    write_jsonl(project.generated, [fact.model_dump() for fact in rows])


def doubt(fact: GeneratedFact) -> str:
    """What a person should look at twice before accepting."""
    if not contains(fact.statements[0], fact.answer):
        return "the first statement, which the model learns to reply, lacks the answer"
    if not contains(fact.quote, fact.answer):
        return "the quoted sentence does not have the answer in these words"
    return ""


def _read(path: Path, kind: type[Fact]) -> list:
    facts = []
    for number, row in enumerate(read_jsonl(path), 1):
        try:
            facts.append(kind.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{shown(path)} line {number}: {where}: {first['msg']}") from None
    refuse_repeated(path, (fact.id for fact in facts))
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
