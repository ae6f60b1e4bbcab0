"""Turn the document into clean chunks that end on sentences, and say what was cleaned.

Reads:   data/<document>/<sources of document.yaml> (PDF, Markdown, plain text, or JSONL rows
         {"page", "text"}), the model's tokenizer
Writes:  data/<document>/chunks.jsonl  {"id", "text", "pages", "section", "tokens", "sha256"},
         clean_report.json beside it: per source its pages, those left out and why, every repair
Command: python 10_stage1_cpt/chunk_pdf.py
         python 10_stage1_cpt/chunk_pdf.py --pdf paper.pdf --output chunks.jsonl
"""

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from getpass import getpass
from importlib.metadata import version
from pathlib import Path

for folder in (Path(__file__).resolve().parent, Path(__file__).resolve().parents[1]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # run without installing
from clean_text import WHY, Sheets, clean, letters
from pdf_pages import Page, Repair
from read_source import is_markdown, read_source
from reflow import Flow, reflow

from injection.files import (
    InputError,
    inputs,
    is_current,
    mark_current,
    require,
    run,
    sha256,
    shown,
    write_json,
    write_jsonl,
)
from injection.profiles import Project, add_password, open_project, parser

MAX_LEFT_OUT = 0.3  # share of pages; with more the document is not what the model would learn
FEWEST_LETTERS = 40  # in the whole document
CHUNK_LETTERS = 12
TITLE_TOKENS = 32  # of the document and of a section, which stand above a chunk in its CPT row
WINDOW = 20_000  # characters
SHOWN = 90  # characters of a sample in the summary
LIBRARIES = ("pypdf", "pypdfium2", "ftfy", "symspellpy", "semantic-text-splitter")


def section_spans(flow: Flow) -> list[tuple[int, int, str]]:
    """(start, end, title) of the text under each heading, the heading line left out."""
    bounds = [(0, "")] + flow.sections
    ends = [start for start, _ in flow.sections] + [len(flow.text)]
    return [
        (start + len(title), end, title) for (start, title), end in zip(bounds, ends, strict=True)
    ]


def short_sections(flow: Flow) -> list[Repair]:
    """Sections of a few letters, mostly what is left of a figure; they make no chunk."""
    return [
        Repair(flow.pages(start, end)[0], "short chunk", f"{title} {flow.text[start:end]}".strip())
        for start, end, title in section_spans(flow)
        if 0 < letters(flow.text[start:end]) < CHUNK_LETTERS
    ]


def windows(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of a long section, cut behind sentences; the splitter's time grows with the square."""
    while end - start > WINDOW:
        sentence = text.rfind(". ", start, start + WINDOW)
        cut = sentence + 1 if sentence > start else start + WINDOW
        yield start, cut
        start = cut
    yield start, end


def short_title(title: str, tokenizer, most: int = TITLE_TOKENS) -> str:
    """The title, cut where it would take the room of its chunks: some headings are paragraphs."""
    ends = [end for _, end in tokenizer.encode(title, add_special_tokens=False).offsets]
    return title if len(ends) <= most else title[: ends[most - 1]].rstrip()


def make_chunks(source: str, flow: Flow, tokenizer, limit: int) -> list[dict]:
    """Rows of chunks.jsonl: no chunk longer than `limit` tokens, none over a section's border."""
    from semantic_text_splitter import TextSplitter

    splitter = TextSplitter.from_huggingface_tokenizer(tokenizer, limit)
    rows = []
    pieces = (
        (start + offset, piece, short_title(title, tokenizer))
        for begin, stop, title in section_spans(flow)
        if letters(flow.text[begin:stop]) >= CHUNK_LETTERS
        for start, end in windows(flow.text, begin, stop)
        for offset, piece in splitter.chunk_indices(flow.text[start:end])
    )
    for first, piece, title in pieces:
        if any(map(str.isalnum, piece)):
            rows.append(
                {
                    "id": f"{source}-{len(rows):03d}",
                    "text": piece,
                    "pages": flow.pages(first, first + len(piece)),
                    "section": title,
                    "tokens": len(tokenizer.encode(piece, add_special_tokens=False).ids),
                    "sha256": hashlib.sha256(piece.encode()).hexdigest(),
                }
            )
    return rows


def refuse_unfit(file: Path, pages: list[Page], sheets: Sheets) -> None:
    """InputError when too few pages have text that can be used."""
    left_out, why = sheets.left_out, ""
    filled = sheets.with_text + sum(not page.text.strip() for page in pages if page.problem)
    if left_out:
        (reason, _), *_ = Counter(left_out.values()).most_common(1)
        some = ", ".join(map(str, list(left_out)[:5])) + (", ..." if len(left_out) > 5 else "")
        why = f" (page {some}: {reason})"
    if len(left_out) > MAX_LEFT_OUT * filled:
        raise InputError(
            f"{shown(file)}: {len(left_out)} of {len(sheets.numbers)} pages cannot be used{why}: "
            "run OCR on it first (ocrmypdf --force-ocr), or find another copy"
        )
    if sum(map(letters, sheets.flat())) < FEWEST_LETTERS:
        raise InputError(f"{shown(file)} holds no text (a scan?): run OCR on it first (ocrmypdf)")


def source_report(file: Path, sheets: Sheets, flow: Flow, readers: list[str]) -> dict:
    """Everything that was done to one source, the repairs by page."""
    mended = [Repair(page, "line-end hyphens", count=n) for page, n in flow.mended.items()]
    repairs = sheets.repairs + mended + short_sections(flow)
    repairs = sorted(repairs, key=lambda r: (r.page, list(WHY).index(r.kind)))
    return {
        "file": file.name,
        "sha256": sha256(file),
        "pages": len(sheets.numbers),
        "readers": dict(Counter(readers)),
        "left_out": [{"page": page, "why": why} for page, why in sheets.left_out.items()],
        "totals": {
            kind: {
                "count": sum(r.count for r in repairs if r.kind == kind),
                "pages": sorted({r.page for r in repairs if r.kind == kind}),
                "why": why,
            }
            for kind, why in WHY.items()
            if any(r.kind == kind for r in repairs)
        },
        "repairs": [
            {"page": r.page, "kind": r.kind, "count": r.count, "before": r.before, "after": r.after}
            for r in repairs
        ],
    }


def print_summary(report: dict) -> None:
    """What was left out and repaired, how often, where and why, with one sample each."""
    print(f"{report['file']}: {report['pages']} pages")
    for row in report["left_out"]:
        print(f"  page {row['page']} is left out: {row['why']}")
    for kind, total in report["totals"].items():
        pages = total["pages"]
        where = f"page {pages[0]}" if len(pages) == 1 else f"{len(pages)} pages"
        print(f"  {kind}: {total['count']} on {where} ({total['why']})")
        sample = next((r for r in report["repairs"] if r["kind"] == kind and r["before"]), None)
        if sample:
            after = f" -> {sample['after'][:SHOWN]}" if sample["after"] else ""
            print(f"    page {sample['page']}: {sample['before'][:SHOWN]}{after}")


def chunk_source(file: Path, name: str, args, tokenizer, limit: int) -> tuple[list[dict], dict]:
    """(rows, report) of one source."""
    pages = read_source(file, args.password)
    sheets = clean(pages, is_markdown(file), args.keep_references)
    refuse_unfit(file, pages, sheets)
    flow = reflow(sheets)
    rows = make_chunks(name, flow, tokenizer, limit)
    return rows, source_report(file, sheets, flow, [page.reader for page in pages])


def names_of(files: list[Path]) -> list[str]:
    """What chunk ids begin with: the file's stem, with its kind where two would be equal."""
    stems = Counter(file.stem for file in files)
    return [file.stem if stems[file.stem] == 1 else file.name for file in files]


def sources(project: Project, args) -> list[Path]:
    return [args.pdf] if args.pdf else [project.folder / s for s in project.document.sources]


def arguments():
    args = parser(__doc__)
    args.add_argument("--pdf", type=Path, help="one source instead of those of document.yaml")
    args.add_argument("--output", type=Path, help="default: data/<document>/chunks.jsonl")
    add_password(args)
    args.add_argument("--keep-references", action="store_true", help="keep the reference list")
    args.add_argument("--force", action="store_true", help="chunk again")
    args = args.parse_args()
    if args.password is None:
        args.password = getpass("password of the PDF: ")
    return args


def main() -> None:
    args = arguments()
    project = open_project(args)
    output = args.output or project.chunks
    report_file = output.with_name("clean_report.json")
    tokenizer_file = require(project.source / "tokenizer.json", "run the download step of 03 first")
    files = sources(project, args)
    limit = project.profile.chunk_tokens
    settings = {
        "chunk_tokens": limit,
        "keep_references": args.keep_references,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    made_from = inputs(settings, tokenizer_file, *files)
    if not args.force and is_current(output, made_from) and report_file.exists():
        print(f"up to date: {shown(output)}")
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rows, reports = [], []
    for file, name in zip(files, names_of(files), strict=True):
        more, report = chunk_source(file, name, args, tokenizer, limit)
        rows, reports = rows + more, [*reports, report]
    if not rows:
        raise InputError(f"no text in {', '.join(map(shown, files))}")
    write_json(report_file, {"settings": settings, "chunks": len(rows), "sources": reports})
    write_jsonl(output, rows)
    mark_current(output, made_from)
    for report in reports:
        print_summary(report)
    tokens, pages = sum(r["tokens"] for r in rows), sum(r["pages"] for r in reports)
    print(f"wrote {shown(output)}: {len(rows)} chunks, {tokens} tokens, {pages} pages")
    print(f"wrote {shown(report_file)}: every repair, by page")


if __name__ == "__main__":
    run(main)
