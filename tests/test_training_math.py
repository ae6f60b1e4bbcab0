"""The fast training path computes what a plain forward pass over whole rows computes."""

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.llama as llama
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.generate import generate_step
from mlx_lm.models.activations import swiglu as plain_swiglu
from mlx_lm.models.base import scaled_dot_product_attention as plain_attention
from mlx_lm.tuner.lora import LoRALinear
from support import tiny_copy

from injection import (
    batches,
    checkpoints,
    generation,
    kernels,
    losses,
    measure,
    models,
    profiles,
    training,
)

# Before any model is loaded: models.load_base replaces it on a CPU.
plain_lora_linear = LoRALinear.__call__


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_models):
    copy = tiny_copy(tmp_path_factory.mktemp("math") / "project", tiny_models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles, "ROOT", copy.root)
        yield profiles.Project("tiny", "paper")


def prepared(project, stage: str) -> training.Run:
    """A run whose adapter already differs from the base, as after some steps."""
    run = training.Run(project, stage, project.data(stage), project.adapter(stage), None)
    run.prepare()
    mx.random.seed(3)
    changed = [
        (name, 0.05 * mx.random.normal(value.shape) if name.endswith("lora_b") else value)
        for name, value in tree_flatten(run.model.trainable_parameters())
    ]
    run.model.update(tree_unflatten(changed))
    return run


@pytest.fixture(scope="module", params=["cpt", "sft"])
def run(request, project):
    return prepared(project, request.param)


def plain_losses(run, model, base, rows):
    """Cross entropy or KL of each row, by itself, whole rows through the whole model."""
    each = []
    for row in rows:
        tokens = mx.array([row.tokens])
        logits = model(tokens[:, :-1])[0, row.start - 1 :]
        if row.from_base:
            wanted = nn.log_softmax(base(tokens[:, :-1])[0, row.start - 1 :])
            each.append(0.7 * (mx.exp(wanted) * (wanted - nn.log_softmax(logits))).sum())
        else:
            loss = nn.losses.cross_entropy(logits, tokens[0, row.start :])
            each.append(row.weight * loss.sum())
    return mx.stack(each)


def close(ours: mx.array, theirs: mx.array) -> bool:
    scale = max(1e-3, mx.max(mx.abs(theirs)).item())
    return mx.max(mx.abs(ours - theirs)).item() < 1e-4 * scale


def test_losses_and_gradients_equal_a_plain_forward(run, project, monkeypatch):
    kinds = set()
    for batch in batches.epoch_batches(run.rows, 8, 0, 0):
        rows = [run.rows[i] for i in batch]
        kinds |= {(bool(r.prefix), r.from_base) for r in rows}

        def fast(rows=rows):
            each = run.losses_of(rows) * training.weights_of(rows, 0.7)
            return each.sum(), each

        (_, ours), gradient = nn.value_and_grad(run.model, fast)()
        mx.eval(ours, gradient)

        base, _ = models.load_base(project.base)
        plain, _ = models.load_base(project.base)
        models.add_lora(plain, project.profile.lora)
        plain.update(run.model.trainable_parameters())
        with monkeypatch.context() as patch:
            patch.setattr(llama, "swiglu", plain_swiglu)
            patch.setattr(llama, "scaled_dot_product_attention", plain_attention)
            patch.setattr(LoRALinear, "__call__", plain_lora_linear)

            def slow(rows=rows, plain=plain, base=base):
                each = plain_losses(run, plain, base, rows)
                return each.sum(), each

            (_, theirs), expected = nn.value_and_grad(plain, slow)()
            mx.eval(theirs, expected)
        assert close(ours, theirs)
        wanted, found = dict(tree_flatten(expected)), dict(tree_flatten(gradient))
        assert wanted.keys() == found.keys() and len(wanted) == 2 * 2 * 7
        assert all(mx.any(g != 0).item() for g in wanted.values())
        assert all(close(found[name], wanted[name]) for name in wanted)
    assert {(True, True), (True, False)} <= kinds
    assert run.stage == "sft" or (False, False) in kinds


def test_gradient_checkpointing_changes_nothing(run):
    def gradients(rows):
        def loss():
            return run.losses_of(rows).sum()

        return dict(tree_flatten(nn.value_and_grad(run.model, loss)()[1]))

    for batch in batches.epoch_batches(run.rows, 4, 0, 0):
        rows = [run.rows[i] for i in batch]
        plain = gradients(rows)
        run.upper.checkpointing = True
        checkpointed = gradients(rows)
        run.upper.checkpointing = False
        assert plain.keys() == checkpointed.keys()
        assert all(close(checkpointed[name], plain[name]) for name in plain)


