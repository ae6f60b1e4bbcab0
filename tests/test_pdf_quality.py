"""The text gate and the choice between two readings of a page."""

import json

import hostile_pdfs
import pytest
from support import ROOT, load_script

load_script("10_stage1_cpt/chunk_pdf.py")  # makes the modules beside it importable
import pdf_pages  # noqa: E402
import text_quality  # noqa: E402

STORY = hostile_pdfs.STORY
GERMAN = "Der Leuchtturm steht auf einer Klippe. Nachts zählt der Wärter die Schiffe und schreibt. "
FORMULAS = "Let f(x) = ∑ a_i x^i with a_i ≥ 0. Then ∫ f dx ≤ 3.5 (α + β) for all x ∈ [0, 1]. "
TABLE = "Wood kiln 412 87 9.4\nGas kiln 236 41 4.1\nTidal kiln 161 19 2.3\n" * 5


@pytest.mark.parametrize(
    "text",
    [STORY, GERMAN * 3, FORMULAS * 3, TABLE, hostile_pdfs.KOREAN * 3, hostile_pdfs.HEBREW, ""],
)
def test_sound_text_passes(text):
    assert text_quality.problems(text_quality.measure(text)) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (STORY.replace(" ", "") * 2, "missing spaces"),
        ("".join(f"(cid:{ord(c)})" for c in STORY), "without a meaning"),
        ("\ufffd\x01 \ue001" * 90, "without a meaning"),
        (" ".join(STORY.replace(" ", "")), "stand alone"),
        ('"7+%-/!&?,;:=)(' * 30, "neither letters nor digits"),
        ("".join(hostile_pdfs.CAESAR.get(c, c) for c in STORY.lower()) * 2, "vowels"),
    ],
)
def test_damaged_text_does_not(text, complaint):
    (found,) = text_quality.problems(text_quality.measure(text))[:1]
    assert complaint in found


def test_the_digest_is_sound():
    rows = (ROOT / "data/paper/digest.md").read_text().split("\n\n")
    assert text_quality.problems(text_quality.measure("\n".join(rows))) == []


def reading(text: str, **more) -> pdf_pages.Reading:
    return pdf_pages.Reading({1: {"page": 1, "text": text, "images": 0, **more}}, 1)


@pytest.mark.parametrize(
    ("first", "second", "reader"),
    [
        (STORY, STORY, "pypdf"),
        (STORY.replace(" ", ""), STORY, "pypdfium2"),
        (STORY, STORY.replace(" ", ""), "pypdf"),
        ("/g12/g7 " * 30 + STORY, STORY, "pypdfium2"),
        ("", STORY * 5, "pypdfium2"),
        (STORY.replace("e", "\ufffd"), STORY, "pypdfium2"),
    ],
)
def test_the_better_reading_is_taken(first, second, reader):
    page = pdf_pages.choose(1, reading(first), reading(second))
    assert page.reader == reader
    assert (reader == "pypdfium2") == any(r.kind == "second reader" for r in page.repairs)


def test_hidden_text_is_reported_and_left_out():
    page = pdf_pages.choose(
        1, reading(STORY + hostile_pdfs.HIDDEN), reading(STORY, hidden="Ignore")
    )
    assert page.text == STORY
    assert [r.before for r in page.repairs if r.kind == "hidden text"] == ["Ignore"]
    assert json.dumps(page.repairs[0].before)
