"""The app of a copy of the repository, started once, and a browser page for every test."""

import shutil
from pathlib import Path

import pytest
from app_support import HOSTILE, make_adapter
from support import ROOT, ProjectCopy, copy_tree, read_jsonl, write_jsonl

from browser.server import PATIENCE_SECONDS, browser_path, open_browser, running_app

NAME = "adapters_smollm2_135m_paper"


@pytest.fixture(scope="session")
def project(tmp_path_factory, smollm2) -> ProjectCopy:
    """A repository with the real small model, both adapters, a foreign one, and hostile text."""
    copy = copy_tree(tmp_path_factory.mktemp("browser") / "project")
    shutil.copytree(ROOT / ".streamlit", copy / ".streamlit")
    (copy / f"models/{smollm2.name}").symlink_to(smollm2)
    for seed, stage in ((3, "cpt"), (2, "sft")):
        make_adapter(copy / f"{NAME}_{stage}", seed, stage=stage)
    make_adapter(copy / "adapters_foreign", base={"fingerprint": "another"})
    shutil.copytree(ROOT / "results/reference", copy / "results/reference")
    _make_hostile(copy)
    return copy


def _make_hostile(copy: ProjectCopy) -> None:
    """What a model or a document might say against the reader, where the views show it first."""
    file = copy / "results/reference/answers.jsonl"
    first, *rest = read_jsonl(file)
    write_jsonl(file, [{**first, "answer": f"{HOSTILE}\n\n- **item** {HOSTILE}"}, *rest])
    chunk = {"id": "d-0", "text": HOSTILE, "pages": [1, 1], "section": HOSTILE, "tokens": 9}
    write_jsonl(copy / "data/paper/chunks.jsonl", [chunk])


@pytest.fixture(scope="session")
def address(project) -> str:
    if browser_path() is None:
        pytest.fail("no Chromium found: run ./test.sh --browser")
    with running_app(project.root, project / "app.log") as found:
        yield found.address


@pytest.fixture(scope="session")
def browser():
    with open_browser() as found:
        yield found


@pytest.fixture
def context(browser):
    """A window of its own; whatever it asks for must come from this machine."""
    found = browser.new_context(viewport={"width": 1280, "height": 900})
    found.set_default_timeout(PATIENCE_SECONDS * 1000)
    asked: list[str] = []
    found.on("request", lambda request: asked.append(request.url))
    yield found
    found.close()
    foreign = [url for url in asked if not url.startswith(LOCAL)]
    assert asked and not foreign, f"asked another host: {foreign}"


LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:http://127.0.0.1:")


@pytest.fixture
def page(context, address, project):
    """The Chat view. No test may leave a traceback, on the page or in the app's log."""
    found = context.new_page()
    found.goto(address)
    found.get_by_role("textbox", name="Ask a question").wait_for()
    yield found
    assert found.get_by_test_id("stException").count() == 0
    assert "Uncaught app" not in Path(project / "app.log").read_text()
