"""Put the spaces back into words that an extractor glued together.

"weproposeaunifiedframework" is cut where the product of word probabilities is largest (dynamic
programming over unigrams, as in P. Norvig, "Natural Language Corpus Data", 2009). A word's
probability comes from the undamaged lines of the same document first; for an English document also
from the word list of symspellpy, as much of what is glued stands nowhere else in the document.

A word that the document or the list knows is never cut, nor are addresses; code and formulas only
in a line that is glued beyond doubt; and a document without such lines is left alone altogether.
"""

import functools
import math
import re
from collections import Counter
from itertools import pairwise

WORD = re.compile(r"[^\W\d_]+")
GLUED_LETTERS = 20  # a word of so many letters is glued if it can be cut into known ones at all
SUSPECT_LETTERS = 15  # a line with a longer word may be damaged and teaches no vocabulary
LONGEST = 24  # letters of one word
FEW_WORDS = 50
SURE_WORDS = 3  # so many words that are glued beyond doubt make a damaged document
JOINING = """
a about after all also an and any are as at be been but by can do for from had has have he how if in
into is it its may more most no not of on only or our out over so some such than that the their them
then there these they this those through to under up using was we were what when where which while
who will with would
"""
JOINERS = frozenset(JOINING.split())
OTHER_JOINERS = 30  # in another language, its most frequent short words
ADDRESS = re.compile(r"://|www\.|@|\w\.(?:com|org|edu|net|io|uk|de)\b")
CODE = re.compile(r"[\\_=<>{}|#$^~`]|::|\(\)")
NUMBERED = re.compile(
    r"\b(Figures?|Tables?|Section|Step|Stage|Algorithm|Appendix|January|February|March|April|May"
    r"|June|July|August|September|October|November|December)(?=\d)|(?<=\d,)(?=(?:19|20)\d\d\b)"
)
SHORT_HEADING = re.compile(r"^(?:\d{1,2}|[A-Z])(?:\.\d{1,2})* [A-Z]\S{11,}(?: \S+)?$")
# Pieces that are words by themselves, but at these ends mostly belong to a longer, rare word.
PREFIXES = re.compile(
    r"anti|auto|bi|co|hyper|inter|meta|micro|mis|multi|non|over|pre|re|semi|sub|super|un|under",
    re.I,
)
SUFFIXES = re.compile(r"able|ability|ing|less|like|ly|ment|ness|ship|wise")
NAMES = re.compile(r"[^\W\d_],[^\W\d_]|\d,[A-Z][a-z]")
# Log-probabilities of parts that no vocabulary has: a constant and one per letter.
UNKNOWN_NAME = (-10.0, -2.5)
UNKNOWN_ACRONYM = (-14.0, -2.0)
SYMBOL = -9.0  # a single letter, a variable, at either end
COMMON = 1e-5  # probability of a word that is not only listed
LONG_NAME = 13  # letters; a shorter unknown word with a capital is taken for a name


@functools.cache
def english() -> dict[str, float]:
    """Probabilities of 82,765 English words (symspellpy's list: Google Books and SCOWL, MIT)."""
    from importlib.resources import files

    text = (files("symspellpy") / "frequency_dictionary_en_82_765.txt").read_text("utf-8-sig")
    counts = {word: int(n) for word, n in map(str.split, text.splitlines())}
    total = sum(counts.values())
    return {word: n / total for word, n in counts.items()}


