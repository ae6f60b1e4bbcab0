"""The text gate: how much of a page's text is damaged, and whether it is fit for training.

The thresholds lie far from what sound pages have; tests/test_pdf_quality.py has both kinds.
"""

import re
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
VOWELLESS = re.compile(r"\b[b-df-hj-np-tv-xz]{4,}\b")
LOWER_WORD = re.compile(r"\b[a-z]{4,}\b")
FEW_WORDS = 30  # fewer are no sample


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
        """One number to compare two readings of a page by. Symbols alone prove nothing."""
        return self.glued + self.unmapped + self.spaced_out + self.vowelless


LIMITS = Quality(glued=0.20, unmapped=0.10, spaced_out=0.30, symbols=0.55, vowelless=0.30)
COMPLAINTS = {
    "glued": f"of its letters are in words of {LONG} letters or more (missing spaces)",
    "unmapped": "of its characters are glyphs without a meaning (font without a character map)",
    "spaced_out": "of its letters stand alone (s p a c e d   o u t)",
    "symbols": "of its characters are neither letters nor digits",
    "vowelless": "of its words have no vowel (font with a wrong character map)",
}


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def long_words(text: str) -> list[str]:
    """Words of 20 letters or more that are not a part of an address or a path."""
    return LONG_WORD.findall(LINK.sub(" ", text))


def measure(text: str, unmapped: int = 0) -> Quality:
    """Quality of a page. `unmapped` adds glyphs that are known to have no meaning."""
    text = LEADERS.sub(" ", LINK.sub(" ", POINTS.sub("", text)))
    characters = max(1, sum(not c.isspace() for c in text))
    words = LOWER_WORD.findall(text)
    meaningless = UNMAPPED.findall(text)
    plain = UNMAPPED.sub("", text)
    alphabetic = max(1, letters(plain))
    solid = [c for c in plain if not c.isspace()]
    few = len(words) < FEW_WORDS
    return Quality(
        glued=sum(map(len, LONG_WORD.findall(plain))) / alphabetic,
        unmapped=min(1.0, (len(meaningless) + unmapped) / characters),
        spaced_out=sum(letters(run) for run in SPACED_OUT.findall(plain)) / alphabetic,
        symbols=sum(not c.isalnum() for c in solid) / max(1, len(solid)),
        vowelless=0.0 if few else len(VOWELLESS.findall(text)) / len(words),
    )


def problems(quality: Quality) -> list[str]:
    """Why the page is not fit for training; empty when it is."""
    found = []
    for field in fields(Quality):
        share, limit = getattr(quality, field.name), getattr(LIMITS, field.name)
        if share > limit:
            found.append(f"{share:.0%} {COMPLAINTS[field.name]}")
    return found
