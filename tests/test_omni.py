"""HyperCLOVA X SEED Omni on a miniature of its repository: download, extract, quantize, train."""

import json
import os
import shutil
import subprocess
import sys

import mlx.core as mx
import pytest
from fake_hub import COMMIT, NAME, Hub, serve
from mlx_lm.models import llama
from mlx_lm.utils import load_model
from omni_checkpoint import (
    DOWNLOAD,
    EXTRACT,
    MINI,
    PREFIX,
    QUANTIZE,
    TEXT_CONFIG,
    TEXT_TOKENS,
    copy_of,
    mini_project,
    profile,
    text_shapes,
)
from support import ROOT, SMALL, copy_tree, load_script, shrink, snapshot
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from injection import prompts, tokenizer_files
from injection.files import InputError
from injection.models import ChatModel

FILES = {
    *("LICENSE", "README.md", "chat_template.jinja", "config.json", "generation_config.json"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
}
NEEDED = {f"model-{n:05}-of-00010.safetensors" for n in range(3, 11)}
TEXTS = (
    *tokenizer_files.SAMPLES,
    "HyperCLOVA X는 2025년 5월까지의 지식을 담고 있습니다.\n\n- 첫째\n- 둘째 (1,024개)",
    "for i in range(10):\n\tprint(f'{i:>3}')\r\n",
    "3.14159 000 12345 1e-6",
    "<|im_start|>user\nHi<|im_end|>\n",
)


def names(folder) -> set[str]:
    return {f.name for f in folder.iterdir()}


def load_all(folder) -> dict[str, mx.array]:
    weights = {}
    for shard in folder.glob("*.safetensors"):
        weights |= mx.load(str(shard))
    return weights


# Download


def test_only_the_files_of_the_text_part_are_copied(made, repository):
    folder = made / "models/mini"
    assert names(folder) == FILES | NEEDED | {"origin.json"}
    assert all((folder / n).read_bytes() == (repository / n).read_bytes() for n in FILES | NEEDED)
    assert "Powered by HyperCLOVA X" in made.log["download"]
    assert "extract_omni_8b_text.py: at most" in made.log["download"]
    assert not [f for f in folder.parent.iterdir() if "partial" in f.name]


def test_dry_run_lists_and_writes_nothing(tmp_path, repository):
    project = mini_project(tmp_path / "project")
    before = snapshot(project.root)
    out = project.ok(*DOWNLOAD, "--from-folder", repository, "--dry-run")
    listed = {line.split()[-1] for line in out.splitlines() if line.startswith("  ")}
    assert listed == FILES | NEEDED
    size = (repository / "model-00010-of-00010.safetensors").stat().st_size
    assert f"{size:,}  model-00010" in out
    assert snapshot(project.root) == before


def test_everything_is_up_to_date_even_without_the_download(changed, repository):
    for command in (DOWNLOAD, EXTRACT, QUANTIZE):
        assert "up to date" in changed.ok(*command)
    shutil.rmtree(changed / "models/mini")
    for command in (DOWNLOAD, EXTRACT):
        assert "up to date: models/mini-Text\n" in changed.ok(*command)
    shutil.rmtree(changed / "models/mini-Text")
    line = changed.refused(*EXTRACT)
    assert "missing models/mini-Text/origin.json: run 03_quantization/download_omni_8b" in line


def test_a_deleted_download_is_up_to_date_only_while_its_text_part_is(changed, repository):
    """Extraction and download never send a person to each other."""
    shutil.rmtree(changed / "models/mini")
    line = changed.refused(*EXTRACT, "--force")
    assert "missing models/mini: run 03_quantization/download_omni_8b.py --force" in line
    next((changed / "models/mini-Text").glob("*.safetensors")).unlink()
    assert "missing models/mini: run" in changed.refused(*EXTRACT)
    assert "up to date" not in changed.ok(*DOWNLOAD, "--from-folder", repository)
    assert "wrote models/mini-Text" in changed.ok(*EXTRACT)


def drop(name):
    return lambda repository: (repository / name).unlink()


@pytest.mark.parametrize(
    ("harm", "more", "complaint"),
    [
        (shutil.rmtree, (), "no such folder"),
        (drop("config.json"), (), "has no config.json"),
        (drop("model-00005-of-00010.safetensors"), (), "lacks model-00005-of-00010"),
        (None, ("--set", "source.text_prefix=model.nope."), "starts with model.nope."),
        (None, ("--profile", "smollm2_135m"), "run 03_quantization/download_smollm2.py"),
    ],
)
def test_bad_folder_is_one_line(tmp_path, repository, harm, more, complaint):
    copy = shutil.copytree(repository, tmp_path / "copy")
    if harm:
        harm(copy)
    project = mini_project(tmp_path / "project")
    before = snapshot(project.root)
    assert complaint in project.refused(*DOWNLOAD, "--from-folder", copy, *more)
    assert snapshot(project.root) == before


def test_weights_put_there_by_hand_are_not_replaced(tmp_path, repository):
    project = mini_project(tmp_path / "project")
    shutil.copytree(repository, project / "models/mini")
    before = snapshot(project.root)
    line = project.refused(*DOWNLOAD, "--from-folder", repository)
    assert "models/mini was put there by hand" in line
    assert snapshot(project.root) == before
    project.ok(*DOWNLOAD, "--from-folder", repository, "--force")


# The hub itself, played by a server on this machine


@pytest.fixture
def hub(repository):
    hub = Hub(repository)
    with serve(hub):
        yield hub


def from_hub(hub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}


def test_from_the_hub_with_an_interruption(tmp_path, made, hub):
    project = mini_project(tmp_path / "project")
    hub.refuse = {"model-00007": (404, "EntryNotFound")}
    line = project.refused(*DOWNLOAD, **from_hub(hub))
    assert NAME in line and "run this again" in line
    assert not (project / "models/mini").exists()

    hub.refuse, hub.fetched = {}, []
    out = project.ok(*DOWNLOAD, **from_hub(hub))
    assert f"revision main may move; pin it with source.version: {COMMIT}" in out
    rest = {n for n in NEEDED if n >= "model-00007"}
    assert NEEDED & set(hub.fetched) == rest, "only what was missing"
    assert set(hub.fetched) <= NEEDED | FILES | {"main"}

    expected = snapshot(made / "models/mini")
    found = snapshot(project / "models/mini")
    origin = json.loads(found.pop("origin.json"))
    assert origin["commit"] == COMMIT and origin["revision"] == "main"
    expected.pop("origin.json")
    assert found == expected


@pytest.mark.parametrize(
    ("refuse", "more", "complaint"),
    [
        ({"/api/": (403, "GatedRepo")}, (), "accept its licence on https://huggingface.co/naver"),
        ({"/api/": (401, "")}, (), "refused access to naver-hyperclovax/mini (401)"),
        ({"/api/": (403, "")}, (), "refused access to naver-hyperclovax/mini (403)"),
        ({"index.json": (403, "GatedRepo")}, (), "then run `hf auth login`"),
        ({}, ("source.version=v9",), "has no revision v9"),
        ({}, ("source.name=nobody/nothing",), "the hub has no repository nobody/nothing"),
    ],
)
def test_refusal_of_the_hub_is_one_line(tmp_path, hub, refuse, more, complaint):
    project = mini_project(tmp_path / "project")
    hub.refuse = refuse
    before = snapshot(project.root)
    sets = [part for setting in more for part in ("--set", setting)]
    assert complaint in project.refused(*DOWNLOAD, *sets, **from_hub(hub))
    assert snapshot(project.root) == before


@pytest.mark.parametrize("env", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_offline_is_one_line(tmp_path, env):
    project = mini_project(tmp_path / "project")
    line = project.refused(*DOWNLOAD, **env)
    assert f"cannot download {NAME}" in line and "check the connection" in line


FULL_DISK = (
    "import collections, runpy, shutil, sys\n"
    "usage = collections.namedtuple('usage', 'total used free')\n"
    "shutil.disk_usage = lambda path: usage(10**12, 10**12, 1000)\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


@pytest.mark.parametrize(
    ("command", "folder"),
    [(DOWNLOAD, "mini"), (EXTRACT, "mini-Text"), (QUANTIZE, "mini-Text-4bit")],
)
def test_full_disk_is_seen_before_anything_is_written(changed, repository, command, folder):
    shutil.rmtree(changed / f"models/{folder}")
    before = snapshot(changed.root)
    more = ("--force", "--from-folder", repository) if command is DOWNLOAD else ()
    line = changed.refused("-c", FULL_DISK, *command, *more)
    assert "free some space" in line and f"models/{folder}" in line
    assert snapshot(changed.root) == before


# Extraction


def test_tensors_are_the_text_part_rounded_once(made, repository):
    found, original = load_all(made / "models/mini-Text"), load_all(repository)
    assert {n: tuple(w.shape) for n, w in found.items()} == text_shapes()
    for name, weight in found.items():
        assert weight.dtype == mx.bfloat16
        assert mx.array_equal(weight, original[PREFIX + name].astype(mx.bfloat16)), name
    folder = made / "models/mini-Text"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == text_shapes().keys()
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in found.values())
    assert "39 tensors, 8 shards" in made.log["extract"]


def test_logits_equal_those_of_the_omni_weights(made, repository):
    """Exactly, when the omni weights are rounded to bfloat16 too; else up to that rounding."""
    args = llama.ModelArgs.from_dict(TEXT_CONFIG)
    ids = mx.array([[700, *range(5, 300, 7)]])
    weights = {n.removeprefix(PREFIX): w for n, w in load_all(repository).items() if PREFIX in n}
    rounded = {n: w.astype(mx.bfloat16).astype(mx.float32) for n, w in weights.items()}
    extracted, _ = load_model(made / "models/mini-Text")
    extracted.set_dtype(mx.float32)
    logits = {}
    for kind, values in (("fp32", weights), ("rounded", rounded)):
        model = llama.Model(args)
        model.load_weights(list(values.items()))
        logits[kind] = model(ids)
    difference = extracted(ids) - logits["fp32"]
    print("largest difference to fp32:", mx.max(mx.abs(difference)).item())
    assert mx.array_equal(extracted(ids), logits["rounded"])
    assert mx.linalg.norm(difference).item() < 0.05 * mx.linalg.norm(logits["fp32"]).item()


def test_config_leaves_nothing_to_defaults(made):
    config = json.loads((made / "models/mini-Text/config.json").read_text())
    same = {k: v for k, v in TEXT_CONFIG.items() if k not in ("torch_dtype", "rope_scaling")}
    assert {k: config[k] for k in same} == same
    assert config["torch_dtype"] == "bfloat16"
    assert not {"auto_map", "vision_config", "text_config"} & config.keys()


def test_comments_do_not_touch_strings(made):
    script = load_script("03_quantization/extract_omni_8b_text.py")
    config = script.read_config(made / "models/mini/config.json")
    assert config["_name_or_path"] == 'https://example.com//x#y /* z */ " // w'
    assert config["text_config"] == TEXT_CONFIG


@pytest.mark.parametrize("folder", ["mini-Text", "mini-Text-4bit"])
def test_tokenizer_template_and_stop_tokens_survive(made, repository, folder):
    original = Tokenizer.from_file(str(repository / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(made / "models" / folder)
    for text in TEXTS:
        ids = original.encode(text, add_special_tokens=False).ids
        assert loaded.encode(text, add_special_tokens=False) == ids, text
    assert loaded.chat_template == (repository / "chat_template.jinja").read_text()
    generation = json.loads((made / "models" / folder / "generation_config.json").read_text())
    stops = prompts.stop_ids(loaded, profile(made).chat)
    assert generation["temperature"] == 0.5
    assert set(generation["eos_token_id"]) == {*stops, TEXT_TOKENS + 1}
    prompt = prompts.prompt_tokens(loaded, [{"role": "user", "content": "Hi"}], profile(made).chat)
    assert loaded.decode(prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_tokenizer_class_of_the_repository_would_have_been_caught(changed, repository):
    """The trap is real: with GPT2Tokenizer transformers gives other ids, and the check says so."""
    folder = changed / "models/mini-Text"
    shutil.copy(repository / "tokenizer_config.json", folder)
    with pytest.raises(InputError, match="token ids of .* changed"):
        tokenizer_files.check(folder, repository, profile(changed).chat)
    line = changed.refused(*QUANTIZE, "--force")
    assert "token ids of" in line


# Every tensor, shard and key that can be wrong


def edit_index(project, change) -> None:
    file = project / "models/mini/model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index["weight_map"])
    file.write_text(json.dumps(index))


def edit_config(project, change) -> None:
    file = project / "models/mini/config.json"
    text = json.loads(json.dumps(TEXT_CONFIG))
    change(text)
    file.write_text(json.dumps({"text_config": text}))


def edit_shard(project, change, number=4) -> str:
    """Write a shard anew; change() gets its tensors and returns the name of the one it changed."""
    file = project / f"models/mini/model-{number:05}-of-00010.safetensors"
    weights = dict(mx.load(str(file)))
    mx.eval(weights)
    name = change(weights)
    mx.save_safetensors(str(file), weights)
    return name


def truncate(project) -> None:
    os.truncate(project / "models/mini/model-00006-of-00010.safetensors", 5000)


def cut_header(project) -> None:
    os.truncate(project / "models/mini/model-00006-of-00010.safetensors", 5)


def lose_shard(project) -> None:
    (project / "models/mini/model-00006-of-00010.safetensors").unlink()


def unlist_shard(project) -> None:
    edit_index(
        project,
        lambda names: [names.pop(n) for n, s in list(names.items()) if "00006" in s],
    )


def unlist_and_lose_shard(project) -> None:
    unlist_shard(project)
    lose_shard(project)


def lose_tensor(project) -> None:
    edit_index(project, lambda names: names.pop(f"{PREFIX}model.norm.weight"))


def tensor_not_in_shard(project) -> None:
    edit_shard(project, lambda weights: weights.popitem())


def unknown_tensor(project) -> None:
    name = f"{PREFIX}model.layers.0.self_attn.q_norm.weight"
    edit_index(project, lambda names: names.update({name: "model-00004-of-00010.safetensors"}))
    edit_shard(project, lambda weights: weights.update({name: mx.ones((16,))}))


def other_dtype(project) -> None:
    edit_shard(project, lambda w: w.update({n: v.astype(mx.int32) for n, v in w.items()}))


def not_a_number(project) -> None:
    edit_shard(project, lambda w: w.update({n: v * float("nan") for n, v in w.items()}))


def broken_json(project) -> None:
    (project / "models/mini/config.json").write_text("{\n // fine\n /* also\n */ 'no': 1}")


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (truncate, "model-00006-of-00010.safetensors has 5000 bytes, its header says"),
        (cut_header, "model-00006-of-00010.safetensors is truncated"),
        (lose_shard, "missing models/mini/model-00006-of-00010.safetensors: run"),
        (unlist_shard, "model-00006-of-00010.safetensors is not in model.safetensors.index.json"),
        (unlist_and_lose_shard, "models/mini lacks model.layers."),
        (lose_tensor, "models/mini lacks model.norm.weight (1 missing)"),
        (tensor_not_in_shard, "which model.safetensors.index.json names"),
        (unknown_tensor, "model.layers.0.self_attn.q_norm.weight is unknown"),
        (other_dtype, "is I32, only F32, F16, BF16 are known"),
        (not_a_number, "holds no numbers"),
        (broken_json, "models/mini/config.json line 4: not JSON"),
        (lambda p: edit_config(p, lambda c: c.update(num_key_value_heads=4)), "is (32, 64), con"),
        (lambda p: edit_config(p, lambda c: c.update(model_type="hyperclovax")), "only llama"),
        (lambda p: edit_config(p, lambda c: c.pop("rope_theta")), "text_config has no rope_theta"),
        (
            lambda p: edit_config(p, lambda c: c.update(rope_scaling={"rope_type": "yarn"})),
            "rope scaling yarn",
        ),
    ],
)
def test_bad_checkpoint_is_one_line(downloaded, harm, complaint):
    harm(downloaded)
    assert complaint in downloaded.refused(*EXTRACT)
    assert not (downloaded / "models/mini-Text").exists()


def test_unknown_stop_token_is_named_before_any_weight_is_written(downloaded):
    line = downloaded.refused(*EXTRACT, "--set", "chat.stop_tokens=['<|im_end|>', '<|nope|>']")
    assert "stop token <|nope|> is" in line and "chat.stop_tokens" in line
    assert not list(downloaded.root.glob("models/*mini-Text*/*.safetensors"))
    downloaded.ok(*EXTRACT)


KILLED_AFTER_THREE_SHARDS = (
    "import os, runpy, signal, sys\n"
    "from injection import files\n"
    "mark, marked = files.mark_current, []\n"
    "def mark_and_die(output, made_from):\n"
    "    mark(output, made_from)\n"
    "    marked.append(output)\n"
    "    if len(marked) == 3:\n"
    "        os.kill(os.getpid(), signal.SIGKILL)\n"
    "files.mark_current = mark_and_die\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
)


def test_killed_extraction_goes_on_after_the_last_whole_shard(downloaded, made):
    assert downloaded.run("-c", KILLED_AFTER_THREE_SHARDS, *EXTRACT).returncode == -9
    assert not (downloaded / "models/mini-Text").exists()
    staging = downloaded / "models/.mini-Text.partial"
    shards = sorted(staging.glob("model-*.safetensors"))
    assert len(shards) == 3
    # A shard that was damaged since is written again, as is one that was only begun.
    shards[1].write_bytes(shards[1].read_bytes()[:-1] + b"x")
    begun = staging / "model-00004-of-00008.safetensors"
    begun.write_bytes(b"half")
    before = {f.name: f.stat().st_mtime_ns for f in [*shards, begun]}

    downloaded.ok(*EXTRACT)
    folder = downloaded / "models/mini-Text"
    kept = {n for n, t in before.items() if (folder / n).stat().st_mtime_ns == t}
    assert kept == {shards[0].name, shards[2].name}
    assert snapshot(folder) == snapshot(made / "models/mini-Text")
    assert not staging.exists()


# Quantization


def test_four_bits_with_scales_in_bfloat16(made):
    weights = load_all(made / "models/mini-Text-4bit")
    assert weights["lm_head.scales"].dtype == mx.bfloat16
    assert weights["model.layers.0.mlp.down_proj.weight"].shape == (64, 128 * 4 // 32)
    config = json.loads((made / "models/mini-Text-4bit/config.json").read_text())
    assert config["quantization"]["bits"] == 4 and config["quantization"]["group_size"] == 64
    assert "4.5" in made.log["quantize"] and "after quantization" in made.log["quantize"]


def test_mixed_bits(changed):
    out = changed.ok(*QUANTIZE, "--set", "quantization.bits=mixed_4_6")
    bits = float(out.split(" bits per weight")[0].split()[-1])
    assert 4.6 < bits < 6.5
    weights = load_all(changed / "models/mini-Text-4bit")
    assert weights["lm_head.weight"].shape[1] == 64 * 6 // 32


def test_stop_token_missing_from_the_list_is_refused(changed):
    file = changed / "models/mini-Text/generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [TEXT_TOKENS + 1]}))
    line = changed.refused(*QUANTIZE, "--force")
    assert "stop token <|im_end|> (703) is not in eos_token_id [701]" in line
    assert "models/mini-Text/generation_config.json: add it there" in line
    # As it says: one token is listed there, the others are taken out of the profile.
    file.write_text(json.dumps({"eos_token_id": [TEXT_TOKENS + 1, 703]}))
    changed.ok(*QUANTIZE, "--force", "--set", "chat.stop_tokens=['<|im_end|>']")


# A model that needs no extraction


def test_plain_llama_from_the_hub_is_ready_after_the_download(changed, tmp_path, repository):
    plain = shutil.copytree(changed / "models/mini-Text", tmp_path / "plain")
    for name in ("tokenizer_config.json", "generation_config.json"):
        shutil.copy(repository / name, plain)
    sets = ("--set", "source.text_prefix=null", "--set", "source.folder=plain")
    changed.ok(*DOWNLOAD, *sets, "--from-folder", plain)
    folder = changed / "models/plain"
    weights = {n for n in names(folder) if n.endswith(".safetensors")}
    assert len(weights) == 8 and (folder / "origin.json").exists()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in config
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [703, 705, 704, 701]
    assert "nothing to extract" in changed.refused(*EXTRACT, *sets)


# The whole way

FEW = (*MINI, *SMALL, "--set", "sft.patience=1")
STEPS = {
    "chunks.jsonl": ("10_stage1_cpt/chunk_pdf.py", *FEW),
    "replay_mini.jsonl": ("10_stage1_cpt/answer_replay.py", *FEW),
    "valid.jsonl": ("10_stage1_cpt/prepare_cpt_data.py", *FEW),
    "adapters_mini_paper_cpt": ("-m", "injection.training", "cpt", *FEW, "--max-steps", "3"),
    "dev.jsonl": ("20_stage2_sft/build_sft_data.py", *FEW),
    "adapters_mini_paper_sft": ("-m", "injection.training", "sft", *FEW, "--max-steps", "3"),
    "report.json": (
        *("30_evaluation/compare_hcx_stages.py", *FEW),
        *("--questions", "six.jsonl", "--output", "results/six"),
    ),
}


def six_questions(project) -> None:
    shrink(project)
    rows = project.read_jsonl("data/paper/eval.jsonl")
    rows += project.read_jsonl("data/general/probes.jsonl")
    project.write_jsonl("six.jsonl", [r for r in rows if r["split"] == "test"][:6])


@pytest.fixture(scope="module")
def taught(tmp_path_factory, made):
    """The miniature after every step up to the comparison."""
    project = copy_of(made, tmp_path_factory.mktemp("taught"))
    six_questions(project)
    project.log |= {name: project.ok(*command) for name, command in STEPS.items()}
    return project


def test_every_step_of_the_profile(taught):
    assert "continues from adapters_mini_paper_cpt" in taught.log["adapters_mini_paper_sft"]
    report = json.loads((taught / "results/six/report.json").read_text())
    assert list(report["stages"])[:3] == ["base", "cpt", "sft"]
    for stage in ("cpt", "sft"):
        folder = taught / f"adapters_mini_paper_{stage}"
        assert json.loads((folder / "manifest.json").read_text())["notice"]
        assert f"trained on paper ({stage.upper()})" in (folder / "NOTICE").read_text()
        assert (folder / "LICENSE").exists()


def test_the_taught_miniature_chats(taught):
    chat = ChatModel(taught / "models/mini-Text-4bit", profile(taught).chat)
    ids = {*prompts.stop_ids(chat.tokenizer, profile(taught).chat), TEXT_TOKENS + 1}
    assert set(chat.tokenizer.eos_token_ids) == ids
    chat.attach(taught / "adapters_mini_paper_sft")
    chat.use_gate = False
    turns = [
        {"role": "user", "content": "What is 3?"},
        {"role": "assistant", "content": "<think>\n\n</think>\n\nA number."},
        {"role": "user", "content": "And 4?"},
    ]
    prompt = chat.tokenizer.decode(chat.prompt(turns))
    assert "assistant\nA number.<|im_end|>" in prompt, "thoughts of earlier turns are left out"
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")
    replies = list(chat.stream(turns, 5))
    assert chat.adapter_speaks and 1 <= replies[-1].generation_tokens <= 5


# Dies at the last moment of a step: all is done, nothing is in place.
KILLED_AT_THE_END = """
import os, runpy, signal, sys
target, sys.argv = sys.argv[1], sys.argv[2:]
replace = os.replace
def die_or_replace(old, new):
    if os.path.basename(new) == target:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(old, new)
os.replace = die_or_replace
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_killed_at_every_step_and_started_again(tmp_path, taught, repository):
    project = mini_project(tmp_path / "project")
    six_questions(project)
    steps = {
        "mini": (*DOWNLOAD, "--from-folder", repository),
        "mini-Text": EXTRACT,
        "mini-Text-4bit": QUANTIZE,
        **STEPS,
    }
    for target, command in steps.items():
        killed = project.run("-c", KILLED_AT_THE_END, target, *command)
        assert killed.returncode == -9, f"{command}\n{killed.stdout}\n{killed.stderr}"
        assert not list(project.root.rglob(f"**/{target}")), "nothing half-written is in place"
        project.ok(*command)
    assert not [f for f in project.root.rglob("*.partial*")]
    for name in ("adapters_mini_paper_sft/adapters.safetensors", "results/six/answers.jsonl"):
        assert (project / name).read_bytes() == (taught / name).read_bytes()


# The disk fills up in the middle: no file may grow beyond the limit.
FULL_IN_THE_MIDDLE = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "folder", "complaint"),
    [
        (DOWNLOAD, "mini", "no space left on disk"),
        (EXTRACT, "mini-Text", "no space left on disk"),
        (QUANTIZE, "mini-Text-4bit", "is the disk full?"),
    ],
)
def test_disk_that_fills_up_on_the_way(changed, repository, command, folder, complaint):
    target = changed / f"models/{folder}"
    expected = snapshot(target)
    shutil.rmtree(target)
    more = ("--force", "--from-folder", repository) if command is DOWNLOAD else ()
    largest = max(len(content) for content in expected.values())
    assert complaint in changed.refused("-c", FULL_IN_THE_MIDDLE, largest - 1, *command, *more)
    assert not target.exists()
    changed.ok(*command, *more)
    assert snapshot(target) == expected


def test_damaged_weights_are_not_quantized(changed):
    shard = sorted((changed / "models/mini-Text").glob("*.safetensors"))[3]
    os.truncate(shard, shard.stat().st_size - 100)
    line = changed.refused(*QUANTIZE, "--force")
    assert "cannot quantize models/mini-Text" in line and "is it whole" in line


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        ((), ["download_smollm2.py"]),
        (("--profile", "omni_8b"), ["download_omni_8b.py", "extract_omni_8b_text.py"]),
        (("--profile", "hyperclovax_text_0_5b"), ["download_omni_8b.py"]),
        (("--profile", "hyperclovax_text_1_5b"), ["download_omni_8b.py"]),
        (("--profile", "my_smollm2"), ["download_smollm2.py"]),
        (("--profile", "my_omni"), ["download_omni_8b.py", "extract_omni_8b_text.py"]),
    ],
)
def test_run_sh_takes_the_steps_of_the_profile(tmp_path, arguments, first):
    """With a python that only says what it was asked to run, and answers what run.sh asks it."""
    stub_project(tmp_path)
    for name in ("smollm2_135m", "omni_8b"):
        copy = f"my_{name.rpartition('_')[0]}.yaml"
        shutil.copy(ROOT / f"models/{name}.yaml", tmp_path / "models" / copy)
    command = [tmp_path / "run.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("ran ")]
    asked = arguments[1] if arguments else "smollm2_135m"
    assert all(words[-4:] == ["--profile", asked, "--document", "paper"] for words in ran)
    steps = [words[0].rsplit("/", 1)[-1] for words in ran]
    assert steps[: len(first) + 2] == [*first, "quantize.py", "chunk_pdf.py"]
    assert len(steps) == len(first) + 8 and steps[-1] == "compare_hcx_stages.py"


def test_run_sh_hands_settings_on_and_shares_the_default_of_the_scripts(tmp_path):
    stub_project(tmp_path)
    quantized = tmp_path / "models/HyperCLOVAX-SEED-Omni-8B-Text-4bit"
    quantized.mkdir()
    (quantized / "config.json").write_text("{}")
    command = [tmp_path / "run.sh", "--set", "sft.epochs=2", "--set", "sft.seed=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    ran = [line for line in done.stdout.splitlines() if line.startswith("ran ")]
    flags = "--profile omni_8b --document paper --set sft.epochs=2 --set sft.seed=1"
    assert len(ran) == 10 and all(line.endswith(flags) for line in ran)


def test_run_sh_refuses_an_unknown_profile_in_one_line(tmp_path):
    stub_project(tmp_path)
    command = [tmp_path / "run.sh", "--profile", "nope"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "ran" not in done.stdout
    assert done.stderr.startswith("error: unknown profile 'nope'") and done.stderr.count("\n") == 1


def stub_project(folder) -> None:
    """A copy of the repository whose python runs what is given with -c, and only names the rest."""
    copy_tree(folder)
    for name in ("run.sh", "environment.sh", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    stub = folder / ".venv/bin/python"
    stub.parent.mkdir(parents=True)
    stub.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec "{sys.executable}" "$@"\necho "ran $*"\n')
    stub.chmod(0o755)
    wanted = (folder / "requirements.txt").read_text().rstrip("\n")
    (folder / ".venv/installed-requirements.txt").write_text(f"{wanted}\n{wanted}")
