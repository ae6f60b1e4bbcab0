"""The Golden data view: edits land in the file, whole, checked and with a backup."""

import json
from types import SimpleNamespace

import pytest
import tabs
from app_support import APP, button, open_view, texts
from golden_file import Editing, check, edit, leaks, merged, new_questions, read, save, table
from streamlit.testing.v1 import AppTest
from support import write_jsonl

from injection.files import InputError, read_jsonl
from injection.golden import read_facts, read_generated, update_generated
from injection.profiles import Project


def fact(number: int, **changes) -> dict:
    return {
        "id": f"F{number:03d}",
        "page": 1,
        "answer": f"answer {number}",
        "aliases": ["one", "two"],
        "must_not": ["never"],
        "statements": [f"The answer is answer {number}.", "Said otherwise."],
        "questions": [f"What is thing number {number}?", f"Tell me thing {number}."],
        "reverse": [{"question": f"What is answer {number}?"}],
        **changes,
    }


@pytest.fixture
def facts(app_root):
    return write_jsonl(app_root / "data/paper/facts.jsonl", [fact(1), fact(2)])


def key_of(app) -> str:
    return app.data_editor[0].key


def area_of(app):
    return next(a for a in app.text_area if a.label.startswith("Questions"))


def opened_at(key: str) -> AppTest:
    """A page of its own at the address of a tab, as after a reload."""
    app = AppTest.from_file(APP, default_timeout=300)
    app.query_params["tab"] = key
    return app.run().switch_page("views/golden.py").run()


def test_an_edit_and_a_new_fact_land_in_the_file(facts):
    before = facts.read_bytes()
    app = open_view("golden")
    assert list(app.data_editor[0].value["answer"]) == ["answer 1", "answer 2"]
    assert button(app, "Save").disabled
    added = {"question": "Is it new?", "answer": "yes", "sentence": "It is new.", "page": 2}
    app.session_state[key_of(app)] = {
        "edited_rows": {1: {"answer": "better", "aliases": "a | b"}},
        "added_rows": [added],
        "deleted_rows": [],
    }
    app.run()
    assert "1 changed, 1 added, 0 removed" in texts(app)
    button(app, "Save").click().run()
    assert not app.exception
    rows = read_jsonl(facts)
    assert rows[0] == fact(1)
    assert rows[1] == fact(2, answer="better", aliases=["a", "b"])
    assert rows[2]["id"] == "F003" and rows[2]["questions"] == ["Is it new?"]
    assert rows[2]["statements"] == ["It is new."] and rows[2]["page"] == 2
    assert facts.with_name("facts.jsonl.bak").read_bytes() == before
    assert "./run.sh --profile smollm2_135m --document paper" in texts(app)


def test_wordings_are_edited_beside_the_table(facts):
    app = open_view("golden")
    area_of(app).set_value("What is thing number 1?\n\n What else? \nWhat else?").run()
    app.switch_page("views/report.py").run()
    app.switch_page("views/golden.py").run()
    assert "1 changed" in texts(app), "unsaved changes outlive a look at another view"
    button(app, "Save").click().run()
    assert read_jsonl(facts)[0]["questions"] == ["What is thing number 1?", "What else?"]


def test_a_leak_is_warned_of(facts, app_root):
    held_out = read_jsonl(app_root / "data/paper/eval.jsonl")[0]["question"]
    app = open_view("golden")
    app.session_state[key_of(app)] = {"edited_rows": {0: {"question": held_out}}}
    app.run()
    assert "Too close to held-out questions" in texts(app) and held_out in texts(app)
    button(app, "Undo all").click().run()
    assert "Too close" not in texts(app) and button(app, "Save").disabled


