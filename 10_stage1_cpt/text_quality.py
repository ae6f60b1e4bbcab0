"""The text gate: how much of a page's text is damaged, and whether it is fit for training.

The thresholds lie far from what sound pages have; tests/test_pdf_quality.py has both kinds.
"""

import re
import unicodedata
from dataclasses import dataclass, fields

LONG = 20  # letters; longer "words" of alphabetic scripts are nearly always glued ones
# Scripts that put spaces between words: Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew, Arabic.
SPACED = r"A-Za-z\u00aa-\u02af\u0370-\u06ff\u10a0-\u10ff\u1e00-\u1fff"
LONG_WORD = re.compile(rf"[{SPACED}]{{{LONG},}}")
LINK = re.compile(r"\S*(?:://|www\.|@|\\)\S*")
UNMAPPED = re.compile(r"\(cid:\d+\)|[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffd\uffff\ue000-\uf8ff]")
SPACED_OUT = re.compile(r"(?<!\S)(?:[^\W\d_] ){4,}[^\W\d_](?!\S)")
LEADERS = re.compile(r"(?:\. ?){4,}|[-_=*~]{4,}")
POINTS = re.compile(r"^[^\w(\ufffd\uffff\ue000-\uf8ff]*$", re.MULTILINE)  # of a scatter plot
LOWER_WORD = re.compile(r"\b[a-z]{3,}\b")
FEW_LETTERS = 150  # fewer are no sample
VOWELS = 0.38  # share of a text's letters, in English; other languages have more or nearly as many


@dataclass(frozen=True)
class Quality:
    """Shares between 0 and 1 of a page's letters, characters or words that are damaged."""

    glued: float
    unmapped: float
    spaced_out: float
    symbols: float
    vowelless: float

    @property
    def badness(self) -> float:
        """One number to compare two readings of a page by; the rest is equal in both."""
        return self.glued + self.unmapped + self.spaced_out


LIMITS = Quality(glued=0.20, unmapped=0.10, spaced_out=0.30, symbols=0.55, vowelless=0.40)
COMPLAINTS = {
    "glued": f"of its letters are in words of {LONG} letters or more (missing spaces)",
    "unmapped": "of its characters are glyphs without a meaning (font without a character map)",
    "spaced_out": "of its letters stand alone (s p a c e d   o u t)",
    "symbols": "of its characters are neither letters nor digits",
    "vowelless": "of the vowels of any language are missing (font with a wrong character map)",
}


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def long_words(text: str) -> list[str]:
    """Words of 20 letters or more that are not a part of an address or a path."""
    return LONG_WORD.findall(LINK.sub(" ", text))


def measure(text: str, unmapped: int = 0) -> Quality:
    """Quality of a page. `unmapped` adds glyphs that are known to have no meaning."""
    text = LEADERS.sub(" ", LINK.sub(" ", POINTS.sub("", text)))
    characters = max(1, sum(not c.isspace() for c in text))
    lower = "".join(LOWER_WORD.findall(without_accents(text)))
    meaningless = UNMAPPED.findall(text)
    plain = UNMAPPED.sub("", text)
    alphabetic = max(1, letters(plain))
    solid = [c for c in plain if not c.isspace()]
    vowels = sum(map(lower.count, "aeiou")) / max(1, len(lower))
    return Quality(
        glued=sum(map(len, LONG_WORD.findall(plain))) / alphabetic,
        unmapped=min(1.0, (len(meaningless) + unmapped) / characters),
        spaced_out=sum(letters(run) for run in SPACED_OUT.findall(plain)) / alphabetic,
        symbols=sum(not c.isalnum() for c in solid) / max(1, len(solid)),
        vowelless=max(0.0, 1 - vowels / VOWELS) if len(lower) >= FEW_LETTERS else 0.0,
    )


def problems(quality: Quality) -> list[str]:
    """Why the page is not fit for training; empty when it is."""
    found = []
    for field in fields(Quality):
        share, limit = getattr(quality, field.name), getattr(LIMITS, field.name)
        if share > limit:
            found.append(f"{share:.0%} {COMPLAINTS[field.name]}")
    return found
