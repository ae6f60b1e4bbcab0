"""Compare: the same question, seed and settings to base, CPT and SFT, side by side.

Reads:   models/*.yaml, adapters_*/, data/<document>/eval.jsonl, facts.jsonl
Writes:  logs/chats.jsonl
Command: none of its own; 04_inference/infer_ui.py shows it
"""

import chat_log
import pandas as pd
import streamlit as st
from adapters import BASE_NAME, adapters, documents
from answers import measurements, waiting
from comparison import (
    Column,
    Comparison,
    as_jsonl,
    as_markdown,
    held_out,
    key_questions,
    passed,
    start,
    typed,
    verdict,
)
from pickers import KEPT, compare_settings, run_command
from tabs import Tab, engine, this_tab
from text import differences, escape, show_text

from injection.files import InputError
from injection.grading import KINDS
from injection.profiles import Project
from injection.prompts import without_thoughts

SOURCES = ("My questions", "Key questions", "Held-out questions")
REFRESH_SECONDS = 0.4


def main() -> None:
    settings = compare_settings()
    if settings is None:
        return
    project, request = settings
    tab = this_tab()
    st.subheader("Compare", anchor=False)
    st.caption("One question, several stages: same prompt, same seed, one base in memory.")
    if project.profile.notice:
        st.caption(escape(project.profile.notice))
    try:
        _ask(tab, _document(project), request)
    except InputError as error:
        st.error(escape(str(error)))
    if tab.comparison:
        _show(tab)


def _document(project: Project) -> Project:
    """The project on the document that the user picks, where there is a choice."""
    names = documents()
    if len(names) < 2:
        return project
    with st.sidebar:
        name = st.selectbox("Document", names, key="compare_document", **KEPT)
    return Project(project.profile_name, name)


def _ask(tab: Tab, project: Project, request) -> None:
    columns = _pick_columns(project)
    source = st.segmented_control(
        "Questions", SOURCES, default=SOURCES[0], key="source", required=True, **KEPT
    )
    rows = _pick_rows(project, source)
    running = tab.comparison is not None and not tab.comparison.finished
    with st.container(horizontal=True, vertical_alignment="center"):
        ready = bool(rows) and len(columns) > 1
        go = st.button("Compare", type="primary", disabled=running or not ready)
        if running:
            st.button("Stop", icon=":material/stop:", on_click=tab.comparison.cancel)
        secret = "Names stay hidden until every question has your vote."
        blind = st.toggle("Blind", help=secret, key="blind", **KEPT)
    if go:
        tab.comparison = start(engine(), columns, rows, request, blind)
        st.rerun()


def _pick_columns(project: Project) -> list[Column]:
    """Base and the newest adapter of each stage, unless the user picks others."""
    found = adapters(project.base)
    usable = {str(a.path): a for a in found if not a.problem}
    ours = [a for a in usable.values() if a.manifest.document == project.document_name]
    newest = [next((a for a in ours if a.manifest.stage == s), None) for s in ("cpt", "sft")]
    chosen = st.multiselect(
        "Stages",
        ["", *usable],
        default=["", *(str(a.path) for a in newest if a)],
        format_func=lambda path: usable[path].label if path else BASE_NAME,
        key=f"columns_{project.profile_name}_{project.document_name}",
        **KEPT,
    )
    if not usable:
        st.caption("No adapter for this model yet. Train one:")
        command = run_command(project.profile_name, project.document_name)
        st.code(command, language=None, wrap_lines=True)
    if problems := [a for a in found if a.problem]:
        with st.expander(f"Not usable here ({len(problems)})"):
            for a in problems:
                st.caption(f"**{escape(a.label)}**: {escape(a.problem)}")
    return [
        Column(usable[path].label if path else BASE_NAME, usable[path].path if path else None)
        for path in chosen
    ]


def _pick_rows(project: Project, source: str) -> list[dict]:
    if source == "Key questions":
        return key_questions(project)
    if source == "Held-out questions":
        left, right = st.columns([3, 1])
        kinds = left.multiselect("Kinds", KINDS, default=["paraphrase"], key="kinds", **KEPT)
        number = right.number_input("How many", 1, 200, 10, key="number", **KEPT)
        return held_out(project, kinds, number)
    text = st.text_area(
        "One question a line",
        placeholder=project.document.key_questions[0].question,
        height=80,
        key="questions",
        **KEPT,
    )
    return typed(project, [line.strip() for line in text.split("\n") if line.strip()])


def _show(tab: Tab) -> None:
    """The results, redrawn a few times a second while answers come in."""
    comparison = tab.comparison
    running = not comparison.finished

    @st.fragment(run_every=REFRESH_SECONDS if running else None)
    def results() -> None:
        if running and comparison.finished:
            st.rerun()
        if len(comparison.rows) == 1:
            _show_row(comparison, 0)
        else:
            _show_set(comparison)

    st.divider()
    results()
    if not running:
        _export(comparison)


