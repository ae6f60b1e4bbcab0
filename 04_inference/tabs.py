"""What the browser tabs show, kept on the server: a reload finds it by the id in the address.

Command: none of its own; the views use it
"""

import atexit
import copy
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import chat_log
import streamlit as st
from comparison import Comparison
from engine import Answer, Engine
from golden_file import Editing
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

KEPT_TABS = 100


@dataclass
class Turn:
    question: str
    answer: Answer


@dataclass
class Tab:
    """`session` is the page that shows it, or showed it last."""

    turns: list[Turn] = field(default_factory=list)
    comparison: Comparison | None = None
    editing: dict[Path, Editing] = field(default_factory=dict)
    session: str = ""


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
    """What this page shows. Only when it opens does the address count: Back may show an old one."""
    tabs = shared()[1]
    if "tab" not in st.session_state:
        st.session_state.tab = _key(tabs, st.query_params.get("tab"))
    key = st.session_state.tab
    if st.query_params.get("tab") != key:
        st.query_params["tab"] = key
    tab = tabs.setdefault(key, Tab())
    tab.session = session_id()
    tabs.move_to_end(key)
    while len(tabs) > KEPT_TABS:
        tabs.popitem(last=False)
    return tab


def _key(tabs: OrderedDict[str, Tab], known: str | None) -> str:
    """The key in the address, or a new one; a new one with a copy for a duplicated browser tab,
    which would write into the one that it came from."""
    tab, fresh = tabs.get(known), secrets.token_urlsafe(9)
    if tab is None or not _shown_elsewhere(tab):
        return known or fresh
    tabs[fresh] = Tab(list(tab.turns), tab.comparison, copy.deepcopy(tab.editing))
    return fresh


def _shown_elsewhere(tab: Tab) -> bool:
    other = tab.session not in ("", session_id())
    return other and runtime.get_instance().is_active_session(tab.session)


def session_id() -> str:
    return get_script_run_ctx().session_id
