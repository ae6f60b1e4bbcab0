"""From the text of pages to chunks: each repair, and what must not be repaired."""

import json
import re
import shutil
import string

import pytest
from support import ROOT, load_script, write_tiny_tokenizer

script = load_script("10_stage1_cpt/chunk_pdf.py")  # makes the modules beside it importable
from clean_text import (  # noqa: E402
    clean,
    figure_lines,
    repair_characters,
    without_listing_numbers,
)
from pdf_pages import Page  # noqa: E402
from read_source import markdown_text, read_source  # noqa: E402
from reflow import Flow, reflow  # noqa: E402

WORDS = (ROOT / "data/paper/digest.md").read_text().split()
CHUNK = ("10_stage1_cpt/chunk_pdf.py", "--profile", "tiny")
LIGHTHOUSE = [
    "The lighthouse of Varn stands on a cliff above the harbour and is lit every evening.",
    "Its keeper counts the ships that pass and writes them into a book with nine hundred pages.",
    "In winter the road is closed and the keeper lives on dried fish and on what the tide brings.",
    "The lamp was bought from a theatre that had burned down on the night of its first play.",
]


def pages(*texts: str) -> list[Page]:
    return [Page(n, text, "text") for n, text in enumerate(texts, 1)]


def flow(*texts: str) -> str:
    return reflow(clean(pages(*texts))).text.strip()


def kinds(*texts: str) -> set[str]:
    return {repair.kind for repair in clean(pages(*texts)).repairs}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("x² + ½ of 10⁻³ in ℝ", "x² + ½ of 10⁻³ in ℝ"),  # NFKC would change all four
        ("a ﬁne eﬃcient oﬀer", "a fine efficient offer"),
        ("cafe\u0301", "café"),
        ("The CafÃ© is open.", "The Café is open."),
        ("the score(cid:88) is\x00 high\ufffd", "the score is high"),
        ("zero\u200bwidth and so\u00adft", "zerowidth and soft"),
        ("a di\x0berence and the \x0crst", "a difference and the first"),
        ("na¨ıve M¨obius", "naïve Möbius"),
        ("“quoted” – it’s", "“quoted” – it’s"),
    ],
)
def test_characters(damaged, repaired):
    assert repair_characters(damaged)[0] == repaired


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("We use opti-\nmisation. The optimisation is fast.", "We use optimisation. The"),
        ("A sequence-\naligned text. Each is sequence-aligned.", "A sequence-aligned text."),
        ("It has com-\npletely gone from the whole country.", "It has completely gone"),
        ("A well-\nknown bridge.", "A well-known bridge."),
        ("From 1990-\n1995 it was shut.", "From 1990-1995 it was shut."),
        ("The Anglo-\nSaxon house.", "The Anglo-Saxon house."),
    ],
)
def test_hyphens_at_line_ends(lines, expected):
    assert flow(lines).startswith(expected)


def test_running_headers_footers_and_page_numbers():
    titles = ["Ebb", "Flow", "Neap", "Spring", "Slack"]
    texts = [f"Varn Almanac {2020 + n}\n{t} {line}\nA tale\n{n + 1}" for n, (t, line) in
             enumerate(zip(titles, LIGHTHOUSE + LIGHTHOUSE[:1], strict=True))]  # fmt: skip
    found = flow(*texts)
    assert "Almanac" not in found and "A tale" not in found and not re.search(r"\b[1-5]\b", found)
    assert all(f"{t} The" in found or f"{t} I" in found for t in titles)
    assert kinds(*texts) >= {"running header or footer", "page number"}


def test_numbers_in_the_text_are_not_page_numbers():
    assert "1871" in flow(LIGHTHOUSE[0] + "\n1871", LIGHTHOUSE[1], LIGHTHOUSE[2] + "\n44")


def test_pages_that_are_alike_are_no_headers():
    assert len(re.findall("theatre", flow(*["\n".join(LIGHTHOUSE)] * 4))) == 4


def test_arxiv_stamp():
    mirrored = "5202\nvoN\n52\n]LC.sc[\n2v95681.1152:viXra"
    for stamp in ("arXiv:2511.18659v2 [cs.CL] 25 Nov 2025", mirrored):
        assert flow(f"{stamp}\n{LIGHTHOUSE[0]}") == LIGHTHOUSE[0]


