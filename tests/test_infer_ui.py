"""The chat app: the engine and the page on the real small model, and what is done to its output.

Reads:   models/SmolLM2-135M-Instruct-4bit (conftest.py makes it where it is missing)
Command: python -m pytest tests/test_infer_ui.py
"""
# ruff: noqa: E402

import json
import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "04_inference")]
import engine as engine_module
from engine import Answer, Engine, Request, adapters, bases, fit
from views import chat

from injection import gate, profiles
from injection.files import InputError, model_fingerprint

PROJECT = profiles.Project("smollm2_135m", "paper")
needs_model = pytest.mark.usefixtures("smollm2")
APP = str(ROOT / "04_inference" / "infer_ui.py")


def question(text: str, **settings) -> Request:
    profile = PROJECT.profile
    settings = {"max_tokens": 8, "context": profile.generation.context, **settings}
    return Request(base=PROJECT.base, chat=profile.chat, question=text, **settings)


def make_adapter(folder: Path, **changes) -> Path:
    """An adapter on the last layer that changes every answer."""
    folder.mkdir(parents=True)
    weight = "model.layers.29.mlp.down_proj"
    config = json.loads((PROJECT.base / "config.json").read_text())
    rows, columns = config["intermediate_size"], config["hidden_size"]
    rng = np.random.default_rng(0)
    arrays = {
        f"{weight}.lora_a": rng.normal(size=(rows, 2)).astype(np.float32),
        f"{weight}.lora_b": rng.normal(size=(2, columns)).astype(np.float32),
    }
    save_file(arrays, folder / "adapters.safetensors")
    shape = {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["mlp.down_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": shape}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    manifest = {
        "stage": "sft",
        "profile": "smollm2_135m",
        "document": "paper",
        "created": "2026-11-22T17:05:00+0000",
        "base": {"fingerprint": model_fingerprint(PROJECT.base)},
        "lora": {"rank": 2},
        "best_step": 40,
        "best_validation": {"score": 0.5, "dev": {"paraphrase": 0.5}},
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def loads() -> list[Path]:
    return []


@pytest.fixture(scope="module")
def worker(loads, smollm2):
    def load(base, chat_settings):
        loads.append(base)
        return engine_module.load(base, chat_settings)

    found = Engine(load)
    yield found
    found.close()


class SlowModel:
    """Writes one word whenever the test allows it."""

    adapter_speaks = True

    def __init__(self):
        self.allowed = threading.Semaphore(0)

    def attach(self, adapter):
        pass

    def prompt(self, messages):
        return [0] * sum(len(m["content"].split()) for m in messages)

    def stream(self, messages, max_tokens, temperature, top_p, seed):
        for n in range(max_tokens):
            self.allowed.acquire()
            yield SimpleNamespace(
                text=f"word{n} ",
                prompt_tokens=1,
                generation_tokens=n + 1,
                generation_tps=1.0,
                peak_memory=0.0,
                finish_reason=None,
            )


@pytest.fixture
def slow():
    model = SlowModel()
    found = Engine(lambda base, chat_settings: model)
    yield found, model
    model.allowed.release(1000)
    found.close()


@needs_model
def test_two_threads_queue_and_do_not_mix(worker):
    questions = ["What is the capital of France?", "Count from one to five."]
    expected = [worker.submit(question(q)).result() for q in questions]
    assert expected[0] != expected[1]
    found: list[list[str]] = [[], []]

    def tab(i):
        handles = [worker.submit(question(questions[i])) for _ in range(3)]
        found[i] = [h.result() for h in handles]

    tabs = [threading.Thread(target=tab, args=(i,)) for i in range(2)]
    for t in tabs:
        t.start()
    for t in tabs:
        t.join()
    assert found == [[expected[0]] * 3, [expected[1]] * 3]


@needs_model
def test_adapter_swap_changes_the_answer_without_a_reload(worker, loads, tmp_path):
    adapter = make_adapter(tmp_path / "adapters_x")
    before = worker.submit(question("What is a river?"))
    swapped = worker.submit(question("What is a river?", adapter=adapter))
    after = worker.submit(question("What is a river?"))
    assert before.result() == after.result() != swapped.result()
    assert len(loads) == 1
    assert before.stats.tokens_out == 8 and before.stats.finish == "length"


@needs_model
def test_failed_attach_leaves_a_clean_base(worker, tmp_path):
    adapter = make_adapter(tmp_path / "adapters_x", base={"fingerprint": "another"})
    expected = worker.submit(question("What is a river?")).result()
    refused = worker.submit(question("What is a river?", adapter=adapter))
    refused.result()
    assert refused.state == "failed" and "another base" in refused.error
    assert worker.submit(question("What is a river?")).result() == expected


@needs_model
def test_unload_frees_the_memory(worker, loads):
    import mlx.core as mx

    worker.submit(question("Hello")).result()
    used = mx.get_active_memory()
    worker.unload().result()
    assert not worker.loaded and mx.get_active_memory() < used - 50e6
    count = len(loads)
    assert worker.submit(question("Hello")).result()
    assert len(loads) == count + 1


def test_cancel_keeps_the_partial_text(slow):
    engine, model = slow
    answer = engine.submit(question("Hello", max_tokens=100))
    model.allowed.release(2)
    seen = 0
    while answer.text != "word0 word1 ":
        seen = answer.wait(seen, timeout=60)
    answer.cancel()
    model.allowed.release()
    assert answer.result(60).startswith("word0 word1 ") and len(answer.text.split()) <= 3
    assert answer.state == "stopped"


def test_queue_position_and_cancel_while_queued(slow):
    engine, model = slow
    first, second, third = (engine.submit(question(f"q{i}", max_tokens=1)) for i in range(3))
    assert [engine.ahead(a) for a in (first, second, third)] == [0, 1, 2]
    second.cancel()
    assert second.state == "stopped" and engine.ahead(third) == 1
    model.allowed.release(2)
    assert third.result(60) == "word0 " and second.text == ""


def test_oldest_turns_are_dropped_to_fit():
    turns = tuple((f"question {i}", "a b c d e f g h") for i in range(5))
    request = question("one two", turns=turns, max_tokens=10, context=34)
    dropped, room = fit(SlowModel(), request)
    assert (dropped, room) == (3, 10)
    assert request.messages(dropped)[0]["content"] == "question 3"
    assert fit(SlowModel(), question("a b c", max_tokens=10, context=8)) == (0, 5)
    with pytest.raises(InputError, match="shorten it"):
        fit(SlowModel(), question("a b c", context=3))


def test_an_unexpected_error_fails_the_answer_not_the_worker():
    calls = []

    def load(base, chat_settings):
        calls.append(base)
        if len(calls) == 1:
            raise MemoryError("too big\nsecond line")
        model = SlowModel()
        model.allowed.release(1)
        return model

    engine = Engine(load)
    failed = engine.submit(question("Hello"))
    failed.result(60)
    assert failed.error == "MemoryError: too big"
    assert engine.submit(question("Hello", max_tokens=1)).result(60) == "word0 "
    engine.close()


HOSTILE = "![x](http://e.org/x.png) <img src=x> [a](http://e.org) $x$ :smile: --> www.e.org a@e.org"


def test_escape_leaves_nothing_to_interpret():
    escaped = chat.escape(HOSTILE)
    assert escaped.replace("\u2060\\", "") == HOSTILE
    assert re.fullmatch(r"(?:[\w\s]|\u2060\\[!-/:-@\[-`{-~])*", escaped)


def test_parts_split_thoughts_code_and_text():
    text = "<think>hm</think>Look:\n```python\nx = 1\n\ny = 2\n```\n- a\n- b"
    assert chat.parts(text) == [
        ("think", "", "hm"),
        ("text", "", "Look:"),
        ("code", "python", "x = 1\n\ny = 2"),
        ("text", "", "- a\n- b"),
    ]
    assert chat.parts("<think>still") == [("think", "", "still")]
    assert chat.parts("hm</think>yes") == [("think", "", "hm"), ("text", "", "yes")]
    assert chat.parts("```\nopen") == [("code", "", "open")]
    assert chat.without_thoughts("<think>a</think> b") == "b"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with the profiles and the document, but no model and no adapter."""
    (tmp_path / "models").mkdir()
    for profile in (ROOT / "models").glob("*.yaml"):
        shutil.copy(profile, tmp_path / "models")
    (tmp_path / "data" / "paper").mkdir(parents=True)
    shutil.copy(ROOT / "data" / "paper" / "document.yaml", tmp_path / "data" / "paper")
    for module in (profiles, engine_module):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def root_with_model(root):
    (root / "models" / PROJECT.base.name).symlink_to(PROJECT.base)
    return root


def open_page() -> AppTest:
    app = AppTest.from_file(APP, default_timeout=300).run()
    assert not app.exception
    return app


def texts(app: AppTest) -> str:
    found = [e.value for kind in (app.text, app.caption, app.markdown, app.code) for e in kind]
    return "\n".join([*found, *(e.value for e in app.error)]).replace("\u2060\\", "")


def test_missing_model_page_names_the_commands(root):
    app = open_page()
    assert "quantize.py --profile smollm2_135m" in texts(app)
    assert len(app.chat_input) == 0


def test_broken_profile_is_listed_with_the_reason(root):
    (root / "models" / "broken.yaml").write_text("title: 3\n")
    assert "broken.yaml" in next(b.problem for b in bases() if b.name == "broken")
    assert "broken.yaml" in texts(open_page())


@needs_model
def test_adapters_are_listed_with_score_or_reason(root_with_model):
    make_adapter(root_with_model / "adapters_smollm2_135m_paper_sft")
    make_adapter(root_with_model / "adapters_other", base={"fingerprint": "another"})
    make_adapter(root_with_model / "adapters_odd", lora={})
    (root_with_model / "adapters_late.partial").mkdir()
    found = {a.path.name: a for a in adapters(root_with_model / "models" / PROJECT.base.name)}
    good = found.pop("adapters_smollm2_135m_paper_sft")
    assert (good.label, good.problem) == ("Stage 2 (SFT), paper", "")
    assert good.detail == "2026-11-22 17:05 · best step 40 · dev 50% · rank 2"
    app = open_page()
    assert app.selectbox[1].options == ["Base model (no adapter)", good.label]
    assert app.selectbox[1].value == str(good.path)
    shown = texts(app)
    for adapter in found.values():
        assert adapter.problem and adapter.problem in shown


@needs_model
def test_chat_on_the_real_model(root_with_model):
    app = open_page()
    assert "train_smollm2_135m_paper_cpt.sh" in texts(app)
    app.slider(key="max_tokens_smollm2_135m").set_value(8)
    app.toggle(key="multi_turn").set_value(True).run()
    app.chat_input[0].set_value("What is the capital of France?").run()
    assert not app.exception and len(app.chat_message) == 2
    first = app.chat_message[1].text[0].value
    assert first and "tokens/s" in texts(app) and "token limit reached" in texts(app)
    app.chat_input[0].set_value("And of Spain?").run()
    assert len(app.chat_message) == 4
    turns = next(reversed(chat.shared()[1].values()))
    assert turns[1].answer.request.turns == (("What is the capital of France?", first),)
    by_label = {b.label: b for b in app.button}
    by_label["Regenerate"].click().run()
    assert len(app.chat_message) == 4 and not app.exception
    reloaded = AppTest.from_file(APP, default_timeout=300)
    reloaded.query_params["chat"] = next(reversed(chat.shared()[1]))
    assert reloaded.run().chat_message[1].text[0].value == first
    {b.label: b for b in app.button}["Clear"].click().run()
    assert len(app.chat_message) == 0


@needs_model
def test_presets_and_sliders_follow_each_other(root_with_model):
    app = open_page()
    app.segmented_control(key="preset").set_value("Creative").run()
    assert (app.slider(key="temperature").value, app.slider(key="top_p").value) == (1.0, 0.95)
    app.slider(key="temperature").set_value(0.4).run()
    assert app.segmented_control(key="preset").value is None


@needs_model
def test_stopped_failed_and_hostile_answers_are_shown(root_with_model):
    answers = []
    for changes in (
        {"state": "stopped", "text": HOSTILE, "dropped": 2},
        {"state": "failed", "error": "no :smile: today"},
        {"state": "done", "text": "<think>hm</think>yes"},
    ):
        answers.append(Answer(question("Why?")))
        answers[-1].update(**changes)
    chat.shared()[1]["shown"] = [chat.Turn("Why?", a) for a in answers]
    app = AppTest.from_file(APP, default_timeout=300)
    app.query_params["chat"] = "shown"
    app.run()
    assert not app.exception
    assert app.chat_message[1].text[0].value == HOSTILE
    assert not any("e.org" in m.value for m in app.markdown)
    shown = texts(app)
    assert "oldest 2 turns do not fit" in shown and "stopped" in shown
    assert "no :smile: today" in shown and ":smile:" not in app.error[0].value
    assert "Thoughts" in [e.label for e in app.expander]


@needs_model
def test_a_closed_gate_lets_the_base_answer_and_says_so(worker, tmp_path):
    folder = make_adapter(tmp_path / "adapters_gated")
    size = json.loads((PROJECT.base / "config.json").read_text())["hidden_size"]
    closed = gate.Gate(np.zeros(size), np.ones(size), np.zeros(size), -1.0)
    closed.save(folder)
    base = worker.submit(question("What is 2 + 2?")).result()
    gated = worker.submit(question("What is 2 + 2?", adapter=folder, label="mine"))
    assert gated.result() == base and gated.by_adapter is False
    assert "the base model answered" in chat.summary(gated)
    always = worker.submit(question("What is 2 + 2?", adapter=folder, use_gate=False))
    assert always.result() != base and always.by_adapter
    assert "the base model answered" not in chat.summary(always)
