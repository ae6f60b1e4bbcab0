"""Child process that reads one PDF with one reader: limited memory, limited time per page.

A PDF is input from strangers, and both readers can be made to run for ever, to eat all memory or,
pypdfium2 being C++, to crash. So each runs in a process of its own that pdf_pages.py starts, and
nothing of this project is imported here: the fast BLAS alone would fill the address space.

Reads:   on standard input {"file", "password", "reader", "memory_bytes", "page_seconds"}
Writes:  on standard output {"pages": n}, then for each page {"page", "text", "images", ...} or
         {"page", "error"}; {"error", "kind"} instead when the file as a whole cannot be read
Command: none, see pdf_pages.py
"""

import contextlib
import json
import logging
import math
import resource
import signal
import sys
from collections.abc import Iterator

FEW_LETTERS = 100
FEW_HIDDEN = 15
OPENING_PAGES = 3  # opening a file may take as long as three pages
HIDDEN_BELOW_POINTS = 2.0
HIDDEN_CONTRAST = 12  # of 255 grey levels, between the lightest and darkest pixel of a glyph's box
NEARLY_WHITE = 235
RENDERED_PIXELS = 1600  # on the longer side
PYPDF_LIMITS = {
    "zlib_maximum_output_length": 20_000_000,
    "lzw_maximum_output_length": 20_000_000,
    "run_length_maximum_output_length": 20_000_000,
    "array_based_stream_maximum_output_length": 20_000_000,
    "maximum_declared_stream_length": 50_000_000,
    "stream_decoding_work_maximum_length": 60_000_000,
    "stream_parsing_work_maximum_count": 1_000_000,
    "xform_maximum_invocations_per_extraction": 500,
    "page_tree_maximum_entries": 20_000,
    "jbig2dec_binary": None,  # no other program is started
}


class WrongPassword(Exception):
    """The file is encrypted and the password, or the empty one, does not open it."""


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def pypdf_pages(file: str, password: str) -> Iterator:
    """The number of pages, then what reads each page: text in content order, upright only."""
    from pypdf import PdfReader, overwrite_configuration

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    overwrite_configuration(**PYPDF_LIMITS)
    reader = PdfReader(file)
    if reader.is_encrypted and not reader.decrypt(password):
        raise WrongPassword
    pages = reader.pages
    yield len(pages)
    for number in range(len(pages)):
        yield lambda number=number: {"text": upright_text(pages[number])}


def upright_text(page) -> str:
    """Text at 0 degrees, which leaves out arXiv's stamp and rotated axis labels.

    A page that is set sideways, such as one with a wide table, has nearly all of its text at
    another angle; then that angle is read.
    """
    text = page.extract_text(orientations=(0,))
    if letters(text) >= FEW_LETTERS:
        return text
    if letters(page.extract_text()) < 3 * letters(text) + FEW_LETTERS:
        return text
    return max((page.extract_text(orientations=(a,)) for a in (0, 90, 180, 270)), key=letters)


def pdfium_pages(file: str, password: str) -> Iterator:
    """The number of pages, then what reads each page: text, images, hidden text."""
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(file, password=password or None)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error):
            raise WrongPassword from None
        raise
    yield len(document)
    for number in range(len(document)):
        yield lambda number=number: pdfium_page(document[number])


def pdfium_page(page) -> dict:
    from pypdfium2 import raw

    textpage = page.get_textpage()
    count = textpage.count_chars()
    text = textpage.get_text_range() if count else ""
    found = {"text": text, "images": 0}
    if letters(text) < FEW_LETTERS:
        # Images matter where text is missing: a scan, not an empty page.
        found["images"] = sum(1 for _ in page.get_objects([raw.FPDF_PAGEOBJ_IMAGE], max_depth=3))
    hidden = hidden_characters(page, textpage, count)
    if hidden:
        codes = [raw.FPDFText_GetUnicode(textpage, i) for i in range(count)]
        found["text"] = "".join(chr(c) for i, c in enumerate(codes) if i not in hidden and c)
        found["hidden"] = "".join(chr(codes[i]) for i in sorted(hidden) if codes[i])
    return found


