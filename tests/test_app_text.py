"""Untrusted text: what escaping leaves, what light Markdown keeps, words marked as different."""

import re

import pytest
from app_support import HOSTILE
from text import differences, escape, highlighted, light_markdown, parts

from injection.prompts import without_thoughts

ESCAPED = re.compile(r"(?:[^!-/:-@\[-`{-~]|\\[!-/:-@\[-`{-~])*")


def plain(markdown: str) -> str:
    return re.sub(r"\\(.)", r"\1", markdown).replace("\u2060", "")


def test_escape_leaves_nothing_to_interpret():
    escaped = escape(HOSTILE)
    assert plain(escaped) == HOSTILE
    assert ESCAPED.fullmatch(escaped)
    # What is replaced after the backslashes are gone is broken by the word joiner.
    seen = re.sub(r"\\(.)", r"\1", escaped)
    for active in (":smile:", "http://", "www.", "a@e", "-->"):
        assert active not in seen


@pytest.mark.parametrize("text", ["It is 10:30, see p. 3.", "a - b = c", "메모: 내용", "x: y"])
def test_ordinary_text_is_not_littered(text):
    assert "\u2060" not in escape(text)


def test_light_markdown_keeps_structure_and_nothing_else():
    text = "Intro <b>\n- one **two**\n* three\n2. four\nafter `x|$y$`\n## Head\n    deep ![i](u)"
    lines = light_markdown(text).split("\n")
    assert lines == [
        r"Intro \<b\>  ",
        "",
        "- one **two**",
        "- three",
        "2. four",
        "",
        "after `x|$y$`  ",
        "**Head**  ",
        r"deep \!\[i\]\(u\)  ",
    ]


@pytest.mark.parametrize("text", ["**open", "** x **", "a*b*c", "`", "#tag", "1.5 times", "-x"])
def test_what_is_not_quite_markdown_stays_as_typed(text):
    shown = light_markdown(text).strip()
    assert ESCAPED.fullmatch(shown) and plain(shown) == text


def test_parts_split_thoughts_code_and_text():
    text = "<think>hm</think>Look:\n```python\nx = 1\n\ny = 2\n```\n- a\n- b"
    assert parts(text) == [
        ("think", "", "hm"),
        ("text", "", "Look:"),
        ("code", "python", "x = 1\n\ny = 2"),
        ("text", "", "- a\n- b"),
    ]
    assert parts("<think>still") == [("think", "", "still")]
    assert parts("hm</think>yes") == [("think", "", "hm"), ("text", "", "yes")]
    assert parts("```\nopen") == [("code", "", "open")]
    assert without_thoughts("<think>a</think> b") == "b"


def test_differences_mark_the_words_that_are_new():
    marked = differences("SCP is a file copy.", "SCP is a *pretraining* method.")
    assert marked == r"SCP is a :green-background[\*pretraining\*] :green-background[method\.]"
    assert "background" not in differences("same words", "same words")


def test_highlighted_marks_phrases_across_line_breaks():
    shown = highlighted("One Latent\nReasoning\nend [x]", ["latent reasoning", ""])
    assert shown == "One :green-background[Latent Reasoning]  \nend \\[x\\]"