REFERENCES = """References
[1] A. Brandauer and P. Lorne. Exhaust losses. Journal of Workshops, 14(2):101, 2011.
[2] C. Ferrant. The Night Firing. Quayside Press, 1998.
[3] D. Ilves et al. Salt crusts. In Proceedings of the Conference, pages 55, 2016."""


def test_reference_list_goes_up_to_the_next_heading_only():
    section = "\n".join(LIGHTHOUSE[:3] + LIGHTHOUSE[:2])
    body = f"1 Introduction\n{section}\n2 Methods\n{section}\n3 Results\n{section}"
    text = f"{body}\n{REFERENCES}\nA Proofs of the theorem\n{LIGHTHOUSE[3]}"
    found = flow(text)
    assert "Brandauer" not in found and "Ferrant" not in found and "Ilves" not in found
    assert "bought from a theatre" in found, "the appendix stays"
    kept = reflow(clean(pages(text), references=True)).text
    assert "Brandauer" in kept


def test_axis_debris_goes_and_table_rows_stay():
    lines = [
        "0 2 4 6 8 10",
        "Hours",
        "Upper shelf",
        "Figure 1: Heat.",
        "Kiln 12 87 9.4",
        "Gas 3 4 4.1",
    ]
    assert figure_lines(lines) == {0, 1, 2}
    text = "\n".join([LIGHTHOUSE[0], "Kiln 412 87 9.4", "Gas kiln 236 41 4.1", LIGHTHOUSE[1]])
    assert {"Kiln 412 87 9.4", "Gas kiln 236 41 4.1"} <= set(flow(text).splitlines())


def test_numbers_of_program_lines_go_and_other_numbers_stay():
    program = [
        "2 i <- 0",
        "while (i < n) {",
        "4 i <- i + step",
        "rest <- rest - i",
        "6",
        "lit <- lamp(rest)",
        "8 }",
    ]
    found = without_listing_numbers(["The keeper's program follows.", *program, "It was short."])
    assert found[1:-1] == [
        "i <- 0",
        "while (i < n) {",
        "i <- i + step",
        "rest <- rest - i",
        "",
        "lit <- lamp(rest)",
        "}",
    ]
    table = ["2 lamps 41", "4 lamps 80", "6 lamps 123", "8 lamps 160", "10 lamps 204"]
    steps = [
        "1 Trim the wick",
        "and clean it.",
        "2 Fill the lamp",
        "to the",
        "3 Light it",
        "4 Wait",
    ]
    assert without_listing_numbers(table) == table
    assert without_listing_numbers(steps) == steps


GLUED = """We compress each document into memory tokens and train the retriever with the generator.
The documents are long and the memory is small, so the retriever has to choose among documents.
Weproposetotraintheretrieverwiththegenerator andtochooseamongdocuments.
Thememorytokensarelongandthedocumentsaresmall, sotheretrieverchooses.
Eachdocumentistrainedintothememoryofthegenerator.
See https://example.org/averyveryverylongpathwithoutanyspace for retriever_of_generators(memory)."""


def test_glued_words_are_split_by_the_documents_own_words():
    found = flow(GLUED)
    assert "We propose to train the retriever with the generator and to choose among" in found
    assert "The memory tokens are long and the documents are small, so the retriever" in found
    assert "averyveryverylongpathwithoutanyspace" in found, "an address is left alone"
    assert "retriever_of_generators(memory)" in found, "so is a name in code"


def test_a_sound_document_is_not_touched():
    german = (
        "Die Donaudampfschifffahrtsgesellschaft fuhr. Das Rindfleischetikettierungsgesetz galt. "
    )
    for text in (german * 3, "The immunohistochemistry of thyroparathyroidectomized otters. " * 3):
        assert "glued words" not in kinds(text)


def test_damaged_pages_of_a_paper_are_repaired():
    """The share of repaired words on already damaged text, measured in benchmarks/pdf_text.py."""
    plain = " ".join(WORDS)
    sentences = [
        s for s in re.split(r"(?<=[.]) ", plain) if re.fullmatch(r"[A-Za-z ,.]{60,140}", s)
    ]
    assert len(sentences) > 20
    damaged = [s.replace(" ", "") if i % 2 else s for i, s in enumerate(sentences)]
    found = reflow(clean(pages("\n".join(damaged)))).text
    before = re.findall(r"[a-z]{20,}", "\n".join(damaged), re.I)
    after = re.findall(r"[a-z]{20,}", found, re.I)
    assert len(before) > 10 and len(after) <= 0.1 * len(before), after