def hidden_characters(page, textpage, count: int) -> set[int]:
    """Indices of glyphs that nobody sees: outside the page, tiny, or painted without contrast.

    White or invisible glyphs are only suspects. White text on a dark bar and the invisible text
    that OCR puts over a scan are seen, as something stands out in their box when it is rendered.
    """
    from pypdfium2 import raw

    left, bottom, right, top = page.get_cropbox()
    hidden, suspects, box = set(), {}, raw.FS_RECTF()
    for i in range(count):
        if raw.FPDFText_IsGenerated(textpage, i) == 1:
            continue
        raw.FPDFText_GetLooseCharBox(textpage, i, box)
        outside = box.right < left or box.left > right or box.top < bottom or box.bottom > top
        size = max(box.top - box.bottom, box.right - box.left)
        if outside or 0 < size < HIDDEN_BELOW_POINTS:
            hidden.add(i)
        elif unpainted(textpage, i):
            suspects[i] = (box.left - left, top - box.top, box.right - left, top - box.bottom)
    if suspects:
        hidden |= without_contrast(page, suspects)
    # A few are the end of a line of code that runs over the edge of the page.
    words = sum(chr(raw.FPDFText_GetUnicode(textpage, i)).isalnum() for i in hidden)
    return hidden if words >= FEW_HIDDEN else set()


def unpainted(textpage, i: int) -> bool:
    from ctypes import c_uint

    from pypdfium2 import raw

    red, green, blue, alpha = (c_uint(0) for _ in range(4))
    raw.FPDFText_GetFillColor(textpage, i, red, green, blue, alpha)
    mode = raw.FPDFTextObj_GetTextRenderMode(raw.FPDFText_GetTextObject(textpage, i))
    white = min(red.value, green.value, blue.value) >= NEARLY_WHITE
    return white or alpha.value < 20 or mode == raw.FPDF_TEXTRENDERMODE_INVISIBLE


def without_contrast(page, boxes: dict[int, tuple[float, float, float, float]]) -> set[int]:
    """The boxes (x, y of two corners in points from the upper left) that render as one tone."""
    left, bottom, right, top = page.get_cropbox()
    scale = min(2.0, RENDERED_PIXELS / max(right - left, top - bottom))
    upright = (360 - page.get_rotation()) % 360
    pixels = page.render(scale=scale, rotation=upright, grayscale=True).to_numpy()
    flat = set()
    for i, (x0, y0, x1, y1) in boxes.items():
        rows = slice(max(0, int(y0 * scale)), max(1, math.ceil(y1 * scale)))
        columns = slice(max(0, int(x0 * scale)), max(1, math.ceil(x1 * scale)))
        seen = pixels[rows, columns]
        if not seen.size or int(seen.max()) - int(seen.min()) < HIDDEN_CONTRAST:
            flat.add(i)
    return flat


def out_of_time(signum, frame) -> None:
    raise TimeoutError("takes too long")


def read_page(read, seconds: float) -> dict:
    set_time(seconds)
    try:
        return read()
    except MemoryError:
        return {"error": "needs too much memory"}
    except Exception as error:  # both readers raise anything at all on a damaged page
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def set_time(seconds: float) -> None:
    """Seconds of CPU from now on until TimeoutError; C++ code, which sees no exception, is ended.

    CPU time, so that the same file gives the same result on a busy machine.
    """
    # It goes off again every second: a reader may catch the first one as just another error.
    signal.setitimer(signal.ITIMER_PROF, seconds, 1)
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + 1.5 * seconds), hard))


def say(value: dict) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main() -> None:
    job = json.loads(sys.stdin.readline())
    # macOS may refuse; the time limits hold everywhere.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (job["memory_bytes"],) * 2)
    signal.signal(signal.SIGPROF, out_of_time)
    set_time(OPENING_PAGES * job["page_seconds"])
    reader = {"pypdf": pypdf_pages, "pypdfium2": pdfium_pages}[job["reader"]]
    try:
        pages = reader(job["file"], job["password"])
        say({"pages": next(pages)})
    except WrongPassword:
        return say({"error": "wrong password", "kind": "password"})
    except MemoryError:
        return say({"error": "needs too much memory", "kind": "unreadable"})
    except Exception as error:  # not only PdfReadError: anything may come out of a damaged file
        return say({"error": f"{type(error).__name__}: {error}"[:200], "kind": "unreadable"})
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    for number, read in enumerate(pages, 1):
        say({"page": number, **read_page(read, job["page_seconds"])})


if __name__ == "__main__":
    main()
