"""The Chat view: pick a model and an adapter, ask, see the answer as it is written.

Reads:   models/*.yaml, models/<4-bit folder>, adapters_*/
Command: none of its own; 04_inference/infer_ui.py shows it

Conversations live in this process under the id in the address (?chat=...), so that a reload finds
them, and the engine goes on with an answer nobody is looking at.
"""

import re
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

import streamlit as st
from engine import BASE_NAME, Adapter, Answer, Base, Engine, Request, adapters, bases

from injection.files import InputError
from injection.profiles import Project, default_profile

PRESETS = {"Facts": (0.0, 1.0), "Balanced": (0.7, 0.9), "Creative": (1.0, 0.95)}
FINISH = {"stop": "complete", "length": "token limit reached"}
STAGE_FOLDERS = (("10_stage1_cpt", "cpt"), ("20_stage2_sft", "sft"))
KEPT_CONVERSATIONS = 100

_THINK = re.compile(r"<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_FENCE = re.compile(
    r"^ {0,3}(`{3,}|~{3,})([\w+#.-]*)[^\n]*\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$\n?|\Z)",
    re.DOTALL | re.MULTILINE,
)


def escape(text: str) -> str:
    """Markdown that shows the text as typed: no link, image, HTML, formula, emoji or style.

    The invisible word joiner is for what Streamlit replaces after the backslashes are gone
    (`:smile:`, `-->`, bare addresses).
    """
    return re.sub(r"([!-/:-@\[-`{-~])", "\u2060\\\\\\1", text)


def _marked(text: str) -> str:
    """Some templates open the think block in the prompt; then only its end is in the text."""
    end, start = text.find("</think>"), text.find("<think>")
    return "<think>" + text if end >= 0 and (start < 0 or end < start) else text


def without_thoughts(text: str) -> str:
    return _THINK.sub("", _marked(text)).strip()


def parts(text: str) -> list[tuple[str, str, str]]:
    """(kind, language, body) pieces of an answer; kind is think, code or text."""
    found = []
    for i, piece in enumerate(_THINK.split(_marked(text))):
        if i % 2:
            found.append(("think", "", piece))
            continue
        position = 0
        for fence in _FENCE.finditer(piece):
            found.append(("text", "", piece[position : fence.start()]))
            found.append(("code", fence[2], fence[3]))
            position = fence.end()
        found.append(("text", "", piece[position:]))
    return [(kind, language, body.strip("\n")) for kind, language, body in found if body.strip()]


def show_text(text: str) -> None:
    """Untrusted text. st.text and st.code interpret nothing; st.markdown would fetch images."""
    for kind, language, body in parts(text):
        if kind == "think":
            with st.expander("Thoughts"):
                st.text(body)
        elif kind == "code":
            st.code(body, language=language or None, wrap_lines=True)
        else:
            st.text(body)


@dataclass
class Turn:
    question: str
    answer: Answer


@dataclass
class Settings:
    project: Project
    adapter: Adapter | None
    request: Request
    multi_turn: bool


@st.cache_resource
def shared() -> tuple[Engine, OrderedDict[str, list[Turn]]]:
    """The engine and the conversations of every tab."""
    return Engine(), OrderedDict()


def conversation() -> list[Turn]:
    """This tab's turns, found again after a reload by the id in the address."""
    known = st.query_params.get("chat") or st.session_state.get("chat")
    key = known or secrets.token_urlsafe(9)
    st.session_state.chat = key
    if st.query_params.get("chat") != key:
        st.query_params["chat"] = key
    chats = shared()[1]
    turns = chats.setdefault(key, [])
    chats.move_to_end(key)
    while len(chats) > KEPT_CONVERSATIONS:
        chats.popitem(last=False)
    return turns


def ask(turns: list[Turn], question: str, settings: Settings) -> None:
    before = [(t.question, without_thoughts(t.answer.text)) for t in turns]
    request = replace(
        settings.request,
        question=question,
        turns=tuple(b for b in before if b[1]) if settings.multi_turn else (),
        seed=secrets.randbelow(2**31) if settings.request.temperature else 0,
    )
    turns.append(Turn(question, shared()[0].submit(request)))


