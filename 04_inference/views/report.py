"""Report: what each stage scores, every answer behind it, what was forgotten, and the chat log.

Reads:   results/<profile>_<document>/report.json, answers.jsonl; results/reference/;
         results/ablations/; logs/chats.jsonl
Command: none of its own; 04_inference/infer_ui.py shows it
"""

from pathlib import Path

import charts
import chat_log
import pandas as pd
import report_tables
import streamlit as st
from pickers import KEPT
from text import escape, show_text

from injection.files import InputError, shown
from injection.report import STAGE_NAMES

COMMAND = "python 30_evaluation/compare_hcx_stages.py"


def main() -> None:
    st.subheader("Report", anchor=False)
    part = st.segmented_control(
        "Part", ["Evaluation", "Chat log"], default="Evaluation", key="part", required=True, **KEPT
    )
    if part == "Chat log":
        _log()
        return
    try:
        _evaluation()
    except InputError as error:
        st.error(escape(str(error)))


def _evaluation() -> None:
    folders = report_tables.reports()
    if not folders:
        st.text("No report yet. With both adapters trained, make one:")
        st.code(COMMAND, language=None, wrap_lines=True)
        return
    folder = st.selectbox("Results", folders, format_func=_title, key="report", **KEPT)
    if folder.name == "reference":
        st.caption("The run that the README quotes. Make your own:")
        st.code(COMMAND, language=None, wrap_lines=True)
    report = report_tables.read_report(folder)
    _origin(report)
    _headline(report)
    _scores(report)
    _forgetting(report)
    _questions(folder)
    _extras()
    _downloads(folder)


def _title(folder: Path) -> str:
    return "The shipped reference" if folder.name == "reference" else shown(folder)


def _origin(report: dict) -> None:
    names = ("profile", "document", "date", "commit", "machine", "questions")
    st.caption(escape(" · ".join(str(report[n]) for n in names if n in report)))


def _headline(report: dict) -> None:
    """The last stage against the base, as four numbers."""
    stages = report["stages"]
    best = stages.get("gated") or stages.get("sft") or stages["base"]
    figures = [
        (kind, best["kinds"][kind]["score"], stages["base"]["kinds"][kind]["score"])
        for kind in ("paraphrase", "reverse", "unknown", "spillover")
        if kind in best["kinds"]
    ]
    if best.get("retention") is not None:
        figures.append(("general kept", best["retention"], None))
    for place, (title, now, before) in zip(st.columns(len(figures) or 1), figures, strict=False):
        delta = None if before is None else f"base {before:.1%}"
        place.metric(title, f"{now:.1%}", delta, delta_color="off", delta_arrow="off")


def _scores(report: dict) -> None:
    st.markdown("##### Scores by kind of question")
    st.caption("Means over facts with 95% bootstrap intervals over facts.")
    dark = st.context.theme.type == "dark"
    st.altair_chart(charts.stage_bars(report_tables.scores(report), dark), key="bars")
    st.dataframe(report_tables.score_table(report), hide_index=True)
    if shares := report_tables.gate_shares(report):
        opened = ", ".join(f"{kind} {share}" for kind, share in shares.items())
        st.caption(escape(f"The gate lets the adapter speak on: {opened}."))


def _forgetting(report: dict) -> None:
    st.markdown("##### Forgetting, speed and memory")
    st.dataframe(report_tables.forgetting_table(report), hide_index=True)


def _questions(folder: Path) -> None:
    """Every question with the answers of all stages."""
    st.markdown("##### Question by question")
    if not (folder / "answers.jsonl").exists():
        st.caption("answers.jsonl is missing: run the comparison again.")
        return
    answers = report_tables.read_answers(folder)
    table = _filtered(report_tables.questions(answers), answers)
    st.caption(f"{len(table)} questions. Select one for the answers.")
    picked = st.dataframe(
        table,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"question_{folder.name}",
        height=320,
    )
    rows = picked.selection.rows
    if len(table) == 0:
        return
    chosen = table.iloc[rows[0] if rows and rows[0] < len(table) else 0]
    _drill_down(answers[answers.id == chosen.id])


