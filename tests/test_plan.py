"""The plan against what happens: disk and memory of a short real run, and what it advises."""

import dataclasses
import json

import pytest
from support import chat_row, load_script

from injection import estimate, profiles
from injection.estimate import Batch, Machine

PLAN = "03_quantization/plan.py"
SMOLLM2 = ("--profile", "smollm2_135m")
CPU = Machine("a large machine without a GPU", 1e12, gpu=False)
MAC = Machine("a large Mac", 1e12, gpu=True)


@pytest.fixture
def project(project_copy, monkeypatch):
    monkeypatch.setattr(profiles, "ROOT", project_copy.root)
    return project_copy


def cpt_rows() -> list[dict]:
    """Two batches of 16: long texts, and questions half of which imitate the base model."""
    words = "The compressor reads a document and keeps what a question will need of it. "
    texts = [{"text": f"Text {i}. " + words * 7, "source": f"{i}"} for i in range(16)]
    chats = [
        {**chat_row(f"What is {i}?", words * 2), **({"target": "base"} if i % 2 else {})}
        for i in range(16)
    ]
    return texts + chats


@pytest.mark.slow
def test_memory_and_disk_of_a_short_run(project):
    """Within 15%, on the real SmolLM2."""
    for name, rows in (("train", cpt_rows()), ("valid", cpt_rows()[:2])):
        project.write_jsonl(f"data/paper/cpt/smollm2_135m/{name}.jsonl", rows)
    short = ["cpt.epochs=1", "cpt.min_steps=0"]
    settings = [word for setting in short for word in ("--set", setting)]
    project.ok("-m", "injection.training", "cpt", *SMOLLM2, *settings)
    adapter = project / "adapters_smollm2_135m_paper_cpt"
    measured = json.loads((adapter / "manifest.json").read_text())["peak_memory_gb"] * 1e9

    plan, settings = load_script(PLAN), profiles.Project("smollm2_135m", "paper", short)
    shape = estimate.geometry(settings)
    step = plan.training_step(settings, shape, CPU, "cpt")
    assert "32 rows, 2 steps" in step.note and "guessed" not in step.note
    print(f"planned {step.memory / 1e9:.2f} GB, measured {measured / 1e9:.2f} GB")
    assert step.memory == pytest.approx(measured, rel=0.15)

    weights = (adapter / "adapters.safetensors").stat().st_size
    planned = 4 * estimate.adapter_parameters(shape, settings.profile.lora)
    assert planned == pytest.approx(weights, rel=0.15)


def test_disk_of_the_models_that_are_there(project):
    plan, settings = load_script(PLAN), profiles.Project("smollm2_135m", "paper")
    shape = estimate.geometry(settings)
    quantized = (settings.base / "model.safetensors").stat().st_size
    assert plan.quantize_step(settings, shape, CPU).disk == pytest.approx(quantized, rel=0.15)
    source = (settings.source / "model.safetensors").stat().st_size
    assert 2 * shape.parameters == pytest.approx(source, rel=0.15)


def omni(*overrides) -> profiles.Project:
    return profiles.Project("omni_8b", "paper", list(overrides))


def test_known_shapes_give_the_published_number_of_weights():
    counts = {
        "omni_8b": 8.59e9,
        "hyperclovax_text_0_5b": 0.57e9,
        "hyperclovax_text_1_5b": 1.59e9,
        "smollm2_135m": 134.5e6,
    }
    for name, count in counts.items():
        source = profiles.Project(name, "paper").profile.source.name
        assert estimate.KNOWN[source].parameters == pytest.approx(count, rel=0.01)
    small = estimate.KNOWN["naver-hyperclovax/HyperCLOVAX-SEED-Text-Instruct-0.5B"]
    assert small.parameters - small.head_parameters == pytest.approx(0.45e9, rel=0.01)


@pytest.mark.parametrize(("bits", "gigabytes"), [(4, 4.83), (8, 9.13), ("mixed_4_6", 5.28)])
def test_size_of_omni_after_quantization(bits, gigabytes):
    project = omni(f"quantization.bits={bits}")
    shape = estimate.geometry(project)
    size = shape.parameters * estimate.bits(project, shape) / 8
    assert size == pytest.approx(gigabytes * 1e9, rel=0.02)


def test_config_of_the_model_counts_more_than_what_is_known(project):
    config = project / "models/HyperCLOVAX-SEED-Omni-8B-Text/config.json"
    config.parent.mkdir()
    text = json.loads((project / "models/SmolLM2-135M-Instruct/config.json").read_text())
    config.write_text(json.dumps(text))
    assert estimate.geometry(omni()).parameters == pytest.approx(134.5e6, rel=0.01)


def test_more_takes_more():
    """Every part of the estimate grows with what it depends on."""
    project = omni()
    shape, lora, settings = estimate.geometry(project), project.profile.lora, project.profile.sft
    batch = Batch(4, 100, 20, 80, 20)

    def peak(machine=CPU, settings=settings, lora=lora, **changes) -> float:
        other = dataclasses.replace(batch, **changes)
        return sum(estimate.step_memory(shape, machine, lora, settings, other).values())

    assert peak(rows=8) > peak() and peak(width=200) > peak() and peak(soft_targets=80) > peak()
    assert peak(MAC) < peak()
    on, off = (settings.model_copy(update={"gradient_checkpointing": x}) for x in (True, False))
    assert peak(settings=on) < peak(settings=off)
    fewer = lora.model_copy(update={"layers": 4})
    assert peak(settings=off, lora=fewer) < peak(settings=off)
    chats = [sum(estimate.chat_memory(project, shape, MAC, n).values()) for n in (1024, 8192)]
    assert chats[0] < chats[1]


def test_what_does_not_fit_is_said_with_what_to_change(project):
    # 12 GB of memory, 9 of them for a model: SFT is too large, by its hidden states and logits.
    out = project.run(PLAN, "--profile", "omni_8b", "--apple", "11")
    assert out.returncode == 1 and not out.stderr.strip(), out.stderr
    rows = {line.split(" | ")[0].strip("| "): line for line in out.stdout.splitlines()}
    assert "DOES NOT FIT" in rows["SFT"] and "DOES NOT FIT" not in rows["extract"]
    advice = [line for line in out.stdout.splitlines() if "would fit with --set" in line]
    assert advice, out.stdout
    name = advice[0].split()[0]
    sets = advice[0].split("with ")[1].split(":")[0].split()
    better = project.run(PLAN, "--profile", "omni_8b", "--apple", "11", *sets)
    row = next(line for line in better.stdout.splitlines() if line.startswith(f"| {name} "))
    assert "DOES NOT FIT" not in row


def test_plan_of_this_machine(project):
    out = project.ok(PLAN, *SMOLLM2)
    for step in ("download", "quantize", "CPT", "SFT", "chat"):
        row = next(line for line in out.splitlines() if line.startswith(f"| {step} "))
        assert " GB | " in row and "DOES NOT FIT" not in row
    assert "extract" not in out and "guessed" in out and "tokens/s" in out


def test_unknown_model_is_one_line(project):
    line = project.refused(PLAN, "--profile", "omni_8b", "--set", "source.name=nobody/nothing")
    assert "the shape of nobody/nothing is not known yet" in line