def test_undone_edits_do_not_come_back(facts):
    app = open_view("golden")
    area_of(app).set_value("Typed?").run()
    edits, key = {"edited_rows": {0: {"answer": "typed"}}}, key_of(app)
    app.session_state[key] = edits
    app.run()
    assert "Unsaved: 1 changed" in texts(app)
    button(app, "Undo all").click().run()
    # A browser sends what was typed in a table as long as one of the same key is on the page.
    app.session_state[key] = edits
    app.run()
    assert "No unsaved changes" in texts(app) and key_of(app) != key
    assert area_of(app).value == "\n".join(fact(1)["questions"])


def test_a_table_edit_after_one_of_the_wordings_counts(facts):
    app = open_view("golden")
    area_of(app).set_value("First?\nSecond?").run()
    app.switch_page("views/report.py").run()
    app.switch_page("views/golden.py").run()
    app.session_state[key_of(app)] = {"edited_rows": {0: {"question": "Changed?"}}}
    app.run()
    assert area_of(app).value == "Changed?\nSecond?"
    button(app, "Save").click().run()
    assert read_jsonl(facts)[0]["questions"] == ["Changed?", "Second?"]


def test_the_next_step_is_that_of_the_saved_file(facts, app_root):
    other = app_root / "data/other"
    other.mkdir()
    (other / "document.yaml").write_text((app_root / "data/paper/document.yaml").read_text())
    write_jsonl(other / "facts.jsonl", [fact(1)])
    app = open_view("golden")
    app.session_state[key_of(app)] = {"edited_rows": {0: {"answer": "better"}}}
    app.run()
    button(app, "Save").click().run()
    assert "Saved" in texts(app) and "--document paper" in texts(app)
    app.selectbox(key="golden_document").set_value("other").run()
    assert "Saved" not in texts(app) and "./run.sh" not in texts(app)
    app.selectbox(key="golden_document").set_value("paper").run()
    app.session_state[key_of(app)] = {"edited_rows": {0: {"answer": "best"}}}
    app.run()
    assert "Unsaved" in texts(app) and "Saved" not in texts(app)


def test_a_reload_of_another_view_keeps_unsaved_edits(facts):
    app = open_view("golden")
    app.session_state[key_of(app)] = {"edited_rows": {0: {"answer": "typed"}}}
    app.run()
    key = app.query_params["tab"]
    for view in ("report", "training"):
        app.switch_page(f"views/{view}.py")
        app.query_params.clear()
        app.run()
        assert app.query_params.get("tab") == key, "a link to a view has no ?tab="
    assert "Unsaved: 1 changed" in texts(opened_at(key))


def test_a_duplicated_browser_tab_edits_a_copy(facts, monkeypatch):
    app = open_view("golden")
    app.session_state[key_of(app)] = {"edited_rows": {0: {"answer": "typed here"}}}
    app.run()
    key = app.query_params["tab"]
    monkeypatch.setattr(tabs, "session_id", lambda: "the other one")
    other = opened_at(key)
    assert other.query_params["tab"] != key
    assert list(other.data_editor[0].value["answer"]) == ["typed here", "answer 2"]
    other.session_state[key_of(other)] = {"edited_rows": {1: {"answer": "typed there"}}}
    other.run()
    monkeypatch.undo()
    editing = tabs.shared()[1][key].editing[facts]
    assert [row["answer"] for row in editing.rows] == ["typed here", "answer 2"]


def test_a_reloaded_browser_tab_edits_no_copy(facts, monkeypatch):
    """A reload is a page of its own too, but the one before it has ended."""
    app = open_view("golden")
    key = app.query_params["tab"]
    monkeypatch.setattr(tabs, "session_id", lambda: "the other one")
    ended = SimpleNamespace(is_active_session=lambda session: False)
    monkeypatch.setattr(tabs, "runtime", SimpleNamespace(get_instance=lambda: ended))
    assert opened_at(key).query_params["tab"] == key


def test_an_incomplete_fact_is_refused_in_one_line(facts):
    before = facts.read_bytes()
    app = open_view("golden")
    app.session_state[key_of(app)] = {"added_rows": [{"answer": "alone"}]}
    app.run()
    button(app, "Save").click().run()
    assert "F003: the sentence is missing" in texts(app) and not app.exception
    assert facts.read_bytes() == before


