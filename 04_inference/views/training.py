"""Training: curves of the runs, live while one goes on, and what they are trained on.

Reads:   adapters_*/metrics.jsonl, manifest.json; adapters_*.partial/metrics.jsonl;
         data/<document>/chunks.jsonl, cpt/<profile>/train.jsonl, sft/<profile>/train.jsonl
Command: none of its own; 04_inference/infer_ui.py shows it
"""

import charts
import pandas as pd
import streamlit as st
from adapters import documents, first_document
from pickers import KEPT, preferred_profile, run_command
from runs import SERIES, Run, runs, state, table
from text import escape

from injection.files import InputError, read_jsonl, shown
from injection.profiles import Project
from injection.progress import clock

REFRESH_SECONDS = 2
PREVIEW_ROWS = 500


def main() -> None:
    st.subheader("Training", anchor=False)
    st.session_state.seen_runs = state()
    _curves()
    _preview()
    _watch()


@st.fragment(run_every=REFRESH_SECONDS)
def _watch() -> None:
    """Draw the page again when a run has begun, reported or ended."""
    if state() != st.session_state.seen_runs:
        st.rerun()


def _curves() -> None:
    found = runs()
    if not found:
        st.text("No run yet. Start one; its curves show here while it goes on:")
        command = run_command(preferred_profile(), first_document())
        st.code(command, language=None, wrap_lines=True)
        return
    for run in found:
        if run.unfinished:
            _progress(run)
    names = [run.name for run in found]
    left, right = st.columns([4, 1])
    chosen = left.multiselect("Runs", names, default=names[:3], key="runs", **KEPT)
    x = right.segmented_control(
        "Over", ["step", "minutes"], default="step", key="over", required=True, **KEPT
    )
    picked = [run for run in found if run.name in chosen]
    data = table(picked)
    if data.empty:
        st.caption("Nothing reported yet.")
        return
    _charts(picked, data, x)
    st.dataframe(pd.DataFrame([_facts(run) for run in picked]), hide_index=True)


def _progress(run: Run) -> None:
    """How far a run is that has not ended."""
    if not run.live:
        st.warning(
            f"{escape(run.name)} stopped at step {run.step}. The same command goes on from its "
            "last checkpoint.",
            icon=":material/pause_circle:",
        )
        return
    step = f"step {run.step} of {run.total}" if run.total else f"step {run.step}"
    left = run.seconds_left()
    remaining = f", {clock(left)} left" if left is not None else ""
    share = min(run.step / run.total, 1.0) if run.total else 0.0
    st.progress(share, f"{escape(run.name)}: {step}{remaining}")


def _charts(picked: list[Run], data: pd.DataFrame, x: str) -> None:
    names = [run.name for run in picked]
    marks = [_best(run, data) for run in picked if run.best_step is not None]
    best = pd.DataFrame(marks, columns=["run", "step", "minutes"])
    few = ["learning_rate", "tokens_per_second", "peak_memory_gb"]
    left, right = st.columns(2)
    with left:
        _titled("Loss", "line: training, points: validation, dashed: best step")
        st.altair_chart(charts.losses(data, x, names, best), key="losses")
    with right:
        if data.name.str.startswith("dev ").any():
            _titled(
                "Dev questions answered right", "those about the document choose the checkpoint"
            )
            st.altair_chart(charts.dev_scores(data, x), key="dev")
            few.append("kl")
        else:
            _chart(data, "kl", x, names)
    for place, name in zip(st.columns(len(few)), few, strict=True):
        with place:
            _chart(data, name, x, names)


def _chart(data: pd.DataFrame, name: str, x: str, names: list[str]) -> None:
    _titled(dict(SERIES)[name])
    st.altair_chart(charts.lines(data, name, x, names))


def _titled(title: str, note: str = "") -> None:
    st.markdown(f"**{title}**" + (f" :gray[{note}]" if note else ""))


def _best(run: Run, data: pd.DataFrame) -> tuple:
    at = data[(data.run == run.name) & (data.step == run.best_step)].minutes
    return run.name, run.best_step, at.iloc[0] if len(at) else 0.0


def _facts(run: Run) -> dict:
    """A line of the table of runs."""
    manifest, last = run.manifest, run.validations[-1:] or [{}]
    best = manifest.get("best_validation", last[0])
    state = "going on" if run.live else "stopped" if run.unfinished else ""
    return {
        "run": run.name,
        "trained": manifest.get("created", "")[:16].replace("T", " ") or state,
        "steps": manifest.get("steps", run.step),
        "best step": run.best_step,
        "validation loss": best.get("loss"),
        "dev": best.get("score") if "dev" in best else None,
        "minutes": round(manifest.get("training_seconds", 0) / 60, 1) or None,
        "ended": manifest.get("stopped", ""),
        "rank": manifest.get("lora", {}).get("rank"),
        "train rows": str(manifest.get("data", {}).get("train", {}).get("sha256", ""))[:8],
    }


def _preview() -> None:
    """The chunks and rows that the stages train on."""
    st.divider()
    st.markdown("##### What is trained on")
    names = documents()
    if not names:
        st.text("No document in data/ yet.")
        return
    left, middle, right = st.columns([1, 2, 2])
    name = left.selectbox("Document", names, key="preview_document", **KEPT)
    kind = middle.segmented_control(
        "Rows", ["Chunks", "CPT", "SFT"], default="Chunks", key="rows", required=True, **KEPT
    )
    wanted = right.text_input("Containing", key="containing", **KEPT).strip().lower()
    try:
        project = Project(preferred_profile(), name)
        path, made_by = _source(project, kind)
        if not path.exists():
            st.text(f"{shown(path)} is not there yet. It is made by")
            st.code(f"python {made_by} --document {name}", language=None, wrap_lines=True)
            return
        rows = [_flat(row) for row in read_jsonl(path)]
    except InputError as error:
        st.error(escape(str(error)))
        return
    found = [r for r in rows if not wanted or wanted in " ".join(map(str, r.values())).lower()]
    st.dataframe(pd.DataFrame(found[:PREVIEW_ROWS]), hide_index=True, row_height=60)
    more = f", the first {PREVIEW_ROWS} are shown" if len(found) > PREVIEW_ROWS else ""
    st.caption(escape(f"{len(found)} of {len(rows)} rows in {shown(path)}{more}."))


def _source(project: Project, kind: str):
    """(file, script that makes it)."""
    if kind == "Chunks":
        return project.chunks, "10_stage1_cpt/chunk_pdf.py"
    if kind == "CPT":
        return project.data("cpt") / "train.jsonl", "10_stage1_cpt/prepare_cpt_data.py"
    return project.data("sft") / "train.jsonl", "20_stage2_sft/build_sft_data.py"


def _flat(row: dict) -> dict:
    """A chunk or a training row as one line of a table."""
    if "messages" in row:
        said = [m["content"] for m in row["messages"]]
        flat = {"question": " / ".join(said[:-1]), "answer": said[-1]}
    else:
        flat = {"text": row.get("text", "")}
    for name in ("section", "tokens", "source", "target", "id"):
        if row.get(name) is not None:
            flat[name] = row[name]
    if pages := row.get("pages"):
        flat["pages"] = " to ".join(str(p) for p in dict.fromkeys(pages))
    return flat


if __name__ == "__main__":
    main()
