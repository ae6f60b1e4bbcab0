"""The gate: what it learns, and that a closed one leaves the base model untouched."""

import mlx.core as mx
import numpy as np
import pytest

from injection import batches, gate, generation, models, profiles, prompts
from injection.files import read_json

SFT = "adapters_tiny_paper_sft"
QUESTIONS = ["What is 3?", "Which answer has 7?", "Who wrote it?", "Name a colour."]


def two_groups(distance: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    about = np.arange(200) < 150
    features = random.normal(size=(200, 12)) + distance * about[:, None]
    return features, about


def test_gate_separates_what_can_be_separated():
    features, about = two_groups(3.0)
    fitted = gate.fit(features, about)
    assert (fitted.opens(features) == about).all()
    errors = gate.cross_validate(features, about)
    assert errors["false_open"] < 0.05 and errors["false_closed"] < 0.05


def test_cross_validation_does_not_flatter():
    errors = gate.cross_validate(*two_groups(0.0))
    assert 0.3 < errors["false_open"] < 0.7 and 0.3 < errors["false_closed"] < 0.7


def test_saved_gate_decides_the_same(tmp_path):
    features, about = two_groups(1.0)
    fitted = gate.fit(features, about)
    fitted.save(tmp_path)
    assert (gate.read_gate(tmp_path).opens(features) == fitted.opens(features)).all()
    assert gate.read_gate(tmp_path / "elsewhere") is None


def set_gate(model, bias: float) -> None:
    size = model.model.args.hidden_size
    model.gate = gate.Gate(np.zeros(size), np.ones(size), np.zeros(size), bias)


@pytest.fixture
def chat_model(trained_once, monkeypatch):
    monkeypatch.setattr(profiles, "ROOT", trained_once.root)
    project = profiles.Project("tiny", "paper")
    return models.ChatModel(project.base, project.profile.chat), project.profile.generation


def texts(answers) -> list[str]:
    return [a.text for a in answers]


def streamed(model, question: str) -> str:
    asked = [{"role": "user", "content": question}]
    return "".join(r.text for r in model.stream(asked, 8)).strip()


@pytest.mark.parametrize("at_once", [3, generation.PREFILL])
def test_closed_gate_is_the_base_and_open_gate_the_adapter(
    chat_model, trained_once, monkeypatch, at_once
):
    monkeypatch.setattr(generation, "PREFILL", at_once)
    model, settings = chat_model
    settings = settings.model_copy(update={"max_tokens": 8})
    base = texts(model.answer_all(QUESTIONS, settings))
    model.attach(trained_once / SFT)
    set_gate(model, 1.0)
    adapted = texts(model.answer_all(QUESTIONS, settings))
    assert adapted != base
    assert streamed(model, QUESTIONS[0]) == adapted[0] and model.adapter_speaks
    set_gate(model, -1.0)
    assert texts(model.answer_all(QUESTIONS, settings)) == base
    assert streamed(model, QUESTIONS[0]) == base[0] and not model.adapter_speaks
    model.use_gate = False
    assert texts(model.answer_all(QUESTIONS, settings)) == adapted
    assert streamed(model, QUESTIONS[0]) == adapted[0]


def test_gate_goes_question_by_question(chat_model, trained_once):
    model, settings = chat_model
    settings = settings.model_copy(update={"max_tokens": 8})
    base = texts(model.answer_all(QUESTIONS, settings))
    model.attach(trained_once / SFT)
    model.use_gate = False
    adapted = texts(model.answer_all(QUESTIONS, settings))
    model.use_gate = True
    talks = [[{"role": "user", "content": q}] for q in QUESTIONS]
    # What was said before the question does not decide.
    said = {"role": "assistant", "content": "It is 7."}
    talks += [[*talks[0], said, *talks[1]], [*talks[1], said, *talks[0]]]
    wanted = [True, False, True, False, False, True]
    header = len(prompts.user_header(model.tokenizer, model.chat))
    asked = []
    for talk in talks:
        whole, last = model.prompt(talk), model.prompt(talk[-1:])
        asked.append((whole, len(whole) - len(last) + header))
    features = gate.question_features(model._upper, asked, 2)
    alone = [gate.question_features(model._upper, [a], 1)[0] for a in asked]
    assert np.allclose(features, alone, atol=1e-5), "padding must not reach the mean"
    model.gate = gate.fit(features, np.array(wanted))
    assert model.gate_opens(talks, 2) == wanted
    expected = [adapted[0], base[1], adapted[2], base[3]]
    assert texts(model.answer_all(QUESTIONS, settings)) == expected
    for talk, speaks in zip(talks, wanted, strict=True):
        next(model.stream(talk, 1))
        assert model.adapter_speaks is speaks


def test_what_all_questions_begin_with_is_read_once_and_changes_nothing(chat_model, monkeypatch):
    model, _ = chat_model
    upper, read = batches.Upper(model.model, 1), []
    plain = upper.lower
    monkeypatch.setattr(upper, "lower", lambda t, c=None: (read.append(t.shape[1]), plain(t, c))[1])
    talks = [[{"role": "user", "content": q}] for q in QUESTIONS]
    found = gate.chat_features(upper, model.tokenizer, model.chat, talks, 3)
    header = len(prompts.user_header(model.tokenizer, model.chat))
    prompt = [model.prompt(talk) for talk in talks]
    assert read[0] == header > 1 and max(read[1:]) == max(map(len, prompt)) - header
    for row, tokens in zip(found, prompt, strict=True):
        hidden = np.array(plain(mx.array([tokens])))[0]
        assert np.allclose(row, hidden[header:].mean(0), atol=1e-5)


def test_sft_without_replay_has_no_gate(trained_once):
    manifest = read_json(trained_once / SFT / "manifest.json")
    assert manifest["gate"] is None, "a dozen rows are too few"
    assert manifest["refusal"] is None, "none of them teaches to refuse"
    assert not (trained_once / SFT / gate.FILE).exists()


def test_untouched_weights_after_detaching(chat_model, trained_once):
    model, _ = chat_model
    tokens = mx.array([[5, 6, 7]])
    before = model.model(tokens)
    model.attach(trained_once / SFT)
    set_gate(model, -1.0)
    streamed(model, QUESTIONS[0])
    model.attach(None)
    assert mx.array_equal(model.model(tokens), before)