def test_a_file_changed_by_somebody_else_is_not_overwritten(facts):
    opened = read(facts)
    write_jsonl(facts, [fact(1), fact(2), fact(3)])
    with pytest.raises(InputError, match="changed by somebody else"):
        save(opened, opened.rows)
    assert len(read_jsonl(facts)) == 3


def drafted(number: int, **changes) -> dict:
    """A row as generate_qa.py writes it."""
    row = {
        "id": f"G{number:03d}",
        "subject": f"thing {number}",
        "quote": f"It is answer {number}.",
        "chunk": "c",
        "held_out": [{"kind": "paraphrase", "question": f"Which one is thing {number}?"}],
        "status": "draft",
    }
    return fact(number, **{**row, **changes})


@pytest.fixture
def generated(facts, app_root):
    chunk = {"id": "c", "text": "Before. It is answer 1. <b>x</b>", "pages": [1, 2]}
    write_jsonl(app_root / "data/paper/chunks.jsonl", [{**chunk, "section": "1 $x$"}])
    rows = [drafted(1), drafted(2, quote="Something else."), drafted(3)]
    return write_jsonl(app_root / "data/paper/generated.jsonl", rows)


def open_generated():
    app = open_view("golden")
    app.segmented_control(key="golden_kind").set_value("Generated questions").run()
    return app


def statuses(file) -> list[str]:
    return [row["status"] for row in read_jsonl(file)]


def test_generated_facts_are_explained_then_decided_in_the_table(generated, app_root):
    rows = generated.read_bytes()
    generated.unlink()
    app = open_generated()
    assert "generate_qa.py --document paper" in texts(app)
    generated.write_bytes(rows)
    app.run()
    assert any("green-background[It is answer 1" in m.value for m in app.markdown)
    assert not any("<b>" in m.value for m in app.markdown)
    app.session_state[key_of(app)] = {
        "edited_rows": {0: {"status": "accepted"}, 1: {"status": "rejected"}}
    }
    app.run()
    button(app, "Save").click().run()
    assert statuses(generated) == ["accepted", "rejected", "draft"]
    project = Project("smollm2_135m", "paper")
    assert [f.id for f in read_facts(project)] == ["F001", "F002", "G001"]
    assert read_generated(project)[1].held_out[0].question == "Which one is thing 2?"


def test_generated_facts_are_decided_one_by_one(generated):
    app = open_generated()
    chosen = app.selectbox(key=f"fact {generated}")
    assert chosen.value == "G001" and "3 drafts left" in texts(app)
    button(app, "Accept").click().run()
    assert chosen.value == "G002" and "Look twice: the quoted sentence" in texts(app)
    app.session_state[key_of(app)] = {"edited_rows": {2: {"answer": "answer 33"}}}
    app.run()
    button(app, "Reject").click().run()
    assert chosen.value == "G003" and "lacks the answer" in texts(app)
    assert "Unsaved: 3 changed" in texts(app) and statuses(generated) == ["draft"] * 3
    button(app, "Save").click().run()
    assert statuses(generated) == ["accepted", "rejected", "draft"] and not app.exception
    assert read_jsonl(generated)[2]["answer"] == "answer 33"


def test_what_the_terminal_wrote_meanwhile_is_shown(generated):
    app = open_generated()
    project = Project("smollm2_135m", "paper")
    first = read_generated(project)[0]
    update_generated(project, {first.id: first.model_copy(update={"status": "rejected"})})
    app.run()
    assert list(app.data_editor[0].value["status"]) == ["rejected", "draft", "draft"]


def test_broken_generated_facts_are_one_line(generated):
    write_jsonl(generated, [{**fact(1), "status": "draft"}])
    app = open_generated()
    assert "generated.jsonl line 1: subject" in texts(app) and not app.exception