@pytest.mark.parametrize("positions", [1, 7, 26])
def test_frozen_head_loss_in_blocks(run, positions, monkeypatch):
    monkeypatch.setattr(losses, "BLOCK_LOGITS", 600 * 12)
    mx.random.seed(1)
    hidden, teacher = mx.random.normal((2, positions, 64))
    targets = mx.random.randint(0, 600, (positions,))
    weights = mx.random.uniform(shape=(positions,))

    def ours(hidden, teacher=None):
        return (weights * losses.frozen_head_loss(run.model, hidden, targets, teacher)).sum()

    def cross_entropy(hidden):
        return (
            weights * nn.losses.cross_entropy(generation.head(run.model, hidden), targets)
        ).sum()

    def divergence(hidden):
        wanted = nn.log_softmax(generation.head(run.model, teacher))
        found = nn.log_softmax(generation.head(run.model, hidden))
        return (weights * (mx.exp(wanted) * (wanted - found)).sum(axis=-1)).sum()

    for found, expected in (
        (mx.value_and_grad(ours)(hidden), mx.value_and_grad(cross_entropy)(hidden)),
        (
            mx.value_and_grad(lambda h: ours(h, teacher))(hidden),
            mx.value_and_grad(divergence)(hidden),
        ),
    ):
        assert close(found[0], expected[0]) and close(found[1], expected[1])


def test_exp_equals_mlx():
    x = mx.concatenate([mx.linspace(-87, 87, 20001), mx.array([0.0, -0.0, 1e-8, -1e-8])])
    assert mx.max(mx.abs(kernels.exp(x) / mx.exp(x) - 1)).item() < 1e-6
    assert mx.isnan(kernels.exp(mx.array([float("nan")]))).item()
    assert mx.all(mx.isfinite(kernels.exp(mx.array([-1e9, 1e9])))).item()


def test_lora_linear_equals_mlx_lm_in_value_and_gradient():
    mx.random.seed(0)
    layer = LoRALinear.from_base(nn.Linear(40, 70), r=4, scale=3.0)
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    x, weight = mx.random.normal((2, 5, 40)), mx.random.normal((2, 5, 70))

    def value_and_gradients(function):
        def score(parameters, x):
            layer.update(parameters)
            return (weight * function(layer, x)).sum()

        return mx.value_and_grad(score, argnums=(0, 1))(layer.parameters(), x)

    (ours, our_gradients), (theirs, gradients) = map(
        value_and_gradients, (kernels.lora_linear, plain_lora_linear)
    )
    assert close(ours, theirs)
    pairs = zip(tree_flatten(our_gradients), tree_flatten(gradients), strict=True)
    assert all(name == other and close(a, b) for (name, a), (other, b) in pairs)


