"""The app in a real browser, with the real small model: what AppTest cannot see."""

import contextlib
import re
import time

import pytest
from app_support import HOSTILE
from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import expect
from support import read_jsonl, write_jsonl

from browser.conftest import NAME
from browser.server import PATIENCE_SECONDS, settled
from injection import files

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]
STORY = "Write a long story about a dog and a river."
ANSWERS = '[aria-label="Chat message from assistant"]'
TEXT = "[data-testid=stMarkdown]:not(:has([data-testid=stCaptionContainer]))"
VIEWS = ("", "compare", "golden", "training", "report")


def choose(page, label: str, option: str) -> None:
    page.get_by_role("combobox", name=re.compile(label)).click()
    page.get_by_role("option", name=option).click()
    settled(page)


def use_base(page) -> None:
    choose(page, "Adapter", "Base model (no adapter)")


def ask(page, question: str) -> None:
    box = page.get_by_role("textbox", name="Ask a question")
    box.fill(question)
    box.press("Enter")


def answer_briefly(page) -> None:
    """Answers of 8 tokens, the least that the slider allows."""
    page.get_by_text("Sampling", exact=True).click()
    page.get_by_role("slider", name="Max tokens").press("Home")
    settled(page)


def said(page) -> str:
    """The text of the last answer so far; the figures below it are no part of it."""
    return "\n".join(page.locator(ANSWERS).last.locator(TEXT).all_inner_texts()).strip()


