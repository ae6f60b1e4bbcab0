"""The sentences of tests/papers/*.tex: what a reader of the PDF has to find, in order."""

import re
from pathlib import Path

LEFT_OUT = re.compile(
    r"\\begin\{(figure|table|sidewaystable|equation|verbatim|thebibliography)\}.*?\\end\{\1\}"
    r"|\\\[.*?\\\]|(?<!\\)%[^\n]*|\\footnote\{[^{}]*\}",
    re.DOTALL,
)
COMMAND = re.compile(r"\\[a-z]+\*?(?:\{[^{}]*\})?")
FEWEST_WORDS = 6


def sentences(tex: Path) -> list[str]:
    """Whole sentences of running text without formulas or commands, one space between words."""
    body = tex.read_text(encoding="utf-8").split(r"\maketitle")[1].split(r"\end{document}")[0]
    found = []
    for paragraph in re.split(r"\n\s*\n|\\(?:sub)*section\*?\{[^}]*\}", LEFT_OUT.sub(" ¶ ", body)):
        text = " ".join(COMMAND.sub(" ", paragraph).split())
        for sentence in re.split(r"(?<=[.?]) (?=[A-Z])|¶", text):
            plain = sentence.strip()
            if plain.endswith((".", "?")) and plain[0].isupper() and "$" not in plain:
                found.append(plain)
    return [s for s in found if len(s.split()) >= FEWEST_WORDS]
