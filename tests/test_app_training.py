"""The Training view: finished, live and interrupted runs from the files that training writes."""

import json
import os

import pytest
import runs
from adapters import _adapter
from app_support import open_view, texts
from support import write_jsonl

from injection import files

NAME = "adapters_smollm2_135m_paper_"


def metrics(steps: int, total: int = 100) -> list[dict]:
    rows = [{"step": 0, "loss": 2.0, "kl": 0.0, "score": -2.0, "validation": True}]
    for step in range(10, steps + 1, 10):
        row = {"step": step, "steps": total, "loss": 2.0 - step / 100, "kl": 0.1}
        row |= {"learning_rate": 1e-3, "tokens_per_second": 500.0, "peak_memory_gb": 2.5}
        rows.append({**row, "seconds": step * 1.5})
        if step % 50 == 0:
            dev = {"paraphrase": 0.8 if step == 50 else 0.7}
            judged = {"step": step, "loss": 1.0, "score": dev["paraphrase"], "dev": dev}
            rows.append({**judged, "validation": True})
    return rows


@pytest.fixture
def finished_run(app_root):
    folder = app_root / f"{NAME}sft"
    write_jsonl(folder / "metrics.jsonl", metrics(100))
    manifest = {
        "created": "2026-11-22T17:05:00+0000",
        "steps": 100,
        "best_step": 50,
        "best_validation": {"loss": 1.0, "score": 0.8, "dev": {"paraphrase": 0.8}},
        "stopped": "all epochs done",
        "training_seconds": 150.0,
        "lora": {"rank": 16},
        "data": {"train": {"sha256": "ab" * 32}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def unfinished_run(app_root):
    file = write_jsonl(app_root / f"{NAME}cpt.partial" / "metrics.jsonl", metrics(40))
    with open(file, "a") as f:
        f.write('{"step": 50, "lo')
    return file


@pytest.fixture
def live_run(unfinished_run):
    with files.claim(unfinished_run.parent):
        yield unfinished_run


def charts(app) -> list[dict]:
    return [json.loads(c.proto.spec) for c in app.get("vega_lite_chart")]


def test_no_run_names_the_command(app_root):
    shown = texts(open_view("training"))
    assert "./run.sh --profile smollm2_135m --document paper" in shown
    assert "chunks.jsonl is not there yet" in shown and "10_stage1_cpt/chunk_pdf.py" in shown


def test_stages_are_overlaid_and_the_best_step_marked(finished_run, live_run):
    app = open_view("training")
    assert [run.name for run in runs.runs()] == [
        "smollm2_135m_paper_cpt.partial",
        "smollm2_135m_paper_sft",
    ]
    table = app.dataframe[0].value
    assert list(table["best step"]) == [None, 50] or list(table["best step"])[1] == 50
    assert "all epochs done" in list(table["ended"])
    assert list(table["trained"]) == ["going on", "2026-11-22 17:05"]
    assert len(charts(app)) == 6
    assert any("rule" in json.dumps(layer["mark"]) for layer in charts(app)[0]["layer"])
    assert "step 40 of 100, 1:30 left" in app.get("progress")[0].proto.text


def test_a_new_report_moves_the_view(live_run):
    app = open_view("training")
    before = runs.state()
    write_jsonl(live_run, metrics(60))
    assert runs.state() != before
    app.run()
    assert "step 60 of 100" in app.get("progress")[0].proto.text
    run = runs.runs()[0]
    assert run.live and run.best_step == 50 and run.seconds_left() == pytest.approx(60)


def test_a_run_whose_process_is_gone_is_called_interrupted(unfinished_run):
    """Even when another process has its number by now."""
    (unfinished_run.parent / "process").write_text(str(os.getpid()))
    app = open_view("training")
    assert "stopped at step 40" in texts(app) and not app.get("progress")
    assert list(app.dataframe[0].value["trained"]) == ["stopped"]


def test_without_dev_questions_the_kl_is_drawn_once(live_run):
    app = open_view("training")
    assert sum("KL" in m.value for m in app.markdown) == 1
    assert len(charts(app)) == 5


def test_validations_get_the_time_of_the_step_before(finished_run):
    data = runs.table(runs.runs())
    best = data[(data.name == "dev paraphrase") & (data.step == 50)]
    assert list(best.minutes) == [50 * 1.5 / 60] and list(best.value) == [0.8]
    assert set(data.name) >= {"loss", "validation loss", "learning_rate", "peak_memory_gb"}


def test_half_made_folders_do_no_harm(app_root):
    held = files.claim(app_root / f"{NAME}cpt.partial")
    broken = app_root / f"{NAME}sft"
    write_jsonl(broken / "metrics.jsonl", metrics(20))
    (broken / "manifest.json").write_text("{")
    app = open_view("training")
    assert "step 0" in app.get("progress")[0].proto.text and not app.error
    held.close()


def test_preview_of_chunks_and_rows(app_root):
    chunk = {"id": "d-0", "text": "About CLaRa.", "pages": [1, 2], "section": "S", "tokens": 5}
    write_jsonl(app_root / "data/paper/chunks.jsonl", [chunk, {**chunk, "text": "Else."}])
    roles = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]
    row = {"messages": roles, "source": "F001"}
    write_jsonl(app_root / "data/paper/sft/smollm2_135m/train.jsonl", [row])
    app = open_view("training")
    assert list(app.dataframe[0].value["pages"]) == ["1 to 2", "1 to 2"]
    app.text_input(key="containing").set_value("clara").run()
    assert list(app.dataframe[0].value["text"]) == ["About CLaRa."]
    assert "1 of 2 rows" in texts(app)
    app.text_input(key="containing").set_value("")
    app.segmented_control(key="rows").set_value("SFT").run()
    assert app.dataframe[0].value.iloc[0]["question"] == "Q?"
    app.segmented_control(key="rows").set_value("CPT").run()
    assert "prepare_cpt_data.py" in texts(app)


def test_a_real_training_run_is_readable(trained_once):
    folder = trained_once / "adapters_tiny_paper_cpt"
    run = runs._run(folder)
    assert (
        run.step == run.total
        and not run.unfinished
        and run.best_step == run.validations[-1]["step"]
    )
    data = runs.table([run])
    assert set(data.name) == {"validation loss", *dict(runs.SERIES)}
    assert (data.value[data.name == "tokens_per_second"] > 0).all()
    adapter = _adapter(folder, trained_once / "models/tiny-4bit")
    assert (adapter.label, adapter.problem) == ("Stage 1 (CPT), paper", "")
    assert f"best step {run.best_step} · validation loss" in adapter.detail
    assert _adapter(folder, trained_once / "models/tiny").problem
