"""The pages of a PDF, each read twice and taken from the reader that read it better.

pypdf in plain mode is the first reader: it follows the content stream, which in LaTeX papers goes
column by column. pypdfium2 is the second opinion. Each runs in a child process (pdf_reader.py).
"""

import contextlib
import json
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import text_quality

from injection.files import InputError, shown
from injection.progress import Progress

CHILD = Path(__file__).with_name("pdf_reader.py")
MAX_BYTES = 500_000_000
MAX_PAGES = 5_000
MEMORY_BYTES = 2 * 2**30
PAGE_SECONDS = 20.0  # of CPU time
SILENT_SECONDS = 600.0  # of wall time, the last fence; a page's CPU time ends a reader before
DOCUMENT_SECONDS = 7_200.0
END_SECONDS = 5.0  # for a reader to end by itself
CLEARLY_BETTER = 0.001  # in Quality.badness: three damaged glyphs on a full page
MUCH_BETTER = 0.05  # enough even when the second reading is damaged as well
FEW_PAGES = 100  # read without a progress line
UNREADABLE = "unreadable: "
GLYPH_NAME = re.compile(r"/[A-Za-z]+\.[a-z]{2,4}\d|(?<!\w)/[A-Za-z]\w*")
GLYPH_NAME_WEIGHT = 5  # a name does more harm than the one glyph it stands for


@dataclass(frozen=True)
class Repair:
    """What was done to a page: kind is a key of clean_text.WHY, before and after are samples."""

    page: int
    kind: str
    before: str = ""
    after: str = ""
    count: int = 1


@dataclass(frozen=True)
class Page:
    """One page of a source. `problem` says why it has no text that can be used."""

    number: int
    text: str
    reader: str
    problem: str = ""
    repairs: tuple[Repair, ...] = ()


@dataclass
class Reading:
    """What one reader made of a file: its pages by number, or why there are none."""

    pages: dict[int, dict] = field(default_factory=dict)
    count: int = 0
    error: str = ""
    kind: str = ""


def pdf_pages(file: Path, password: str = "") -> list[Page]:
    """Every page of a PDF. InputError says in one line why a file cannot be read at all."""
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"{shown(file)} is larger than {MAX_BYTES // 10**6} MB: split it")
    first, second = read(file, "pypdf", password), read(file, "pypdfium2", password)
    if not (first.count or second.count):
        refuse(file, first, second, password)
    count = first.count or second.count
    if count > MAX_PAGES:
        raise InputError(f"{shown(file)} has {count} pages, more than {MAX_PAGES}: split it")
    pages = [choose(number, first, second) for number in range(1, count + 1)]
    if all(page.problem.startswith(UNREADABLE) for page in pages):
        first.error = pages[0].problem.removeprefix(UNREADABLE)
        refuse(file, first, second, password)
    return pages


def refuse(file: Path, first: Reading, second: Reading, password: str) -> None:
    if "password" in (first.kind, second.kind):
        problem = "is not opened by this password" if password else "needs a password"
        raise InputError(f"{shown(file)} {problem}: name the right one with --password")
    reason = " ".join((first.error or second.error).split())
    raise InputError(f"{shown(file)} is not a readable PDF ({reason}): save or download it again")


