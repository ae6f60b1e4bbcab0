"""What the app costs against mlx-lm's bare stream_generate, and what it keeps in memory.

The app runs as a user starts it, in front of a real browser with two tabs that take turns. The
bare call runs in a process of its own with the same model, adapter and prompt tokens. Each
question goes to both, one after the other, in changing order, so that whatever else the machine
does hits both; the table gives medians and the ratio of each pair.

Reads:   models/<4-bit folder>, the SFT adapter, data/<document>/eval.jsonl (split test); needs
         Chromium and requirements-dev.txt
Writes:  benchmarks/results/app_speed.json and .png; logs/chats.jsonl, as the app does
Command: python benchmarks/app_speed.py
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

sys.path.insert(0, str(common.ROOT / "tests"))
MAX_TOKENS = 256
# Memory is compared from here on: what loads on first use is loaded.
WARM = 10


def bare_worker() -> None:
    """Answer questions from standard input, one a line; figures as JSON, one line each."""
    # First, because it loads the fast BLAS that mlx then uses.
    from injection.models import ChatModel  # isort: skip
    from mlx_lm import stream_generate

    from injection.profiles import Project

    project = Project(sys.argv[2], sys.argv[3])
    model = ChatModel(project.base, project.profile.chat)
    model.attach(project.adapter("sft"))
    print("ready", flush=True)
    for line in sys.stdin:
        prompt = model.prompt([{"role": "user", "content": json.loads(line)}])
        started, first = time.perf_counter(), None
        for reply in stream_generate(model.model, model.tokenizer, prompt, max_tokens=MAX_TOKENS):
            first, last = first or time.perf_counter() - started, reply
        said = last.generation_tokens - (last.finish_reason == "stop")
        found = {"first_token": first, "tokens_per_second": last.generation_tps, "tokens_out": said}
        print(json.dumps(found), flush=True)


@contextlib.contextmanager
def bare(project):
    """A function from a question to the figures of the bare call."""
    command = [sys.executable, __file__, "--bare", project.profile_name, project.document_name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)

    def ask(question: str) -> dict:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    try:
        assert process.stdout.readline() == "ready\n"
        yield ask
    finally:
        process.terminate()
        process.wait()


def ask_app(page, question: str) -> dict:
    """Figures of one answer: what the browser sees, and what the app itself reports."""
    from browser.server import settled

    box = page.get_by_role("textbox", name="Ask a question")
    box.fill(question)
    started = time.perf_counter()
    box.press("Enter")
    page.wait_for_function(FIRST_TEXT, arg=question, polling=50, timeout=300_000)
    seen = time.perf_counter() - started
    # Seldom, because looking takes time from what is measured.
    page.wait_for_function(FINISHED, arg=question, polling=500, timeout=300_000)
    settled(page)
    return {"page_first_text": seen}


# The text of the answer to a question, once the page shows that question last; what the page has
# not yet replaced since the question was asked is marked stale.
ANSWER = """question => {
  const messages = who => document.querySelectorAll(`[aria-label="Chat message from ${who}"]`);
  const last = who => [...messages(who)].pop();
  const asked = last('user'), answer = last('assistant');
  if (!asked || !answer || asked.innerText.trim() !== question) return '';
  const fresh = answer.querySelectorAll('[data-testid=stElementContainer][data-stale=false]');
  return [...fresh].map(e => e.innerText).join(' ').trim();
}"""
FIRST_TEXT = f"question => /^(?!Waiting|Loading|Reading)./.test(({ANSWER})(question))"
FINISHED = f"question => /(complete|token limit reached)/.test(({ANSWER})(question))"


def resident(process: subprocess.Popen) -> float:
    """Resident memory of a process, GB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 2**20


def measure(project, questions: list[str]) -> list[dict]:
    """One row of figures per question; even ones go to the app first, odd ones to the bare call."""
    from browser.server import open_browser, running_app

    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        bare(project) as ask_bare,
        running_app(common.ROOT, Path(folder, "log")) as app,
        open_browser() as browser,
    ):
        tabs = [opened(browser, app.address) for _ in range(2)]
        ask_bare("Hello")
        for i, question in enumerate(questions):
            theirs = ask_bare(question) if i % 2 else None
            ours = ask_app(tabs[i % 2], question)
            row = pair(question, ours, theirs or ask_bare(question))
            rows.append(row | {"memory": resident(app.process)})
            print(f"{i + 1}/{len(questions)}", file=sys.stderr, flush=True)
    return rows


