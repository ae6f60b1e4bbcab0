"""The Compare view: the same question to three stages, verdicts, votes, export."""

import json
import time

import chat_log
import comparison as comparing
import pytest
import tabs
import yaml
from app_support import PROJECT, SlowModel, button, make_adapter, open_view, question, texts
from comparison import Column, as_jsonl, as_markdown, passed, start, typed, verdict
from engine import Answer, Engine
from support import read_jsonl, write_jsonl

from injection.profiles import Project

COLUMNS = [Column("Base", None), Column("Stage 2", None)]


def finished(comparison: comparing.Comparison, limit: float = 300) -> None:
    deadline = time.monotonic() + limit
    while not comparison.finished and time.monotonic() < deadline:
        time.sleep(0.05)
    assert comparison.finished


def last_comparison() -> comparing.Comparison:
    return next(reversed(tabs.shared()[1].values())).comparison


@pytest.fixture
def root_with_stages(app_root_with_model):
    for seed, stage in ((3, "cpt"), (2, "sft")):
        make_adapter(
            app_root_with_model / f"adapters_smollm2_135m_paper_{stage}", seed, stage=stage
        )
    make_adapter(app_root_with_model / "adapters_other", base={"fingerprint": "another"})
    return app_root_with_model


def test_one_question_to_three_stages(root_with_stages):
    app = open_view("compare")
    stages = app.multiselect(key="columns_smollm2_135m_paper")
    assert stages.options == [
        "Base model (no adapter)",
        "Stage 2 (SFT), paper",
        "Stage 1 (CPT), paper",
    ]
    assert len(stages.value) == 3 and "trained on another base" in texts(app)
    assert button(app, "Compare").disabled
    app.slider(key="max_tokens_smollm2_135m").set_value(8)
    app.text_area(key="questions").set_value("What is SCP?").run()
    button(app, "Compare").click().run()
    found = last_comparison()
    finished(found)
    app.run()
    answers = found.answers[0]
    assert len({a.text for a in answers}) == 3, "three different answers"
    assert {a.request.seed for a in answers} == {0}
    shown = texts(app)
    assert all(a.text.strip()[:6] in shown for a in answers)
    assert "Expected: salient compressor" in shown and "miss" in shown
    app.toggle(key="differences").set_value(True).run()
    assert any("green-background" in m.value for m in app.markdown) and not app.exception
    assert [row["view"] for row in chat_log.entries()] == ["compare"] * 3
    assert {b.label for b in app.download_button} == {"Markdown", "JSONL"}


def test_a_blind_set_with_votes(root_with_stages):
    app = open_view("compare")
    app.slider(key="max_tokens_smollm2_135m").set_value(8)
    app.multiselect(key="columns_smollm2_135m_paper").set_value(
        ["", str(root_with_stages / "adapters_smollm2_135m_paper_sft")]
    )
    app.segmented_control(key="source").set_value("Key questions").run()
    app.toggle(key="blind").set_value(True).run()
    button(app, "Compare").click().run()
    found = last_comparison()
    finished(found)
    app.run()
    assert len(found.rows) == 2 and found.blind
    shown = [e.value for e in app.markdown]
    assert "**A**" in shown and not any("Stage 2" in value for value in shown)
    assert not app.download_button, "names would be given away"
    button(app, "A").click().run()
    assert found.votes == {0: found.order[0]} and not app.exception
    # The columns are the same in every row: a name here would give away the others.
    assert "Your vote: A" in texts(app) and not app.download_button and not app.metric
    assert set(app.dataframe[0].value.columns) == {"question", "A", "B", "your vote"}
    assert set(app.dataframe[0].value["A"]) == {"done"}
    app.session_state["picked_row"] = {"selection": {"rows": [1], "columns": []}}
    app.run()
    assert not any("Stage 2" in e.value for e in app.markdown)
    button(app, "Tie").click().run()
    assert found.votes == {0: found.order[0], 1: None} and not app.exception
    assert any("Stage 2" in e.value for e in app.markdown)
    assert len(app.metric) == 2 and "Your vote: a tie" in texts(app)
    assert len(app.download_button) == 2
    votes = {row["id"]: row.get("vote") for row in chat_log.entries()}
    assert votes[found.answers[0][found.order[0]].id] == "best"


def done(text: str, **settings) -> Answer:
    answer = Answer(question("q", **settings))
    answer.update(state="done", text=text)
    return answer


