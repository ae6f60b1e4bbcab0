"""Golden data: correct the facts and the generated questions, with the document's text beside.

Reads:   data/<document>/facts.jsonl, generated.jsonl, chunks.jsonl, eval.jsonl
Writes:  data/<document>/facts.jsonl or generated.jsonl, the version before it as .bak
Command: none of its own; 04_inference/infer_ui.py shows it
"""

from pathlib import Path

import golden_file
import pandas as pd
import streamlit as st
from adapters import documents
from golden_file import Editing
from pickers import KEPT, preferred_profile, run_command
from tabs import this_tab
from text import escape, highlighted

from injection import golden
from injection.files import InputError, read_jsonl, shown
from injection.profiles import Project

FILES = {"Facts": "facts.jsonl", "Generated questions": "generated.jsonl"}
LISTS = (("statements", "Statements, one a line"), ("questions", "Questions, one a line"))
MANY = 5


def main() -> None:
    st.subheader("Golden data", anchor=False)
    st.caption("The model learns what stands here. Change it, save, and train again.")
    names = documents()
    if not names:
        st.text("No document yet: make data/<name>/ with a document.yaml and facts.jsonl.")
        return
    left, right = st.columns([1, 2])
    name = left.selectbox("Document", names, key="golden_document", **KEPT)
    kind = right.segmented_control(
        "Rows", list(FILES), default="Facts", key="golden_kind", required=True, **KEPT
    )
    try:
        project = Project(preferred_profile(), name)
        path = project.folder / FILES[kind]
        golden.read_generated(project)
        if kind == "Facts" or path.exists():
            _edit(project, _opened(path))
        else:
            _nothing_generated(name)
    except InputError as error:
        st.error(escape(str(error)))


def _opened(path: Path) -> Editing:
    """The file as this tab edits it. Unsaved changes outlive a reload and a look at other views."""
    editing = this_tab().editing
    if path not in editing:
        editing[path] = golden_file.edit(path)
    elif editing[path].outdated:
        _read_again(editing[path])
    found = editing[path]
    if _table_key(found) not in st.session_state:
        # A new table on the page knows nothing of what was changed in the one before.
        found.begin_table()
    return found


def _read_again(editing: Editing) -> Editing:
    """Begin with the file as it is now; unsaved changes are gone."""
    path = editing.golden.path
    this_tab().editing[path] = fresh = golden_file.edit(path, editing.version + 1)
    return fresh


def _table_key(editing: Editing) -> str:
    return f"table {editing.golden.path} {editing.golden.sha256} {editing.version}"


def _nothing_generated(document: str) -> None:
    st.text(
        "No generated questions yet. A teacher model drafts them from the document's chunks; here "
        "they are accepted, edited or rejected, and only accepted ones are trained on."
    )
    st.code(
        f"python 20_stage2_sft/generate_qa.py --document {document}", language=None, wrap_lines=True
    )


def _edit(project: Project, editing: Editing) -> None:
    table_side, page_side = st.columns([3, 2], gap="large")
    with table_side:
        editing.update(_table(editing))
    with page_side:
        if editing.rows:
            _one_fact(project, editing)
    with table_side:
        _save(project, editing)


def _table(editing: Editing) -> pd.DataFrame:
    """The editable table as the user left it."""
    generated = editing.golden.generated
    frame = golden_file.table(editing.base, generated)
    config = {
        "id": st.column_config.TextColumn("id", disabled=True, width="small"),
        "page": st.column_config.NumberColumn("page", min_value=1, step=1, width="small"),
        "wordings": st.column_config.NumberColumn("wordings", disabled=True, width="small"),
        "sentence": st.column_config.TextColumn("sentence", help="What the model learns to reply."),
        "aliases": st.column_config.TextColumn("aliases", help="Other right answers: one | two"),
    }
    if generated:
        config["status"] = st.column_config.SelectboxColumn(
            "status", options=golden_file.STATUSES, required=True, width="small"
        )
    return st.data_editor(
        frame,
        column_config=config,
        hide_index=True,
        num_rows="fixed" if generated else "dynamic",
        key=_table_key(editing),
        height=430,
    )


def _one_fact(project: Project, editing: Editing) -> None:
    """One fact in full: all its wordings, and the page that it rests on."""
    by_id = {row["id"]: row for row in editing.rows}
    key = f"fact {editing.golden.path}"
    chosen = st.selectbox(
        "Fact",
        list(by_id),
        format_func=lambda i: f"{i}  {by_id[i].get('answer') or ''}",
        key=key,
    )
    if editing.golden.generated:
        _decision(editing, by_id[chosen], key)
    page, wordings = st.tabs(["Page", "Wordings"])
    with page:
        _page_text(project, by_id[chosen])
    with wordings:
        _wordings(editing, by_id[chosen])