def sidebar() -> Settings | None:
    """The settings of the next question; None when there is no model to ask."""
    found = bases()
    usable = [b for b in found if not b.problem]
    with st.sidebar:
        base = _pick_base(usable) if usable else None
        adapter = _pick_adapter(base) if base else None
        request = _pick_generation(base, adapter) if base else None
        multi_turn = base is not None and st.toggle(
            "Multi-turn", help="Send the earlier turns along with the question.", key="multi_turn"
        )
        _list_problems("Other models", [(b.title, b.problem) for b in found if b.problem])
        if shared()[0].loaded:
            unload = shared()[0].unload
            st.button("Free the model's memory", type="tertiary", on_click=unload)
    return Settings(base.project, adapter, request, multi_turn) if base else None


def _pick_base(usable: list[Base]) -> Base:
    names = [b.name for b in usable]
    try:
        preferred = default_profile()
    except InputError:
        preferred = ""
    name = st.selectbox(
        "Model",
        names,
        index=names.index(preferred) if preferred in names else 0,
        format_func=lambda n: usable[names.index(n)].title,
        key="base",
    )
    return usable[names.index(name)]


def _pick_adapter(base: Base) -> Adapter | None:
    found = adapters(base.project.base)
    usable = {str(a.path): a for a in found if not a.problem}
    choice = st.selectbox(
        "Adapter",
        ["", *usable],
        index=min(1, len(usable)),
        format_func=lambda p: usable[p].label if p in usable else BASE_NAME,
        key=f"adapter_{base.name}",
    )
    if choice:
        st.caption(escape(usable[choice].detail))
    if not usable:
        scripts = [f"{d}/train_{base.name}_paper_{s}.sh" for d, s in STAGE_FOLDERS]
        st.caption("No adapter for this model yet. Train one:")
        st.code("\n".join(f"bash {s}" for s in scripts), language=None, wrap_lines=True)
    _list_problems("Not usable here", [(a.label, a.problem) for a in found if a.problem])
    return usable.get(choice)


def _list_problems(title: str, problems: list[tuple[str, str]]) -> None:
    if problems:
        with st.expander(f"{title} ({len(problems)})"):
            for name, why in problems:
                st.caption(f"**{escape(name)}**: {escape(why)}")


def _pick_generation(base: Base, adapter: Adapter | None) -> Request:
    profile, state = base.project.profile, st.session_state
    for key, value in (("preset", "Facts"), ("temperature", 0.0), ("top_p", 1.0)):
        state.setdefault(key, value)
    st.segmented_control("Style", list(PRESETS), key="preset", on_change=_apply_preset)
    system = st.text_area(
        "System prompt",
        profile.chat.system_prompt or "",
        placeholder="Empty: the model's own",
        help="The adapters were trained with the default.",
        key=f"system_{base.name}",
    )
    use_gate = adapter is None or st.toggle(
        "Gate",
        value=True,
        help="Questions that are not about the document go to the base model. Off: the adapter "
        "answers everything.",
        key="use_gate",
    )
    with st.expander("Sampling"):
        match = {"on_change": _match_preset}
        st.slider("Temperature", 0.0, 1.5, step=0.05, key="temperature", **match)
        st.slider("Top-p", 0.05, 1.0, step=0.05, key="top_p", **match)
        most = profile.generation.context // 2
        limit = st.slider("Max tokens", 8, most, min(256, most), 8, key=f"max_tokens_{base.name}")
    return Request(
        base=base.project.base,
        chat=profile.chat,
        context=profile.generation.context,
        question="",
        adapter=adapter.path if adapter else None,
        label=adapter.label if adapter else BASE_NAME,
        system=system,
        max_tokens=limit,
        temperature=state.temperature,
        top_p=state.top_p,
        use_gate=use_gate,
    )


def _apply_preset() -> None:
    state = st.session_state
    if state.preset:
        state.temperature, state.top_p = PRESETS[state.preset]


def _match_preset() -> None:
    state = st.session_state
    now = (round(state.temperature, 2), round(state.top_p, 2))
    state.preset = next((name for name, values in PRESETS.items() if values == now), None)


