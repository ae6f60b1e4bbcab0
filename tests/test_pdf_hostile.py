"""Broken and hostile files: each ends in clean chunks or in one line, and within its limits."""

import json
import time
from types import SimpleNamespace

import hostile_pdfs
import pytest
from hostile_pdfs import CASES, Case
from support import load_script, write_tiny_tokenizer

script = load_script("10_stage1_cpt/chunk_pdf.py")
from injection.files import InputError  # noqa: E402  the script makes the project importable

WALL_SECONDS = 120  # on a busy machine; alone, all but two need less than 3
# Of each kind of trouble one or two stay in the fast tests.
SLOW = {
    "text file",
    "header only",
    "zip file",
    "cut after 200 bytes",
    "wrong stream length",
    "index that loops",
    "locked for changes only",
    "old encryption",
    "scan",
    "blank pages",
    "no pages",
    "font mapped to nothing",
    "deep page tree",
    "a billion pages",
    "forms that draw themselves",
    "too many operators",
    "invisible text",
    "tiny text",
    "text off the page",
    "name like an option",
    "name with spaces and Unicode",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def chunk(case: Case, folder, tokenizer) -> tuple[list[dict], dict]:
    file = folder / case.name
    case.make(file)
    args = SimpleNamespace(password=case.password, keep_references=False)
    return script.chunk_source(file, "it", args, tokenizer, 256)


def test_there_are_thirty_cases():
    assert len(CASES) >= 30 and set(CASES) >= SLOW


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CASES]
)
def test_hostile(name, tmp_path, tokenizer, monkeypatch):
    import pdf_pages

    monkeypatch.setattr(pdf_pages, "PAGE_SECONDS", 3.0)
    case, started = CASES[name], time.monotonic()
    if case.complaint:
        with pytest.raises(InputError) as error:
            chunk(case, tmp_path, tokenizer)
        assert case.complaint in str(error.value)
    else:
        rows, report = chunk(case, tmp_path, tokenizer)
        text = " ".join(" ".join(row["text"] for row in rows).split())
        assert case.has in text and case.lacks not in text
        for part in case.report:
            assert part in json.dumps(report), report
    assert time.monotonic() - started < WALL_SECONDS


def test_a_crashed_reader_leaves_its_pages_to_the_other(tmp_path, tokenizer, monkeypatch):
    """pypdfium2 is C++: a crash ends its process, not the run."""
    import pdf_pages

    child = tmp_path / "child.py"
    child.write_text(
        "import json, os, sys\n"
        "if json.loads(sys.stdin.readline())['reader'] == 'pypdf': os.abort()\n"
        f"text = {hostile_pdfs.STORY!r}\n"
        "print(json.dumps({'pages': 1}))\n"
        "print(json.dumps({'page': 1, 'text': text, 'images': 0}))\n"
    )
    monkeypatch.setattr(pdf_pages, "CHILD", child)
    rows, report = chunk(CASES["right to left"], tmp_path, tokenizer)
    assert rows[0]["text"] == hostile_pdfs.STORY and report["readers"] == {"pypdfium2": 1}
    assert report["totals"]["second reader"]["pages"] == [1]


def test_a_silent_reader_is_ended(tmp_path, tokenizer, monkeypatch):
    import pdf_pages

    child = tmp_path / "child.py"
    child.write_text("import time; time.sleep(600)\n")
    monkeypatch.setattr(pdf_pages, "CHILD", child)
    monkeypatch.setattr(pdf_pages, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(pdf_pages, "END_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(InputError, match="takes too long"):
        chunk(CASES["Korean"], tmp_path, tokenizer)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_two_thousand_pages(tmp_path, tokenizer):
    file = tmp_path / "book.pdf"
    file.write_bytes(hostile_pdfs.many_pages(2000))
    args = SimpleNamespace(password="", keep_references=False)
    rows, report = script.chunk_source(file, "book", args, tokenizer, 256)
    assert report["pages"] == 2000 and not report["left_out"]
    text = " ".join(row["text"] for row in rows)
    assert all(f"ship number {n * 7}." in text for n in range(2000))


def test_the_script_says_one_line_and_writes_nothing(tiny_project):
    command = ("10_stage1_cpt/chunk_pdf.py", "--profile", "tiny", "--output", "out/chunks.jsonl")
    file = tiny_project / "two\nlines.pdf"
    CASES["font without a map"].make(file)
    assert "cannot be used" in tiny_project.refused(*command, "--pdf", file)
    assert not (tiny_project / "out").exists()


def test_the_password_opens_the_file(tiny_project):
    command = ("10_stage1_cpt/chunk_pdf.py", "--profile", "tiny", "--output", "out/chunks.jsonl")
    file = tiny_project / "locked.pdf"
    CASES["locked, no password"].make(file)
    line = tiny_project.refused(*command, "--pdf", file, "--password", "ebb")
    assert "is not opened by this password" in line and "ebb" not in line
    tiny_project.ok(*command, "--pdf", file, "--password", "tide")
    assert "eleven" in tiny_project.read_jsonl("out/chunks.jsonl")[0]["text"]
    for made in (tiny_project / "out").iterdir():
        assert "tide" not in made.read_text(), "the password is written nowhere"
