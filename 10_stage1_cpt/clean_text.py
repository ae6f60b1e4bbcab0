"""What is repaired or left out of a document's text before it is cut into chunks.

Each rule is a pure function that says which lines go, or what a text becomes; Sheets applies the
rules in order and records what was done, on which page, and why (clean_report.json).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable

import text_quality
from headings import heading_number, reference_lines
from pdf_pages import Page, Repair
from split_glued import JOINERS, Splitter

WHY = {
    "second reader": "pypdfium2 read this page better than pypdf",
    "hidden text": "nobody sees it: outside the page, tiny, or painted without contrast",
    "unmapped glyphs": "codes of glyphs that stand for no character, such as (cid:88)",
    "ligatures": "one glyph for several letters, such as the one for fi",
    "TeX codes": "ligatures, quotes and accents of TeX fonts that have no character map",
    "encoding": "letters that a wrong encoding had garbled, or several codes for one character",
    "invisible characters": "soft hyphens, zero-width and direction marks",
    "arXiv stamp": "the margin of the first page, not the document's text",
    "running header or footer": "repeated at the edge of the pages",
    "page number": "at the edge of a page",
    "table of contents": "titles and page numbers, no sentences",
    "listing numbers": "they count the lines of a program beside it",
    "glued words": "an extractor had lost the spaces between them",
    "reference list": "titles and names, no knowledge of the document",
    "figure text": "axis ticks and labels of a figure, letters of overlapping text",
    "equation debris": "a subscript or exponent on a line of its own, inside a sentence",
    "line-end hyphens": "a word was split between two lines",
    "short chunk": "too little text to be a chunk",
}
EDGE = 4  # lines at the top and at the bottom of a page where headers and footers stand
HEADER_CHARACTERS = 150
REPEATED = 3  # pages that make a line a running one
INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad]")
# Positions in TeX's T1 and OT1 encodings; \r is OT1's fl as well, but mostly the end of a line.
TEX_CODES = {
    "\x0b": "ff", "\x0c": "fi", "\x0e": "ffi", "\x0f": "ffl", "\x10": "“", "\x11": "”",
    "\x15": "–", "\x16": "—",
    "\x1b": "ff", "\x1c": "fi", "\x1d": "fl", "\x1e": "ffi", "\x1f": "ffl",
}  # fmt: skip
TEX_CODE = re.compile(r"(?<=[^\W_])[\x0b-\x1f](?!\n)|[\x0b-\x1f](?=[^\W_])")
TEX_ACCENT = re.compile(r"(?<=[^\W\d_])([¨´ˇ˚])([^\W\d_])|(?<!\w)([¨´ˇ˚])([^\W\d_])(?=[^\W\d_]{2})")
COMBINING = {"¨": "\u0308", "´": "\u0301", "ˇ": "\u030c", "˚": "\u030a"}
DOTLESS = str.maketrans("ıȷ", "ij")
PUA_BULLET = str.maketrans({"\uf0b7": "•", "\uf0a7": "•", "\uf0d8": "•"})
STAMP = re.compile(r"^arXiv:\d{4}\.\d{4,5}(v\d+)?\s*\[[\w.-]+\]\s+\d{1,2} \w{3} \d{4}$")
MIRRORED_STAMP = re.compile(r"^(v?\d*v)?\d{4,6}\.\d{4}:viXra$")
PAGE_NUMBER = re.compile(
    r"^(?:page|p\.|seite)?\s*[-–—|]?\s*(\d{1,4})\s*[-–—|]?(?:\s*(?:of|/|von)\s*\d{1,4})?$", re.I
)
ROMAN = re.compile(r"^(?=[ivxlc])(?:x{0,3}|xl|l?x{0,3})(?:ix|iv|v?i{0,3})$")
LEADERS = re.compile(r"[^\W\d_]{3}.*(?:\. ?){4,}\s*[\divxlc]{1,5}$")
CONTENTS = re.compile(r"^(?:table of )?contents$|^list of (?:figures|tables)$", re.I)
FIGURE = re.compile(r"^(?:Figure|Fig\.?|Abbildung|Abb\.|Figura)\s*[A-Z]?\.?\d+", re.I)
NUMBER = re.compile(
    r"^[-+−±~<>≤≥(]?[$€£]?\d[\d,.]*(?:[eE][-+−]?\d+)?(?:[-+−±]\d[\d.]*)?(?:%|[xkKMB])?[)*†]{0,3}$"
)
WORD = re.compile(r"[^\W\d_]{3,}")
LINE_NUMBER = re.compile(r"(\d{1,3})(?= |$)")
CODE_SIGN = re.compile(r"[_=<>{};#$]|\w\(")

Place = tuple[int, int]  # index of the page, index of the line on it


class Sheets:
    """The lines of a document by page, what was done to them, and which pages are left out."""

    def __init__(self, pages: list[Page], markdown: bool = False):
        self.markdown = markdown
        self.numbers = [page.number for page in pages]
        self.left_out = {page.number: page.problem for page in pages if page.problem}
        self.repairs = [repair for page in pages for repair in page.repairs]
        self.lines: list[list[str]] = []
        self.unmapped: dict[int, int] = {}
        for page in pages:
            text, found = repair_characters(page.text)
            self.repairs += [Repair(page.number, kind, count=n) for kind, n in found.items()]
            self.unmapped[page.number] = found["unmapped glyphs"]
            lines = (re.sub(r"[^\S\n]+", " ", line).strip() for line in text.split("\n"))
            self.lines.append(trimmed(list(lines)))
        self.with_text = sum(map(bool, self.lines))

    def flat(self) -> list[str]:
        return [line for page in self.lines for line in page]

    def drop(self, kind: str, places: Iterable[Place]) -> None:
        """Take lines out; lines that stand together are one entry of the report."""
        gone = set(places)
        for p, page in enumerate(self.lines):
            taken = [i for i in range(len(page)) if (p, i) in gone]
            for run in runs(taken):
                text = " / ".join(page[i] for i in run)
                self.repairs.append(Repair(self.numbers[p], kind, text, "", len(run)))
            self.lines[p] = [line for i, line in enumerate(page) if (p, i) not in gone]

    def drop_flat(self, kind: str, rule: Callable[[list[str]], set[int]]) -> None:
        """Like drop, for a rule over all lines of the document."""
        places = [(p, i) for p, page in enumerate(self.lines) for i in range(len(page))]
        self.drop(kind, (places[n] for n in rule(self.flat())))

    def drop_by_page(self, kind: str, rule: Callable[[list[str]], set[int]]) -> None:
        self.drop(kind, ((p, i) for p, page in enumerate(self.lines) for i in rule(page)))

    def drop_unfit(self) -> None:
        """Empty the pages that do not pass the text gate."""
        for number, lines in zip(self.numbers, self.lines, strict=True):
            quality = text_quality.measure("\n".join(lines), self.unmapped.get(number, 0))
            if found := text_quality.problems(quality):
                self.left_out[number] = "; ".join(found)
                lines.clear()

    def change(self, kind: str, rule: Callable[[list[str]], list[str]]) -> None:
        """Replace the lines of each page by as many others."""
        for p, page in enumerate(self.lines):
            self.lines[p] = rule(page)
            for old, new in zip(page, self.lines[p], strict=True):
                if old != new:
                    self.repairs.append(Repair(self.numbers[p], kind, old, new))


def runs(indices: list[int]) -> list[list[int]]:
    """Groups of consecutive indices."""
    groups: list[list[int]] = []
    for i in indices:
        if groups and groups[-1][-1] == i - 1:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def trimmed(lines: list[str]) -> list[str]:
    """Without empty lines at both ends; inside, an empty line ends a paragraph."""
    kept = [i for i, line in enumerate(lines) if line]
    return lines[kept[0] : kept[-1] + 1] if kept else []


def clean(pages: list[Page], markdown: bool = False, references: bool = False) -> Sheets:
    """All rules in order. Markdown never was on pages, so it has no headers and no floats."""
    sheets = Sheets(pages, markdown)
    if not markdown:
        sheets.drop_by_page("arXiv stamp", stamp_lines)
        numbers = page_number_lines(sheets.lines)
        running = running_lines(sheets.lines, numbers)
        sheets.drop("running header or footer", running)
        sheets.drop("page number", page_number_lines(sheets.lines) if running else numbers)
        sheets.drop_by_page("table of contents", contents_lines)
        sheets.change("listing numbers", without_listing_numbers)
    sheets.change("glued words", Splitter(sheets.flat()).lines)
    sheets.drop_unfit()
    if not references:
        sheets.drop_flat("reference list", lambda lines: reference_lines(lines, markdown))
    if not markdown:
        sheets.drop_by_page("figure text", figure_lines)
        sheets.drop_by_page("equation debris", debris_lines)
    return sheets


def repair_characters(text: str) -> tuple[str, Counter]:
    """NFC text without ligatures, unmapped glyphs and invisible characters, and what was found.

    NFC and never NFKC, which turns x² into x2 and ½ into 1⁄2.
    """
    import ftfy

    found = Counter()
    text = text.translate(PUA_BULLET)
    found["ligatures"] = sum(text.count(glyph) for glyph in "ﬀﬁﬂﬃﬄﬅﬆ")
    text = ftfy.fixes.fix_latin_ligatures(text)
    text, found["TeX codes"] = repair_tex(text)
    found["unmapped glyphs"] = len(text_quality.UNMAPPED.findall(text))
    kept = re.sub(
        r"\(cid:\d+\)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd\ufffe\uffff\ue000-\uf8ff]", "", text
    )
    fixed = ftfy.fix_text(kept, ftfy.TextFixerConfig(**FTFY))
    found["encoding"] = sum(
        a != b for a, b in zip(kept.split("\n"), fixed.split("\n"), strict=False)
    )
    fixed = re.sub("\u00ad[ \t]*\n", "-\n", fixed)
    found["invisible characters"] = len(INVISIBLE.findall(fixed))
    fixed = INVISIBLE.sub("", fixed)
    return unicodedata.normalize("NFC", fixed), +found


def repair_tex(text: str) -> tuple[str, int]:
    """Characters for the codes of TeX's own encodings where they stand in words; how many."""
    text, codes = TEX_CODE.subn(lambda m: TEX_CODES.get(m[0], m[0]), text)
    accented, accents = TEX_ACCENT.subn(
        lambda m: (m[2] or m[4]).translate(DOTLESS) + COMBINING[m[1] or m[3]], text
    )
    return unicodedata.normalize("NFC", accented), codes + accents


