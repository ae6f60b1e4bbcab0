"""Fixtures: the real SmolLM2, a tiny random llama, and copies of the project to run in."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omni_checkpoint import DOWNLOAD, EXTRACT, QUANTIZE, copy_of, mini_project, write_repository
from support import ROOT, ProjectCopy, copy_tree, tiny_copy, write_tiny_tokenizer

import injection  # noqa: F401  readies the machine before anything imports mlx


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2 4-bit folder; downloads and quantizes it in a clean clone."""
    for script in ("download_smollm2.py", "quantize.py"):
        command = [sys.executable, f"03_quantization/{script}", "--profile", "smollm2_135m"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return ROOT / "models" / "SmolLM2-135M-Instruct-4bit"


@pytest.fixture
def project_copy(tmp_path, smollm2) -> ProjectCopy:
    """A copy of the repository with the real SmolLM2 linked in."""
    copy = copy_tree(tmp_path / "project")
    for name in (smollm2.name, smollm2.name.removesuffix("-4bit")):
        (copy / f"models/{name}").symlink_to(smollm2.parent / name)
        shutil.copy(smollm2.parent / f".{name}.stamp.json", copy / "models")
    return copy


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A folder with `tiny` and `tiny-4bit`: a random 4-layer llama with a 600-token vocabulary."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm import convert
    from mlx_lm.models import llama

    folder = tmp_path_factory.mktemp("models")
    source = folder / "tiny"
    source.mkdir()
    write_tiny_tokenizer(source)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": 600,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (source / "config.json").write_text(json.dumps(config))
    mx.random.seed(7)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    # Larger than at initialisation, so that answers depend on the question.
    weights = {
        name: value if "norm" in name else 3 * value
        for name, value in tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(source / "model.safetensors"), weights, {"format": "mlx"})
    target = folder / "tiny-4bit"
    convert(str(source), str(target), quantize=True, q_bits=4, q_group_size=32, dtype="float32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, target)
    return folder


@pytest.fixture
def tiny_project(tmp_path, tiny_models) -> ProjectCopy:
    """A copy of the repository with a profile `tiny` and a dozen training rows per stage."""
    return tiny_copy(tmp_path / "project", tiny_models)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory, tiny_models) -> ProjectCopy:
    """A tiny project with a CPT and an SFT adapter. Tests read it; `trained` is for changing."""
    copy = tiny_copy(tmp_path_factory.mktemp("trained") / "project", tiny_models)
    copy.log = {stage: copy.ok(*copy.train(stage)) for stage in ("cpt", "sft")}
    return copy


@pytest.fixture
def trained(tmp_path, trained_once) -> ProjectCopy:
    shutil.copytree(trained_once.root, tmp_path / "project")
    return ProjectCopy(tmp_path / "project")


@pytest.fixture
def app_root(tmp_path, monkeypatch) -> Path:
    """A repository for the app with the profiles and the document: no model, adapter or result."""
    from app_support import ROOTED

    (tmp_path / "models").mkdir()
    for profile in (ROOT / "models").glob("*.yaml"):
        shutil.copy(profile, tmp_path / "models")
    for part in ("paper", "general"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for name in ("paper/document.yaml", "paper/facts.jsonl", "paper/eval.jsonl"):
        shutil.copy(ROOT / "data" / name, tmp_path / "data" / name)
    shutil.copy(ROOT / "data/general/probes.jsonl", tmp_path / "data/general")
    for module in ("injection.profiles", *ROOTED):
        monkeypatch.setattr(importlib.import_module(module), "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def app_root_with_model(app_root, smollm2) -> Path:
    (app_root / "models" / smollm2.name).symlink_to(smollm2)
    return app_root


# A miniature of HyperCLOVA X SEED Omni, see omni_checkpoint.py


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("hub") / "mini")


@pytest.fixture(scope="session")
def downloaded_once(tmp_path_factory, repository) -> ProjectCopy:
    project = mini_project(tmp_path_factory.mktemp("downloaded") / "project")
    project.log["download"] = project.ok(*DOWNLOAD, "--from-folder", repository)
    return project


@pytest.fixture(scope="session")
def made(tmp_path_factory, downloaded_once) -> ProjectCopy:
    """Downloaded, extracted and quantized. Tests read it; `downloaded` is for changing."""
    project = copy_of(downloaded_once, tmp_path_factory.mktemp("made"))
    project.log["extract"] = project.ok(*EXTRACT)
    project.log["quantize"] = project.ok(*QUANTIZE)
    return project


@pytest.fixture
def downloaded(tmp_path, downloaded_once) -> ProjectCopy:
    return copy_of(downloaded_once, tmp_path)


@pytest.fixture
def changed(tmp_path, made) -> ProjectCopy:
    return copy_of(made, tmp_path)
