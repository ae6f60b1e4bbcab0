"""From PDF to text: this project's reader and cleaner against pdfplumber, pypdf and pypdfium2.

Papers written with LaTeX: the two of tests/papers, whose sentences are known, and vignettes of
Debian packages where they are installed (or wherever --vignettes points to). Counted in the text:

glued      words of 20 letters or more: lost spaces
unmapped   (cid:N), U+FFFD, U+FFFE, control and private-use characters
ligatures  glyphs such as the one for fi, which no tokenizer takes for letters
hyphens    words that a line break still cuts in two
edges      lines at the edge of a page (header, footer, page number) that repeat
sentences  of those of the LaTeX source, found whole, and whether they stand in their order
references lines of the reference list

The time is CPU time a page, of reading all pages in a fresh process without the start of Python;
this project's reads each page with two readers, whose processes count from their start, and
cleans it.

Reads:   tests/papers/*.pdf and .tex, --vignettes, --damaged (page rows of an already damaged text)
Writes:  benchmarks/results/pdf_text.json; prints one Markdown table
Command: python benchmarks/pdf_text.py
         python benchmarks/pdf_text.py --damaged pages.jsonl
"""

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

import common

sys.path.insert(0, str(common.ROOT / "tests"))
PAPERS = [common.ROOT / f"tests/papers/{name}.pdf" for name in ("one_column", "two_column")]
VIGNETTES = (
    "Rcpp/doc/Rcpp-introduction.pdf",
    "RcppArmadillo/doc/RcppArmadillo-intro.pdf",
    "sandwich/doc/sandwich.pdf",
    "strucchange/doc/strucchange-intro.pdf",
    "zoo/doc/zoo.pdf",
)
TWO_COLUMNS = ("two_column", "Rcpp-introduction")
GLUED = re.compile(r"(?<![\w/.:@\\])[^\W\d_]{20,}")
UNMAPPED = re.compile(r"\(cid:\d+\)|[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd-\uffff\ue000-\uf8ff]")
LIGATURES = re.compile("[\ufb00-\ufb06]")
HYPHENS = re.compile(r"[^\W\d_]-\s*\n\s*[a-z]|[^\W\d_]\ufffe")
REFERENCE = re.compile(
    r"^\W*(?:\[\d{1,2}\] [A-Z][.a-z]|[A-Z][\w-]+,? [A-Z]\w*.*\((?:19|20)\d\d\w?\)\.)", re.M
)
EDGE = 2  # lines
READERS = ("this project", "pypdf", "pypdfium2", "pdfplumber")


def read_ours(file: str, references: bool = False) -> list[str]:
    """The cleaned text of a PDF or of page rows, by page."""
    script = common.load_script("10_stage1_cpt/chunk_pdf.py")
    sheets = script.clean(script.read_source(Path(file)), references=references)
    flow = script.reflow(sheets)
    ends = [start for start, _ in flow.marks[1:]] + [len(flow.text)]
    texts = dict.fromkeys(sheets.numbers, "")
    for (start, page), end in zip(flow.marks, ends, strict=True):
        texts[page] += flow.text[start:end]
    return list(texts.values())


def read_pypdf(file: str) -> list[str]:
    from pypdf import PdfReader

    return [page.extract_text() for page in PdfReader(file).pages]


def read_pypdfium2(file: str) -> list[str]:
    import pypdfium2

    return [page.get_textpage().get_text_range() for page in pypdfium2.PdfDocument(file)]


def read_pdfplumber(file: str) -> list[str]:
    import pdfplumber

    with pdfplumber.open(file) as document:
        return [page.extract_text() for page in document.pages]


FUNCTIONS = {
    "this project": read_ours,
    "pypdf": read_pypdf,
    "pypdfium2": read_pypdfium2,
    "pdfplumber": read_pdfplumber,
}


def read(job: dict) -> dict:
    """Worker: texts of the pages, wall and CPU seconds (with those of the processes it started)."""
    started, busy = time.perf_counter(), sum(os.times()[:4])
    pages = FUNCTIONS[job["reader"]](job["file"])
    return {
        "pages": [page.replace("\r\n", "\n") for page in pages],
        "wall_seconds": time.perf_counter() - started,
        "seconds": sum(os.times()[:4]) - busy,
    }


def edge_lines(pages: list[str]) -> int:
    """Lines at an edge that stand on three pages or more, digits aside, or are a number."""
    edges = [
        re.sub(r"\d+", "0", line.strip())
        for page in pages
        for lines in [[line for line in page.split("\n") if line.strip()]]
        for line in {*lines[:EDGE], *lines[-EDGE:]}
    ]
    counts = Counter(edges)
    return sum(
        n for line, n in counts.items() if (n >= 3 and re.search(r"[^\W\d_]", line)) or line == "0"
    )


