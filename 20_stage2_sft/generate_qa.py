"""Let a teacher model draft facts, wordings and held-out questions from the document's chunks.

Per chunk the teacher is asked for atomic facts, then per fact for statements, questions and reverse
questions, then for held-out wordings. What it replies is kept per chunk, so that a killed run goes
on with the next one. Filters (qa_filters.py) then leave out what is not usable, and say why.
Nothing is trained on before a person has accepted it: review_facts.py.

Reads:   data/<document>/chunks.jsonl, teacher_prompts.yaml beside this script
Writes:  data/<document>/generated.jsonl (schema: injection/golden.py), generated_report.json,
         eval.jsonl when there is none but a draft, derived/teacher.jsonl (raw replies),
         derived/drafted.jsonl (generated.jsonl as last written here)
Command: python 20_stage2_sft/generate_qa.py --document NAME --teacher http://127.0.0.1:8080
         python 20_stage2_sft/generate_qa.py --document NAME            (the local base model)
"""

import argparse
import hashlib
import json
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from string import Template

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
import draft_eval
import qa_filters
import teachers

from injection import golden, grading
from injection.files import (
    InputError,
    read_jsonl,
    read_yaml,
    require,
    run,
    shown,
    write_json,
    write_jsonl,
)
from injection.profiles import Project, open_project, parser
from injection.progress import Progress

PROMPTS = Path(__file__).with_name("teacher_prompts.yaml")
COUNTS = ("facts", "questions", "statements", "reverse", "held_out")
EXAMPLES = 5


