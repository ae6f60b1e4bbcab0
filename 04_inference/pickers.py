"""The sidebar of Chat and Compare: which model, which adapter, and how to generate.

Command: none of its own; the views use it
"""

from dataclasses import dataclass

import streamlit as st
from adapters import BASE_NAME, Adapter, Base, adapters, bases
from engine import Request
from tabs import engine
from text import escape

from injection.files import InputError
from injection.profiles import EMBEDDED_DEFAULT, Project, default_profile

PRESETS = {"Facts": (0.0, 1.0), "Balanced": (0.7, 0.9), "Creative": (1.0, 0.95)}
# Settings stay when the user looks at another view and comes back.
KEPT = {"persist_state": "session"}


@dataclass
class Settings:
    """What the sidebar says. `problem` is why the chosen adapter cannot answer, else empty."""

    project: Project
    adapter: Adapter | None
    request: Request
    multi_turn: bool
    problem: str = ""


def chat_settings() -> Settings | None:
    """The sidebar of Chat; None when there is no model to ask."""
    base = pick_base()
    if base is None:
        return None
    with st.sidebar:
        adapter = _pick_adapter(base)
        problem = adapter.problem if adapter else ""
        _pick_style()
        use_gate = adapter is None or _pick_gate()
        multi_turn = st.toggle(
            "Multi-turn",
            help="Send the earlier turns along with the question.",
            key="multi_turn",
            **KEPT,
        )
        request = _request(base, adapter if not problem else None, use_gate)
        memory_button()
    return Settings(base.project, adapter, request, multi_turn, problem)


def compare_settings() -> tuple[Project, Request] | None:
    """The sidebar of Compare: model and generation; None when there is no model to ask."""
    base = pick_base()
    if base is None:
        return None
    with st.sidebar:
        _pick_style()
        request = _request(base, None, _pick_gate())
        memory_button()
    return base.project, request


def pick_base() -> Base | None:
    """The model picker, what cannot be used below it. Without a model: how to make one."""
    found = bases()
    usable = [b for b in found if not b.problem]
    with st.sidebar:
        base = _pick_base(usable) if usable else None
        if unusable := [b for b in found if b.problem]:
            with st.expander(f"Other models ({len(unusable)})"):
                for b in unusable:
                    st.caption(f"**{escape(b.title)}**: {escape(b.problem)}")
    if base is None:
        _no_model()
    return base


def _pick_base(usable: list[Base]) -> Base:
    names = [b.name for b in usable]
    preferred = preferred_profile()
    name = st.selectbox(
        "Model",
        names,
        index=names.index(preferred) if preferred in names else 0,
        format_func=lambda n: usable[names.index(n)].title,
        key="base",
        **KEPT,
    )
    return usable[names.index(name)]


def preferred_profile() -> str:
    """The default profile; the embedded one when the reference's file is damaged."""
    try:
        return default_profile()
    except InputError:
        return EMBEDDED_DEFAULT


def _no_model() -> None:
    st.subheader("No model yet", anchor=False)
    st.text("Make the embedded one, or run the whole pipeline with ./run.sh:")
    commands = ("download_smollm2.py", "quantize.py --profile smollm2_135m")
    lines = "\n".join(f"python 03_quantization/{c}" for c in commands)
    st.code(lines, language=None, wrap_lines=True)


def _pick_adapter(base: Base) -> Adapter | None:
    """The adapter picker. What cannot be used stays in the list, behind what can."""
    found = sorted(adapters(base.project.base), key=lambda a: bool(a.problem))
    by_path = {str(a.path): a for a in found}
    usable = [a for a in found if not a.problem]
    choice = st.selectbox(
        "Adapter",
        ["", *by_path],
        index=min(1, len(usable)),
        format_func=lambda path: _adapter_name(by_path.get(path)),
        key=f"adapter_{base.name}",
        **KEPT,
    )
    adapter = by_path.get(choice)
    if adapter and adapter.problem:
        st.error(f"Not usable here: {escape(adapter.problem)}")
    elif adapter:
        st.caption(escape(adapter.detail))
    if not usable:
        st.caption("No adapter for this model yet. Train one:")
        command = run_command(base.name, base.project.document_name)
        st.code(command, language=None, wrap_lines=True)
    return adapter


def _adapter_name(adapter: Adapter | None) -> str:
    if adapter is None:
        return BASE_NAME
    return f"{adapter.label} (not usable)" if adapter.problem else adapter.label


def run_command(profile: str, document: str) -> str:
    """The shell line that makes the rows and trains both stages."""
    return f"./run.sh --profile {profile} --document {document}"


def _pick_style() -> None:
    for key, value in (("preset", "Facts"), ("temperature", 0.0), ("top_p", 1.0)):
        st.session_state.setdefault(key, value)
    st.segmented_control("Style", list(PRESETS), key="preset", on_change=_apply_preset, **KEPT)


def _pick_gate() -> bool:
    return st.toggle(
        "Gate",
        value=True,
        help="Questions that are not about the document go to the base model. Off: the adapter "
        "answers everything.",
        key="use_gate",
        **KEPT,
    )


def _request(base: Base, adapter: Adapter | None, use_gate: bool) -> Request:
    """A request without a question, as the rest of the sidebar says."""
    profile, state = base.project.profile, st.session_state
    system = st.text_area(
        "System prompt",
        profile.chat.system_prompt or "",
        placeholder="Empty: the model's own",
        help="The adapters were trained with the default.",
        key=f"system_{base.name}",
        **KEPT,
    )
    with st.expander("Sampling"):
        match = {"on_change": _match_preset, **KEPT}
        st.slider("Temperature", 0.0, 1.5, step=0.05, key="temperature", **match)
        st.slider("Top-p", 0.05, 1.0, step=0.05, key="top_p", **match)
        most = profile.generation.context // 2
        limit = st.slider(
            "Max tokens", 8, most, min(256, most), 8, key=f"max_tokens_{base.name}", **KEPT
        )
        seed = st.number_input(
            "Seed", 0, 2**31 - 1, value=None, placeholder="random", key="seed", **KEPT
        )
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
        seed=seed,
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


def memory_button() -> None:
    if engine().loaded:
        st.button("Free the model's memory", type="tertiary", on_click=engine().unload)
