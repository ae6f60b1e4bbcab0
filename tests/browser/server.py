"""The app in a process of its own, and a browser to look at it with."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# Without a sandbox and shared memory (containers), and without the requests a browser makes for
# itself.
FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--metrics-recording-only",
)
START_SECONDS = 120
# How long a test waits for the page; a busy machine answers many times slower than a quiet one.
PATIENCE_SECONDS = 300


def browser_path() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@dataclass
class App:
    address: str
    process: subprocess.Popen


@contextlib.contextmanager
def running_app(root: Path, log: Path) -> Iterator[App]:
    """The app of the repository at root, started as a user does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["bash", str(root / "04_inference" / "run_ui.sh"), "--server.port", str(port)]
    env = {**os.environ, "PYTHON": sys.executable}
    with open(log, "w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
        try:
            _wait_until_healthy(process, port, log)
            yield App(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _wait_until_healthy(process: subprocess.Popen, port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError(f"the app did not start:\n{log.read_text()}")


@contextlib.contextmanager
def open_browser():
    """A playwright browser: the Chromium of the system."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def settled(page) -> None:
    """Wait until the script of the page has run to its end."""
    page.wait_for_selector(
        ".stApp[data-test-script-state=notRunning]", timeout=PATIENCE_SECONDS * 1000
    )
