"""What quantization cost: the streamed comparison is exact, and the script leaves no trace."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from support import ROOT, snapshot

from injection import fidelity, measure, models

SCRIPT = "30_evaluation/quantization_fidelity.py"
TEXT = (ROOT / "data/general/perplexity.txt").read_text()[:2500]


@pytest.fixture(params=["tied", "untied"])
def pair(request, tiny_models, made):
    """(source folder, quantized folder)."""
    if request.param == "tied":
        return tiny_models / "tiny", tiny_models / "tiny-4bit"
    return made / "models/mini-Text", made / "models/mini-Text-4bit"


def log_probabilities(model, ids: list[int]) -> np.ndarray:
    """(tokens, vocabulary), in float64, by a plain forward pass of the whole model."""
    logits = np.array(model(mx.array([ids[:-1]]))[0].astype(mx.float32), dtype=np.float64)
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def test_layer_by_layer_equals_whole_models(pair, monkeypatch):
    monkeypatch.setattr(measure, "WINDOW", 200)
    monkeypatch.setattr(fidelity, "BLOCK", 64)
    loaded = [models.load_base(folder) for folder in pair]
    tokenizer = loaded[0][1]
    pieces = measure.windows(tokenizer, TEXT)
    assert len(pieces) > 2 and len(pieces[-1]) != len(pieces[0])
    streamed = [fidelity.stream(folder, pieces, "test") for folder in pair]
    found = fidelity.compare(*streamed, pieces)

    kl, same, loss, tokens = 0.0, 0, 0.0, 0
    for ids in pieces:
        p, q = (log_probabilities(model, ids) for model, _ in loaded)
        kl += (np.exp(p) * (p - q)).sum()
        same += (p.argmax(-1) == q.argmax(-1)).sum()
        loss -= q[np.arange(len(q)), ids[1:]].sum()
        tokens += len(q)
    assert found["tokens"] == tokens
    assert found["kl"] == pytest.approx(kl / tokens, rel=1e-3, abs=1e-6)
    assert found["kl"] > 1e-4 and 0 < found["top1"] < 1
    assert found["top1"] == pytest.approx(same / tokens, abs=1.5 / tokens)
    assert found["perplexity"] == pytest.approx(np.exp(loss / tokens), rel=1e-4)
    plain = measure.perplexity(measure.window_losses(*loaded[0], TEXT))
    assert found["source_perplexity"] == pytest.approx(plain, rel=1e-4)


def test_a_model_is_equal_to_itself(pair):
    pieces = [[5, 9, 40, 7, 300, 12], [8, 9]]
    source = fidelity.stream(pair[0], pieces, "test")
    found = fidelity.compare(source, source, pieces)
    assert found["kl"] == 0 and found["top1"] == 1 and found["tokens"] == 6


def test_only_one_layer_is_in_memory(tmp_path, tiny_models):
    """Forty layers take hardly more than four."""
    peaks = {}
    for layers in (4, 40):
        folder = tmp_path / str(layers)
        folder.mkdir()
        config = json.loads((tiny_models / "tiny/config.json").read_text())
        shape = {"num_hidden_layers": layers, "hidden_size": 256, "intermediate_size": 1024}
        (folder / "config.json").write_text(json.dumps(config | shape))
        write_random(folder, config | shape)
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        fidelity.stream(folder, [[5, 9, 40, 7]], "test")
        peaks[layers] = mx.get_peak_memory() - before
    weights = (tmp_path / "40/model.safetensors").stat().st_size
    assert peaks[40] < 1.2 * peaks[4] < 0.3 * weights


def write_random(folder, config) -> None:
    from mlx.utils import tree_flatten
    from mlx_lm.models import llama

    model = llama.Model(llama.ModelArgs.from_dict(config))
    model.update(tree_map(lambda p: p / 10, model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))


def shorten(project) -> None:
    (project / "data/general/perplexity.txt").write_text(TEXT)


def test_table_plot_and_no_trace(tiny_project):
    shorten(tiny_project)
    killed = tiny_project / "models/.tiny-4bit.fidelity.partial"
    killed.mkdir()
    (killed / "model.safetensors").write_bytes(b"half")
    before = snapshot(tiny_project / "models")
    before.pop(".tiny-4bit.fidelity.partial/model.safetensors")
    out = tiny_project.ok(SCRIPT, "--profile", "tiny")
    assert snapshot(tiny_project / "models") == before, "what was quantized is gone again"
    folder = tiny_project / "results/tiny_quantization"
    report = json.loads((folder / "fidelity.json").read_text())
    rows = {row["bits"]: row for row in report["rows"]}
    assert list(rows) == ["source", "4", "mixed_4_6", "8"]
    assert 0 < rows["8"]["kl"] < min(rows["4"]["kl"], rows["mixed_4_6"]["kl"])
    assert rows["8"]["top1"] > rows["4"]["top1"]
    assert rows["4"]["perplexity_ratio"] == pytest.approx(
        rows["4"]["perplexity"] / rows["source"]["perplexity"]
    )
    # fp16 scales and biases for every 32 weights; the norms are not quantized.
    assert 5 <= rows["4"]["bits_per_weight"] < 5.5
    assert rows["4"]["size"] < rows["mixed_4_6"]["size"] < rows["8"]["size"]
    assert (folder / "fidelity.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "fidelity.md").read_text()
    assert table in out and "python 30_evaluation/quantization_fidelity.py" in table
    assert f"| 8 bits | {rows['8']['bits_per_weight']:.2f} |" in table
    assert "up to date" in tiny_project.ok(SCRIPT, "--profile", "tiny")


def test_the_profiles_own_folder_is_used(made, tmp_path):
    """Up to date, so nothing is converted: it works with the source's tensors as they are."""
    out = made.ok(
        *(SCRIPT, "--profile", "mini", "--bits", "4", "--output", tmp_path / "out"),
        *("--document", "paper"),
    )
    found = json.loads((tmp_path / "out/fidelity.json").read_text())["rows"][1]
    assert f"{found['perplexity']:.2f} after" in made.log["quantize"]
    assert f"mean KL {found['kl']:.4f}" in made.log["quantize"]
    assert "4 bits" in out


def test_missing_source_is_one_line(tiny_project):
    (tiny_project / "models/tiny/config.json").unlink()
    line = tiny_project.refused(SCRIPT, "--profile", "tiny")
    assert "missing models/tiny/config.json: run 03_quantization" in line