def test_chunks_are_short_and_whole(tokenizer):
    long_word = "".join(string.ascii_lowercase[i % 26] for i in range(3000))
    text = " ".join(WORDS[:3000]) + f" {long_word} end. "
    found = Flow(text, [(0, 1)], [(0, "")], {})
    rows = script.make_chunks("it", found, tokenizer, 60)
    assert max(row["tokens"] for row in rows) <= 60
    kept = "".join(row["text"] for row in rows)
    assert re.findall(r"\w", kept) == re.findall(r"\w", text), "nothing is lost"


def test_chunks_do_not_cross_sections_and_long_titles_are_cut(tokenizer):
    title = "A heading that is as long as a whole paragraph, " * 20
    text = f"{title}\n\nShort text below it, of one sentence.\n\nNext\n\nMore text of another one."
    found = Flow(text, [(0, 1)], [(0, title), (text.index("Next"), "Next")], {})
    first, second = script.make_chunks("it", found, tokenizer, 60)
    assert "More" not in first["text"] and second["section"] == "Next"
    assert title.startswith(first["section"]) and len(first["section"]) > 20
    assert len(tokenizer.encode(first["section"]).ids) <= script.TITLE_TOKENS


MARKDOWN = """---
title: not text
---
# The mill

A [mill](https://example.org/mill) with *two* `wheels`.
![a picture](mill.png)

| Wheel | Width |
|---|---|
| Long Hester | 3.4 |

- grinds oats
1. first

<!-- a comment -->
## References

[1] Xaverius. Proceedings, 1999.

## Annex

The annex stays in the text.
"""


def test_markdown():
    lines = markdown_text(MARKDOWN).splitlines()
    assert lines[:2] == ["# The mill", "A mill with two wheels."]
    assert "Long Hester | 3.4" in lines and "- grinds oats" in lines and "1. first" in lines
    assert not any(word in "".join(lines) for word in ("picture", "comment", "not text", "http"))


PROGRAM = """# Use

Two commands.

```sh
# References
grind --oats
  ## indented
```

    # Bibliography

| # | Wheel |
|---|---|
| 1 | Long Hester |

\\# a number sign that is typed

## Annex

The annex stays in the text.
"""


def test_only_headings_of_markdown_are_headings():
    found = reflow(clean(pages(markdown_text(PROGRAM)), True))
    assert [title for _, title in found.sections] == ["Use", "Annex"]
    for line in ("#References", "grind --oats", "##indented", "#Bibliography", "#| Wheel", "#a nu"):
        assert f"\n{line}" in found.text


@pytest.fixture
def mill(tiny_project):
    """A document of four kinds of sources, and without facts.jsonl."""
    folder = tiny_project / "data/mill"
    folder.mkdir()
    (folder / "notes.md").write_text(MARKDOWN)
    (folder / "diary.txt").write_text("\f".join(LIGHTHOUSE))
    shutil.copy(ROOT / "tests/papers/one_column.pdf", folder / "paper one.pdf")
    shutil.copy(ROOT / "data/tidemill/handbook.pdf", folder / "Übersicht (1).pdf")
    document = (tiny_project / "data/paper/document.yaml").read_text()
    names = ["notes.md", "diary.txt", "paper one.pdf", "Übersicht (1).pdf"]
    document = re.sub(r"sources: .*", lambda _: f"sources: {json.dumps(names)}", document)
    (folder / "document.yaml").write_text(document)
    return tiny_project