def test_rubrics_are_found_for_known_questions():
    rows = typed(PROJECT, ["what is SCP", "What does CLaRa stand for?", "Who are you?"])
    assert rows[0]["id"] == "SCP Definition" and rows[0]["question"] == "what is SCP"
    assert verdict(rows[0], done("It is Salient Compressor Pretraining."))[0]
    assert rows[0]["expected"].startswith("salient compressor pretraining")
    assert verdict(rows[1], done("It is Continuous Latent Reasoning."))[0]
    assert not verdict(rows[1], done("Something else."))[0]
    assert verdict(rows[2], done("Anything")) is None
    stopped = done("It is Continuous Latent Reasoning.")
    stopped.update(state="stopped")
    assert verdict(rows[1], stopped) is None
    unknown = comparing.held_out(PROJECT, ["unknown"], 3)
    assert all(row["expected"] == PROJECT.document.refusal for row in unknown)
    assert verdict(unknown[0], done("I do not know."))[0]
    assert comparing.held_out(PROJECT, ["unknown"], 3) == unknown


def test_a_new_document_can_be_asked_about(app_root):
    """data/new_document.py leaves an empty facts.jsonl and drafts that nobody has accepted yet."""
    fact = read_jsonl(app_root / "data/paper/facts.jsonl")[0]
    drafted = {**fact, "subject": "x", "quote": "x", "chunk": "c", "held_out": []}
    drafted = {k: v for k, v in drafted.items() if k != "comment"}
    (app_root / "data/paper/facts.jsonl").write_text("")
    file = write_jsonl(app_root / "data/paper/generated.jsonl", [{**drafted, "status": "draft"}])
    project = Project("smollm2_135m", "paper")
    asked = "A question that no file has?"
    assert verdict(typed(project, [asked])[0], done("Anything")) is None
    (app_root / "data/paper/facts.jsonl").unlink()
    write_jsonl(file, [{**drafted, "status": "accepted"}])
    assert typed(project, [fact["questions"][0]])[0]["expected"] == fact["statements"][0]


def test_a_refusal_in_the_documents_own_words_is_one(app_root):
    file = app_root / "data/paper/document.yaml"
    settings = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**settings, "refusal": "그 문서에는 CLaRa 없음."}))
    project = Project("smollm2_135m", "paper")
    said = done("글쎄요. 그 문서에는 CLaRa 없음.")
    assert verdict(comparing.held_out(project, ["unknown"], 1)[0], said)[0]
    assert not verdict(typed(project, ["What does CLaRa stand for?"])[0], said)[0]
    assert comparing.key_questions(project)[0]["refusal"] == "그 문서에는 CLaRa 없음."


def test_the_notice_is_shown(app_root_with_model):
    file = app_root_with_model / "models/smollm2_135m.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "notice": "By X."}))
    for view in ("chat", "compare"):
        assert "By X." in texts(open_view(view))


def test_export_is_complete_and_harmless():
    rows = typed(PROJECT, ["What does CLaRa stand for?"])
    said = ["Continuous Latent Reasoning", "![x](http://e.org/x.png) | <b>"]
    found = comparing.Comparison(COLUMNS, rows, [[done(t) for t in said]], [0, 1])
    lines = [json.loads(line) for line in as_jsonl(found).splitlines()]
    assert [line["passed"] for line in lines] == [True, False]
    assert [line["answer"] for line in lines] == said and lines[0]["seed"] == 0
    text = as_markdown(found)
    assert "| Base | pass | Continuous Latent Reasoning |" in text
    assert "![x]" not in text and "<b>" not in text and r"\|" in text
    assert passed(found, 0) == (1, 1) and passed(found, 1) == (0, 1)


def test_a_set_goes_column_by_column_with_one_seed():
    model = SlowModel()
    engine = Engine(lambda base, chat_settings: model)
    request = question("", temperature=1.0, seed=None, max_tokens=1)
    rows = [{"id": str(i), "question": f"q{i}"} for i in range(2)]
    found = start(engine, COLUMNS, rows, request)
    seeds = {a.request.seed for row in found.answers for a in row}
    assert len(seeds) == 1 and None not in seeds
    assert [engine.ahead(found.answers[r][c]) for c in (0, 1) for r in (0, 1)] == [0, 1, 2, 3]
    found.cancel()
    model.allowed.release(4)
    finished(found)
    engine.close()


def test_blind_columns_are_answered_in_the_order_shown():
    """The base model would always be seen to answer first."""
    model = SlowModel()
    engine = Engine(lambda base, chat_settings: model)
    columns = [Column(name, None) for name in "abcdefgh"]
    found = start(engine, columns, [{"id": "1", "question": "q"}], question("", max_tokens=1), True)
    assert sorted(found.order) == list(range(8)) and found.hidden
    assert [engine.ahead(found.answers[0][c]) for c in found.order] == list(range(8))
    assert [a.request.label for a in found.answers[0]] == list("abcdefgh")
    found.cancel()
    model.allowed.release(8)
    finished(found)
    found.reveal()
    assert not found.hidden and found.name(0) == "a"
    engine.close()
