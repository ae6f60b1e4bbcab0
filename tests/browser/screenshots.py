"""Pictures of the app for the README, taken in a real browser.

Reads:   models/, adapters_*/, data/, results/, as the app does
Writes:  docs/app_compare.png, docs/app_report.png
Command: python tests/browser/screenshots.py
"""

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from browser.server import App, open_browser, running_app, settled  # noqa: E402

ROOT = HERE.parents[1]
FOLDER = ROOT / "docs"
QUESTION = "What does SCP stand for in CLaRa?"
LARGEST = 150_000


def compare(page, app: App) -> None:
    page.goto(f"{app.address}/compare")
    box = page.get_by_role("textbox", name="One question a line")
    box.fill(QUESTION)
    box.press("Control+Enter")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Markdown").wait_for()


def report(page, app: App) -> None:
    page.goto(f"{app.address}/report")
    page.get_by_role("button", name="report.md").wait_for()


def picture(browser, app: App, view, name: str, scheme: str) -> None:
    window = browser.new_context(
        viewport={"width": 1280, "height": 860}, color_scheme=scheme, reduced_motion="reduce"
    )
    window.set_default_timeout(600_000)
    page = window.new_page()
    view(page, app)
    settled(page)
    # Charts and fonts are drawn after the script of the page has ended.
    page.wait_for_timeout(3000)
    file = FOLDER / f"{name}.png"
    page.screenshot(path=file)
    window.close()
    size = file.stat().st_size
    if size > LARGEST:
        sys.exit(f"error: {file} has {size} bytes, more than {LARGEST}")
    print(f"wrote {file.relative_to(ROOT)}, {size / 1000:.0f} KB")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_app(ROOT, Path(folder, "log")) as app,
        open_browser() as browser,
    ):
        picture(browser, app, compare, "app_compare", "light")
        picture(browser, app, report, "app_report", "dark")


if __name__ == "__main__":
    main()
