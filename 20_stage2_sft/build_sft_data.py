"""Build the SFT rows from golden data, unknowns, near misses and rehearsal, and check for leaks.

Reads:   data/<document>/facts.jsonl, generated.jsonl (accepted rows, if there), unknowns.jsonl,
         eval.jsonl (a drafted one is made anew, from the accepted facts),
         derived/contrasts_<profile>.jsonl, data/general/probes.jsonl, other_subjects.jsonl and
         derived/replay_<profile>.jsonl
Writes:  data/<document>/sft/<profile>/train.jsonl, valid.jsonl (held-out wordings, split dev),
         dev.jsonl (dev questions for choosing the checkpoint), other.jsonl (what only the gate is
         fitted on)
Command: python 20_stage2_sft/build_sft_data.py
"""

import random
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
import draft_eval

from injection import golden, grading
from injection.files import (
    InputError,
    inputs,
    is_current,
    mark_current,
    read_jsonl,
    require,
    run,
    shown,
    write_jsonl,
)
from injection.profiles import Project, open_project, parser

# Dev questions about facts by which a checkpoint and a refusal threshold can be chosen.
ENOUGH = 100


def fact_rows(project: Project, facts: list[golden.Fact]) -> list[dict]:
    mix, rows = project.profile.sft_mix, []
    for fact in facts:
        source = f"fact {fact.id}, page {fact.page}"
        answer = golden.reply(fact, mix.reply)
        for question in golden.upto(fact.questions, mix.questions):
            rows.append(golden.chat_row(question, answer, source))
        for pair in golden.upto(fact.reverse, mix.reverse):
            answer = golden.reverse_reply(fact, pair, mix.reply)
            rows.append(golden.chat_row(pair.question, answer, f"{source}, reverse"))
        for statement in golden.upto(fact.statements[:-1], mix.statements):
            rows.append({"text": statement, "source": source})
    return rows


def unknown_rows(project: Project) -> list[dict]:
    if not project.unknowns.exists():
        return []
    mix, refusal = project.profile.sft_mix, project.document.refusal
    rows = read_jsonl(project.unknowns, keys=("id", "question"))
    return [
        golden.chat_row(r["question"], refusal, f"unknown {r['id']}", weight=mix.unknown_weight)
        for r in golden.upto(rows, mix.unknowns)
    ]


def rehearsal_rows(project: Project) -> list[dict]:
    mix, rows = project.profile.sft_mix, []
    if mix.replay:
        require(project.replay, "run 10_stage1_cpt/answer_replay.py first")
        rows += golden.replay_rows(project.replay, mix.replay)
    if mix.contrasts and project.contrasts.exists():
        require(project.contrast_answers, "run 10_stage1_cpt/answer_replay.py first")
        rows += golden.replay_rows(project.contrast_answers, mix.contrasts)
    return rows


def held_out(project: Project) -> list[dict]:
    rows = grading.read_questions(project.questions) if project.questions.exists() else []
    return rows + grading.read_questions(project.general / "probes.jsonl")


def other_rows(project: Project, questions: list[dict], rows: list[dict]) -> list[dict]:
    """What users might ask or paste about other subjects: the gate shall stay shut for it. Without
    what is held out, or asked about this document."""
    own = [r["messages"][0]["content"] for r in rows if "messages" in r]
    other = read_jsonl(project.general / "other_subjects.jsonl", keys=("id", "question"))
    return draft_eval.without_leaks(other, own + [q["question"] for q in questions])


def check_leaks(questions: list[dict], rows: list[dict]) -> None:
    trained = [r["messages"][0]["content"] for r in rows if "messages" in r]
    found, worst = grading.leaks(questions, trained)
    if found:
        raise InputError(
            f"{len(found)} held-out questions are in the training data, first {found[0]}: "
            "reword or remove the training question"
        )
    print(f"no leak into {len(questions)} held-out questions; nearest pair: {worst}")


def validation_rows(project: Project, questions: list[dict]) -> list[dict]:
    """Dev wordings with the canonical reply: never trained on."""
    facts = {f.id: f for f in golden.read_facts(project)}
    style = project.profile.sft_mix.reply
    return [
        golden.chat_row(q["question"], golden.reply(facts[q["fact_id"]], style), q["id"])
        for q in questions
        if q["split"] == "dev" and q["kind"] == "paraphrase" and q["fact_id"] in facts
    ]


def dev_questions(questions: list[dict]) -> list[dict]:
    """Dev questions of every kind; one wording per fact and kind, for speed, or more of them where
    fewer than ENOUGH would be about facts."""
    times, rounds = Counter(), {}
    for row in questions:
        if row["split"] == "dev":
            key = (row["fact_id"] or row["id"], row["kind"])
            rounds.setdefault(times[key], []).append(row)
            times[key] += 1
    rows: list[dict] = []
    for number in sorted(rounds):
        if sum(bool(r["fact_id"]) for r in rows) < ENOUGH:
            rows += rounds[number]
    return rows


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--output", type=Path, help="folder (default: data/<document>/sft/<profile>)")
    args.add_argument("--force", action="store_true", help="build again")
    args = args.parse_args()
    project = open_project(args)
    output = args.output or project.data("sft")
    draft_eval.refresh(project)
    used = [project.facts, project.generated, project.unknowns, project.questions]
    used += [project.contrast_answers, project.replay, project.document_file]
    used += [project.general / "probes.jsonl", project.general / "other_subjects.jsonl"]
    made_from = inputs(project.profile.sft_mix.model_dump(), *used)
    files = {name: output / f"{name}.jsonl" for name in ("train", "valid", "dev", "other")}
    if not args.force and all(is_current(f, made_from) for f in files.values()):
        print(f"up to date: {shown(output)}")
        return
    hand_made = golden.read_hand_made(project)
    generated = [f for f in golden.read_facts(project) if isinstance(f, golden.GeneratedFact)]
    parts = {
        "from hand-made facts": fact_rows(project, hand_made),
        "from accepted generated facts": fact_rows(project, generated),
        "unknowns": unknown_rows(project),
        "rehearsal": rehearsal_rows(project),
    }
    rows = [row for part in parts.values() for row in part]
    questions = held_out(project)
    check_leaks(questions, rows)
    random.Random(0).shuffle(rows)
    valid = validation_rows(project, questions)
    if not valid:
        raise InputError(
            f"{shown(project.questions)} has no paraphrase of split dev for any fact: training "
            "chooses its checkpoint by them, add some"
        )
    write_jsonl(files["train"], rows)
    write_jsonl(files["valid"], valid)
    write_jsonl(files["dev"], dev_questions(questions))
    write_jsonl(files["other"], other_rows(project, questions, rows))
    for file in files.values():
        mark_current(file, made_from)
    mix = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part)
    kinds = Counter(r["kind"] for r in dev_questions(questions))
    print(f"wrote {shown(output)}: {len(rows)} training rows ({mix})")
    print(f"dev questions: {', '.join(f'{n} {k}' for k, n in kinds.items())}")


if __name__ == "__main__":
    run(main)
