"""Section headings and the reference list, found in the lines of a document."""

import re

NUMBERED = re.compile(r"^((?:\d{1,2}|[A-Z])(?:\.\d{1,2}){0,4})\.?[ \t]+(\S.{1,88})$")
NAMED = re.compile(
    r"a ?bstract|i ?ntroduction|background|motivation|preliminaries|related work|methods?"
    r"|methodology|materials and methods|experiments?|experimental setup|evaluation|results"
    r"|discussion|results and discussion|conclusions?|discussion and conclusions?|summary"
    r"|limitations"
    r"|future work|a ?cknowledge?ments?|ethics statement|broader impact|reproducibility statement"
    r"|author contributions|funding|data availability|references|bibliography|literature cited"
    r"|a ?ppendi(x|ces)|supplementary (materials?|information)"
)
APPENDIX = re.compile(r"Appendix [A-Z\d](?:[:.]?(?: [A-Z(]| [-–—] )[^.]{1,60})?")
REFERENCES = re.compile(r"(\d+\.?\s+)?(references|bibliography|literature cited)\W?", re.IGNORECASE)
MARKED = re.compile(r"^#{1,6} +(.*\S)")
SMALL_CAPITALS = re.compile(r"\b([B-HJ-Z]) (?=[A-Z]{2,})")  # A and I are words
ENTRY = re.compile(r"^\[(\d{1,3})\]")
REFERENCE_MARK = re.compile(
    r"\b(19|20)\d\d[a-z]?\b|\bet al\b|arXiv|\bdoi\b|Proceedings|Conference|Journal|Transactions"
    r"|\bpp\.|\bISBN\b|https?://|^\[\d+\]|\b[A-Z]\.( ?[A-Z]\.)* [A-Z][a-z]+,|[a-z]+, [A-Z]\."
)
LEADS_ON = re.compile(r"\b(?:in|see|of|and|to|for|from|by|with|at|as|or|the|a|an|both|than)$|\($")
FEWEST_NUMBERED = 2  # a single numbered heading is a list item or a footnote
LIST_STEP = 3  # lines; numbered lines that follow each other faster are a list
FEWEST_ENTRIES = 5


def find_headings(lines: list[str], markdown: bool = False) -> dict[int, str]:
    """Index and text of each heading line: numbered ones in sequence, and well-known names.

    The second line of a heading has the text "". In Markdown only lines with # are headings.
    """
    if markdown:
        return {i: m[1] for i, line in enumerate(lines) if (m := MARKED.match(line))}
    candidates = {i: n for i, line in enumerate(lines) if (n := heading_number(line))}
    found, last, numbered = {}, (), []
    for i, line in enumerate(lines):
        if i in found:
            continue
        text = SMALL_CAPITALS.sub(r"\1", line.strip())
        if NAMED.fullmatch(text.rstrip(":").lower()) or APPENDIX.fullmatch(text):
            if text.lower().replace(" ", "").startswith("abstract"):
                # Numbers before it are those of the authors' addresses.
                found, last, numbered = {}, (), []
            found[i] = text
        elif i in candidates and follows(last, candidates[i]) and not in_list(i, candidates):
            letter = candidates[i][0] >= ord("A")
            if letter and not (len(numbered) > 2 and is_appendix_heading(lines, i)):
                continue
            if is_inside_sentence(lines, i):
                continue
            last = candidates[i]
            numbered.append(i)
            found[i] = text
            if LEADS_ON.search(text) and i + 1 < len(lines):
                found[i], found[i + 1] = f"{text} {lines[i + 1].strip()}", ""
                numbered.append(i + 1)
    if len(numbered) < FEWEST_NUMBERED:
        found = {i: text for i, text in found.items() if i not in numbered}
    return found


def is_inside_sentence(lines: list[str], i: int) -> bool:
    """Whether line i goes on with the line before, as in "sections 2.10 and / 2.16. On Windows"."""
    before = lines[i - 1].strip() if i else ""
    after = lines[i + 1].strip() if i + 1 < len(lines) else ""
    if LEADS_ON.search(before) or before[-1:] in (",", "-"):
        return True
    return before[-1:].islower() and after[:1].islower() and not LEADS_ON.search(lines[i])