def grown(page, than: int = 0) -> str:
    """Wait until the last answer has more than so many characters."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if page.locator(ANSWERS).count() and len(text := said(page)) > than:
            return text
        time.sleep(0.05)
    raise AssertionError("the answer does not grow")


def finished(page):
    page.get_by_text(re.compile("complete|token limit reached|stopped")).last.wait_for()


def stop_if_going(page) -> None:
    """An answer may be short, and ended before the button is pressed."""
    with contextlib.suppress(PlaywrightTimeout):
        page.get_by_role("button", name="Stop").click(timeout=5000)
    finished(page)


def test_an_answer_streams_stops_and_goes_on(page):
    use_base(page)
    ask(page, STORY)
    lengths = [len(grown(page))]
    for _ in range(3):
        lengths.append(len(grown(page, lengths[-1])))
    assert lengths == sorted(set(lengths)), "it grows word by word"
    page.get_by_role("button", name="Stop").click()
    finished(page)
    partial = said(page)
    assert len(partial) >= lengths[-1] and page.get_by_text("stopped").count() == 1
    page.get_by_role("button", name="Continue").click()
    longer = grown(page, len(partial))
    assert longer.startswith(partial)
    page.get_by_role("button", name="Stop").click()
    finished(page)


def test_the_page_follows_the_answer_down(page):
    use_base(page)
    page.get_by_role("link", name="Report").click()
    page.get_by_role("link", name="Chat").click()
    page.set_viewport_size({"width": 390, "height": 500})
    ask(page, STORY)
    grown(page, than=300)
    page.get_by_role("button", name="Stop").click()
    finished(page)
    settled(page)
    regenerate = page.get_by_role("button", name="Regenerate")
    expect(regenerate).to_be_in_viewport()
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_a_reload_in_the_middle_loses_nothing(page):
    use_base(page)
    ask(page, STORY)
    before = grown(page, 20)
    page.reload()
    page.locator(ANSWERS).wait_for()
    after = grown(page, len(before))
    assert after.startswith(before)
    page.get_by_role("button", name="Stop").click()
    finished(page)
    assert page.get_by_text(STORY).count() == 1


def test_two_tabs_queue_and_do_not_mix(page, context, address):
    other = context.new_page()
    other.goto(address)
    for tab in (page, other):
        use_base(tab)
    ask(page, STORY)
    grown(page)
    ask(other, "What is the capital of France?")
    other.get_by_text("Waiting: 1 answer before this one").wait_for()
    page.get_by_role("button", name="Stop").click()
    finished(other)
    assert "Paris" in said(other) and "Paris" not in said(page)
    assert "river" not in said(other)


def test_compare_shows_three_different_answers(page, address):
    page.goto(f"{address}/compare")
    answer_briefly(page)
    box = page.get_by_role("textbox", name="One question a line")
    box.fill("What does SCP stand for in CLaRa?")
    box.press("Control+Enter")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Markdown").wait_for()
    settled(page)
    cells = page.locator("[data-testid=stColumn]").filter(has=page.get_by_text("tokens in"))
    assert cells.count() == 3
    texts = [cells.nth(i).locator(TEXT).last.inner_text() for i in range(3)]
    assert len(set(texts)) == 3 and page.get_by_text("Expected:").count() == 1
    for name in ("Base model", "Stage 1 (CPT)", "Stage 2 (SFT)"):
        assert page.get_by_text(name).count()
    page.reload()
    page.get_by_role("button", name="Markdown").wait_for()
    assert page.get_by_text("tokens in").count() == 3, "a reload loses nothing"


def test_a_foreign_adapter_is_shown_and_refused(page):
    choose(page, "Adapter", "Stage 2 (SFT), paper (adapters_foreign) (not usable)")
    page.get_by_text("Not usable here: trained on another base").wait_for()
    # The page is still being drawn when the reason appears.
    expect(page.get_by_role("textbox", name="Ask a question")).to_be_disabled()


def test_a_golden_edit_lands_in_the_file(page, address, project):
    file = project / "data/paper/facts.jsonl"
    before = read_jsonl(file)
    page.goto(f"{address}/golden")
    grid = page.get_by_test_id("stDataFrame").first
    grid.wait_for()
    settled(page)
    # The cells are drawn on a canvas: first row, column "question".
    grid.dblclick(position={"x": 260, "y": 52})
    cell = page.locator("#portal textarea")
    cell.fill("Edited in a browser, 한국어도?")
    cell.press("Enter")
    page.get_by_text("Unsaved: 1 changed").wait_for()
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_text("Next, to train on it").wait_for()
    after = read_jsonl(file)
    assert after[0]["questions"][0] == "Edited in a browser, 한국어도?"
    assert after[0]["questions"][1:] == before[0]["questions"][1:] and after[1:] == before[1:]
    assert read_jsonl(project / "data/paper/facts.jsonl.bak") == before


def test_untrusted_text_is_shown_as_typed(page, address):
    """The context fixture sees to it that no other host is asked."""
    ask(page, HOSTILE)
    page.get_by_text(HOSTILE, exact=True).wait_for()
    stop_if_going(page)
    page.goto(f"{address}/report")
    page.get_by_text("Question by question").wait_for()
    settled(page)
    shown = page.get_by_text("item", exact=False).locator("..").last.inner_text()
    assert HOSTILE in shown.replace("\u2060", "")
    page.goto(f"{address}/golden")
    page.get_by_text("Page 1", exact=True).wait_for()
    settled(page)
    body = page.locator("body").inner_text().replace("\u2060", "")
    assert body.count(HOSTILE) == 2
    for view in ("report", "golden"):
        page.goto(f"{address}/{view}")
        settled(page)
        assert page.locator("main img, .stMain img, .stMain a[href*='e.org'], .katex").count() == 0


def test_the_training_view_moves_while_a_run_goes_on(page, address, project):
    rows = [{"step": 0, "loss": 3.0, "score": -3.0, "validation": True}]
    for step in range(10, 90, 10):
        row = {"step": step, "steps": 100, "loss": 3.0 - step / 50, "kl": 0.1, "seconds": step}
        rate = {"learning_rate": 1e-3, "tokens_per_second": 500.0, "peak_memory_gb": 1.0}
        rows.append({**row, **rate})
    file = project / f"{NAME}_live.partial" / "metrics.jsonl"
    write_jsonl(file, rows[:4])
    held = files.claim(file.parent)
    page.goto(f"{address}/training")
    page.get_by_text("step 30 of 100").wait_for()
    chart = page.locator("[data-testid=stVegaLiteChart] svg").first
    chart.wait_for()
    settled(page)
    before = chart.inner_html()
    write_jsonl(file, rows)
    page.get_by_text("step 80 of 100, 0:20 left").wait_for()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while chart.inner_html() == before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert chart.inner_html() != before
    page.reload()
    page.get_by_text("step 80 of 100").wait_for()
    held.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_every_view_fits_the_screen(browser, address, width, scheme):
    window = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    window.set_default_timeout(PATIENCE_SECONDS * 1000)
    page = window.new_page()
    for view in VIEWS:
        page.goto(f"{address}/{view}")
        page.locator(".stMain h3").first.wait_for()
        settled(page)
        wide = page.evaluate("document.documentElement.scrollWidth")
        main = page.evaluate("document.querySelector('.stMain').scrollWidth")
        assert wide <= width and main <= width, view
        assert page.get_by_test_id("stException").count() == 0
        ground = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        dark = sum(map(int, re.findall(r"\d+", ground)[:3])) < 200
        assert dark == (scheme == "dark"), view
    window.close()


def test_a_vanished_adapter_is_one_line_on_the_page(page, project):
    """The folder goes between the scan and the question."""
    weights = project / f"{NAME}_sft" / "adapters.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[: len(kept) // 2])
        ask(page, "What is CLaRa?")
        page.get_by_text("adapters.safetensors is damaged").wait_for()
    finally:
        weights.write_bytes(kept)
    ask(page, "What is CLaRa?")
    stop_if_going(page)
