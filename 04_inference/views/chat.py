"""Chat: pick a model and an adapter, ask, see the answer as it is written.

Reads:   models/*.yaml, models/<4-bit folder>, adapters_*/
Writes:  logs/chats.jsonl; data/<document>/facts.jsonl by "Add to golden data"
Command: none of its own; 04_inference/infer_ui.py shows it
"""

from dataclasses import replace

import chat_log
import golden_file
import streamlit as st
from answers import follow, show_answer
from engine import Request
from pickers import Settings, chat_settings
from tabs import Tab, Turn, engine, this_tab
from text import escape

from injection.files import InputError, shown
from injection.profiles import Project
from injection.prompts import without_thoughts

# While an answer is written it can be stopped; what could be done next belongs to the one before.
IDLE = "<style>.st-key-stop { display: none; }</style>"
ANSWERING = (
    "<style>.st-key-next { display: none; } .st-key-stop.st-key-stop { display: flex; }</style>"
)
# Streamlit scrolls along with a chat only when its input is outside of fragments.
SCROLL_ALONG = """<script>{
  const page = document.querySelector("[data-testid=stMain]");
  const left = () => page.scrollHeight - page.scrollTop - page.clientHeight;
  const chat = () => document.querySelector("[data-testid=stChatInput]");
  let atEnd = true;
  page.onscroll = () => { atEnd = left() < 100; };
  window.chatResized?.disconnect();
  window.chatResized = new ResizeObserver(() => {
    if (atEnd && chat()) page.scrollTop = page.scrollHeight;
  });
  window.chatResized.observe(document.querySelector("[data-testid=stMainBlockContainer]"));
}</script>"""
# A long conversation takes longer to draw than an answer takes to begin. The first shown turn
# moves on in steps, because turns that keep their place are not drawn again by the browser.
SHOWN_TURNS, STEP = 4, 4
# Drawing takes the processor from reading the question: it waits so long for something to show.
TEXT_SECONDS = 0.4


def main() -> None:
    settings = chat_settings()
    if settings is None:
        return
    tab = this_tab()
    _header(settings)
    running = bool(tab.turns) and not tab.turns[-1].answer.finished
    drawn = tab.turns[:-1] if running else list(tab.turns)
    for turn in _latest(drawn):
        _show_turn(turn, settings)
    with st.container(key="next"):
        if not tab.turns:
            _suggestions(tab, settings)
        elif not running:
            _actions(tab, settings)
    below = st.container()
    st.html(IDLE)
    st.html(SCROLL_ALONG, unsafe_allow_javascript=True)
    with st.bottom:
        # Outside of the fragment: only such a click interrupts it.
        with st.container(key="stop"):
            st.button("Stop", icon=":material/stop:", on_click=_stop, args=(tab,))
        _ask_box(tab, settings, len(drawn), below)


@st.fragment
def _ask_box(tab: Tab, settings: Settings, drawn: int, below) -> None:
    """Where questions are typed. The turn after the `drawn` ones is shown in `below` while it is
    answered; drawing all of the page would take the processor from the model."""
    answering = len(tab.turns) > drawn
    place = below.empty()
    # By callback, so that the worker begins before anything is drawn.
    asked = {"key": "question", "on_submit": _ask_typed, "args": (tab, settings)}
    st.chat_input("Ask a question", disabled=bool(answering or settings.problem), **asked)
    if not answering:
        return
    turn = tab.turns[-1]
    with place.container():
        st.html(ANSWERING)
        with st.chat_message("user"):
            st.text(turn.question)
        text = st.chat_message("assistant").empty()
    follow(turn.answer, text)
    st.rerun()


def _stop(tab: Tab) -> None:
    for turn in tab.turns[-1:]:
        turn.answer.cancel()


def _latest(turns: list[Turn]) -> list[Turn]:
    """The last turns, and above them a button for the others."""
    earlier = (len(turns) - SHOWN_TURNS) // STEP * STEP
    if earlier <= 0 or st.session_state.get("show_earlier"):
        return turns
    label = f"Show {earlier} earlier questions"
    st.button(label, icon=":material/history:", type="tertiary", on_click=_show_earlier)
    return turns[earlier:]


def _show_earlier() -> None:
    st.session_state.show_earlier = True


def _ask_typed(tab: Tab, settings: Settings) -> None:
    # A second Enter may come before the page shows that the first was heard.
    if not tab.turns or tab.turns[-1].answer.finished:
        ask(tab, st.session_state.question, settings)


def ask(tab: Tab, question: str, settings: Settings) -> None:
    before = [(t.question, without_thoughts(t.answer.text)) for t in tab.turns]
    turns = tuple(b for b in before if b[1]) if settings.multi_turn else ()
    request = replace(settings.request, question=question, turns=turns).seeded()
    st.session_state.show_earlier = False
    tab.turns.append(Turn(question, engine().submit(request)))
    tab.turns[-1].answer.wait_for_text(TEXT_SECONDS)


def _header(settings: Settings) -> None:
    profile = settings.project.profile
    st.subheader(escape(profile.title), anchor=False)
    notice = [profile.notice] if profile.notice else []
    label = settings.adapter.label if settings.adapter else settings.request.label
    st.caption(escape(" · ".join([label, *notice])))
    if settings.problem:
        st.error(escape(f"{label} cannot answer: {settings.problem}. Choose another adapter."))


