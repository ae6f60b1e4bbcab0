"""Render the paper digest, or another text of ours, as a PDF.

Reads:  data/paper/digest.md (headings, paragraphs, bullet and numbered lists, pipe tables,
        **bold**, *italic*, `code`, bare https links; nothing else of Markdown).
Writes: data/paper/digest.pdf (A4; the same input and reportlab version give the same bytes).

Run from the repository root:
    python data/paper/build_digest_pdf.py
    python data/paper/build_digest_pdf.py --source data/tidemill/handbook.md \
        --output data/tidemill/handbook.pdf --note "Fiction, CC BY-SA 4.0" \
        --author document-injection
"""

import argparse
import functools
import os
import re
import tempfile
from pathlib import Path
from xml.sax.saxutils import escape

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Frame, PageTemplate, Paragraph, Table, TableStyle

HERE = Path(__file__).resolve().parent
MARGIN = 22 * mm
TEXT_WIDTH = A4[0] - 2 * MARGIN
HEADER_FONT = ("Times-Bold", 9)
CELL_FONT = ("Times-Roman", 9)
CELL_PADDING = 13  # points, left and right together


class OneLineCanvas(Canvas):
    """A canvas whose drawString adds no line break, so a table row extracts as one line."""

    def drawString(self, x, y, text, **options):
        line = self.beginText(x, y)
        line.textOut(text)
        self.drawText(line)


def make_styles():
    body = ParagraphStyle("body", fontName="Times-Roman", fontSize=10.5, leading=13.6, spaceAfter=6)

    def heading(name, size, before):
        return ParagraphStyle(
            name,
            fontName="Helvetica-Bold",
            fontSize=size,
            leading=size * 1.25,
            spaceBefore=before,
            spaceAfter=4,
            keepWithNext=1,
        )

    return {
        "body": body,
        "h1": heading("h1", 20, 0),
        "h2": heading("h2", 13.5, 10),
        "h3": heading("h3", 11, 6),
        "item": ParagraphStyle("item", parent=body, leftIndent=16, bulletIndent=4, spaceAfter=3),
        "caption": ParagraphStyle("caption", parent=body, spaceBefore=4, keepWithNext=1),
    }


def inline(text):
    """Turn inline Markdown into reportlab's paragraph markup."""
    parts = re.split(r"`([^`]+)`", text)
    for i, part in enumerate(parts):
        part = escape(part)
        if i % 2:
            part = f'<font name="Courier" size="9">{part}</font>'
        else:
            part = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", part)
            part = re.sub(r"\*(.+?)\*", r"<i>\1</i>", part)
            part = re.sub(r"(https://\S+?)(?=[.,;]?(?:\s|$))", r'<a href="\1">\1</a>', part)
        parts[i] = part
    return "".join(parts)


def column_widths(rows):
    """Fit columns to their widest cell and share out what is left of the text width."""
    needed = [
        max(stringWidth(cell, *HEADER_FONT) for cell in column) + CELL_PADDING
        for column in zip(*rows, strict=True)
    ]
    spare = TEXT_WIDTH - sum(needed)
    if spare < 0:
        raise ValueError(f"table too wide by {-spare:.0f} pt: {rows[0]}")
    return [width + spare / len(needed) for width in needed]


def make_table(lines):
    """Build a table of plain strings (no inline Markdown in cells)."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows.pop(1)
    table = Table(rows, column_widths(rows), repeatRows=1, spaceBefore=2, spaceAfter=10)
    style = [
        ("FONT", (0, 0), (-1, 0), *HEADER_FONT),
        ("FONT", (0, 1), (-1, -1), *CELL_FONT),
        ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke),
        ("LINEABOVE", (0, 0), (-1, 0), 0.8, colors.black),
        ("LINEBELOW", (0, 0), (-1, -1), 0.25, colors.grey),
        ("TOPPADDING", (0, 0), (-1, -1), 2),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 3),
    ]
    table.setStyle(TableStyle(style))
    return table


def make_block(block, styles):
    """Return the flowables of one blank-line-separated block of Markdown."""
    lines = block.splitlines()
    if heading := re.match(r"(#{1,3}) (.+)$", block):
        return [Paragraph(inline(heading[2]), styles[f"h{len(heading[1])}"])]
    if block.startswith("|"):
        return [make_table(lines)]
    items = [re.match(r"(-|\d+\.) (.+)$", line) for line in lines]
    if all(items):
        return [Paragraph(inline(m[2]), styles["item"], bulletText=m[1]) for m in items]
    style = "caption" if block.startswith("**Table ") else "body"
    return [Paragraph(inline(" ".join(lines)), styles[style])]


def draw_header(canvas, doc, note):
    canvas.setFont("Helvetica", 8)
    canvas.drawString(MARGIN, A4[1] - 13 * mm, doc.title)
    canvas.drawRightString(A4[0] - MARGIN, A4[1] - 13 * mm, note)
    canvas.setLineWidth(0.4)
    canvas.line(MARGIN, A4[1] - 15 * mm, A4[0] - MARGIN, A4[1] - 15 * mm)


def draw_footer(canvas, doc):
    canvas.setFont("Helvetica", 8)
    canvas.drawCentredString(A4[0] / 2, 12 * mm, f"Page {doc.page}")


def render(markdown, target, note, author):
    """Lay out the Markdown text as a PDF in the open binary file target; note heads every page."""
    styles = make_styles()
    blocks = [b for b in re.split(r"\n\s*\n", markdown.strip()) if b]
    story = [flowable for block in blocks for flowable in make_block(block, styles)]
    doc = BaseDocTemplate(
        target,
        pagesize=A4,
        leftMargin=MARGIN,
        rightMargin=MARGIN,
        topMargin=MARGIN,
        bottomMargin=MARGIN,
        invariant=1,
        title=blocks[0].lstrip("# "),
        author=author,
    )
    frame = Frame(MARGIN, MARGIN, TEXT_WIDTH, A4[1] - 2 * MARGIN, 0, 0, 0, 0)
    # The footer is drawn at the end of a page so that extracted text keeps reading order.
    header = functools.partial(draw_header, note=note)
    doc.addPageTemplates(PageTemplate(frames=[frame], onPage=header, onPageEnd=draw_footer))
    doc.build(story, canvasmaker=OneLineCanvas)


def write_atomically(markdown, path, note, author):
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as target:
            render(markdown, target, note, author)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def main():
    parser = argparse.ArgumentParser(description="Render the paper digest as a PDF.")
    parser.add_argument("--source", type=Path, default=HERE / "digest.md")
    parser.add_argument("--output", type=Path, default=HERE / "digest.pdf")
    parser.add_argument("--note", default="arXiv 2511.18659, CC BY-SA 4.0")
    parser.add_argument("--author", default="Digest of He et al., arXiv 2511.18659")
    args = parser.parse_args()
    markdown = args.source.read_text(encoding="utf-8")
    write_atomically(markdown, args.output, args.note, args.author)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
