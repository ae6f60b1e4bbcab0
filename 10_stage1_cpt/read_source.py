"""The pages of a source: a PDF, Markdown, plain text, or page rows {"page", "text"} in JSONL."""

import re
from pathlib import Path

from markdown_it import MarkdownIt
from pdf_pages import Page, pdf_pages

from injection.files import InputError, read_jsonl, read_text, require, shown

MARKDOWN = (".md", ".markdown")
TEXT = (".txt", ".text")
KINDS = "a PDF, Markdown (.md), plain text (.txt) or page rows (.jsonl)"

LIKE_HEADING = re.compile(r"^\s*(#{1,6})\s+")
FRONT_MATTER = re.compile(r"\A\ufeff?---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)


def is_markdown(file: Path) -> bool:
    return file.suffix.lower() in MARKDOWN


def read_source(file: Path, password: str = "") -> list[Page]:
    require(file, "put the document there, or name another with --pdf")
    suffix = file.suffix.lower()
    if file.is_dir():
        raise InputError(f"{shown(file)} is a folder: name one file, {KINDS}")
    if suffix == ".pdf":
        return pdf_pages(file, password)
    if suffix == ".jsonl":
        return page_rows(file)
    if suffix in MARKDOWN:
        return [Page(1, markdown_text(read_text(file)), "Markdown")]
    if suffix in TEXT:
        # Form feeds separate pages, as in the output of pdftotext.
        pages = read_text(file).removeprefix("\ufeff").split("\f")
        return [Page(number, text, "text") for number, text in enumerate(pages, 1)]
    raise InputError(f"{shown(file)} is of an unknown kind: give {KINDS}")


def page_rows(file: Path) -> list[Page]:
    pages = []
    for number, row in enumerate(read_jsonl(file, keys=("page", "text")), 1):
        page, text = row["page"], row["text"]
        if isinstance(page, bool) or not isinstance(page, int) or page < 1:
            raise InputError(f"{shown(file)} row {number}: page is {page!r}, not a number from 1")
        if not isinstance(text, str):
            raise InputError(f"{shown(file)} row {number}: text is not a string")
        pages.append(Page(page, text, "rows"))
    return pages


def markdown_text(source: str) -> str:
    """Markdown without its marks, a block a line; headings keep their #, table cells get a |.

    Images, comments and front matter are left out.
    """
    lines: list[str] = []
    prefix, cells = "", None
    for token in MarkdownIt("commonmark").enable("table").parse(FRONT_MATTER.sub("", source)):
        if token.type == "heading_open":
            prefix = "#" * int(token.tag[1]) + " "
        elif token.type == "list_item_open":
            prefix = f"{token.info}{token.markup} " if token.info else "- "
        elif token.type == "tr_open":
            cells = []
        elif token.type == "tr_close":
            lines.append(no_heading(" | ".join(cells)))
            cells = None
        elif token.type == "inline" and cells is not None:
            cells.append(inline_text(token))
        elif token.type == "inline":
            text = inline_text(token)
            lines.append(prefix + text if prefix else no_heading(text))
            prefix = ""
        elif token.type in ("fence", "code_block"):
            lines += map(no_heading, token.content.splitlines())
    return "\n".join(line for line in lines if line.strip())


def no_heading(line: str) -> str:
    """The line; where its # would make it a heading, as in comments of a program, a space less."""
    return LIKE_HEADING.sub(r"\1", line)


def inline_text(token) -> str:
    """The words of a block: link texts without addresses, no emphasis marks, no images."""
    parts = []
    for child in token.children:
        if child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return "".join(parts).strip()
