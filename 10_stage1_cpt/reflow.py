"""From the lines of pages to one running text: words mended, sentences whole, tables as rows.

A heading, a list item and a table row keep a line of their own. A table or a caption that stands
inside a sentence, where LaTeX had floated it, is moved behind that sentence.
"""

import bisect
import re
import statistics
from collections import Counter
from dataclasses import dataclass

from clean_text import Sheets, is_table_row, is_text
from headings import LEADS_ON, find_headings
from split_glued import Vocabulary, whole_words

BULLET = re.compile(r"^[-•‣◦*] ")
ITEM = re.compile(r"^(?:[-•‣◦*–] |\(?(?:\d{1,2}|[a-z]|[ivx]{1,4})[.)] )")
CAPTION = re.compile(
    r"^(?:Figure|Fig\.?|Table|Tab\.?|Algorithm|Listing|Abbildung|Tabelle)\s*"
    r"(?:[A-Z]\.?)?\d+(?:\.\d+)*(?:[:.|]|\s*[-–—(]|\s+[A-Z*])"
)
SENTENCE_END = re.compile(r"[.!?:;…。！？][\"”’»)\]\d]*$")
END = 60  # characters; no longer word is mended
CAPTION_LINES = 15
TABLE = re.compile(r"^Tab(?:le|elle|\.)", re.I)
TABLE_REACH = 20  # lines
SHORT = 0.75  # of a full line: the end of a caption, a row of a table
HAN_OR_KANA = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


@dataclass
class Flow:
    """The running text. marks: (offset, page) of each line; sections: (offset, heading).

    mended: by page, the words that had been split between two lines.
    """

    text: str
    marks: list[tuple[int, int]]
    sections: list[tuple[int, str]]
    mended: Counter

    def pages(self, start: int, end: int) -> list[int]:
        """First and last page of text[start:end]."""
        first = max(0, bisect.bisect_right(self.marks, (start, 1 << 30)) - 1)
        last = bisect.bisect_left(self.marks, (end, 0))
        found = [page for _, page in self.marks[first : max(last, first + 1)]]
        return [min(found), max(found)]


class Reflow:
    """Builds a Flow line by line."""

    def __init__(self, lines: list[str]):
        self.pieces: list[str] = []
        self.length, self.end = 0, ""  # of the text so far: characters, the last few of them
        self.marks: list[tuple[int, int]] = []
        self.sections: list[tuple[int, str]] = []
        self.mended: Counter = Counter()
        self.parked: list[tuple[str, int]] = []
        self.words = Counter(w.lower() for line in whole_words(lines) for w in word_forms(line))
        self.listed = Vocabulary(lines).list

    def finished(self) -> Flow:
        self.end_paragraph()
        return Flow("".join(self.pieces), self.marks, self.sections, self.mended)

    @property
    def open(self) -> bool:
        """Whether the text stands inside a sentence."""
        return self.end[-1:] not in ("", "\n") and not SENTENCE_END.search(self.end)

    def heading(self, line: str, page: int) -> None:
        self.end_paragraph()
        if self.length:
            self._add("\n")
        self.sections.append((self.length, line))
        self._put(line + "\n\n", page)

    def end_paragraph(self) -> None:
        """Start a new line, after the tables and captions that waited for the sentence to end."""
        parked, self.parked = self.parked, []
        for text, page in parked:
            self.block(text, page)
        self._new_line()

    def float(self, text: str, page: int) -> None:
        """A table row or a caption: at once between sentences, later inside one."""
        if self.parked or self.open:
            self.parked.append((text, page))
        else:
            self.block(text, page)

    def block(self, line: str, page: int) -> None:
        """Text on a line of its own."""
        self._new_line()
        self._put(line + "\n", page)

    def line(self, line: str, page: int) -> None:
        """A line of running text, which goes on with the last one."""
        if BULLET.match(line) or (ITEM.match(line) and not self.open):
            self._new_line()
        between = ""
        if self.end[-1:] not in ("", "\n"):
            cut, between = self.seam(self.end, line, page)
            if cut:
                self.pieces[-1] = self.pieces[-1][:-1]
                self.length, self.end = self.length - 1, self.end[:-1]
        self._put(between + line, page)
        if self.parked and not self.open:
            self.end_paragraph()

    def joined(self, before: str, line: str, page: int) -> str:
        cut, between = self.seam(before[-END:], line, page)
        return (before[:-1] if cut else before) + between + line

    def seam(self, before: str, line: str, page: int) -> tuple[bool, str]:
        """(whether the last character of the text goes, what stands between it and the line)."""
        head, tail = re.search(r"([^\W\d_]+)-$", before), re.match(r"[^\W\d_]+", line)
        if head and tail and tail[0].islower():
            mended = self.is_one_word(head[1], tail[0])
            self.mended[page] += mended
            return mended, ""
        if re.search(r"\w[-–—/]$", before):
            return False, ""
        dense = HAN_OR_KANA.match(before[-1]) and HAN_OR_KANA.match(line)
        return False, "" if dense else " "

    def is_one_word(self, head: str, tail: str) -> bool:
        """Whether the hyphen at a line's end belongs to the line break and not to the word.

        The document's own use decides, then the word list, then whether the parts are words.
        """
        whole, hyphenated = (head + tail).lower(), f"{head}-{tail}".lower()
        if self.words[whole] != self.words[hyphenated]:
            return self.words[whole] > self.words[hyphenated]
        if whole in self.listed or not self.listed:
            return True
        return not (self.is_word(head) and (len(head) > 3 or self.is_word(tail)))

    def is_word(self, word: str) -> bool:
        return self.words[word.lower()] > 0 or word.lower() in self.listed

    def _new_line(self) -> None:
        if self.end[-1:] not in ("", "\n"):
            self._add("\n")

    def _put(self, text: str, page: int) -> None:
        self.marks.append((self.length, page))
        self._add(text)

    def _add(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)
        self.end = (self.end + text)[-END:]


