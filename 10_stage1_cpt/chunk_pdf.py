"""Turn the document's PDF into clean chunks that end on sentences.

Reads:   data/<document>/<sources of document.yaml> (PDF, or JSONL rows {"page", "text"}),
         the model's tokenizer
Writes:  data/<document>/chunks.jsonl  {"id", "text", "pages", "section", "tokens", "sha256"}
Command: python 10_stage1_cpt/chunk_pdf.py
         python 10_stage1_cpt/chunk_pdf.py --pdf paper.pdf --output chunks.jsonl
"""

import bisect
import hashlib
import logging
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
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

LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"}
HEADING = re.compile(r"^(\d+(\.\d+)*\.?|[A-H](\.\d+)+\.?)\s+[A-Z][^.]{2,80}$|^Abstract$")
REFERENCES = re.compile(r"^(\d+\.?\s+)?(references|bibliography)$", re.IGNORECASE)


def pdf_pages(path: Path) -> list[str]:
    """Upright text of every page, in content order."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    # Its warnings would stand before the one line that says what to do.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError(f"{shown(path)} needs a password: save a copy without one")
        pages = [page.extract_text(orientations=(0,)) for page in reader.pages]
    except (PyPdfError, ValueError, KeyError, RecursionError) as error:
        raise InputError(f"{shown(path)} is not a readable PDF ({error})") from None
    if sum(len(p.strip()) for p in pages) < 200:
        raise InputError(f"{shown(path)} holds no text (a scan?): run OCR on it first")
    return pages


def read_pages(path: Path) -> list[str]:
    require(path, "put the document there, or name another with --pdf")
    if path.suffix == ".jsonl":
        return [row["text"] for row in read_jsonl(path, keys=("page", "text"))]
    return pdf_pages(path)


def edge_lines(lines: list[str]) -> list[str]:
    return [re.sub(r"\d+", "0", line.strip()) for line in lines[:2] + lines[-2:]]


def drop_running_lines(pages: list[str]) -> list[list[str]]:
    """Lines of each page without running headers, footers and page numbers.

    A line is running when, with digits made equal, it stands at the edge of 3 pages or more.
    """
    split = [[line for line in page.splitlines() if line.strip()] for page in pages]
    counts = Counter(text for lines in split for text in set(edge_lines(lines)))
    running = {text for text, n in counts.items() if n >= 3}
    kept = []
    for lines in split:
        edges = {0, 1, len(lines) - 2, len(lines) - 1}
        kept.append(
            [
                line
                for i, line in enumerate(lines)
                if i not in edges or re.sub(r"\d+", "0", line.strip()) not in running
            ]
        )
    return kept


def clean(line: str) -> str:
    """NFC text without ligatures, control characters and unmapped glyph codes."""
    line = unicodedata.normalize("NFC", line)
    for ligature, letters in LIGATURES.items():
        line = line.replace(ligature, letters)
    line = re.sub(r"\(cid:\d+\)|[\x00-\x08\x0b-\x1f\x7f\ufffd\ufffe\u00ad]", "", line)
    return re.sub(r"\s+", " ", line).strip()


def reflow(pages: list[list[str]]) -> tuple[str, list[int], list[tuple[int, str]]]:
    """One text with headings and paragraphs on lines of their own.

    Returns (text, offset at which each page starts, [(offset, section title)]). The reference
    list is left out, up to the next heading.
    """
    known = Counter(re.findall(r"[a-z]+", " ".join(" ".join(p) for p in pages).lower()))
    text, starts, sections, in_references = "", [], [], False
    for lines in pages:
        starts.append(len(text))
        for line in map(clean, lines):
            heading = bool(HEADING.match(line)) and len(line) < 90
            if REFERENCES.match(line) or heading:
                in_references = bool(REFERENCES.match(line))
            if in_references or not line:
                continue
            if heading:
                text = text.rstrip("\n ") + "\n\n"
                sections.append((len(text), line))
                text += line + "\n\n"
            else:
                text = join_line(text, line, known)
    return text, starts, sections


def join_line(text: str, line: str, known: Counter) -> str:
    """Append a line; a word split at the line end is mended if the document knows it whole."""
    split = re.search(r"([A-Za-z]+)-$", text)
    start = re.match(r"[a-z]+", line)
    if split and start and known[(split[1] + start[0]).lower()]:
        return text[:-1] + line
    if text and not text.endswith(("\n", "-")):
        text += "\n" if line.startswith(("- ", "• ")) else " "
    return text + line


def section_spans(text: str, sections: list[tuple[int, str]]) -> list[tuple[int, int, str]]:
    """(start, end, title) of the text under each heading, the heading line left out."""
    bounds = [(0, "")] + sections
    spans = []
    for (start, title), (end, _) in zip(bounds, bounds[1:] + [(len(text), "")], strict=True):
        spans.append((start + len(title), end, title))
    return spans


def make_chunks(source: str, text, starts, sections, tokenizer, limit: int) -> list[dict]:
    from semantic_text_splitter import TextSplitter

    splitter = TextSplitter.from_huggingface_tokenizer(tokenizer, limit)
    rows = []
    for start, end, title in section_spans(text, sections):
        for offset, piece in splitter.chunk_indices(text[start:end]):
            first, last = start + offset, start + offset + len(piece) - 1
            rows.append(
                {
                    "id": f"{source}-{len(rows):03d}",
                    "text": piece,
                    "pages": [bisect.bisect_right(starts, p) for p in (first, last)],
                    "section": title,
                    "tokens": len(tokenizer.encode(piece, add_special_tokens=False).ids),
                    "sha256": hashlib.sha256(piece.encode()).hexdigest(),
                }
            )
    return rows


def sources(project: Project, args) -> list[Path]:
    return [args.pdf] if args.pdf else [project.folder / s for s in project.document.sources]


def main() -> None:
    args = parser(__doc__)
    args.add_argument("--pdf", type=Path, help="a PDF (or page JSONL) instead of document.yaml's")
    args.add_argument("--output", type=Path, help="default: data/<document>/chunks.jsonl")
    args.add_argument("--force", action="store_true", help="chunk again")
    args = args.parse_args()
    project = open_project(args)
    output = args.output or project.chunks
    tokenizer_file = require(project.source / "tokenizer.json", "run the download step of 03 first")
    files = sources(project, args)
    made_from = inputs({"chunk_tokens": project.profile.chunk_tokens}, tokenizer_file, *files)
    if not args.force and is_current(output, made_from):
        print(f"up to date: {shown(output)}")
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    rows, page_count = [], 0
    for file in files:
        pages = drop_running_lines(read_pages(file))
        page_count += len(pages)
        rows += make_chunks(file.stem, *reflow(pages), tokenizer, project.profile.chunk_tokens)
    if not rows:
        raise InputError(f"no text in {', '.join(map(shown, files))}")
    write_jsonl(output, rows)
    mark_current(output, made_from)
    tokens = sum(r["tokens"] for r in rows)
    print(f"wrote {shown(output)}: {len(rows)} chunks, {tokens} tokens, {page_count} pages")


if __name__ == "__main__":
    run(main)