def _suggestions(tab: Tab, settings: Settings) -> None:
    """The key questions of the adapter's document as buttons."""
    document = _document(settings)
    if document is None:
        return
    st.text(f"Ask about {document.title}, or anything else.")
    with st.container(horizontal=True):
        for i, key in enumerate(document.key_questions):
            click = {"on_click": ask, "args": (tab, key.question, settings)}
            blocked = bool(settings.problem)
            st.button(escape(key.question), key=f"suggestion_{i}", disabled=blocked, **click)


def _document(settings: Settings):
    manifest = settings.adapter.manifest if settings.adapter else None
    if manifest is None:
        return settings.project.document
    try:
        return Project(settings.project.profile_name, manifest.document).document
    except InputError:
        return None


def _show_turn(turn: Turn, settings: Settings) -> None:
    with st.chat_message("user"):
        st.text(turn.question)
    with st.chat_message("assistant"):
        show_answer(turn.answer)
        if turn.answer.state != "failed":
            _judge(turn, settings)


def _judge(turn: Turn, settings: Settings) -> None:
    """Thumbs, and the way into the golden data."""
    answer = turn.answer
    with st.container(horizontal=True, vertical_alignment="center"):
        key = f"vote_{answer.id}"
        st.feedback("thumbs", default=answer.vote, key=key, on_change=_vote, args=(answer, key))
        _opener("Add to golden data", ":material/add:", "golden", answer.id)
    if _is_open("golden", answer.id):
        with st.container(border=True):
            _golden_form(turn, settings)


def _opener(label: str, icon: str, form: str, of: str, **more) -> None:
    """A button that opens a form below itself, one form at a time."""

    def open_it() -> None:
        st.session_state.open_form = (form, of)

    key = f"{form}_{of}"
    st.button(label, icon=icon, type="tertiary", key=key, on_click=open_it, **more)


def _is_open(form: str, of: str) -> bool:
    return st.session_state.get("open_form") == (form, of)


def _close_form() -> None:
    st.session_state.open_form = None


def _vote(answer, key: str) -> None:
    answer.vote = st.session_state[key]
    chat_log.record_vote(answer.id, chat_log.VOTES.get(answer.vote, ""))


def _golden_form(turn: Turn, settings: Settings) -> None:
    """The question as another wording of a fact, or with its answer as a new fact."""
    manifest = settings.adapter.manifest if settings.adapter else None
    document = manifest.document if manifest else settings.project.document_name
    file = settings.project.folder.parent / document / "facts.jsonl"
    try:
        facts = golden_file.read(file)
    except InputError as error:
        st.error(escape(str(error)))
        return
    by_id = {row["id"]: row for row in facts.rows}
    question = st.text_area("Question", turn.question, height="content")
    choice = st.selectbox(
        "Belongs to",
        ["", *by_id],
        format_func=lambda i: _fact_line(by_id[i]) if i else "A new fact",
    )
    answer, sentence = "", ""
    if not choice:
        said = without_thoughts(turn.answer.text)
        sentence = st.text_area("The whole answer, one sentence", said, height="content")
        answer = st.text_input("The shortest right answer", help="What grading looks for.")
    with st.container(horizontal=True):
        save = st.button("Save", type="primary")
        st.button("Cancel", type="tertiary", on_click=_close_form)
    if save:
        try:
            golden_file.add_question(facts, question, choice, answer, sentence)
        except InputError as error:
            st.error(escape(str(error)))
            return
        _close_form()
        st.session_state.saved = f"Saved to {shown(file)}."
        st.rerun()


def _fact_line(row: dict) -> str:
    # A fact that somebody began by hand may have no statement yet.
    return "  ".join([row["id"], *row.get("statements", [])[:1]])


def _actions(tab: Tab, settings: Settings) -> None:
    """What can be done with the last answer, and how full the context is."""
    last = tab.turns[-1]
    if saved := st.session_state.pop("saved", None):
        st.toast(escape(saved))
    if settings.multi_turn and last.answer.stats:
        _context_meter(last.answer.request, last.answer.stats)
    with st.container(horizontal=True):
        blocked = bool(settings.problem)
        again = st.button(
            "Regenerate", icon=":material/refresh:", type="tertiary", disabled=blocked
        )
        _opener("Edit the question", ":material/edit:", "edit", last.answer.id, disabled=blocked)
        go_on = last.answer.unfinished_text and st.button(
            "Continue", icon=":material/play_arrow:", type="tertiary"
        )
        clear = st.button("Clear", icon=":material/delete:", type="tertiary")
    if _is_open("edit", last.answer.id):
        _edit_form(tab, settings)
    if again:
        ask(tab, tab.turns.pop().question, settings)
    if go_on:
        last.answer = continued(last)
    if clear:
        tab.turns.clear()
    if again or go_on or clear:
        st.rerun()


def continued(turn: Turn):
    """The same request again, from where its answer ended."""
    answer = turn.answer
    request = replace(answer.request, begun=answer.tokens, begun_text=answer.text)
    return engine().submit(request)


def _edit_form(tab: Tab, settings: Settings) -> None:
    question = st.text_area("The last question", tab.turns[-1].question, height="content")
    with st.container(horizontal=True):
        asked = st.button("Ask again", type="primary", disabled=not question.strip())
        st.button("Cancel", type="tertiary", on_click=_close_form)
    if asked:
        _close_form()
        tab.turns.pop()
        ask(tab, question, settings)
        st.rerun()


def _context_meter(request: Request, stats) -> None:
    used = min(stats.tokens_in + stats.tokens_out, request.context)
    st.progress(used / request.context, f"Context: {used} of {request.context} tokens used")


if __name__ == "__main__":
    main()