def count(pages: list[str], known: list[str]) -> dict:
    """What the docstring lists, for one paper."""
    text = "\n".join(pages)
    running = " ".join(text.split())
    places = [running.find(s) for s in known]
    found = [p for p in places if p >= 0]
    return {
        "pages": len(pages),
        "glued": len(GLUED.findall(text)),
        "unmapped": len(UNMAPPED.findall(text)),
        "ligatures": len(LIGATURES.findall(text)),
        "hyphens": len(HYPHENS.findall(text)),
        "edges": edge_lines(pages),
        "references": len(REFERENCE.findall(text)),
        "sentences": len(found),
        "of": len(known),
        "in_order": found == sorted(found),
    }


def measure(file: Path, reader: str, pairs: int) -> dict:
    """Counts, and the median of the seconds a page of `pairs` fresh processes."""
    from tex_sentences import sentences

    python = common.PEERS if reader == "pdfplumber" else common.OURS
    job = {"file": str(file), "reader": reader}
    runs = [common.work(python, __file__, "read", job) for _ in range(pairs)]
    if "failed" in runs[-1]:
        return {"paper": file.stem, "reader": reader, "failed": runs[-1]["failed"]}
    tex = file.with_suffix(".tex")
    found = count(runs[-1]["pages"], sentences(tex) if tex.exists() else [])
    seconds = common.median(runs, "seconds") / found["pages"]
    peak = max(run["peak_gb"] for run in runs)
    return {"paper": file.stem, "reader": reader, **found, "seconds": seconds, "peak_gb": peak}


def measure_damaged(file: Path) -> dict:
    """Glued words and unmapped glyphs of page rows before and after the cleaner.

    The reference list is kept: what is left out is not repaired.
    """
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    before = "\n".join(row["text"] for row in rows)
    after = "\n".join(read_ours(str(file), references=True))
    import text_quality  # the script made it importable

    return {
        name: {
            "glued": len(text_quality.long_words(text)),
            "glued_15": len(re.findall(r"[^\W\d_]{15,}", text)),
            "cid": text.count("(cid:"),
            "letters": sum(map(str.isalpha, text)),
        }
        for name, text in (("before", before), ("after", after))
    }


COLUMNS = ("glued", "unmapped", "ligatures", "hyphens", "edges", "references")


def table(results: list[dict]) -> str:
    rows = []
    for r in results:
        name = r["paper"] + (", two columns" if r["paper"] in TWO_COLUMNS else "")
        if "failed" in r:
            rows.append([name, "", r["reader"], r["failed"], *[""] * (len(COLUMNS) + 1)])
            continue
        order = "" if r["in_order"] else ", out of order"
        known = f"{r['sentences']} of {r['of']}{order}" if r["of"] else "-"
        milliseconds = f"{1000 * r['seconds']:.0f}"
        rows.append([name, r["pages"], r["reader"], *(r[c] for c in COLUMNS), known, milliseconds])
    header = ["paper", "pages", "reader", *COLUMNS, "sentences whole", "CPU ms a page"]
    return common.markdown(header, rows)


def main() -> None:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--vignettes", type=Path, default=Path("/usr/lib/R/site-library"))
    args.add_argument("--damaged", type=Path, help="page rows to clean, instead of the PDFs")
    args.add_argument("--pairs", type=int, default=3, help="repeats (default: 3)")
    args.add_argument("--output", type=Path, default=common.RESULTS, help="folder of the results")
    args = args.parse_args()
    from injection.files import require, shown, write_json

    report = common.heading(__file__)
    if args.damaged:
        report["damaged"] = measure_damaged(require(args.damaged, "name a file of page rows"))
        print(json.dumps(report["damaged"], indent=2))
        write_json(args.output / "pdf_text_damaged.json", report)
        return
    require(common.PEERS, "run benchmarks/setup.sh first")
    files = PAPERS + [f for v in VIGNETTES if (f := args.vignettes / v).exists()]
    report["results"] = [measure(file, r, args.pairs) for file in files for r in READERS]
    write_json(args.output / "pdf_text.json", report)
    print(f"\n{table(report['results'])}\n")
    print("`{command}`, {machine}, {date}, commit {commit}".format(**report))
    print(f"wrote {shown(args.output / 'pdf_text.json')}", file=sys.stderr)


if __name__ == "__main__":
    common.start(main, {"read": read})
