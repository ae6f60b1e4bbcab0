"""Untrusted text on the page: what a model, a document or a manifest says is shown, never obeyed.

st.text and st.code interpret nothing. Where Markdown is needed, escape() takes its meaning from
every character, so that no link, image, HTML, formula, emoji or style comes out of it.
"""

import difflib
import re

import streamlit as st

from injection import prompts

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
# What Streamlit replaces in text nodes, when the backslashes are gone already: emoji and icons
# (`:smile:`), addresses (`http://`, `www.`, `a@b`), arrows and dashes (`->`, `--`, `<=`).
_REPLACED = re.compile(
    r"(?<=:)(?=[\w+/-]+:)|(?<=:)(?=//)|(?<=www)(?=\.)|(?<=[-.\w+])(?=@)|(?<=[-<>~])(?=[-=>])",
    re.IGNORECASE,
)
_FENCE = re.compile(
    r"^ {0,3}(`{3,}|~{3,})([\w+#.-]*)[^\n]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$\n?|\Z)",
    re.DOTALL | re.MULTILINE,
)
_ITEM = re.compile(r"\s*(?:([-*+•])|(\d{1,3})[.)])\s+(?=\S)")
_HEADING = re.compile(r"\s*#{1,6}\s+(?=\S)")
_STYLED = re.compile(r"\*\*(?=\S)([^*\n]+)(?<=\S)\*\*|`([^`\n]+)`")


def escape(text: str) -> str:
    """Markdown that shows the text as typed. An invisible word joiner stands in what would be
    replaced even behind backslashes."""
    return _PUNCTUATION.sub(r"\\\1", _REPLACED.sub("\u2060", text))


def light_markdown(text: str) -> str:
    """Markdown with the bold, code, lists and headings of an answer; all else as typed."""
    lines, in_list = [], False
    for line in text.split("\n"):
        item, heading = _ITEM.match(line), _HEADING.match(line)
        if bool(item) != in_list:
            # Without it, a line after a list would belong to the last item.
            lines.append("")
        in_list = bool(item)
        if item:
            mark = "-" if item[1] else f"{int(item[2])}."
            lines.append(f"{mark} {_styled(line[item.end() :])}")
        elif heading:
            lines.append(f"**{escape(line[heading.end() :].strip())}**  ")
        else:
            # Four spaces in front would make a code block of the line.
            lines.append(_styled(line.strip()) + "  " if line.strip() else "")
    return "\n".join(lines)


def _styled(line: str) -> str:
    result, position = "", 0
    for match in _STYLED.finditer(line):
        result += escape(line[position : match.start()])
        bold, code = match.groups()
        result += f"**{escape(bold)}**" if bold else f"`{code}`"
        position = match.end()
    return result + escape(line[position:])


def parts(text: str) -> list[tuple[str, str, str]]:
    """(kind, language, body) pieces of an answer; kind is think, code or text."""
    found = []
    for kind, piece in prompts.pieces(text):
        if kind == "think":
            found.append(("think", "", piece))
            continue
        position = 0
        for fence in _FENCE.finditer(piece):
            found.append(("text", "", piece[position : fence.start()]))
            found.append(("code", fence[2], fence[3]))
            position = fence.end()
        found.append(("text", "", piece[position:]))
    return [(kind, language, body.strip("\n")) for kind, language, body in found if body.strip()]


def show_text(text: str) -> None:
    """An answer: thoughts folded, code as code, the rest as light Markdown."""
    for kind, language, body in parts(text):
        if kind == "think":
            with st.expander("Thoughts"):
                st.text(body)
        elif kind == "code":
            st.code(body, language=language or None, wrap_lines=True)
        else:
            st.markdown(light_markdown(body))


def marked_words(text: str, chosen: list[bool], color: str = "green") -> str:
    """Markdown of text with the chosen words (one flag a word) on a coloured ground."""
    words = text.split()
    return " ".join(
        f":{color}-background[{escape(word)}]" if mark else escape(word)
        for word, mark in zip(words, chosen, strict=True)
    )


def differences(reference: str, text: str) -> str:
    """Markdown of text with the words that reference has not, or has elsewhere, marked."""
    old, new = reference.split(), text.split()
    chosen = [True] * len(new)
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for block in matcher.get_matching_blocks():
        chosen[block.b : block.b + block.size] = [False] * block.size
    return marked_words(text, chosen)


def highlighted(text: str, phrases: list[str]) -> str:
    """Markdown of text, its line breaks kept, with every occurrence of a phrase marked."""
    wanted = [re.escape(p).replace(r"\ ", r"\s+") for p in phrases if p.strip()]
    if not wanted:
        return _broken_lines(escape(text))
    pieces = re.split(f"({'|'.join(wanted)})", text, flags=re.IGNORECASE)
    marked = [
        f":green-background[{escape(' '.join(p.split()))}]" if i % 2 else _broken_lines(escape(p))
        for i, p in enumerate(pieces)
    ]
    return "".join(marked)


def _broken_lines(text: str) -> str:
    return text.replace("\n", "  \n")