FTFY = {
    "unescape_html": False,
    "fix_character_width": False,
    "uncurl_quotes": False,
    "normalization": "NFC",
}


def stamp_lines(lines: list[str]) -> set[int]:
    """arXiv's stamp, also mirrored, as extractors that do not look at the angle write it."""
    dropped = {i for i, line in enumerate(lines) if STAMP.match(line)}
    for i, line in enumerate(lines):
        if MIRRORED_STAMP.match(line.replace(" ", "")):
            dropped.add(i)
            j = i - 1
            while j >= max(0, i - 4) and len(lines[j]) <= 8:
                dropped.add(j)
                j -= 1
    return dropped


def edges(lines: list[str]) -> tuple[list[int], list[int]]:
    """Indices from the top down and from the bottom up, as far as headers and footers reach."""
    reach = min(EDGE, len(lines))
    return list(range(reach)), list(range(len(lines) - 1, len(lines) - 1 - reach, -1))


def without_digits(line: str) -> str:
    """What is equal in a running line on all pages: digits made equal, no spaces."""
    return re.sub(r"\d+|\s+", lambda m: "0" if m[0].isdigit() else "", line).lower()


def running_lines(pages: list[list[str]], numbers: set[Place]) -> set[Place]:
    """Headers and footers: lines at the edge of several pages that differ in digits only.

    They may stand inside the page numbers, which are found by themselves.
    With the words of those, also a variant (the first page's), and a line that begins or ends with
    the number of its page, counted as on the other pages (a chapter's title).
    """
    counts = Counter(
        key
        for lines in pages
        for key in {without_digits(lines[i]) for e in edges(lines) for i in e}
    )
    running = {key for key, n in counts.items() if n >= REPEATED and letters(key) >= 3}
    words = {
        word
        for lines in pages
        for line in lines
        if without_digits(line) in running
        for word in map(without_digits, line.split())
    }
    offset = numbering(pages)
    found = set()
    for p, lines in enumerate(pages):
        for edge in edges(lines):
            seen = set()
            for i in edge:
                if (p, i) in numbers:
                    continue
                line = lines[i]
                own = {w for w in map(without_digits, line.split()) if letters(w)}
                # At the top of the first page a variant is the title that the headers repeat.
                variant = i == edge[0] and len(own) > 2 and own <= words and (p > 0 or i > 0)
                numbered = offset is not None and i == edge[0] and is_numbered(line, p + offset)
                # A second time it is the title of the first page, which is also the header.
                again = without_digits(line) in seen
                if again or not (without_digits(line) in running or variant or numbered):
                    break
                seen.add(without_digits(line))
                found.add((p, i))
    return found - {(p, i) for p, i in found if is_copy(pages[p], p, found)}


