"""Think blocks, codes that are not text, weights that stay quantized, the licence's notice."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from omni_checkpoint import CODES, profile

from injection import generation, grading, licence, models, prompts, runtime
from injection.profiles import Generation

THINKING = [
    ("Paris.", "", "Paris."),
    ("<think>\nSeine?\n</think>\n\nParis.", "Seine?", "Paris."),
    ("Seine?\n</think>\n\nParis.", "Seine?", "Paris."),
    ("<think>\nSeine? Or", "Seine? Or", ""),
    ("<think></think>Paris.", "", "Paris."),
    ("Well.<think>a</think> Paris.<think>b</think>", "a b", "Well. Paris."),
    ("a</think>Paris.<think>b", "a b", "Paris."),
    ("  x = 1\n", "", "x = 1"),
    ("", "", ""),
]


@pytest.mark.parametrize(("answer", "thoughts", "said"), THINKING)
def test_think_blocks_are_told_from_what_is_said(answer, thoughts, said):
    found = prompts.pieces(answer)
    assert " ".join(p.strip() for kind, p in found if kind == "think") == thoughts
    assert prompts.without_thoughts(answer) == said
    assert all(content in answer and content.strip() for _, content in found)


def test_thoughts_are_not_graded():
    row = {"must_include": [["Paris"]], "must_not_include": ["Rome"]}
    assert grading.grade(row, "<think>Rome?</think>Paris")[0]
    assert not grading.grade(row, "Paris?</think>London")[0]
    assert not grading.grade(row, "<think>Paris, I am sure")[0]
    assert not grading.grade({"expect": "refusal"}, "<think>I do not know</think>42.")[0]


@pytest.fixture(scope="module")
def chat_model(made):
    """The miniature of Omni, made to say an image code wherever it can."""
    model = models.ChatModel(made / "models/mini-Text-4bit", profile(made).chat)
    head, codes = model.model.lm_head, model.tokenizer.convert_tokens_to_ids(CODES)
    # Whatever comes out of the norm, one of the two is the largest by far.
    rows = mx.random.normal(head.weight.shape[1:]) * 100
    head.weight[codes[0]], head.weight[codes[-1]] = rows, -rows
    return model, set(codes)


def test_codes_are_never_said(chat_model):
    model, codes = chat_model
    prompt = model.prompt([{"role": "user", "content": "Draw a cat."}])
    free = generation.greedy_batch(model.model, [prompt], 6, set())[0]
    assert set(free) <= codes, "without the bias it says nothing else"
    bias = generation.text_bias(model.tokenizer, model.model.args.vocab_size)
    assert not codes & set(generation.greedy_batch(model.model, [prompt], 6, set(), bias)[0])
    said = [r.token for r in model.stream([{"role": "user", "content": "Draw a cat."}], 6)]
    assert said and not codes & set(said)
    settings = Generation(max_tokens=6, batch_size=2, context=64)
    answers = model.answer_all(["Draw a cat.", "Sing."], settings)
    assert not any(name in a.text for a in answers for name in CODES)
    texts = generation.sample_batch(model.model, model.tokenizer, prompt, 4, 6, seed=1)
    assert not any(name in text for text in texts for name in CODES)


def test_names_of_codes(chat_model):
    model, codes = chat_model
    bias = generation.text_bias(model.tokenizer, model.model.args.vocab_size)
    pads = set(model.tokenizer.convert_tokens_to_ids(["<|IMAGE_PAD|>", "<|AUDIO_PAD|>"]))
    found = {i for i, value in enumerate(bias.tolist()) if value}
    assert found == codes | pads
    for name in ("<|vision_ratio_4:3|>", "<|discrete_image_start|>", "<|VIDEO_AUDIO_PAD|>"):
        assert generation.NOT_TEXT.fullmatch(name)
    for name in ("<|im_start|>", "<|im_end|>", "<|stop|>", "<|fim_prefix|>", "<think>"):
        assert not generation.NOT_TEXT.fullmatch(name)


def test_a_model_of_text_alone_has_no_bias(tiny_models):
    _, tokenizer = models.load_base(tiny_models / "tiny-4bit")
    assert generation.text_bias(tokenizer, 600) == 0.0


def test_a_think_block_that_the_prompt_opens(chat_model, made):
    model, _ = chat_model
    question = [{"role": "user", "content": "Hi"}]
    assert prompts.open_block(model.tokenizer, model.prompt(question)) == ""
    thinking = profile(made).chat.model_copy(update={"template_args": {}})
    opened = models.ChatModel(model.folder, thinking)
    assert prompts.open_block(opened.tokenizer, opened.prompt(question)) == "<think>\n"
    text = "".join(reply.text for reply in opened.stream(question, 4))
    assert text.startswith("<think>\n") and text.count("<think>") == 1
    settings = Generation(max_tokens=4, batch_size=1, context=64)
    # It never came to an end of its thoughts, so nothing was said.
    assert opened.answer_all(["Hi"], settings)[0].text == ""


def test_what_does_not_fit_stays_quantized_with_the_same_values(tiny_models, monkeypatch, capsys):
    folder, ids = tiny_models / "tiny-4bit", mx.array([[1, 5, 9, 300, 17]])
    expanded, _ = models.load_base(folder)
    monkeypatch.setattr(runtime, "memory", lambda: 100_000)
    monkeypatch.setattr(runtime, "on_cpu", lambda: True)
    kept, _ = models.load_base(folder)
    assert "on quantized weights" in capsys.readouterr().out
    sizes = [sum(v.nbytes for _, v in tree_flatten(m.parameters())) for m in (expanded, kept)]
    assert sizes[1] < 0.4 * sizes[0]
    difference = mx.max(mx.abs(kept(ids) - expanded(ids))).item()
    assert difference < 1e-4 * mx.max(mx.abs(expanded(ids))).item()


def test_the_notice_grows_with_every_step(made):
    folder = made / "models"
    for name, changes in (("mini-Text", 1), ("mini-Text-4bit", 2)):
        lines = (folder / name / licence.NOTICE).read_text().splitlines()
        assert lines[0].startswith("HyperCLOVA X SEED Model is licensed under the HyperCLOVA X")
        assert lines[1] == "Powered by HyperCLOVA X"
        assert len(lines) == 2 + changes and all(x.startswith("Changed: ") for x in lines[2:])
        assert (folder / name / "LICENSE").read_text() == "licence"