def word_forms(line: str) -> list[str]:
    """Words of a line; a hyphenated word counts whole and not by its parts."""
    return re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", line)


def reflow(sheets: Sheets) -> Flow:
    """The running text of cleaned pages, with headings and pages."""
    lines = sheets.flat()
    places = [(n, page) for n, page in zip(sheets.numbers, sheets.lines, strict=True)]
    pages = [number for number, page in places for _ in page]
    widths = [max(map(len, page)) for _, page in places for _ in page]
    headings = find_headings(lines, sheets.markdown)
    build, i = Reflow(lines), 0
    if sheets.markdown:
        # Every block is one line there already.
        for i, (line, page) in enumerate(zip(lines, pages, strict=True)):
            build.heading(headings[i], page) if i in headings else build.block(line, page)
        return build.finished()
    rows = table_lines(lines, headings.keys())
    while i < len(lines):
        line, page, end = lines[i], pages[i], i + 1
        if not line:
            build.end_paragraph()
        elif i in headings:
            if headings[i]:
                build.heading(headings[i], page)
        elif i in rows:
            build.float(line, page)
        elif is_caption(line) and not LEADS_ON.search(build.end):
            end = caption_end(lines, i, widths[i], build.open, headings.keys() | rows)
            for following in lines[i + 1 : end]:
                line = build.joined(line, following, page)
            build.float(line, page)
        else:
            build.line(line, page)
        i = end
    return build.finished()


def is_caption(line: str) -> bool:
    return bool(CAPTION.match(line))


def caption_end(lines: list[str], start: int, width: int, inside: bool, others: set[int]) -> int:
    """Index after a caption's last line: one that ends a sentence, or a short one.

    Inside a sentence the text goes on in lower case, so a line with a capital is still caption.
    """
    for i in range(start, min(start + CAPTION_LINES, len(lines))):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if not following or i + 1 in others or CAPTION.match(following):
            return i + 1
        if len(lines[i]) < SHORT * width:
            return i + 1
        if SENTENCE_END.search(lines[i]) and not (inside and not following[0].islower()):
            return i + 1
    return min(start + CAPTION_LINES, len(lines))


def table_lines(lines: list[str], headings: set[int]) -> set[int]:
    """Indices of table rows: lines of numbers, and the short lines above, between and below them.

    Under a table's caption short lines are rows as well; there a table may be all words.
    """
    typical = statistics.median([len(line) for line in lines if is_text(line)] or [80])

    def may_belong(i: int) -> bool:
        line = lines[i] if 0 <= i < len(lines) else ""
        plain = bool(line) and i not in headings and not is_caption(line) and not ITEM.match(line)
        return plain and line[-1] not in ".,;:?!-" and len(line) < SHORT * typical

    numbers = {i for i, line in enumerate(lines) if line and is_table_row(line)} - set(headings)
    found = {i for i in numbers if numbers & {i - 2, i - 1, i + 1, i + 2}}
    starts = {i + 1 for i, line in enumerate(lines) if TABLE.match(line) and is_caption(line)}
    starts = {i for i in starts if may_belong(i) and may_belong(i + 1)}
    for i in sorted(found | starts):
        for step in (-1, 1):
            j = i if i in starts else i + step
            while abs(j - i) <= TABLE_REACH and (may_belong(j) or j in numbers):
                found.add(j)
                j += step
    return found
