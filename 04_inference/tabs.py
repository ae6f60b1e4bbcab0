"""What the browser tabs show, kept on the server: a reload finds it by the id in the address.

Command: none of its own; the views use it
"""

import atexit
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import chat_log
import streamlit as st
from comparison import Comparison
from engine import Answer, Engine
from golden_file import Editing

KEPT_TABS = 100


@dataclass
class Turn:
    question: str
    answer: Answer


@dataclass
class Tab:
    turns: list[Turn] = field(default_factory=list)
    comparison: Comparison | None = None
    editing: dict[Path, Editing] = field(default_factory=dict)


@st.cache_resource
def shared() -> tuple[Engine, OrderedDict[str, Tab]]:
    """The engine and what every tab shows."""
    engine = Engine(finished=chat_log.record)
    # mlx ends the process with an error when it is cut off in the middle of a computation.
    atexit.register(engine.abort)
    return engine, OrderedDict()


def engine() -> Engine:
    return shared()[0]


def this_tab() -> Tab:
    known = st.query_params.get("tab") or st.session_state.get("tab")
    key = known or secrets.token_urlsafe(9)
    st.session_state.tab = key
    if st.query_params.get("tab") != key:
        st.query_params["tab"] = key
    tabs = shared()[1]
    tab = tabs.setdefault(key, Tab())
    tabs.move_to_end(key)
    while len(tabs) > KEPT_TABS:
        tabs.popitem(last=False)
    return tab