def _decision(editing: Editing, row: dict, key: str) -> None:
    """Accept or reject a generated fact and go on to the next draft."""
    with st.container(horizontal=True, vertical_alignment="center"):
        for title, status in (("Accept", "accepted"), ("Reject", "rejected")):
            st.button(
                title,
                disabled=row["status"] == status,
                on_click=_decide,
                args=(editing, row["id"], status, key),
            )
        left = sum(r["status"] == "draft" for r in editing.rows)
        st.caption(f"{row['status']} · {left} {'draft' if left == 1 else 'drafts'} left")
    st.caption(escape(f"About {row['subject']}"))
    if warning := golden_file.doubt(row):
        st.warning(escape(f"Look twice: {warning}"), icon=":material/visibility:")


def _decide(editing: Editing, fact: str, status: str, key: str) -> None:
    editing.decide(fact, status)
    st.session_state[key] = editing.next_draft(fact)


def _wordings(editing: Editing, row: dict) -> None:
    for name, title in LISTS:
        # A first line that was changed in the table makes another text area, which shows it.
        first = editing.first_line(row["id"], name)
        key = f"{name} {row['id']} {first} beside {_table_key(editing)}"
        st.text_area(
            title,
            "\n".join(row.get(name, [])),
            height=170,
            key=key,
            on_change=_keep_list,
            args=(editing, row["id"], name, key),
        )
    if row.get("reverse"):
        st.caption("Reverse questions")
        st.dataframe(row["reverse"], hide_index=True, height=170)


def _keep_list(editing: Editing, fact: str, name: str, key: str) -> None:
    editing.set_list(fact, name, golden_file.lines_of(st.session_state[key]))


def _page_text(project: Project, row: dict) -> None:
    """The chunks of the fact's page, its answer and quote marked."""
    if not project.chunks.exists():
        st.text("The document is not in chunks yet:")
        command = f"python 10_stage1_cpt/chunk_pdf.py --document {project.document_name}"
        st.code(command, language=None, wrap_lines=True)
        return
    page = row.get("page")
    chunks = read_jsonl(project.chunks, keys=("text", "pages"))
    on_page = [c for c in chunks if page and c["pages"][0] <= page <= c["pages"][-1]]
    if not on_page:
        st.caption("No page is given for this fact." if not page else f"Page {page} has no text.")
        return
    st.caption(f"Page {page}")
    marked = [row.get("quote") or "", row.get("answer") or "", *row.get("aliases", [])]
    with st.container(height=400, border=False):
        for chunk in on_page:
            if chunk.get("section"):
                st.markdown(f"**{escape(chunk['section'])}**")
            st.markdown(highlighted(chunk["text"], marked))


def _save(project: Project, editing: Editing) -> None:
    before, rows = editing.golden.rows, editing.rows
    changed = rows != before
    if fresh := golden_file.new_questions(before, rows):
        _warn_of_leaks(project, fresh)
    with st.container(horizontal=True, vertical_alignment="center"):
        save = st.button("Save", type="primary", disabled=not changed)
        undo = st.button("Undo all", type="tertiary", disabled=not changed)
        st.caption(_difference(before, rows) if changed else "No unsaved changes.")
    if save:
        golden_file.save(editing.golden, rows)
    if save or undo:
        _read_again(editing).saved = save
        st.rerun()
    if editing.saved and not changed:
        _next_step(project, shown(editing.golden.path))


def _difference(before: list[dict], after: list[dict]) -> str:
    old = {row["id"]: row for row in before}
    new = {row["id"]: row for row in after}
    edited = sum(old[i] != row for i, row in new.items() if i in old)
    added, removed = len(new.keys() - old.keys()), len(old.keys() - new.keys())
    return f"Unsaved: {edited} changed, {added} added, {removed} removed."


def _warn_of_leaks(project: Project, questions: list[str]) -> None:
    found = golden_file.leaks(project.folder, questions)
    if not found:
        return
    lines = "\n".join(f"- {escape(leak)}" for leak in found[:MANY])
    more = f"\n- and {len(found) - MANY} more" if len(found) > MANY else ""
    st.warning(
        "Too close to held-out questions. Reword them, or build_sft_data.py will refuse:\n"
        f"{lines}{more}",
        icon=":material/warning:",
    )


def _next_step(project: Project, saved: str) -> None:
    st.success(escape(f"Saved {saved}, the version before as .bak. Next, to train on it:"))
    command = run_command(project.profile_name, project.document_name)
    st.code(command, language=None, wrap_lines=True)


if __name__ == "__main__":
    main()
