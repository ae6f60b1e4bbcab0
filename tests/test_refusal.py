"""How readily an adapter refuses: where the threshold lies, and that all ways to ask obey it."""

import json
import math
import shutil
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from support import load_script

from injection import finishing, grading, models, profiles, prompts, refusal

SFT = "adapters_tiny_paper_sft"
QUESTIONS = ["What is 3?", "Which answer has 7?", "Who wrote it, and when?", "Name a colour."]


@pytest.mark.parametrize("refused", [0, 2, 10])
def test_so_many_known_questions_are_refused(refused):
    known = np.random.default_rng(0).permutation(np.linspace(-1, 9, 100))
    assert (known < refusal.calibrate(known, refused)).sum() == refused


def test_few_dev_questions_leave_less_room_than_the_allowed_share():
    assert [refusal.refusable(n) for n in (1, 50, 100, 203)] == [0, 0, 0, 2]
    assert refusal.refusable(20_000) == pytest.approx(0.0285 * 20_000, abs=10)


def test_at_most_the_allowed_share_of_all_is_refused_nine_times_in_ten():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        bias = refusal.calibrate(dev := rng.normal(size=203), refusal.refusable(203))
        assert (dev < bias).sum() == 2
        shares.append(0.5 * (1 + math.erf(bias / 2**0.5)))
    assert 0.88 < np.mean(np.array(shares) <= refusal.ALLOWED) <= 0.99


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


def margins(model, questions: list[str], token: int) -> np.ndarray:
    return refusal.margins(model.model, model.tokenizer, model.chat, questions, token, 3)


@pytest.mark.parametrize(
    ("kind", "questions", "answer", "fitted"),
    [
        ("unknown", 50, "Seven.", True),
        ("fact", 50, "Seven.", False),
        ("unknown", 49, "Seven.", False),
        ("unknown", 50, "I know: seven.", False),
    ],
)
def test_when_a_threshold_is_fitted(chat_model, kind, questions, answer, fitted):
    """Not where no row teaches it, on few questions, or where an answer begins like a refusal."""
    model, _ = chat_model
    rows = [("fact", prompts.first_token(model.tokenizer, answer)), (kind, 2)]
    known = [f"What is {n}?" for n in range(questions)]
    dev = [{"question": q, "fact_id": "F1"} for q in known] + [{"question": "Who knows?"}]
    project = profiles.Project("tiny", "paper")
    run = SimpleNamespace(
        project=project,
        tokenizer=model.tokenizer,
        model=model.model,
        rows=[SimpleNamespace(kind=k, tokens=[1, t], start=1, question=0) for k, t in rows],
        dev=dev,
    )
    found = finishing.fit_refusal(run)
    assert (found is not None) is fitted
    if fitted:
        assert found["token"] == prompts.first_token(model.tokenizer, project.document.refusal)
        leads = margins(model, known, found["token"])
        assert found["known_refused"] == (leads < found["bias"]).mean() <= refusal.ALLOWED


def test_report_trades_what_is_known_for_what_is_not(chat_model):
    model, _ = chat_model
    compare = load_script("30_evaluation/compare_hcx_stages.py")
    project = profiles.Project("tiny", "paper")
    token = prompts.first_token(model.tokenizer, "7")
    rows = [{"kind": k, "question": f"What is {n}?"} for n, k in enumerate(10 * grading.KINDS)]
    points = compare.refusal_tradeoff(model, project, rows, {"refusal": {"token": token}})
    known = [r["question"] for r in rows if r["kind"] in ("paraphrase", "reverse", "bare")]
    unknown = [r["question"] for r in rows if r["kind"] == "unknown"]
    expected = refusal.tradeoff(*(margins(model, q, token) for q in (known, unknown)))
    assert len(points) == 6
    for point, other in zip(points, expected, strict=True):
        assert point == pytest.approx(other, abs=1e-3)
    assert compare.refusal_tradeoff(model, project, rows, {}) is None


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