def summary(answer: Answer) -> str:
    """One line about an answer: who gave it, how fast, how long, why it ended."""
    s, request = answer.stats, answer.request
    end = "stopped" if answer.state == "stopped" else FINISH.get(s.finish if s else None, "")
    facts = [request.label]
    if request.adapter and answer.by_adapter is False:
        facts.append("not about the document: the base model answered")
    if s and s.tokens_out > 1:
        facts.append(f"{s.tokens_per_second:.1f} tokens/s")
    if s:
        facts += [
            f"first token {s.first_token:.2f} s",
            f"{s.tokens_in} tokens in, {s.tokens_out} out",
            f"peak {s.peak_gb:.2f} GB",
        ]
    facts += [f"seed {request.seed}"] if request.temperature else []
    return " · ".join(f for f in [*facts, end] if f)


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
        st.caption(_waiting(answer))


def _waiting(answer: Answer) -> str:
    if answer.state == "queued":
        ahead = shared()[0].ahead(answer)
        return f"Waiting: {ahead} {'answer' if ahead == 1 else 'answers'} before this one"
    return "Loading the model" if answer.state == "loading" else "Reading the question"


def show_turn(turn: Turn):
    """Draw a turn; the place of its answer, to be redrawn while it is written."""
    with st.chat_message("user", avatar=":material/person:"):
        st.text(turn.question)
    with st.chat_message("assistant", avatar=":material/forum:"):
        place = st.empty()
        with place.container():
            show_answer(turn.answer)
        if not turn.answer.finished:
            stop = {"on_click": turn.answer.cancel, "key": f"stop_{id(turn)}"}
            st.button("Stop", icon=":material/stop:", **stop)
    return place


def follow(answer: Answer, place) -> None:
    """Redraw the answer until it is finished. A click ends this; the engine goes on."""
    seen = -1
    while not answer.finished:
        seen = answer.wait(seen, timeout=0.5)
        with place.container():
            show_answer(answer)
        time.sleep(0.05)


def header(settings: Settings) -> None:
    profile = settings.project.profile
    st.markdown(f"#### {escape(profile.title)}")
    notice = [profile.notice] if profile.notice else []
    st.caption(escape(" · ".join([settings.request.label, *notice])))


def suggestions(settings: Settings) -> str | None:
    """The key questions of the adapter's document as buttons; the one clicked."""
    project = settings.project
    if settings.adapter:
        try:
            project = Project(project.profile_name, settings.adapter.manifest.document)
        except InputError:
            return None
    st.text(f"Ask about {project.document.title}, or anything else.")
    with st.container(horizontal=True):
        for i, key in enumerate(project.document.key_questions):
            if st.button(escape(key.question), key=f"suggestion_{i}"):
                return key.question
    return None


def actions(turns: list[Turn], settings: Settings) -> None:
    """Regenerate and Clear, below the last answer."""
    with st.container(horizontal=True):
        again = st.button("Regenerate", icon=":material/refresh:", type="tertiary")
        if st.button("Clear", icon=":material/delete:", type="tertiary"):
            turns.clear()
            st.rerun()
    if again:
        ask(turns, turns.pop().question, settings)
        st.rerun()


def no_model() -> None:
    st.markdown("#### No model yet")
    st.text("Make the embedded one, or run the whole pipeline with ./run.sh:")
    commands = ("download_smollm2.py", "quantize.py --profile smollm2_135m")
    lines = "\n".join(f"python 03_quantization/{c}" for c in commands)
    st.code(lines, language=None, wrap_lines=True)


def page() -> None:
    settings = sidebar()
    if settings is None:
        return no_model()
    turns = conversation()
    header(settings)
    question = None if turns else suggestions(settings)
    places = [(t.answer, show_turn(t)) for t in list(turns)]
    running = [(answer, place) for answer, place in places if not answer.finished]
    question = st.chat_input("Ask a question", disabled=bool(running)) or question
    if question and not running:
        ask(turns, question, settings)
        st.rerun()
    if running:
        follow(*running[0])
        st.rerun()
    if turns:
        actions(turns, settings)