class Vocabulary:
    """Words of a document's undamaged lines, with counts, pairs, and English when it is English."""

    def __init__(self, lines: list[str]):
        clean = [line for line in whole_words(lines) if reliable(WORD.findall(line))]
        self.exact = Counter(word for line in clean for word in WORD.findall(line))
        self.lower = Counter()
        for word, count in self.exact.items():
            self.lower[word.lower()] += count
        self.pairs = Counter(pair for line in clean for pair in spaced_pairs(line))
        self.total = self.exact.total() or 1
        self.list = english() if self._is_english() else {}
        short = [word for word, _ in self.lower.most_common() if len(word) in (2, 3, 4)]
        self.joiners = JOINERS if self.list else frozenset(short[:OTHER_JOINERS])
        self.log = functools.cache(self._log)
        self.rare = math.log(0.5 / (1.5 * self.total))  # of a word that is not even seen once

    def _is_english(self) -> bool:
        """Most of its longer words are English ones; with hardly any words, it may be."""
        longer = {word: n for word, n in self.lower.items() if len(word) > 3}
        known = sum(n for word, n in longer.items() if word in english())
        return sum(longer.values()) < FEW_WORDS or known > 0.5 * sum(longer.values())

    def knows(self, word: str) -> bool:
        """Whether it is a word of its own, so that it is never cut."""
        return self.exact[word] > 1 or self.lower[word.lower()] > 2 or word.lower() in self.list

    def is_common(self, word: str) -> bool:
        return self.lower[word.lower()] > 0 or self.list.get(word.lower(), 0.0) > COMMON

    def _log(self, word: str) -> float | None:
        """Log-probability of a part, or None when it is not a word."""
        lower, plain = word.lower(), word.islower() or word.istitle()
        count = self.lower[lower] if plain else self.exact[word]
        listed = self.list.get(lower, 0.0) if plain else 0.0
        if len(word) == 1:
            known = bool(self.list) and word in ("a", "A", "I")
        elif len(word) == 2:
            # Two letters are mostly a piece of a formula.
            known = lower in self.joiners or (count > 4 and word.isupper())
        else:
            known = count > 0 or listed > 0
        if not known:
            return None
        return math.log((count + 0.5 * listed * self.total + 0.05) / (1.5 * self.total))

    def following(self, before: str, word: str) -> float | None:
        """Log-probability of a word after another one: the pair counts as far as it was seen."""
        alone, seen = self.log(word), self.lower[before.lower()]
        if alone is None or not seen:
            return alone
        pair = self.pairs[before.lower(), word.lower()] / seen
        return math.log(0.6 * math.exp(alone) + 0.4 * pair)


def whole_words(lines: list[str]) -> list[str]:
    """The lines without the two pieces of each word that is split between them."""
    result, hyphen = [], False
    for line in lines:
        kept = re.sub(r"^\S+", "", line) if hyphen else line
        hyphen = line.endswith("-")
        result.append(re.sub(r"\S+-$", "", kept))
    return result


def reliable(words: list[str]) -> bool:
    letters, longest = sum(map(len, words)), max(map(len, words), default=0)
    return len(words) >= 5 and longest <= SUSPECT_LETTERS and letters < 8 * len(words)


def spaced_pairs(line: str) -> list[tuple[str, str]]:
    """Neighbouring words with nothing but a space between them, lower-cased."""
    return [
        (a.lower(), b.lower())
        for a, b in pairwise(line.split())
        if WORD.fullmatch(a) and WORD.fullmatch(b.rstrip(".,;:)"))
    ]


def split_word(word: str, vocabulary: Vocabulary) -> tuple[float, tuple[str, ...]]:
    """(log-probability, parts) of the most probable cut; parts is (word,) if there is none.

    State of the dynamic programme: where the last part starts and ends.
    """
    best: list[dict[int, tuple[float, tuple[str, ...]]]] = [{0: (0.0, ())}]
    for end in range(1, len(word) + 1):
        cell = {}
        for start in range(max(0, end - LONGEST), end):
            part, outer = word[start:end], start == 0 or end == len(word)
            unknown = None if vocabulary.log(part) is not None else unknown_part(part, outer)
            if best[start] and (unknown is not None or vocabulary.log(part) is not None):
                cell[start] = extend(best[start].values(), part, unknown, vocabulary)
        best.append(cell)
    return max(best[-1].values(), default=(-math.inf, (word,)))


