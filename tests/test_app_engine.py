"""The worker of the app: queue, swap, stop, continue, unload, on the real small model."""

import os
import sys
import threading
import time
from pathlib import Path

import engine as engine_module
import numpy as np
import pytest
from app_support import PROJECT, SlowModel, make_adapter, question
from engine import Engine, fit

from injection import gate
from injection.files import InputError, read_json

needs_model = pytest.mark.usefixtures("smollm2")


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


@pytest.fixture
def slow():
    model = SlowModel()
    found = Engine(lambda base, chat_settings: model)
    yield found, model
    model.allowed.release(1000)
    found.close()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def until(answer, text: str) -> None:
    seen = 0
    while answer.text != text:
        seen = answer.wait(seen, timeout=60)


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
def test_a_continued_answer_is_the_uninterrupted_one(worker):
    whole = worker.submit(question("Write about the sea.", max_tokens=12))
    half = worker.submit(question("Write about the sea.", max_tokens=5))
    assert whole.result().startswith(half.result()) and half.unfinished_text
    begun = {"begun": half.tokens, "begun_text": half.text}
    rest = worker.submit(question("Write about the sea.", max_tokens=7, **begun))
    assert rest.result() == whole.text and rest.tokens == whole.tokens
    assert rest.stats.tokens_in == whole.stats.tokens_in


@needs_model
def test_a_gate_decides_who_answers_and_goes_on_deciding_so(worker, tmp_path):
    folder = make_adapter(tmp_path / "adapters_gated")
    size = read_json(PROJECT.base / "config.json")["hidden_size"]
    base = worker.submit(question("What is 2 + 2?")).result()
    adapted = worker.submit(question("What is 2 + 2?", adapter=folder)).result()
    assert adapted != base
    for bias, expected in ((-1.0, base), (1.0, adapted)):
        gate.Gate(np.zeros(size), np.ones(size), np.zeros(size), bias).save(folder)
        worker.submit(question("Let go of the adapter.")).result()
        gated = worker.submit(question("What is 2 + 2?", adapter=folder))
        assert gated.result() == expected and gated.by_adapter == (bias > 0)
    always = worker.submit(question("What is 2 + 2?", adapter=folder, use_gate=False))
    assert always.result() == adapted and always.by_adapter


@needs_model
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_unload_frees_the_memory(worker, loads):
    import mlx.core as mx

    worker.submit(question("Hello")).result()
    used, held = mx.get_active_memory(), resident()
    worker.unload().result()
    assert not worker.loaded and mx.get_active_memory() < used - 50e6
    assert resident() < held - 300e6, "the kernel gets it back"
    count = len(loads)
    assert worker.submit(question("Hello")).result()
    assert len(loads) == count + 1


def test_cancel_keeps_the_partial_text(slow):
    engine, model = slow
    answer = engine.submit(question("Hello", max_tokens=100))
    model.allowed.release(2)
    until(answer, "word0 word1 ")
    answer.cancel()
    model.allowed.release()
    assert answer.result(60).startswith("word0 word1 ") and len(answer.text.split()) <= 3
    assert answer.state == "stopped" and answer.unfinished_text


def test_queue_position_and_cancel_while_queued(slow):
    engine, model = slow
    first, second, third = (engine.submit(question(f"q{i}", max_tokens=1)) for i in range(3))
    assert [engine.ahead(a) for a in (first, second, third)] == [0, 1, 2]
    second.cancel()
    assert second.state == "stopped" and engine.ahead(third) == 1
    model.allowed.release(2)
    assert third.result(60) == "word0 " and second.text == ""


def test_a_long_set_lets_a_question_go_first(slow):
    engine, model = slow
    rows = [engine.submit(question(f"q{i}", max_tokens=1), later=True) for i in range(3)]
    while rows[0].state != "running":
        time.sleep(0.01)
    asked = engine.submit(question("Hello", max_tokens=1))
    assert engine.ahead(asked) == 1 and engine.ahead(rows[1]) == 2
    model.allowed.release(2)
    assert asked.result(60) and rows[2].state == "queued"


def test_abort_ends_a_running_worker(slow):
    engine, model = slow
    running, queued = (engine.submit(question(f"q{i}", max_tokens=100)) for i in range(2))
    model.allowed.release(1)
    until(running, "word0 ")

    def go_on():
        for answer in (running, queued):
            answer.cancelled.wait(60)
        model.allowed.release(1000)

    threading.Thread(target=go_on).start()
    engine.abort()
    assert (running.state, queued.state) == ("stopped", "stopped") and not engine.loaded


def test_every_finished_answer_is_reported_once():
    seen = []
    model = SlowModel()
    engine = Engine(lambda base, chat_settings: model, finished=seen.append)
    model.allowed.release(10)
    answers = [engine.submit(question("Hello", max_tokens=2)) for _ in range(2)]
    engine.unload()
    engine.close()
    assert seen == answers


def test_oldest_turns_are_dropped_to_fit():
    turns = tuple((f"question {i}", "a b c d e f g h") for i in range(5))
    request = question("one two", turns=turns, max_tokens=10, context=34)
    assert fit(SlowModel(), request) == (3, 22, 10)
    assert request.messages(3)[0]["content"] == "question 3"
    assert fit(SlowModel(), question("a b c", max_tokens=10, context=8)) == (0, 3, 5)
    begun = question("a b c", max_tokens=10, context=8, begun=(1, 2))
    assert fit(SlowModel(), begun) == (0, 3, 3)
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


def test_a_seed_is_drawn_only_where_it_matters():
    assert question("Hi", seed=None).seeded().seed == 0
    assert question("Hi", seed=7, temperature=1.0).seeded().seed == 7
    drawn = {question("Hi", seed=None, temperature=1.0).seeded().seed for _ in range(4)}
    assert len(drawn) > 1