def read(file: Path, reader: str, password: str) -> Reading:
    """Run one reader. Pages it did not reach, because it was ended or it crashed, are missing."""
    job = {
        "file": str(file.resolve()),
        "password": password,
        "reader": reader,
        "memory_bytes": MEMORY_BYTES,
        "page_seconds": PAGE_SECONDS,
    }
    with subprocess.Popen(
        [sys.executable, str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        # On standard input, for other users of the machine see what stands on command lines.
        with contextlib.suppress(BrokenPipeError), child.stdin:
            child.stdin.write(json.dumps(job).encode() + b"\n")
        try:
            reading = collect(lines_of(child), f"{file.name}, {reader}")
        finally:
            end(child)
    if not reading.error and len(reading.pages) < reading.count:
        slow = child.returncode == -signal.SIGXCPU
        reading.error = "takes too long" if slow else f"{reader} crashed"
    return reading


def end(child: subprocess.Popen) -> None:
    """Let a child that has nothing more to say end by itself; kill one that goes on."""
    child.stdout.close()
    try:
        child.wait(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()


def lines_of(child: subprocess.Popen) -> Iterator[bytes]:
    """Lines of the child's output. TimeoutError when it is silent or busy for too long."""
    rest, deadline = b"", time.monotonic() + DOCUMENT_SECONDS
    while time.monotonic() < deadline:
        ready, _, _ = select.select([child.stdout], [], [], SILENT_SECONDS)
        if not ready:
            break
        block = child.stdout.read1(1 << 16)
        if not block:
            return
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    raise TimeoutError


def collect(lines: Iterator[bytes], label: str) -> Reading:
    reading = Reading(error="the reader crashed")
    bar = None
    try:
        for row in map(json.loads, lines):
            if "pages" in row:
                reading.count, reading.error = row["pages"], ""
                bar = Progress(f"reading {label}", reading.count)
            elif "page" in row:
                reading.pages[row["page"]] = row
                if reading.count > FEW_PAGES:
                    bar.update(row["page"])
            else:
                reading.error, reading.kind = row["error"], row["kind"]
            if reading.count > MAX_PAGES:
                break
    except TimeoutError:
        reading.error = "takes too long"
    return reading


def choose(number: int, first: Reading, second: Reading) -> Page:
    """The better reading of a page: pypdf's, unless pypdfium2's text is clearly less damaged."""
    ours, theirs = first.pages.get(number, {}), second.pages.get(number, {})
    if "text" not in ours and not theirs.get("text", "").strip():
        return Page(number, "", "neither", UNREADABLE + (ours.get("error") or first.error))
    other = theirs.get("text", "").replace("\r\n", "\n").replace("\ufffe", "-\n")
    why = why_second(ours, {**theirs, "text": other}) if "text" in theirs else ""
    if why:
        page = Page(number, other, "pypdfium2", repairs=(Repair(number, "second reader", why),))
    else:
        page = without_glyph_names(Page(number, ours["text"], "pypdf"), other)
    if hidden := theirs.get("hidden", ""):
        note = Repair(number, "hidden text", hidden, count=len(hidden))
        page = replace(page, repairs=(*page.repairs, note))
    if text_quality.letters(page.text) == 0 and theirs.get("images"):
        page = replace(page, problem="a picture without text (scanned?)")
    return page


def why_second(ours: dict, theirs: dict) -> str:
    """Why pypdfium2's reading of a page is to be taken; empty when pypdf's is."""
    if "text" not in ours:
        return f"pypdf: {ours.get('error', 'no text')}"
    if "hidden" in theirs:
        return "it has text that nobody sees, which pypdf cannot tell"
    mine, other = text_quality.letters(ours["text"]), text_quality.letters(theirs["text"])
    if other > 2 * mine + 300:
        return f"pypdf found {mine} letters, pypdfium2 {other}"
    names = glyph_names(ours["text"], theirs["text"])
    first = text_quality.measure(ours["text"], GLYPH_NAME_WEIGHT * len(names))
    second = text_quality.measure(theirs["text"])
    better = first.badness - second.badness
    if better < CLEARLY_BETTER or (better < 0.5 * first.badness and better < MUCH_BETTER):
        return ""
    return f"damaged in pypdf's reading {first.badness:.2%}, in pypdfium2's {second.badness:.2%}"


def glyph_names(text: str, other: str) -> list[str]:
    """Names such as /quotesingle that pypdf writes for glyphs it cannot map.

    A path in the text looks the same; it stands in the other reader's text as well.
    """
    return [name for name in GLYPH_NAME.findall(text) if name not in other] if other else []


def without_glyph_names(page: Page, other: str) -> Page:
    names = Counter(glyph_names(page.text, other))
    if not names:
        return page
    text = GLYPH_NAME.sub(lambda m: "" if m[0] in names else m[0], page.text)
    note = Repair(page.number, "unmapped glyphs", " ".join(sorted(names)), count=names.total())
    return replace(page, text=text, repairs=(*page.repairs, note))
