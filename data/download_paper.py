"""Fetch the original CLaRa paper from arXiv, for people who are online.

The repository trains on its own digest of the paper; this gets the paper itself (CC BY-SA 4.0).

Reads:   https://arxiv.org/pdf/2511.18659v2
Writes:  data/paper/2511.18659v2.pdf
Command: python data/download_paper.py
         then put `sources: [2511.18659v2.pdf]` into data/paper/document.yaml and run ./run.sh
"""

import argparse
import http.client
import io
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run without installing
from injection.files import ROOT, InputError, run, shown, write_bytes

URL = "https://arxiv.org/pdf/2511.18659v2"
TITLE = "Bridging Retrieval and Generation"
OUTPUT = ROOT / "data" / "paper" / "2511.18659v2.pdf"


def fetch(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "document-injection"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"cannot download {url} ({reason}): the pipeline runs without it, on digest.pdf"
        ) from None


def check(content: bytes) -> None:
    """InputError unless content is a PDF with the expected title on its first page."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    if not content.startswith(b"%PDF"):
        raise InputError(f"{URL} did not return a PDF: try again later")
    try:
        first = PdfReader(io.BytesIO(content)).pages[0].extract_text()
    except PyPdfError as error:
        raise InputError(f"{URL} returned a damaged PDF ({error}): try again") from None
    if TITLE not in " ".join(first.split()):
        raise InputError(f"{URL} returned another document (expected '{TITLE}')")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output
    if output.exists():
        print(f"already there: {shown(output)}")
        return
    content = fetch(URL)
    check(content)
    write_bytes(output, content)
    print(f"wrote {shown(output)} ({len(content) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main)