def opened(browser, address: str):
    """A tab of the app with its model loaded."""
    page = browser.new_page()
    page.set_default_timeout(300_000)
    page.goto(address)
    page.get_by_role("textbox", name="Ask a question").wait_for()
    ask_app(page, "Hello")
    return page


def pair(question: str, ours: dict, theirs: dict) -> dict:
    """What the browser saw, what the app logged, and what the bare call gave."""
    import chat_log

    logged = chat_log.entries()[0]
    assert logged["question"] == question, logged
    figures = ("first_token", "tokens_per_second", "tokens_out")
    row = {f"app_{f}": logged.get(f) for f in figures} | {f"bare_{f}": theirs[f] for f in figures}
    return ours | row | {"gated": logged["by_adapter"] is False}


def compared(rows: list[dict]) -> list[dict]:
    """The rows in which both gave the same answer: not those that the gate sent to the base."""
    same = [r for r in rows if not r["gated"] and r["app_tokens_out"] == r["bare_tokens_out"]]
    return [r for r in same if r["app_tokens_per_second"]]


def table(rows: list[dict]) -> str:
    same, first = compared(rows), min(WARM, len(rows) - 1)
    before, after = rows[first]["memory"], rows[-1]["memory"]
    memory = f"memory of the app, GB, after question {len(rows)} and {first + 1}"
    lines = [
        _line("question to first token, worker, s", same, "app_first_token", "bare_first_token"),
        _line("Enter to first text in the browser, s", same, "page_first_text", "bare_first_token"),
        _line("tokens/s", same, "app_tokens_per_second", "bare_tokens_per_second"),
        [memory, f"{after:.3f} and {before:.3f}", "", f"{after / before:.3f}"],
    ]
    head = [f"{len(rows)} questions from two tabs, {len(same)} compared", "app", "bare", "ratio"]
    return common.markdown(head, lines)


def _line(name: str, rows: list[dict], ours: str, theirs: str) -> list[str]:
    app, bare_call = (statistics.median(r[key] for r in rows) for key in (ours, theirs))
    ratio = statistics.median(r[ours] / r[theirs] for r in rows)
    return [name, f"{app:.3f}", f"{bare_call:.3f}", f"{ratio:.2f}"]


def plot(job: dict) -> dict:
    """Ratios to the bare call and memory, question by question."""
    rows = job["report"]["rows"]
    same = [(i, r) for i, r in enumerate(rows, 1) if r in compared(rows)]
    figure, (speed, memory) = common.figure(2)
    for name, key in (("first token", "first_token"), ("tokens/s", "tokens_per_second")):
        ratios = [r[f"app_{key}"] / r[f"bare_{key}"] for _, r in same]
        speed.plot([i for i, _ in same], ratios, ".", label=name)
    speed.axhline(1, color="grey", linewidth=0.8)
    speed.set(xlabel="question", ylabel="app / bare call", ylim=(0, None))
    speed.legend()
    memory.plot(range(1, len(rows) + 1), [r["memory"] for r in rows])
    memory.set(xlabel="question", ylabel="resident memory of the app, GB", ylim=(0, None))
    figure.savefig(job["file"], dpi=120)
    return {}


def main() -> None:
    from injection.grading import read_questions

    args = common.parser(__doc__, pairs=50).parse_args()
    project = common.open_project(args)
    sys.path.insert(0, str(common.ROOT / "04_inference"))
    rows = [r for r in read_questions(project.questions) if r["kind"] == "paraphrase"]
    rows = [r for r in rows if r["split"] == "test"]
    report = common.heading(__file__)
    report["rows"] = measure(project, [r["question"] for r in rows[: args.pairs]])
    common.publish(__file__, report, table(report["rows"]), args.output)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        bare_worker()
    else:
        common.start(main, {"plot": plot})
