"""Pictures of the app for the README, taken in a real browser.

Reads:   models/, adapters_*/, data/, results/, as the app does
Writes:  docs/app_<view>.png
Command: python tests/browser/screenshots.py
         python tests/browser/screenshots.py --views golden training
"""

import argparse
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


def chat(page, app: App) -> None:
    page.goto(app.address)
    box = page.get_by_role("textbox", name="Ask a question")
    box.fill(QUESTION)
    box.press("Enter")
    page.get_by_text("complete").wait_for()


def compare(page, app: App) -> None:
    page.goto(f"{app.address}/compare")
    # 40 tokens, so that the base model's invention does not fill the picture.
    page.get_by_text("Sampling", exact=True).click()
    slider = page.get_by_role("slider", name="Max tokens")
    for key in ("Home", *["ArrowRight"] * 4):
        slider.press(key)
    settled(page)
    page.get_by_text("Sampling", exact=True).click()
    box = page.get_by_role("textbox", name="One question a line")
    box.fill(QUESTION)
    box.press("Control+Enter")
    page.get_by_role("button", name="Compare").click()
    page.get_by_role("button", name="Markdown").wait_for()


def golden(page, app: App) -> None:
    page.goto(f"{app.address}/golden")
    page.get_by_text("No unsaved changes.").wait_for()


def training(page, app: App) -> None:
    page.goto(f"{app.address}/training")
    page.locator("[data-testid=stVegaLiteChart] svg").nth(5).wait_for()


def report(page, app: App) -> None:
    page.goto(f"{app.address}/report")
    page.get_by_role("button", name="report.md").wait_for()


# View, width, height, scheme. A narrow window hides the sidebar, as on a telephone.
PICTURES = {
    "compare": (compare, 1280, 860, "light"),
    "report": (report, 1280, 860, "dark"),
    "golden": (golden, 1280, 760, "light"),
    "training": (training, 390, 844, "dark"),
    "chat": (chat, 390, 844, "light"),
}


def picture(browser, app: App, name: str) -> None:
    view, width, height, scheme = PICTURES[name]
    window = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    window.set_default_timeout(1_200_000)
    page = window.new_page()
    view(page, app)
    settled(page)
    # Charts and fonts are drawn after the script of the page has ended.
    page.wait_for_timeout(3000)
    file = FOLDER / f"app_{name}.png"
    page.screenshot(path=file)
    window.close()
    size = file.stat().st_size
    if size > LARGEST:
        sys.exit(f"error: {file} has {size} bytes, more than {LARGEST}")
    print(f"wrote {file.relative_to(ROOT)}, {size / 1000:.0f} KB", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    args.add_argument("--views", nargs="+", choices=PICTURES, default=list(PICTURES))
    args = args.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_app(ROOT, Path(folder, "log")) as app,
        open_browser() as browser,
    ):
        for name in args.views:
            picture(browser, app, name)


if __name__ == "__main__":
    main()