def is_copy(lines: list[str], p: int, found: set[Place]) -> bool:
    """Whether most of a page's text would go: it is a copy of other pages, not a header."""
    gone = sum(len(line) for i, line in enumerate(lines) if (p, i) in found)
    return gone > HEADER_CHARACTERS and gone > 0.5 * sum(map(len, lines))


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def outer_numbers(line: str) -> list[int]:
    """Numbers with which a short line begins or ends."""
    words = line.split()
    if not 1 <= len(words) <= 14:
        return []
    return [int(w) for w in {words[0], words[-1]} if w.isdigit() and len(w) < 5]


def numbering(pages: list[list[str]]) -> int | None:
    """Printed page number minus index of the page, when most pages print theirs at an edge."""
    offsets = Counter(
        offset
        for p, lines in enumerate(pages)
        if lines
        for offset in {n - p for line in (lines[0], lines[-1]) for n in outer_numbers(line)}
    )
    if not offsets:
        return None
    offset, n = max(offsets.items(), key=lambda item: (item[1], -abs(item[0])))
    return offset if n >= max(REPEATED, len(pages) / 2) else None


def is_numbered(line: str, number: int) -> bool:
    return number in outer_numbers(line) and len(line.split()) > 1 and line[-1] not in ".!?;:,"


def page_number_lines(pages: list[list[str]]) -> set[Place]:
    """Lines at an edge that hold a page number only, when they count up with the pages."""
    found: dict[Place, int] = {}
    roman = set()
    for p, lines in enumerate(pages):
        for edge in edges(lines):
            if not edge:
                continue
            line = lines[edge[0]]
            if match := PAGE_NUMBER.match(line):
                found[p, edge[0]] = int(match[1]) - p
            elif ROMAN.match(line):
                roman.add((p, edge[0]))
    usual = [offset for offset, n in Counter(found.values()).items() if n >= 2 or offset == 1]
    numbers = {place for place, offset in found.items() if offset in usual}
    return numbers | (roman if len(roman) >= REPEATED else set())