def unknown_part(part: str, outer: bool) -> float | None:
    """Log-probability of a part that is no known word; None when it cannot be a word."""
    if len(part) == 1:
        return SYMBOL if outer else None
    if len(part) < 3 or not (part.istitle() or part.isupper()):
        return None
    fixed, per_letter = UNKNOWN_NAME if part.istitle() else UNKNOWN_ACRONYM
    return fixed + per_letter * len(part)


def extend(ways, part: str, unknown: float | None, vocabulary: Vocabulary):
    scored = []
    for score, parts in ways:
        before = parts[-1] if parts else ""
        more = vocabulary.following(before, part) if unknown is None else unknown
        scored.append((score + more, (*parts, part)))
    return max(scored)


class Splitter:
    """Decides what is glued, line by line; see the module's docstring for what it never cuts."""

    def __init__(self, lines: list[str]):
        self.vocabulary = Vocabulary(lines)
        self.split = functools.cache(lambda word: split_word(word, self.vocabulary))
        self.seen = Counter(word for line in lines for word in WORD.findall(line))
        prose = {w for line in lines for w in self._sure_words(line) if self._is_prose(w)}
        self.damaged = len(prose) >= SURE_WORDS

    def lines(self, lines: list[str]) -> list[str]:
        """Lines with their spaces put back; what is split between two lines is left alone."""
        if not self.damaged:
            return lines
        return [self._line(line, lines[i - 1] if i else "") for i, line in enumerate(lines)]

    def _line(self, line: str, before: str) -> str:
        sure = bool(self._sure_words(line)) or bool(SHORT_HEADING.match(line))
        head = self._piece(r"^[^\W\d_]+", line) if before.endswith("-") else ""
        tail = self._piece(r"[^\W\d_]+-$", line)
        middle = line[len(head) : len(line) - len(tail)]
        middle = " ".join(self._token(token, sure) for token in middle.split(" "))
        return NUMBERED.sub(lambda m: m[0] + " ", head + middle + tail)

    def _piece(self, pattern: str, line: str) -> str:
        """The piece of a split word at an end of the line."""
        found = re.search(pattern, line)
        return found[0] if found and not self._is_sure(found[0].rstrip("-")) else ""

    def _sure_words(self, line: str) -> list[str]:
        """Words of the line that are glued beyond doubt."""
        return [
            word
            for token in line.split()
            if not ADDRESS.search(token)
            for word in WORD.findall(token)
            if self._is_sure(word) and (word[1:].islower() or not CODE.search(token))
        ]

    def _is_term(self, word: str) -> bool:
        """Whether it is a name of the document's own, such as a command: it stands there again."""
        return word.islower() and self.seen[word] > 1

    def _is_prose(self, word: str) -> bool:
        """Whether it is a piece of a sentence. Capitals are no evidence, classes have them too."""
        parts = [part for part in self.split(word)[1] if self._is_known(part)]
        joiners = sum(part.lower() in self.vocabulary.joiners for part in parts)
        return word[1:].islower() and len(parts) > 3 and joiners > 1

    def _is_sure(self, word: str) -> bool:
        if len(word) <= SUSPECT_LETTERS or self.vocabulary.knows(word) or self._is_term(word):
            return False
        _, parts = self.split(word)
        known = [part for part in parts if self._is_known(part)]
        if len(known) > 2 and any(part.lower() in self.vocabulary.joiners for part in known):
            return True
        enough = GLUED_LETTERS if self.vocabulary.list else LONGEST
        long = len(word) >= enough and len(known) > 1 and len(known) >= len(parts) - 1
        return long or self._are_pairs(parts)

    def _is_known(self, part: str) -> bool:
        return len(part) > 1 and self.vocabulary.log(part) is not None

    def _are_pairs(self, parts: tuple[str, ...]) -> bool:
        """Whether the parts stand side by side elsewhere in the document."""
        lowered = [part.lower() for part in parts]
        return len(parts) > 1 and all(self.vocabulary.pairs[p] for p in pairwise(lowered))

    def _token(self, token: str, sure_line: bool) -> str:
        if ADDRESS.search(token) or (CODE.search(token) and not sure_line):
            return token
        names = [word for word in WORD.findall(token) if self._is_name(word)]
        if len(names) > 1 and NAMES.search(token):
            token = WORD.sub(lambda m: cut_name(m[0]) if m[0] in names else m[0], token)
            sure_line = True
        changed = WORD.sub(lambda m: self._word(m[0], sure_line, is_command(m)), token)
        return self._respace(changed) if sure_line else changed

    def _is_name(self, word: str) -> bool:
        """A person's name without its spaces, perhaps after a joining word: andAdaKing."""
        parts = camel_parts(word)
        first = parts[0] if parts else ""
        return (
            len(parts) > 1
            and not self.vocabulary.knows(word)
            and (first.istitle() or first in self.vocabulary.joiners)
            and all(part.istitle() and len(part) < LONG_NAME for part in parts[1:])
        )

    def _word(self, word: str, sure_line: bool, command: bool) -> str:
        if len(word) < 4 or self.vocabulary.knows(word) or (command and not self._is_prose(word)):
            return word
        score, parts = self.split(word)
        if self._is_term(word) and not sure_line:
            cut = False
        elif self._is_sure(word) or self._are_pairs(parts):
            cut = True
        elif self.vocabulary.exact[word]:
            cut = False  # it stands in a sound line
        else:
            cut = self._is_heading(parts)
            cut |= sure_line and self._is_plausible(word, score, parts)
        return " ".join(parts) if cut else word

    def _is_plausible(self, word: str, score: float, parts: tuple[str, ...]) -> bool:
        """Whether an unknown word of a glued line is glued as well, and not a name or a term."""
        joiners = [part.lower() in self.vocabulary.joiners for part in parts]
        known = all(self._is_known(part) for part in parts)
        if word.istitle() and len(word) < LONG_NAME:
            return known and joiners[0]
        if joiners[0] or (len(parts) > 2 and any(joiners)):
            return len(parts) > 1
        if PREFIXES.fullmatch(parts[0]) or SUFFIXES.fullmatch(parts[-1]):
            return False
        if known and all(part.istitle() for part in parts):
            return True
        symbols = all(self._is_known(part) or len(part) == 1 for part in parts)
        return symbols and score > self.vocabulary.rare * len(parts)

    def _is_heading(self, parts: tuple[str, ...]) -> bool:
        """Common words with a capital each, as in "EvaluationMetrics"."""
        words = all(part.istitle() and len(part) > 2 for part in parts)
        return len(parts) > 1 and words and all(map(self.vocabulary.is_common, parts))

    def _respace(self, token: str) -> str:
        """Spaces around punctuation and numbers, which the same extractor dropped."""
        token = re.sub(r"([,;:!?])(?=[^\W\d_]{2}|a )", r"\1 ", token)
        token = re.sub(r"(?<=[a-z)]{2})\.(?=[A-Z])|(?<=[^\W\d_)])\.(?=[A-Z][a-z])", ". ", token)
        token = re.sub(r"\)(?=[^\W\d_]{2})", ") ", token)
        token = re.sub(r"(?<=[^\W\d_]{3})\((?=[^\W\d_]{2})", " (", token)
        token = re.sub(r"[^\W\d_]{2,}(?=\d\d|\d,\d)", self._before_number, token)
        return re.sub(r"(?<=\d)(?=[a-z]{4})", " ", token)

    def _before_number(self, word: re.Match) -> str:
        known = self.vocabulary.knows(word[0]) and not word[0].isupper()
        return word[0] + " " if known else word[0]


def is_command(word: re.Match) -> bool:
    """Whether the word stands behind a backslash, as TeX's commands do."""
    return word.string[word.start() - 1 : word.start()] == "\\"


def cut_name(word: str) -> str:
    return " ".join(camel_parts(word))


def camel_parts(word: str) -> list[str]:
    return re.findall(r"[A-Z][^\W\d_A-Z]+|[A-Z]+(?![a-z])|^[^\W\d_A-Z]+", word)
