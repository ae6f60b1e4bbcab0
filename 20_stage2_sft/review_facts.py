"""Accept, edit or reject generated facts, one by one, in the terminal. Only accepted ones are used.

Every decision and edit is written at once; quit at any time and go on later. The file as it was
before the last change stays beside it as generated.jsonl.bak.

Reads:   data/<document>/generated.jsonl (schema: injection/golden.py)
Writes:  the same file, with "status" and what was edited ($VISUAL or $EDITOR, as YAML)
Command: python 20_stage2_sft/review_facts.py --document NAME
         python 20_stage2_sft/review_facts.py --document NAME --accept G1a2b3c4d G5e6f7a8b
         python 20_stage2_sft/review_facts.py --document NAME --accept-all
"""

import os
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import yaml
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
import draft_eval

from injection import golden
from injection.files import InputError, require, run, shown
from injection.profiles import Project, open_project, parser

KEYS = "[a]ccept  [e]dit  [r]eject  [s]kip  [q]uit > "
EDITABLE = ("subject", "answer", "aliases", "must_not", "statements", "questions", "reverse")


def shown_fact(fact: golden.GeneratedFact) -> str:
    lines = [
        f"{fact.id}, page {fact.page}, {fact.chunk}",
        f'  the document  "{fact.quote}"',
        f"  subject       {fact.subject}",
        f"  answer        {fact.answer}",
    ]
    for title, texts in (
        ("statements", fact.statements),
        ("questions", fact.questions),
        ("reverse", [r.question for r in fact.reverse]),
        ("held out", [h.question for h in fact.held_out]),
    ):
        lines += [f"  {title if i == 0 else '':<13} {text}" for i, text in enumerate(texts)]
    return "\n".join(lines)


def edited(fact: golden.GeneratedFact) -> golden.GeneratedFact | None:
    """The fact as the user's editor leaves it; None, with a line that says why, if it is none."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    values = {k: v for k, v in fact.model_dump().items() if k in (*EDITABLE, "held_out")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{fact.id}.yaml"
        text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=1000)
        file.write_text(f"# The document: {fact.quote}\n{text}", encoding="utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(file)], check=True)
            changed = yaml.safe_load(file.read_text(encoding="utf-8"))
            return golden.GeneratedFact.model_validate({**fact.model_dump(), **changed})
        except FileNotFoundError:
            print(f"no editor '{editor}': set EDITOR to one you have")
        except subprocess.CalledProcessError:
            print("the editor failed: nothing is changed")
        except yaml.YAMLError as error:
            print(f"not YAML ({getattr(error, 'problem', error)}): nothing is changed")
        except (ValidationError, TypeError) as error:
            first = error.errors()[0] if isinstance(error, ValidationError) else {}
            where = ".".join(map(str, first.get("loc", ())))
            print(f"{where}: {first.get('msg', 'not a fact')}: nothing is changed")
    return None


def decide(project: Project, fact: golden.GeneratedFact, status: str) -> None:
    golden.update_generated(project, {fact.id: fact.model_copy(update={"status": status})})


def review(project: Project, facts: list[golden.GeneratedFact]) -> None:
    """Ask for each fact until it is decided on, skipped, or the user quits."""
    for number, fact in enumerate(facts, 1):
        while True:
            print(f"\n{number} of {len(facts)}: {shown_fact(fact)}")
            if warning := golden.doubt(fact):
                print(f"  look twice    {warning}")
            try:
                choice = input(KEYS).strip().lower()[:1]
            except EOFError:
                choice = "q"
            if choice == "e" and (changed := edited(fact)):
                fact = changed
                golden.update_generated(project, {fact.id: fact})
            elif choice in ("a", "r"):
                decide(project, fact, "accepted" if choice == "a" else "rejected")
                break
            elif choice == "s":
                break
            elif choice == "q":
                return


def decide_by_id(project: Project, facts: list[golden.GeneratedFact], wanted: dict) -> None:
    """wanted: {id: status}."""
    known = {f.id: f for f in facts}
    if unknown := [i for i in wanted if i not in known]:
        raise InputError(f"{shown(project.generated)} has no fact {unknown[0]}: nothing is changed")
    changes = {i: known[i].model_copy(update={"status": s}) for i, s in wanted.items()}
    golden.update_generated(project, changes)


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--accept", nargs="+", metavar="ID", default=[], help="without asking")
    args.add_argument("--reject", nargs="+", metavar="ID", default=[], help="without asking")
    args.add_argument("--accept-all", action="store_true", help="every draft, unread")
    args = args.parse_args()
    project = open_project(args)
    require(project.generated, "run 20_stage2_sft/generate_qa.py first")
    facts = golden.read_generated(project)
    drafts = [f for f in facts if f.status == "draft"]
    if both := set(args.accept) & set(args.reject):
        raise InputError(f"{min(both)} is both accepted and rejected")
    if args.accept or args.reject or args.accept_all:
        accept = [*args.accept, *(f.id for f in drafts if args.accept_all)]
        wanted = dict.fromkeys(accept, "accepted") | dict.fromkeys(args.reject, "rejected")
        decide_by_id(project, facts, wanted)
    else:
        review(project, drafts)
    counts = Counter(f.status for f in golden.read_generated(project))
    print(", ".join(f"{counts[s]} {s}" for s in ("accepted", "rejected", "draft")))
    draft_eval.refresh(project)


if __name__ == "__main__":
    run(main)