def chunk_key(args: argparse.Namespace, teacher, chunk: dict) -> str:
    """Identity of everything a chunk's replies depend on, but chance."""
    counts = [getattr(args, k) for k in COUNTS]
    parts = [teacher.name, PROMPTS.read_text(encoding="utf-8"), counts, chunk["text"]]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class Asker:
    """Fills in the prompts and asks; the document's text only ever stands between two fences."""

    def __init__(self, teacher, args: argparse.Namespace):
        self.teacher, self.prompts = teacher, read_yaml(PROMPTS)
        self.counts = {k: getattr(args, k) for k in COUNTS}
        self.fence = f"DATA-{secrets.token_hex(12)}"

    def ask(self, kind: str, texts: list[str], schema: type, **more) -> list:
        prompts = [self.messages(kind, text) for text in texts]
        return teachers.ask(self.teacher, prompts, schema, **more)

    def messages(self, kind: str, text: str) -> list[dict]:
        try:
            example = self.prompts[kind]["example"]
            form = Template(self.prompts[kind]["ask"])
            asked = [
                form.substitute(self.counts, fence=self.fence, data=data)
                for data in (example["data"], text)
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{shown(PROMPTS)}: {kind}: {error}") from None
        turns = [("user", asked[0]), ("assistant", example["reply"]), ("user", asked[1])]
        return [{"role": role, "content": content} for role, content in turns]


def draft_chunk(asker: Asker, source: qa_filters.Source, heading: str) -> dict:
    """What the teacher replies to one chunk: facts, and wordings of the usable ones."""

    def usable(reply: teachers.Facts) -> bool:
        return not reply.facts or any(not qa_filters.wrong_fact(f, source) for f in reply.facts)

    text = f"{heading}\n\n{source.chunk}"
    (found,) = asker.ask("facts", [text], teachers.Facts, usable=usable)
    drafted = found.facts[: asker.counts["facts"]] if found else []
    good = [f for f in drafted if not qa_filters.wrong_fact(f, source)]
    lines = [f"subject: {f.subject}\nanswer: {f.answer}\nfact: {f.statement}" for f in good]
    worded = asker.ask("wordings", lines, teachers.Wordings)
    practised = [
        "\n".join([line, "practised:", f.question, *(w.questions if w else [])])
        for line, f, w in zip(lines, good, worded, strict=True)
    ]
    examined = asker.ask("held_out", practised, teachers.HeldOut)
    rest = [f for f in drafted if f not in good]
    replies = [found, *worded, *examined]
    return {
        "facts": [
            {"fact": f.model_dump(), "wordings": dumped(w), "held_out": dumped(h)}
            for f, w, h in zip(good, worded, examined, strict=True)
        ]
        + [{"fact": f.model_dump(), "wordings": {}, "held_out": {}} for f in rest],
        "asked": len(replies),
        "unreadable": sum(r is None for r in replies),
    }


def dumped(reply) -> dict:
    return reply.model_dump() if reply else {}


def draft_all(project: Project, args, teacher, chunks: list[dict], sources: dict) -> list[dict]:
    """The replies of all chunks, in their order; finished chunks are not asked again."""
    journal = project.folder / "derived" / "teacher.jsonl"
    known = {e["key"]: e for e in read_jsonl(journal, keys=("key",))} if journal.exists() else {}
    if known and not any(chunk_key(args, teacher, c) in known for c in chunks):
        print(f"{shown(journal)} has another teacher's replies, or to other prompts: asks anew")
    asker, entries = Asker(teacher, args), []
    bar = Progress("chunks", len(chunks))
    for number, chunk in enumerate(chunks, 1):
        key = chunk_key(args, teacher, chunk)
        if key not in known:
            heading = f"document: {project.document.title}\nsection: {chunk['section']}"
            heading, _ = qa_filters.split_instructions(heading)
            started, before = time.monotonic(), teacher.tokens.copy()
            entry = draft_chunk(asker, sources[chunk["id"]], heading)
            known[key] = {"key": key, "chunk": chunk["id"], **entry}
            known[key]["tokens"] = {k: n - before[k] for k, n in teacher.tokens.items()}
            known[key]["seconds"] = round(time.monotonic() - started, 1)
            write_jsonl(journal, known.values())
            facts = sum(len(e["facts"]) for e in [*entries, entry])
            bar.update(number, f"{facts} facts, {teacher.tokens['written']} tokens written")
        entries.append(known[key])
    return entries


class Sieve:
    """Counts what is left out, with examples, while rows pass through the filters."""

    def __init__(self):
        self.counts: Counter = Counter()
        self.examples: dict[str, list[dict]] = {}

    def drop(self, reason: str, text: str, chunk: str) -> None:
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            examples.append({"text": text, "chunk": chunk})

    def keep(self, texts: list[str], check, fact, source, seen, chunk: str) -> list[str]:
        """The texts that `check` has no reason against and that copy nothing seen."""
        kept = []
        for text in map(str.strip, texts):
            reason = check(text, fact, source) or ("duplicates" if seen.has(text) else None)
            if reason:
                self.drop(reason, text, chunk)
            else:
                kept.append(text)
                seen.add(text)
        return kept


def fact_id(chunk: dict, fact: dict) -> str:
    """The same draft has the same id in every run, so decisions of a review stay with it."""
    text = grading.normalise(f"{chunk['id']} {fact['subject']} {fact['answer']} {fact['quote']}")
    return "G" + hashlib.sha256(text.encode()).hexdigest()[:8]


def make_row(draft: dict, chunk: dict, source, sieve: Sieve, asked: qa_filters.Seen) -> dict:
    """A row of generated.jsonl; `asked` holds the questions of the document so far."""
    fact, at = teachers.Fact.model_validate(draft["fact"]), chunk["id"]
    asked.add(fact.question)

    def keep(part: str, kind: str, check, seen=asked) -> list[str]:
        return sieve.keep(draft[part].get(kind, []), check, fact, source, seen, at)

    told = qa_filters.Seen([fact.statement])
    statements = keep("wordings", "statements", qa_filters.wrong_statement, told)
    questions = keep("wordings", "questions", qa_filters.wrong_question)
    reverse = keep("wordings", "reverse", qa_filters.wrong_reverse)
    forward_held = keep("held_out", "questions", qa_filters.wrong_question)
    reverse_held = keep("held_out", "reverse", qa_filters.wrong_reverse)
    return {
        "id": fact_id(chunk, draft["fact"]),
        "page": chunk["pages"][0] if chunk["pages"] else None,
        "answer": fact.answer,
        "aliases": [],
        "must_not": [],
        "statements": [fact.statement, *statements],
        "questions": [fact.question, *questions],
        "reverse": [{"question": q, "answer": ""} for q in reverse],
        "subject": fact.subject,
        "quote": fact.quote,
        "chunk": at,
        "held_out": [{"kind": "paraphrase", "question": q} for q in forward_held]
        + [{"kind": "reverse", "question": q} for q in reverse_held],
        "status": "draft",
    }


def drafted(project: Project) -> Path:
    """The rows as this script last wrote them: what differs in generated.jsonl, a person did."""
    return project.folder / "derived" / "drafted.jsonl"


def touched_rows(project: Project) -> dict[str, dict]:
    """{id: row} of what a person has decided on or edited."""
    file = drafted(project)
    before = {r["id"]: r for r in read_jsonl(file, keys=("id",))} if file.exists() else {}
    found = {f.id: f.model_dump() for f in golden.read_generated(project)}
    return {i: r for i, r in found.items() if r["status"] != "draft" or r != before.get(i, r)}


def make_rows(project: Project, entries: list[dict], chunks: list[dict], sources: dict) -> tuple:
    """(rows, sieve). Rows that a person has touched stay as they are; no id comes twice."""
    touched = touched_rows(project)
    known, sieve, rows = golden.read_facts(project, may_be_empty=True), Sieve(), {}
    told = [(grading.normalise(f.answer), f.statements[0]) for f in known]
    asked = qa_filters.Seen(
        q for f in known for q in [*f.questions, *(r.question for r in f.reverse)]
    )
    for entry, chunk in zip(entries, chunks, strict=True):
        for draft in entry["facts"]:
            number, source = fact_id(chunk, draft["fact"]), sources[chunk["id"]]
            if number in touched and number not in rows:
                rows[number] = touched[number]
                continue
            fact = teachers.Fact.model_validate(draft["fact"])
            answer = grading.normalise(fact.answer)
            same = qa_filters.Seen(s for a, s in told if a == answer)
            copied = number in rows or same.has(fact.statement) or asked.has(fact.question)
            if reason := qa_filters.wrong_fact(fact, source) or ("duplicates" if copied else None):
                sieve.drop(reason, fact.statement, chunk["id"])
                continue
            told.append((answer, fact.statement))
            rows[number] = make_row(draft, chunk, source, sieve, asked)
    left = [row for number, row in touched.items() if number not in rows]
    return [*left, *rows.values()], sieve


def report(project: Project, teacher, entries, rows, sieve: Sieve, suspicious: list) -> dict:
    rows = [r for r in rows if r["status"] != "rejected"]
    return {
        "document": project.document_name,
        "teacher": teacher.name,
        "chunks": len(entries),
        "replies": {k: sum(e[k] for e in entries) for k in ("asked", "unreadable")},
        "tokens": {k: sum(e["tokens"][k] for e in entries) for k in ("read", "written")},
        "seconds": round(sum(e["seconds"] for e in entries), 1),
        "kept": {"facts": len(rows)}
        | {k: sum(len(r[k]) for r in rows) for k in ("statements", "questions", "reverse")}
        | {"held_out": sum(len(r["held_out"]) for r in rows)},
        "left_out": {
            reason: {"count": n, "examples": sieve.examples[reason]}
            for reason, n in sieve.counts.most_common()
        },
        "text_that_addresses_a_model": suspicious,
    }


def summary(found: dict) -> str:
    kept, tokens, replies = found["kept"], found["tokens"], found["replies"]
    lines = [
        f"{found['chunks']} chunks, {replies['asked']} requests ({replies['unreadable']} without a "
        f"usable reply), {tokens['read']} tokens read, {tokens['written']} written, "
        f"{found['seconds']:.0f} seconds",
        f"kept {kept['facts']} facts: {kept['statements']} statements, {kept['questions']} "
        f"questions, {kept['reverse']} reverse, {kept['held_out']} held out",
    ]
    for reason, left in found["left_out"].items():
        example = qa_filters.plain(left["examples"][0]["text"])
        lines.append(f"left out {left['count']:4d}  {reason}: {example}")
    for item in found["text_that_addresses_a_model"]:
        lines.append(
            f"{item['chunk']} speaks to a language model: {qa_filters.plain(item['text'])}"
        )
    return "\n".join(lines)


def make_sources(project: Project, chunks: list[dict]) -> tuple[dict, list[dict]]:
    """({chunk id: what its rows may rest on}, sentences that speak to a language model)."""
    document = "\n".join([project.document.title, *(c["text"] for c in chunks)])
    sources, suspicious = {}, []
    for chunk in chunks:
        clean, left_out = qa_filters.split_instructions(chunk["text"])
        sources[chunk["id"]] = qa_filters.Source(clean, document)
        place = {"chunk": chunk["id"], "pages": chunk["pages"]}
        suspicious += [{**place, "text": text} for text in left_out]
    return sources, suspicious


def make_teacher(project: Project, args):
    if args.teacher == "local":
        require(project.base / "config.json", "run 03_quantization/quantize.py first")
        return teachers.Local(project, args.max_tokens)
    return teachers.Server(args.teacher, args.model, args.max_tokens, args.parallel)


def arguments() -> argparse.Namespace:
    args = parser(__doc__)
    args.add_argument(
        "--teacher", default="local", help="local, or the URL of a server (default: local)"
    )
    args.add_argument("--model", help="the server's model (default: the first it lists)")
    args.add_argument("--facts", type=int, default=8, help="at most, per chunk (default: 8)")
    for name, n in (("questions", 24), ("statements", 9), ("reverse", 6), ("held-out", 4)):
        args.add_argument(f"--{name}", type=int, default=n, help=f"per fact (default: {n})")
    args.add_argument("--max-tokens", type=int, default=2000, help="of a reply (default: 2000)")
    args.add_argument("--parallel", type=int, default=4, help="requests at a time (default: 4)")
    args = args.parse_args()
    for name in ("facts", "questions", "statements", "max_tokens", "parallel"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more")
    return args


def main() -> None:
    args = arguments()
    project = open_project(args)
    require(project.chunks, "run 10_stage1_cpt/chunk_pdf.py first")
    chunks = read_jsonl(project.chunks, keys=("id", "text", "pages", "section"))
    golden.read_generated(project)  # a broken file is said before the work, not after it
    sources, suspicious = make_sources(project, chunks)
    teacher = make_teacher(project, args)
    print(teacher.notice, flush=True)
    entries = draft_all(project, args, teacher, chunks, sources)
    rows, sieve = make_rows(project, entries, chunks, sources)
    found = report(project, teacher, entries, rows, sieve, suspicious)
    write_jsonl(project.generated, rows)
    write_jsonl(drafted(project), rows)
    write_json(project.folder / "generated_report.json", found)
    print(summary(found))
    draft_eval.refresh(project)
    drafts = sum(r["status"] == "draft" for r in rows)
    print(f"wrote {shown(project.generated)}: {len(rows)} facts, {drafts} to review")
    if drafts:
        print(f"next: python 20_stage2_sft/review_facts.py --document {project.document_name}")


if __name__ == "__main__":
    run(main)
