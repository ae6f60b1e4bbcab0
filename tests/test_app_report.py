"""The Report view: the shipped results, the drill-down, and the log of what was asked."""

import csv
import io
import json
import shutil
from pathlib import Path

import chat_log
import pytest
import report_tables
from app_support import HOSTILE, SlowModel, open_view, question, texts
from engine import Answer, Engine, Stats
from support import ROOT

from injection.files import InputError

REFERENCE = ROOT / "results/reference"


@pytest.fixture
def reference(app_root):
    return shutil.copytree(REFERENCE, app_root / "results/reference")


def test_no_report_names_the_command(app_root):
    assert "python 30_evaluation/compare_hcx_stages.py" in texts(open_view("report"))


def test_the_shipped_report(reference):
    app = open_view("report")
    report = report_tables.read_report(reference)
    score = report["stages"]["gated"]["kinds"]["paraphrase"]["score"]
    assert app.metric[0].value == f"{score:.1%}"
    table = app.dataframe[0].value
    assert list(table.columns)[2:] == [
        "Base model",
        "Stage 1 (CPT)",
        "Stage 2 (SFT), no gate",
        "Stage 2 (SFT)",
    ]
    assert f"{score:.1%} [" in table["Stage 2 (SFT)"][0]
    assert len(json.loads(app.get("vega_lite_chart")[0].proto.spec)["layer"]) == 2
    forgetting = app.dataframe[1].value
    assert "perplexity ratio to base" in list(forgetting["figure"])
    recipes = [d.value for d in app.dataframe if "recipe" in d.value.columns]
    assert [list(table.recipe)[0] for table in recipes] == ["the recipe"]
    assert {b.label for b in app.download_button} == {"report.md", "report.json", "answers.jsonl"}


def test_what_is_not_measured_names_its_command(reference):
    (reference / "ablations.json").unlink()
    shown = texts(open_view("report"))
    assert "Not measured yet" in shown and "python benchmarks/ablations.py" in shown


def test_drill_down_shows_every_stage(reference):
    app = open_view("report")
    every = len(app.dataframe[2].value)
    app.selectbox(key="verdict").set_value("Stage 2 (SFT): miss").run()
    missed = app.dataframe[2].value
    assert 0 < len(missed) < every and set(missed["Stage 2 (SFT)"]) == {"miss"}
    app.multiselect(key="report_kinds").set_value(["unknown"]).run()
    chosen = app.dataframe[2].value.iloc[0]
    answers = report_tables.read_answers(reference)
    said = answers[answers.id == chosen.id]
    shown = texts(app)
    assert chosen.question in shown and len(said) == len(set(said.stage)) > 2
    assert all(answer.strip()[:40] in shown for answer in said.answer)
    app.text_input(key="report_words").set_value("no such words at all").run()
    assert len(app.dataframe[2].value) == 0 and not app.exception


def test_own_results_come_before_the_shipped_ones(reference, app_root):
    shutil.copytree(reference / "tidemill", app_root / "results/smollm2_135m_paper")
    names = [folder.name for folder in report_tables.reports()]
    assert names == ["smollm2_135m_paper", "reference", "tidemill"]


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": {}}', '{"stages": {"base": {}}}'])
def test_a_damaged_report_is_one_line(reference, content):
    (reference / "report.json").write_text(content)
    with pytest.raises(InputError):
        report_tables.read_report(reference)
    app = open_view("report")
    assert len(app.error) == 1


def test_quantization_and_ablations_when_measured(reference, app_root, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import ablations

    rows = [
        {"bits": "source", "size": 269e6, "bits_per_weight": 16.0, "perplexity": 20.0},
        {"bits": "4", "size": 76e6, "bits_per_weight": 4.5, "perplexity": 21.0, "kl": 0.1},
    ]
    folder = app_root / "results/smollm2_135m_quantization"
    folder.mkdir()
    (folder / "fidelity.json").write_text(json.dumps({"title": "Smol", "rows": rows}))
    stages = json.loads((reference / "report.json").read_text())["stages"]
    (app_root / "results/ablations").mkdir()
    found = {"facts": 40, "runs": {"no_cpt": ablations.entry("no_cpt", stages, 1.0)}}
    (app_root / "results/ablations/x.json").write_text(json.dumps(found))
    app = open_view("report")
    tables = [d.value for d in app.dataframe]
    cost = next(t for t in tables if "mean KL to the source" in t.columns)
    assert list(cost["mean KL to the source"]) == ["-", "0.1000"]
    assert "first 40 facts · behind the gate where there is one" in texts(app)
    ablation = next(t for t in tables if "recipe" in t.columns)
    assert list(ablation["recipe"]) == ["SFT without CPT"] and "%" in ablation["paraphrase"][0]


def logged(text: str, asked: str = "Hi", vote: str = "") -> Answer:
    answer = Answer(question(asked))
    stats = Stats(5, 3, 20.0, 0.1, 0.5, "stop")
    answer.update(state="done", text=text, stats=stats)
    chat_log.record(answer)
    if vote:
        chat_log.record_vote(answer.id, vote)
    return answer


def test_chat_log_filters_and_exports(app_root):
    logged(HOSTILE, vote="down")
    last = logged("=1+1", asked="안녕하세요?", vote="up")
    with open(chat_log.file(), "a") as f:
        f.write('{"id": "x", "quest')
    app = open_view("report")
    app.segmented_control(key="part").set_value("Chat log").run()
    assert list(app.dataframe[0].value["answer"]) == ["=1+1", HOSTILE]
    app.multiselect(key="log_vote").set_value(["up"]).run()
    assert list(app.dataframe[0].value["question"]) == ["안녕하세요?"]
    app.text_input(key="log_words").set_value("nothing like it").run()
    assert "0 answers" in texts(app) and not app.exception
    assert chat_log.entries()[0]["id"] == last.id and chat_log.entries()[0]["tokens_out"] == 3


def test_an_empty_log_says_where_it_comes_from(app_root):
    app = open_view("report")
    app.segmented_control(key="part").set_value("Chat log").run()
    assert "logs/chats.jsonl" in texts(app)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", " =", "\t", "\r"])
def test_no_cell_of_the_csv_is_a_formula(start):
    text = f"{start}cmd|' /C calc'!A0"
    rows = [{"question": text, "tokens_per_second": -1.5, "vote": None}, {"other": "a,b\n안녕"}]
    found = list(csv.DictReader(io.StringIO(chat_log.csv_text(rows))))
    assert found[0]["question"] == f"'{text}" and found[0]["tokens_per_second"] == "-1.5"
    assert found[1]["other"] == "a,b\n안녕"


def test_a_log_without_a_folder_does_not_lose_the_answer(app_root):
    (app_root / "logs").write_text("a file where the folder should be")
    assert logged("text").text == "text"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
def test_a_full_disk_does_not_lose_the_answer(monkeypatch):
    monkeypatch.setattr(chat_log, "file", lambda: Path("/dev/full"))
    model = SlowModel()
    model.allowed.release(2)
    engine = Engine(lambda base, chat_settings: model, finished=chat_log.record)
    answers = [engine.submit(question("Hello", max_tokens=1)) for _ in range(2)]
    assert [answer.result(60) for answer in answers] == ["word0 ", "word0 "]
    chat_log.record_vote(answers[0].id, "up")
    engine.close()