def contents_lines(lines: list[str]) -> set[int]:
    """Lines with dot leaders, and what stands with numbers at its end under "Contents"."""
    dropped = {i for i, line in enumerate(lines) if LEADERS.search(line)}
    for start in (i for i, line in enumerate(lines) if CONTENTS.match(line)):
        i, misses = start + 1, 0
        while i < len(lines) and misses < 2:
            entry = i in dropped or re.search(r"\s\d{1,4}$", lines[i])
            misses = 0 if entry else misses + 1
            i += 1
        end = i - misses
        if end - start > 2:
            dropped.update(range(start, end))
    return dropped


def without_listing_numbers(lines: list[str]) -> list[str]:
    """The lines of a program without their numbers, where every second or fifth has one.

    Numbers on every line stay: lists, table rows and sections count like that as well.
    """
    kept = list(lines)
    for step in (2, 5):
        for run in counts(lines, step):
            if len(run) >= 4 and run[-1] - run[0] > len(run):
                for i in run:
                    kept[i] = LINE_NUMBER.sub("", lines[i], count=1).strip()
    return kept


def counts(lines: list[str], step: int) -> list[list[int]]:
    """Lines whose first numbers count on by `step`; one line between them may be a wrapped one."""
    groups: list[list[int]] = []
    last = 0
    for i, line in enumerate(lines):
        if not (match := LINE_NUMBER.match(line)):
            continue
        number = int(match[1])
        if groups and number == last + step and i - groups[-1][-1] <= step + 1:
            groups[-1].append(i)
        else:
            groups.append([i])
        last = number
    return groups


