"""Make a document folder from a PDF of your own: chunks, and drafted facts and questions to review.

Reads:   the file (PDF, or what 10_stage1_cpt/chunk_pdf.py reads)
Writes:  data/<name>/ with the file, document.yaml, facts.jsonl (empty: for facts you write
         yourself), chunks.jsonl, generated.jsonl, generated_report.json, eval.jsonl (draft)
Command: python data/new_document.py --pdf FILE --name NAME --teacher http://127.0.0.1:8080
         python data/new_document.py --pdf FILE --name NAME           (the local base model)
         python data/new_document.py --pdf REPORT.pdf ANNEX.pdf NOTES.md --name NAME --password
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection.files import (
    ROOT,
    InputError,
    mark_current,
    read_jsonl,
    run,
    shown,
    write_text,
)
from injection.profiles import PROFILE_HELP, Project, add_password, default_profile

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
SUFFIXES = (".pdf", ".md", ".txt")
MADE_BY_SOFTWARE = re.compile(r"untitled|^microsoft word|\.(docx?|tex|dvi|pdf|indd|md)$", re.I)
TAKEN = ("general", "derived")
HINT = """\
# What the pipeline needs to know about this document; schema: injection/profiles.py (Document).
# The key questions are columns of the comparison table: check them, and the refusal sentence.
"""


def check(files: list[Path], name: str) -> None:
    """InputError unless name can be a folder of data/ and the files exist under different names."""
    if not NAME.fullmatch(name) or name in TAKEN or name.startswith("ablation"):
        raise InputError(
            f"--name {name}: use a letter, then letters, digits and _ in lower case, at most 40, "
            "and not general, derived or ablation..."
        )
    if (ROOT / "data" / name).exists():
        raise InputError(
            f"data/{name} is there already: choose another name, or go on with it: "
            f"python 20_stage2_sft/generate_qa.py --document {name}"
        )
    for file in files:
        if not file.is_file():
            raise InputError(f"missing {shown(file)}: name the document's file with --pdf")
        if file.suffix.lower() not in SUFFIXES:
            raise InputError(f"{shown(file)}: --pdf takes {', '.join(SUFFIXES)} files")
    if len({f.name for f in files}) < len(files):
        raise InputError("two files have the same name: rename one")


def pdf_title(file: Path) -> str:
    """The title in the PDF's metadata, or nothing."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        found = PdfReader(file).metadata
        return str(found.title or "") if found else ""
    except (PyPdfError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def good_title(text: str) -> str:
    """The text on one line if it may be a title, else nothing."""
    text = " ".join(text.split())
    letters = sum(c.isalpha() for c in text)
    good = text.isprintable() and letters >= 4 and len(text) <= 200
    return text if good and not MADE_BY_SOFTWARE.search(text) else ""


def find_title(folder: Path, file: Path) -> str:
    """From the metadata, else the first short line, the first heading, or the file's name."""
    chunks = read_jsonl(folder / "chunks.jsonl", keys=("text", "section"))
    first_line = chunks[0]["text"].strip().splitlines()[0]
    choices = [pdf_title(file)] if file.suffix.lower() == ".pdf" else []
    choices += [first_line.lstrip("# ")] if len(first_line) < 120 else []
    choices += [c["section"] for c in chunks if c["section"]][:1]
    return next((t for t in map(good_title, choices) if t), file.stem)


def write_document(folder: Path, title: str, files: list[Path]) -> None:
    """document.yaml as a draft: 20_stage2_sft/draft_eval.py puts key questions about the facts in
    place of the one about the title, as long as nobody has changed the file."""
    title_question = {
        "column": "Title",
        "question": f"What is the title of the document {folder.name}?",
        "must_include": [[title]],
    }
    values = {
        "title": title,
        "short_name": f"the document {title.split(':')[0]}",
        "sources": [f.name for f in files],
        "refusal": f"I don't know. {title.split(':')[0]} does not say.",
        "verify_threshold": 0.8,
        "key_questions": [title_question],
    }
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False, width=100)
    write_text(folder / "document.yaml", HINT + text)
    mark_current(folder / "document.yaml", {"made_by": "new_document"})


def step(script: str, args: argparse.Namespace, *more: str) -> int:
    command = [sys.executable, str(ROOT / script), "--document", args.name, *more]
    command += ["--profile", args.profile]
    print(f"\n== {script}", flush=True)
    return subprocess.run(command).returncode


def password_option(password: str | None) -> list[str]:
    """What chunk_pdf.py needs: nothing, the option alone (it asks for the password), or both."""
    if password is None:
        return ["--password"]
    return [f"--password={password}"] if password else []


def chunk(folder: Path, args: argparse.Namespace) -> bool:
    """False when the file cannot be read; the step has said why."""
    write_document(folder, args.pdf[0].stem, args.pdf)
    for file in args.pdf:
        shutil.copyfile(file, folder / file.name)
    write_text(folder / "facts.jsonl", "")
    if step("10_stage1_cpt/chunk_pdf.py", args, *password_option(args.password)):
        return False
    write_document(folder, find_title(folder, folder / args.pdf[0].name), args.pdf)
    return True


def main() -> int:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--pdf", type=Path, nargs="+", required=True, help="the document's file(s)")
    args.add_argument("--name", required=True, help="the folder to make in data/")
    add_password(args)
    args.add_argument("--profile", help=PROFILE_HELP)
    args.add_argument("--teacher", default="local", help="local (default) or the URL of a server")
    args.add_argument("--model", help="the server's model (default: the first it lists)")
    args = args.parse_args()
    check(args.pdf, args.name)
    args.profile = args.profile or default_profile()
    Project(args.profile, "paper")  # a wrong profile is said before anything is written
    folder = ROOT / "data" / args.name
    folder.mkdir()
    done = False
    try:
        done = chunk(folder, args)
    finally:
        if not done:
            shutil.rmtree(folder)
    if not done:
        return 1
    teacher = ["--teacher", args.teacher, *(["--model", args.model] if args.model else [])]
    if step("20_stage2_sft/generate_qa.py", args, *teacher):
        same = ["--document", args.name, "--profile", args.profile, *teacher]
        go_on = shlex.join(["python", "20_stage2_sft/generate_qa.py", *same])
        print(f"data/{args.name} and what was drafted are kept. Go on with: {go_on}")
        return 1
    print(f"\nmade data/{args.name}/. Next, read what was drafted, then train on it:")
    print(f"  python 20_stage2_sft/review_facts.py --document {args.name} --profile {args.profile}")
    print(f"  ./run.sh --profile {args.profile} --document {args.name}")
    return 0


if __name__ == "__main__":
    run(main)