def _show_set(comparison: Comparison) -> None:
    """Totals, a line for every question, and the answers to the selected one."""
    total = len(comparison.rows) * len(comparison.columns)
    if not comparison.finished:
        st.progress(comparison.done / total, f"{comparison.done} of {total} answers")
    if not comparison.hidden:
        _totals(comparison)
    marks = [_marks(comparison, i) for i in range(len(comparison.rows))]
    picked = st.dataframe(
        pd.DataFrame(marks),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key="picked_row",
        height=min(38 + 35 * len(marks), 400),
    )
    chosen = picked.selection.rows
    row = chosen[0] if chosen and chosen[0] < len(comparison.rows) else 0
    _show_row(comparison, row)
    # Without it, a set that was stopped or is too long to judge would keep its names for ever.
    if comparison.hidden and comparison.finished and st.button("Show the names", type="tertiary"):
        comparison.reveal()
        st.rerun()


def _totals(comparison: Comparison) -> None:
    places = st.columns(len(comparison.columns))
    for i, (place, column) in enumerate(zip(places, comparison.columns, strict=True)):
        right, graded = passed(comparison, i)
        votes = sum(v == i for v in comparison.votes.values())
        voted = f"{votes} of {len(comparison.votes)} votes" if comparison.votes else None
        value = f"{right} of {graded}" if graded else "-"
        place.metric(escape(column.label), value, voted, delta_color="off", delta_arrow="off")


def _marks(comparison: Comparison, i: int) -> dict:
    row = comparison.rows[i]
    line = {"question": row["question"]}
    for column in comparison.order:
        answer = comparison.answers[i][column]
        found = verdict(row, answer)
        mark = "…" if not answer.finished else answer.state if found is None else ""
        name = comparison.name(column)
        line[name] = mark or ("pass" if found[0] else "miss")
        if comparison.hidden and answer.finished:
            line[name] = "done"
    return line | ({"your vote": comparison.vote(i)} if comparison.votes else {})


def _show_row(comparison: Comparison, i: int) -> None:
    row = comparison.rows[i]
    st.markdown(f"##### {escape(row['question'])}")
    if row.get("expected") and not comparison.hidden:
        st.caption(f"Expected: {escape(row['expected'])}")
    order = comparison.order
    compared = st.session_state.get("differences", False) and not comparison.hidden
    for place, column in zip(st.columns(len(order), gap="medium"), order, strict=True):
        with place, st.container(border=True):
            _show_cell(comparison, i, column, compared and column != order[0])
    if vote := comparison.vote(i):
        st.caption(f"Your vote: {escape(vote)}")
    elif comparison.hidden:
        _ballot(comparison, i)
    if not comparison.hidden:
        st.toggle(
            f"Mark words that differ from {escape(comparison.name(order[0]))}",
            key="differences",
            **KEPT,
        )


def _show_cell(comparison: Comparison, i: int, column: int, compared: bool) -> None:
    answer, hidden = comparison.answers[i][column], comparison.hidden
    st.markdown(f"**{escape(comparison.name(column))}**")
    found = verdict(comparison.rows[i], answer)
    if found and not hidden:
        st.badge("pass" if found[0] else "miss", color="green" if found[0] else "orange")
    if compared:
        first = comparison.answers[i][comparison.order[0]]
        st.markdown(differences(without_thoughts(first.text), without_thoughts(answer.text)))
    else:
        show_text(answer.text)
    if answer.finished and not answer.text.strip():
        st.caption("No text.")
    if answer.state == "failed":
        st.error(escape(answer.error))
    elif not answer.finished:
        st.caption(waiting(answer) if not answer.text else "Writing")
    elif not hidden:
        why = [found[1]] if found and not found[0] else []
        gated = ["gate: base answered"] if answer.gated else []
        st.caption(escape(" · ".join([*why, *gated, *measurements(answer)])))


def _ballot(comparison: Comparison, i: int) -> None:
    """Which answer is best, asked before the names are known."""
    if not all(a.finished for a in comparison.answers[i]):
        return
    left = len(comparison.rows) - len(comparison.votes)
    still = "your vote" if left == 1 else f"your votes on {left} questions"
    st.caption(f"Which answer is best? The names show after {still}.")
    with st.container(horizontal=True):
        for column in [*comparison.order, None]:
            label = "Tie" if column is None else comparison.name(column)
            if st.button(label, key=f"vote_{i}_{label}"):
                comparison.votes[i] = column
                for n, answer in enumerate(comparison.answers[i]):
                    outcome = "tie" if column is None else "best" if n == column else "not best"
                    chat_log.record_vote(answer.id, outcome)
                st.rerun()


def _export(comparison: Comparison) -> None:
    if comparison.hidden:
        return
    with st.container(horizontal=True):
        st.download_button(
            "Markdown", as_markdown(comparison), "comparison.md", icon=":material/download:"
        )
        st.download_button(
            "JSONL", as_jsonl(comparison), "comparison.jsonl", icon=":material/download:"
        )


if __name__ == "__main__":
    main()