def heading_number(line: str) -> tuple[int, ...] | None:
    """(2, 1) of "2.1 Data", (65,) of "A Proofs"; None when the line cannot be a heading."""
    match = NUMBERED.match(SMALL_CAPITALS.sub(r"\1", line.strip()))
    if not match:
        return None
    number, title = match[1], match[2]
    words = title.split()
    capital = (
        title[0].isupper() or title[0] in "\"“‘'" or (title[0].isalpha() and not title[0].islower())
    )
    digits = sum(word[0].isdigit() for word in words)
    if not any(len(word) > 2 for word in words):
        return None
    if not capital or len(words) > 12 or title[-1] in ".,;:?-" or digits > len(words) / 3:
        return None
    if re.search(r"[.!?] [A-Z][a-z]+ [a-z]", title) and "vs." not in title:
        return None
    return tuple(int(p) if p.isdigit() else ord(p) for p in number.split("."))


def follows(last: tuple[int, ...], number: tuple[int, ...]) -> bool:
    """Whether a heading may have this number after the last one; a few may have been missed."""
    if not last:
        return number[0] in (0, 1) or (len(number) > 1 and number[0] < 30 and number[1] == 1)
    if number[0] >= ord("A") > last[0]:
        return number[0] == ord("A") and set(number[1:]) <= {1}
    if number[: len(last)] == last:
        return len(number) == len(last) + 1 and number[-1] <= 2
    same = next((k for k, (a, b) in enumerate(zip(last, number, strict=False)) if a != b), None)
    if same is None:
        return False
    return 1 <= number[same] - last[same] <= 3 and set(number[same + 1 :]) <= {1}


def in_list(i: int, candidates: dict[int, tuple[int, ...]]) -> bool:
    """Whether the next number of the same depth stands within a few lines, before or after."""
    here = candidates[i]
    for j in range(i - LIST_STEP, i + LIST_STEP + 1):
        other = candidates.get(j)
        step = 1 if j > i else -1
        if other and len(here) == 1 and other == (here[0] + step,):
            return True
    return False


def is_appendix_heading(lines: list[str], i: int) -> bool:
    """A letter begins many sentences and reference entries; a heading is short and stands alone."""
    before = lines[i - 1].strip() if i else ""
    short = len(lines[i].split()) <= 10 and not re.search(r"\b(19|20)\d\d\b|, [A-Z]\.", lines[i])
    return (
        short and before[-1:] not in (",", "-") and reference_density(lines[i + 1 : i + 11]) < 0.5
    )


def reference_density(lines: list[str]) -> float:
    """Share of lines that look like a part of a reference list."""
    return sum(bool(REFERENCE_MARK.search(line)) for line in lines) / max(1, len(lines))


def reference_lines(lines: list[str], markdown: bool = False) -> set[int]:
    """Indices of the reference lists: each from its heading up to the next heading.

    Appendices come after the list, so it never runs to the end of the document by itself. A
    heading inside the list is one only if what follows looks like text again.
    """
    headings, dropped = find_headings(lines, markdown), set()
    starts = [i for i, text in headings.items() if text and REFERENCES.fullmatch(text)]
    if not starts:
        starts = unnamed_list(lines)
    for start in starts:
        end = next(
            (
                i
                for i in sorted(headings)
                if i > start
                and not REFERENCES.fullmatch(headings[i])
                and reference_density(lines[i + 1 : i + 11]) < 0.6
            ),
            len(lines),
        )
        dropped.update(range(start, end))
    return dropped


def unnamed_list(lines: list[str]) -> list[int]:
    """Where a list of entries [1], [2], ... without a heading begins, in the second half."""
    wanted, start, last = 1, 0, 0
    for i, line in enumerate(lines):
        match = ENTRY.match(line)
        if not match or (wanted > 1 and i - last > 12):
            if wanted > FEWEST_ENTRIES:
                break
            if not match:
                continue
            wanted = 1
        if int(match[1]) == wanted:
            start = i if wanted == 1 else start
            wanted, last = wanted + 1, i
    return [start] if wanted > FEWEST_ENTRIES and start > len(lines) / 2 else []
