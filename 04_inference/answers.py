"""An answer on the page: its text, what it cost, and how it is kept up to date while it is written.

Command: none of its own; Chat and Compare use it
"""

import time

import streamlit as st
from engine import Answer
from tabs import engine
from text import escape, show_text

from injection import runtime

FINISH = {"stop": "complete", "length": "token limit reached"}
# The browser is on the same machine: on a CPU, redrawing takes time from the worker.
REDRAW_SECONDS = {"cpu": 0.5, "gpu": 0.1}


def summary(answer: Answer) -> str:
    """One line about an answer: who gave it, how fast, how long, why it ended."""
    return " · ".join([*_speaker(answer), *measurements(answer)])


def _speaker(answer: Answer) -> list[str]:
    gated = ["not about the document: the base model answered"] if answer.gated else []
    return [answer.request.label, *gated]


def measurements(answer: Answer) -> list[str]:
    s, request = answer.stats, answer.request
    facts = []
    if s and s.tokens_per_second:
        facts.append(f"{s.tokens_per_second:.1f} tokens/s")
    if s:
        facts += [
            f"first token {s.first_token:.2f} s",
            f"{s.tokens_in} tokens in, {s.tokens_out} out",
            f"peak {s.peak_gb:.2f} GB",
        ]
    facts.append(f"seed {request.seed}" if request.temperature else "greedy")
    end = "stopped" if answer.state == "stopped" else FINISH.get(s.finish if s else None, "")
    return [*facts, end] if end else facts


def show_answer(answer: Answer) -> None:
    if answer.dropped:
        turns = "turn does" if answer.dropped == 1 else f"{answer.dropped} turns do"
        st.caption(f"The oldest {turns} not fit in {answer.request.context} tokens: left out.")
    show_text(answer.text)
    if answer.state == "failed":
        st.error(escape(answer.error), icon=":material/error:")
    elif answer.finished:
        if not answer.text.strip():
            st.caption("No text.")
        st.caption(escape(summary(answer)))
    elif not answer.text:
        st.caption(waiting(answer))


def waiting(answer: Answer) -> str:
    if answer.state == "queued":
        ahead = engine().ahead(answer)
        return f"Waiting: {ahead} {'answer' if ahead == 1 else 'answers'} before this one"
    return "Loading the model" if answer.state == "loading" else "Reading the question"


def follow(answer: Answer, place) -> None:
    """Redraw the answer until it is finished. A click ends this; the engine goes on."""
    seen = -1
    while not answer.finished:
        seen = answer.wait(seen, timeout=0.5)
        with place.container():
            show_answer(answer)
        time.sleep(REDRAW_SECONDS["cpu" if runtime.on_cpu() else "gpu"])
