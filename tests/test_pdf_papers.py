"""LaTeX papers with one and two columns through the real script, and vignettes where installed."""

import re
from pathlib import Path

import pytest
from support import ROOT, read_jsonl
from tex_sentences import sentences

PAPERS = ROOT / "tests/papers"
CHUNK = ("10_stage1_cpt/chunk_pdf.py", "--profile", "tiny")
# Of the Debian packages r-cran-rcpp, -rcpparmadillo, -sandwich, -strucchange, -zoo.
VIGNETTES = Path("/usr/lib/R/site-library")
INSTALLED = [
    "Rcpp/doc/Rcpp-introduction.pdf",
    "RcppArmadillo/doc/RcppArmadillo-intro.pdf",
    "sandwich/doc/sandwich.pdf",
    "strucchange/doc/strucchange-intro.pdf",
    "zoo/doc/zoo.pdf",
]


def chunked(project, pdf: Path) -> list[dict]:
    out = project / f"out/{pdf.stem}.jsonl"
    project.ok(*CHUNK, "--pdf", pdf, "--output", out, "--force")
    return read_jsonl(out)


def text_of(rows: list[dict]) -> str:
    return "\n".join(row["text"] for row in rows)


# What looks like damage and is none: two long German words, the numerator of a fraction.
REAL = {
    "strucchange/doc/strucchange-intro.pdf": {
        "Forschungsgemeinschaft",
        "Sonderforschungsbereich",
        "1",
    }
}


def check_clean(text: str, real: frozenset | set = frozenset()) -> None:
    assert set(re.findall(r"(?<![\w/.:@\\])[^\W\d_]{20,}", text)) - real == set()
    assert re.findall(r"\(cid:|[\x00-\x08\x0b-\x1f\ufffd\ufb00-\ufb06\ue000-\uf8ff]", text) == []
    numbers = set(re.findall(r"^\W*\d{1,4}\W*$", text, re.MULTILINE))
    assert numbers - real == set(), "a page number"


@pytest.fixture(scope="module")
def papers(tmp_path_factory, tiny_models):
    from support import tiny_copy

    project = tiny_copy(tmp_path_factory.mktemp("papers") / "project", tiny_models)
    return {name: chunked(project, PAPERS / f"{name}.pdf") for name in ("one_column", "two_column")}


@pytest.mark.parametrize("name", ["one_column", "two_column"])
def test_every_sentence_whole_and_in_order(papers, name):
    text = " ".join(text_of(papers[name]).split())
    expected = sentences(PAPERS / f"{name}.tex")
    assert len(expected) > 40
    assert [s for s in expected if s not in text] == []
    places = [text.index(s) for s in expected]
    assert places == sorted(places)
    check_clean(text_of(papers[name]))


def test_what_is_no_text_of_the_paper_is_out(papers):
    two, one = text_of(papers["two_column"]), text_of(papers["one_column"])
    for gone in ("Orrin Workshop", "arXiv:2601", "Hours after ignition", "1,200", "Brandauer"):
        assert gone not in two, gone
    for gone in ("Slow Ink for Archival Maps", "Belcourt", "Entomological Club"):
        assert gone not in one, gone
    assert "holds exactly one litre" in two and "must not be shaken" in one, "the appendices"


def test_sections_and_pages(papers):
    sections = list(dict.fromkeys(row["section"] for row in papers["two_column"]))
    assert sections == [
        "",
        "Abstract",
        "1 Introduction",
        "2.1 Chamber and jacket",
        "2.2 Controller",
        "3 Four winters of firings",
        "4 What can be carried over",
        "5 Conclusion",
        "A Building instructions",
        "B Log format",
    ]
    places = {row["section"]: row["pages"] for row in papers["one_column"]}
    assert places["Abstract"] == [1, 1] and places["2.2 The plotter"] == [2, 2]
    assert all(row["tokens"] <= 256 for rows in papers.values() for row in rows)


def test_tables_are_rows_and_captions_stand_behind_sentences(papers):
    lines = text_of(papers["two_column"]).splitlines()
    assert "Tidal kiln, full 161 19 2.3" in lines and "Kiln Fuel (kg) Spread Losses" in lines
    assert "Slow ink, 3 days 54.7 51.0 49.8" in text_of(papers["one_column"]).splitlines()
    sideways = "Wood pulp, heavy 0.13 21 36 46 55 63"
    assert sideways in text_of(papers["one_column"]).splitlines()
    assert any(line.startswith("Figure 1: Temperature on the upper") for line in lines)


def test_hyphens_at_line_ends(papers):
    """The document's own spelling decides: "salt-tolerant" keeps its hyphen."""
    text = text_of(papers["two_column"])
    assert "salt-tolerant mortar" in text and "broken-off firings" in text
    assert "describe the first kiln" in text and re.findall(r"\w- \w", text) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTALLED)
def test_vignettes_of_debian_packages(tiny_project, name):
    if not (VIGNETTES / name).exists():
        pytest.skip(f"apt install r-cran-{name.split('/')[0].lower()}")
    rows = chunked(tiny_project, VIGNETTES / name)
    check_clean(text_of(rows), REAL.get(name, set()))
    assert all(row["tokens"] <= 256 for row in rows)
    assert not any(re.match(r"(References|Bibliography)$", row["section"]) for row in rows)