def _filtered(table: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    left, middle, right = st.columns([2, 2, 2])
    kinds = left.multiselect("Kinds", list(dict.fromkeys(table.kind)), key="report_kinds", **KEPT)
    stages = [name for name in STAGE_NAMES.values() if name in table.columns]
    wanted = ["all", *(f"{s}: {v}" for s in stages for v in ("pass", "miss"))]
    verdict = middle.selectbox("Verdict", wanted, key="verdict", **KEPT)
    words = right.text_input("Containing", key="report_words", **KEPT).strip().lower()
    if kinds:
        table = table[table.kind.isin(kinds)]
    if verdict != "all":
        stage, _, found = verdict.rpartition(": ")
        table = table[table[stage] == found]
    if words:
        said = answers.question.str.lower() + "\n" + answers.answer.str.lower()
        hits = answers[said.str.contains(words, regex=False)].id
        table = table[table.id.isin(hits)]
    return table.reset_index(drop=True)


def _drill_down(answers: pd.DataFrame) -> None:
    st.markdown(f"**{escape(answers.iloc[0].question)}**")
    by_stage = {row.stage: row for row in answers.itertuples()}
    stages = [stage for stage in STAGE_NAMES if stage in by_stage]
    for place, stage in zip(st.columns(len(stages)), stages, strict=True):
        row = by_stage[stage]
        with place, st.container(border=True):
            st.markdown(f"**{STAGE_NAMES[stage]}**")
            st.badge("pass" if row.passed else "miss", color="green" if row.passed else "orange")
            show_text(row.answer)
            if not row.passed:
                st.caption(escape(row.why))


def _extras() -> None:
    """Quantization cost and ablations, where somebody measured them."""
    fidelity = "python 30_evaluation/quantization_fidelity.py"
    _tables("What quantization cost", report_tables.quantization(), fidelity)
    _tables("Ablations", report_tables.ablations(), "python benchmarks/ablations.py")


def _tables(title: str, found: dict[str, pd.DataFrame], command: str) -> None:
    st.markdown(f"##### {title}")
    for name, table in found.items():
        st.caption(escape(name))
        st.dataframe(table, hide_index=True)
    if not found:
        st.caption(f"Not measured yet: {command}")


def _downloads(folder: Path) -> None:
    with st.container(horizontal=True):
        for name in ("report.md", "report.json", "answers.jsonl"):
            file = folder / name
            if file.exists():
                st.download_button(name, file.read_bytes(), name, icon=":material/download:")


def _log() -> None:
    """What was asked in Chat and Compare, with votes."""
    rows = chat_log.entries()
    if not rows:
        st.text("Nothing asked yet. Chat and Compare write to logs/chats.jsonl.")
        return
    left, middle, right = st.columns([2, 2, 2])
    labels = list(dict.fromkeys(str(row.get("label")) for row in rows))
    chosen = left.multiselect("Stage", labels, key="log_stage", **KEPT)
    votes = list(dict.fromkeys(row.get("vote", "none") for row in rows))
    vote = middle.multiselect("Vote", votes, key="log_vote", **KEPT)
    words = right.text_input("Containing", key="log_words", **KEPT).strip().lower()
    rows = [
        row
        for row in rows
        if (not chosen or row.get("label") in chosen)
        and (not vote or row.get("vote", "none") in vote)
        and (not words or words in f"{row['question']}\n{row.get('answer')}".lower())
    ]
    shown_first = ("time", "label", "vote", "question", "answer", "tokens_per_second", "state")
    table = pd.DataFrame(rows)
    st.caption(f"{len(rows)} answers")
    st.dataframe(
        table[[c for c in shown_first if c in table.columns]], hide_index=True, row_height=60
    )
    st.download_button(
        "CSV", chat_log.csv_text(rows), "chats.csv", icon=":material/download:", disabled=not rows
    )


if __name__ == "__main__":
    main()