def test_several_sources_the_same_bytes_again_and_no_facts(mill):
    command = (*CHUNK, "--document", "mill")
    summary = mill.ok(*command)
    assert "Übersicht (1).pdf: 4 pages" in summary and "reference list: " in summary
    made = [mill / f"data/mill/{name}" for name in ("chunks.jsonl", "clean_report.json")]
    first = [file.read_bytes() for file in made]
    rows = mill.read_jsonl("data/mill/chunks.jsonl")
    assert {row["id"].rpartition("-")[0] for row in rows} == {
        "notes", "diary", "paper one", "Übersicht (1)"
    }  # fmt: skip
    assert [r["pages"] for r in rows if r["id"].startswith("diary")][0] == [1, 4]
    assert any(row["section"] == "Annex" for row in rows)
    assert not any("Xaverius" in row["text"] for row in rows)
    report = json.loads(first[1])
    assert [s["pages"] for s in report["sources"]] == [1, 4, 5, 4]
    assert report["sources"][2]["readers"] == {"pypdf": 5}
    assert "up to date" in mill.ok(*command)
    mill.ok(*command, "--force")
    assert [file.read_bytes() for file in made] == first
    mix = ("--set", "cpt_mix.replay=0")
    out = mill.ok("10_stage1_cpt/prepare_cpt_data.py", *command[1:], *mix)
    held_out = [r["source"] for r in mill.read_jsonl("data/mill/cpt/tiny/valid.jsonl")]
    assert held_out == [f"chunk {row['id']}" for row in rows[-len(held_out) :]]
    trained = {r["source"] for r in mill.read_jsonl("data/mill/cpt/tiny/train.jsonl")}
    assert len(trained) == len(rows) - len(held_out) > 0 and not trained & set(held_out)
    assert f"{len(held_out)} held-out chunks" in out


def test_a_long_title_leaves_room_for_its_chunks(mill, tokenizer):
    file = mill / "data/mill/document.yaml"
    title = "The title of a document that takes a whole paragraph, " * 20
    file.write_text(re.sub("title: .*", f'title: "{title}"', file.read_text(), count=1))
    mill.ok(*CHUNK, "--document", "mill", "--set", "chunk_tokens=100")
    for room in (60, 0):
        sets = ("--set", "cpt_mix.replay=0", "--set", f"cpt.max_tokens={100 + 32 + room}")
        mill.ok("10_stage1_cpt/prepare_cpt_data.py", *CHUNK[1:], "--document", "mill", *sets)
        rows = mill.read_jsonl("data/mill/cpt/tiny/train.jsonl")
        lengths = [len(tokenizer.encode(row["text"]).ids) + 1 for row in rows]
        assert max(lengths) <= 100 + 32 + room
        assert all(row["text"].startswith("The title of a") for row in rows)
        assert all(len(row["text"].split("\n")[0]) < 150 for row in rows)


def test_a_changed_source_is_chunked_again(mill):
    file = mill / "data/mill/document.yaml"
    file.write_text(re.sub("sources: .*", "sources: [diary.txt]", file.read_text()))
    command = (*CHUNK, "--document", "mill")
    mill.ok(*command)
    (mill / "data/mill/diary.txt").write_text("The cat of the lighthouse is called Admiral Soot.")
    mill.ok(*command)
    assert "Admiral" in (mill / "data/mill/chunks.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.docx", b"PK", "of an unknown kind"),
        ("a.txt", b"\xff\xfe\x00caf\xe9", "UTF-8"),
        ("a.txt", b"", "holds no text"),
        ("a.md", b"![x](y.png)\n", "holds no text"),
        ("a.jsonl", b'{"page": 0, "text": "x"}\n', "page is 0"),
        ("a.jsonl", b'{"page": 1, "text": 5}\n', "text is not a string"),
    ],
)
def test_other_files_that_cannot_be_read(tmp_path, tokenizer, name, content, complaint):
    from types import SimpleNamespace

    from injection.files import InputError

    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        args = SimpleNamespace(password="", keep_references=False)
        script.chunk_source(file, "it", args, tokenizer, 60)
    with pytest.raises(InputError, match="missing"):
        read_source(tmp_path / "none.pdf")


def test_a_section_of_a_few_letters_is_named_in_the_report(tokenizer):
    sheets = clean(pages("# Map\n\nx y\n\n# Text\n\nThe map shows the harbour. In 1871."), True)
    found = reflow(sheets)
    (row,) = script.make_chunks("it", found, tokenizer, 60)
    assert row["section"] == "Text" and row["text"].endswith("1871.")
    assert [(r.kind, r.before.split()) for r in script.short_sections(found)] == [
        ("short chunk", ["Map", "x", "y"])
    ]