def is_axis(line: str) -> bool:
    """The ticks of an axis: numbers in equal steps."""
    words = line.replace("−", "-").replace("%", "").split()
    try:
        values = [float(word) for word in words]
    except ValueError:
        return False
    if len(values) < 3:
        return False
    steps = [b - a for a, b in zip(values, values[1:], strict=False)]
    return steps[0] != 0 and all(abs(s - steps[0]) <= 1e-6 + 0.02 * abs(steps[0]) for s in steps)


def is_label(line: str) -> bool:
    """A short line that is no part of a sentence."""
    words = line.split()
    if words and all(map(NUMBER.match, words)):
        return True
    if not 1 <= len(words) <= 4 or line[-1] in ".:;,?!-" or CODE_SIGN.search(line):
        return False
    return not is_table_row(line) and heading_number(line) is None


def is_letter_soup(line: str) -> bool:
    """Overlapping texts of a figure, interleaved letter by letter."""
    words = line.split()
    short = sum(len(w) <= 2 and w.isalpha() and w not in JOINERS for w in words)
    return len(words) >= 8 and short > 0.7 * len(words)


def is_meaning(character: str) -> bool:
    """A letter, digit, bracket or mathematical symbol: a root on a line of its own is content."""
    return character.isalnum() or unicodedata.category(character) in ("Sm", "Ps", "Pe")


def figure_lines(lines: list[str]) -> set[int]:
    """Axis ticks, labels above a figure's caption, and text that lies on top of other text."""
    dropped = {i for i, line in enumerate(lines) if is_axis(line) or is_letter_soup(line)}
    dropped |= {i for i, line in enumerate(lines) if line and not any(map(is_meaning, line))}
    for caption in (i for i, line in enumerate(lines) if FIGURE.match(line)):
        start = caption
        while start > 0 and (start - 1 in dropped or is_label(lines[start - 1])):
            start -= 1
        labels = range(start, caption)
        if len(labels) > 1 or any(i in dropped for i in labels):
            dropped.update(labels)
    return dropped


def debris_lines(lines: list[str]) -> set[int]:
    """A few stray letters on a line between two lines of text."""
    dropped = set()
    for i in range(1, len(lines) - 1):
        words = lines[i].split()
        stray = 0 < len(words) <= 6 and all(len(w) <= 2 and w.isalnum() for w in words)
        stray = stray and not NUMBER.match(lines[i])
        if stray and is_text(lines[i - 1]) and is_text(lines[i + 1]):
            dropped.add(i)
    return dropped


def is_text(line: str) -> bool:
    return len(WORD.findall(line)) >= 4


def is_table_row(line: str) -> bool:
    """Two numbers or more that make up most of the line's words, and no sentence."""
    words = [word for word in line.split() if word not in ("&", "|", "±", "–", "-", "—")]
    numbers = sum(bool(NUMBER.match(word)) for word in words)
    return numbers >= 2 and numbers >= 0.4 * len(words) and line[-1] not in ".,;:?!"