def test_an_empty_file_of_generated_facts_takes_no_plain_ones(generated):
    generated.write_text("")
    app = open_generated()
    assert "status" in app.data_editor[0].value.columns and not app.exception
    with pytest.raises(InputError, match="subject is missing"):
        save(read(generated), [fact(1)])
    check([fact(1, status="draft")], generated=False)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"aliases": None}, "aliases"),
        ({"page": "ii"}, "page"),
        ({"page": 3.5}, "page"),
        ({"reverse": ["q"]}, "reverse.0"),
        ({"statements": "one"}, "statements"),
        ({"id": 3}, "id"),
        ({"id": "F001"}, "the id F001 occurs twice"),
    ],
)
def test_a_mistake_made_by_hand_is_one_line(facts, wrong, named):
    facts.write_text(f"{json.dumps(fact(1))}\n\n{json.dumps(fact(2, **wrong))}\n")
    app = open_view("golden")
    assert not app.exception and len(app.error) == 1
    assert f"facts.jsonl line 3: {named}" in texts(app)


def test_a_fact_may_be_incomplete_while_it_is_written(facts):
    write_jsonl(facts, [{"id": "F001"}, fact(2, statements=[], questions=[], answer="")])
    app = open_view("golden")
    assert not app.exception and not app.error
    edits = {"question": "What?", "sentence": "That.", "answer": "that"}
    app.session_state[key_of(app)] = {"edited_rows": {0: edits, 1: edits}}
    app.run()
    area_of(app).set_value("What?\nWhich?").run()
    button(app, "Save").click().run()
    assert not app.exception and not app.error
    assert [row["statements"] for row in read_jsonl(facts)] == [["That."], ["That."]]
    assert read_jsonl(facts)[0]["questions"] == ["What?", "Which?"]


def test_missing_and_broken_files_are_one_line(facts, app_root):
    facts.write_text('{"id": "F001"}\nnot json\n')
    app = open_view("golden")
    assert "line 2: not JSON" in texts(app)
    facts.unlink()
    app = open_view("golden")
    assert "missing" in texts(app) and "facts.jsonl" in texts(app)


def test_an_untouched_table_changes_nothing(facts):
    editing = edit(facts)
    editing.update(table(editing.base))
    assert editing.rows == editing.golden.rows
    save(editing.golden, editing.rows)
    again = json.dumps(read_jsonl(facts))
    assert again == json.dumps([fact(1), fact(2)])


def test_list_and_table_edits_of_one_fact_meet():
    row = fact(1)
    editing = Editing(None, [row])
    frame = table([row])
    editing.set_list("F001", "questions", ["First?", "Second?"])
    editing.update(frame)
    assert editing.rows[0]["questions"] == ["First?", "Second?"]
    frame.loc[0, "question"] = "Changed?"
    editing.update(frame)
    assert editing.rows[0]["questions"] == ["Changed?", "Second?"]
    editing.set_list("F001", "questions", ["Last?", "Second?"])
    editing.update(frame)
    assert editing.rows[0]["questions"] == ["Last?", "Second?"]
    assert merged([row], frame.drop(0)) == []


def test_an_edit_after_a_decision_counts():
    editing = Editing(None, [drafted(1)])
    editing.set_list("G001", "questions", ["First?", "Second?"])
    editing.update(table(editing.base, generated=True))
    editing.decide("G001", "accepted")
    frame = table(editing.base, generated=True)
    frame.loc[0, "question"] = "Changed?"
    editing.update(frame)
    assert editing.rows[0]["questions"] == ["Changed?", "Second?"]
    assert editing.rows[0]["status"] == "accepted"


def test_only_new_questions_of_accepted_rows_can_leak(app_root):
    before = [fact(1)]
    after = [fact(1, questions=["New?"]), fact(2, status="draft")]
    assert new_questions(before, after) == ["New?"]
    accepted = [fact(1), fact(2, status="accepted", questions=["Known as a draft?"])]
    assert "Known as a draft?" in new_questions(after, accepted)
    assert leaks(app_root / "data/paper", []) == []