@pytest.mark.parametrize("size", [kernels.LARGE // 50, 2 * kernels.LARGE // 50])
def test_swiglu_equals_mlx_in_value_and_gradient(size):
    mx.random.seed(0)
    gate, x, weight = mx.random.normal((3, 50, size)) * 6

    def value_and_gradients(function):
        return mx.value_and_grad(lambda g, v: (weight * function(g, v)).sum(), argnums=(0, 1))(
            gate, x
        )

    def plain(gate, x):
        return nn.silu(gate) * x

    assert close(kernels.swiglu(gate, x), plain(gate, x))
    (ours, our_gradients), (theirs, gradients) = map(value_and_gradients, (kernels.swiglu, plain))
    assert close(ours, theirs)
    assert all(close(a, b) for a, b in zip(our_gradients, gradients, strict=True))


@pytest.mark.parametrize("mask", [None, "causal", "array"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_attention_equals_mlx_in_value_and_gradient(mask, tokens):
    mx.random.seed(0)
    q = 3 * mx.random.normal((2, 6, tokens, 8))
    k, v = 3 * mx.random.normal((2, 2, 2, 9, 8))
    weight = mx.random.normal(q.shape)
    if mask == "array":
        mask = mx.random.uniform(shape=(2, 1, tokens, 9)) > 0.4

    def value_and_gradients(function):
        def score(*qkv):
            return (weight * function(*qkv, cache=None, scale=0.3, mask=mask)).sum()

        return mx.value_and_grad(score, argnums=(0, 1, 2))(q, k, v)

    ours, our_gradients = value_and_gradients(kernels.attention)
    theirs, gradients = value_and_gradients(plain_attention)
    assert close(ours, theirs)
    assert all(close(a, b) for a, b in zip(our_gradients, gradients, strict=True))


def test_shared_rope_equals_mlx_in_value_and_gradient():
    mx.random.seed(0)
    rope = nn.RoPE(8, base=1000.0)
    shared = kernels.SharedRope(rope)
    x, weight = mx.random.normal((2, 3, 4, 5, 8))
    # One after the other, as the layers of a pass and then the next pass call it.
    for offset in (0, 0, 7, 700, mx.array([3, 4, 90]), mx.array([4, 5, 91]), 7):

        def score(function, x, offset=offset):
            return (weight * function(x, offset=offset)).sum()

        (ours, gradient), (theirs, expected) = (
            mx.value_and_grad(lambda x, f=f: score(f, x))(x) for f in (shared, rope)
        )
        assert close(ours, theirs) and close(gradient, expected)
        assert close(shared(x[:, :, :1], offset=offset), rope(x[:, :, :1], offset=offset))


def test_loss_is_on_answers_and_texts_only(run):
    rows = {
        r.get("source"): r for r in training.read_jsonl(run.project.data(run.stage) / "train.jsonl")
    }
    assert len(rows) == len(run.rows)
    for row, source in zip(run.rows, rows.values(), strict=True):
        trained = run.tokenizer.decode(row.targets)
        if "text" in source:
            assert row.start == 1 and row.prefix == 0
            assert len(row.targets) == len(row.tokens) - 1
            assert (source["text"] + "<|im_end|>").endswith(trained)
        else:
            stop = "" if source.get("open") else "<|im_end|>"
            assert trained == source["messages"][1]["content"] + stop
            assert row.from_base == (source.get("target") == "base")
            assert row.weight == source.get("weight", 1.0)
    assert {r.weight for r in run.rows} == {1.0, 3.0}


def test_every_row_once_an_epoch_and_prefixes_apart(run):
    orders = []
    for epoch in range(4):
        plan = batches.epoch_batches(run.rows, 4, 1, epoch)
        assert sorted(i for batch in plan for i in batch) == list(range(len(run.rows)))
        assert all(len({run.rows[i].prefix for i in batch}) == 1 for batch in plan)
        assert max(map(len, plan)) <= 4
        assert plan == batches.epoch_batches(run.rows, 4, 1, epoch), "repeatable"
        orders.append(plan)
    assert any(plan != orders[0] for plan in orders[1:]), "another order every epoch"


def test_row_that_is_too_long_is_named(run):
    row = {"text": "word " * 300, "source": "fact F9"}
    with pytest.raises(training.InputError, match="fact F9 has .* more than max_tokens 200"):
        batches.tokenize([row], run.tokenizer, run.project.profile.chat, 200)


def test_only_dev_questions_that_the_adapter_answers_choose(run, monkeypatch):
    """The gate sends general and spillover questions to the base, whatever the adapter says."""
    counts = {"paraphrase": 3, "unknown": 1, "general": 4, "spillover": 2}
    right = {"paraphrase": 2 / 3, "unknown": 1.0, "general": 0.0, "spillover": 0.0}
    monkeypatch.setattr(run, "dev", [{"kind": k} for k, n in counts.items() for _ in range(n)])
    monkeypatch.setattr(run, "dev_accuracy", lambda: right)
    monkeypatch.setattr(run.state, "step", 1)
    report = run.validate()
    assert report["score"] == pytest.approx(0.75) and report["dev"] == right


def test_the_lower_loss_decides_between_equal_scores(run, monkeypatch, tmp_path):
    """Half-way, at a high rate, a small dev set may score as well as at the end."""
    monkeypatch.setattr(run, "work", tmp_path)
    monkeypatch.setattr(run, "state", checkpoints.State())
    found = [(0.9, 0.5), (0.9, 0.4), (0.9, 0.45), (0.8, 0.1), (0.95, 2.0)]
    best = []
    for step, (score, loss) in enumerate(found, start=1):
        run.state.step = step
        report = {"score": score, "loss": loss}
        monkeypatch.setattr(run, "validate", lambda report=report: dict(report))
        training._note_validation(run, len(found))
        best.append(run.state.best["step"])
    assert best == [1, 2, 2, 2, 5]


PROMPTS = ["What is 1?", "What is the sky? Tell me.", "A", "What is 12345 plus 99? " * 3, "Why?"]


@pytest.fixture(scope="module")
def chat_model(project):
    return models.ChatModel(project.base, project.profile.chat)


def test_greedy_batch_equals_one_by_one(chat_model):
    prompts = [chat_model.prompt([{"role": "user", "content": p}]) for p in PROMPTS]
    assert len({len(p) for p in prompts}) > 2
    alone = [
        [int(token) for token, _ in generate_step(mx.array(p), chat_model.model, max_tokens=24)]
        for p in prompts
    ]
    assert len({tuple(a) for a in alone}) > 2, "the model answers differently"
    never, some = {599}, {alone[0][2], alone[1][5], alone[3][9]}
    for stop in (never, some):
        wanted = [cut(a, stop) for a in alone]
        assert generation.greedy_batch(chat_model.model, prompts, 24, stop) == wanted
        for prompt, answer in zip(prompts, wanted, strict=True):
            assert generation.greedy_batch(chat_model.model, [prompt], 24, stop) == [answer]
    assert len({len(cut(a, some)) for a in alone}) > 1, "rows stop at different steps"


def cut(tokens: list[int], stop: set[int]) -> list[int]:
    return tokens[: next((i for i, t in enumerate(tokens) if t in stop), len(tokens))]


def test_answers_come_back_in_order_whatever_the_batch_size(chat_model, project):
    settings = project.profile.generation
    together = chat_model.answer_all(PROMPTS, settings.model_copy(update={"batch_size": 5}))
    pairs = chat_model.answer_all(PROMPTS, settings.model_copy(update={"batch_size": 2}))
    assert [a.text for a in together] == [a.text for a in pairs]
    for prompt, answer in zip(PROMPTS, together, strict=True):
        streamed = chat_model.stream([{"role": "user", "content": prompt}], settings.max_tokens)
        tokens = cut([r.token for r in streamed], chat_model.tokenizer.eos_token_ids)
        assert chat_model.tokenizer.decode(tokens).strip() == answer.text


def test_choices_are_scored_as_by_a_plain_forward(chat_model):
    model, tokenizer, chat = chat_model.model, chat_model.tokenizer, chat_model.chat
    options = ["It is 7.", "It is 12345, and then a little more than that."]
    prompt = chat_model.prompt([{"role": "user", "content": PROMPTS[0]}])
    examples = [(prompt + tokenizer.encode(o) + [2], len(prompt)) for o in options]
    scores = []
    for tokens, start in examples:
        logp = nn.log_softmax(model(mx.array([tokens[:-1]]))[0])
        scores.append(sum(logp[t - 1, tokens[t]].item() for t in range(start, len(tokens))))
    assert measure._log_likelihoods(model, examples) == pytest.approx(scores, rel=1e-4)
    per_byte = [s / len(o) for s, o in zip(scores, options, strict=True)]
    for order, best in ((options, per_byte[0]), (options[::-1], per_byte[1])):
        items = [(PROMPTS[0], order)]
        right = measure.multiple_choice(model, tokenizer, chat, items, lambda done: None)
        assert right == [best == max(per_byte)]


def test_later_epochs_take_the_hardest_rows_of_every_kind(run):
    rows = run.rows
    hardness = np.arange(len(rows), dtype=np.float32)[::-1]
    kept = batches.hardest(rows, hardness, 0.5)
    for kind in {r.kind for r in rows}:
        members = [i for i, r in enumerate(rows) if r.kind == kind]
        ours = [i for i in kept if rows[i].kind == kind]
        groups = len({(rows[i].prefix, rows[i].from_base) for i in members})
        assert 0 <= len(ours) - len(members) / 2 <= groups
    one = [i for i in kept if key(rows[i]) == key(rows[0])]
    left = [i for i in range(len(rows)) if key(rows[i]) == key(rows[0]) and i not in one]
    assert min(hardness[one]) > max(hardness[left])
    assert batches.hardest(rows, hardness, 1.0).tolist() == list(range(len(rows)))


def key(row: batches.Row) -> tuple:
    return row.prefix, row.from_base, row.kind
