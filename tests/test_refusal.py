"""How readily an adapter refuses: where the threshold lies, and that all ways to ask obey it."""

import json
import shutil
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from injection import finishing, models, profiles, prompts, refusal

SFT = "adapters_tiny_paper_sft"
QUESTIONS = ["What is 3?", "Which answer has 7?", "Who wrote it, and when?", "Name a colour."]


@pytest.mark.parametrize(("allowed", "refused"), [(0.0, 0), (0.02, 2), (0.1, 10)])
def test_the_allowed_share_of_known_questions_is_refused(allowed, refused):
    known = np.random.default_rng(0).permutation(np.linspace(-1, 9, 100))
    assert (known < refusal.calibrate(known, allowed)).sum() == refused


def test_what_another_threshold_would_cost_and_bring():
    known, unknown = np.linspace(-1, 9, 100), np.linspace(-5, 5, 50)
    points = refusal.tradeoff(known, unknown)
    assert [p["known"] for p in points] == [0.0, 0.01, 0.02, 0.05, 0.1, 0.2]
    refused = [p["unknown"] for p in points]
    assert refused == sorted(refused) and 0.3 < refused[0] < 0.5 < refused[-1] < 0.7


@pytest.fixture
def chat_model(trained_once, monkeypatch):
    monkeypatch.setattr(profiles, "ROOT", trained_once.root)
    project = profiles.Project("tiny", "paper")
    settings = project.profile.generation.model_copy(update={"max_tokens": 6, "batch_size": 3})
    return models.ChatModel(project.base, project.profile.chat), settings


def adapter_with_bias(trained_once, tmp_path, token: int, bias: float):
    folder = shutil.copytree(trained_once / SFT, tmp_path / f"biased_{bias:g}_sft")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["refusal"] = {"token": token, "bias": bias, "known_refused": 0.0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def first_ids(model, settings) -> tuple[list[int], list[int]]:
    """First tokens of the answers, asked in batches and one by one."""
    batched = [a.text for a in model.answer_all(QUESTIONS, settings)]
    alone = []
    for question in QUESTIONS:
        replies = list(model.stream([{"role": "user", "content": question}], 6))
        assert "".join(r.text for r in replies).strip() == batched[len(alone)].strip()
        alone.append(replies[0].token)
    return [prompts.first_token(model.tokenizer, text) for text in batched], alone


def test_margins_say_which_bias_makes_the_token_come_first(chat_model, trained_once, tmp_path):
    model, settings = chat_model
    model.attach(trained_once / SFT)
    token = prompts.first_token(model.tokenizer, "7")
    asked = QUESTIONS
    leads = refusal.margins(model.model, model.tokenizer, model.chat, asked, token, 3)
    logits = [
        np.array(model.model(mx.array([model.prompt([{"role": "user", "content": q}])]))[0, -1])
        for q in asked
    ]
    expected = [np.delete(row, token).max() - row[token] for row in logits]
    assert np.allclose(leads, expected, atol=1e-3)
    bias = float(np.sort(leads)[1:3].mean())
    model.attach(adapter_with_bias(trained_once, tmp_path, token, bias))
    _, alone = first_ids(model, settings)
    assert [t == token for t in alone] == [bool(lead < bias) for lead in leads]


@pytest.mark.parametrize(("kind", "fitted"), [("unknown", True), ("fact", False)])
def test_no_threshold_where_no_row_teaches_to_refuse(chat_model, kind, fitted):
    model, _ = chat_model
    row = SimpleNamespace(kind=kind, tokens=[1, 2], start=1, question=0)
    run = SimpleNamespace(
        project=profiles.Project("tiny", "paper"),
        tokenizer=model.tokenizer,
        model=model.model,
        rows=[row],
        dev=[{"question": f"What is {n}?", "fact_id": "F1"} for n in range(50)],
    )
    assert (finishing.fit_refusal(run) is not None) is fitted


def test_the_base_and_an_adapter_without_calibration_are_not_biased(
    chat_model, trained_once, tmp_path
):
    model, settings = chat_model
    base = [a.text for a in model.answer_all(QUESTIONS, settings)]
    token = prompts.first_token(model.tokenizer, "7")
    model.attach(adapter_with_bias(trained_once, tmp_path, token, 1e6))
    assert set(first_ids(model, settings)[1]) == {token}
    model.attach(trained_once / SFT)
    assert set(first_ids(model, settings)[1]) != {token}
    model.attach(None)
    assert [a.text for a in model.answer_all(QUESTIONS, settings)] == base
