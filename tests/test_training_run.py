"""Real training processes on a tiny llama: continue, refuse, resume, stop, load elsewhere."""

import json
import re
import shutil
import signal

import mlx.core as mx
import pytest
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from support import read_jsonl, snapshot

from injection import files, models, profiles, training
from injection.files import InputError

CPT, SFT = "adapters_tiny_paper_cpt", "adapters_tiny_paper_sft"


def weights(folder) -> dict[str, mx.array]:
    return mx.load(str(folder / "adapters.safetensors"))


def manifest(folder) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(mx.max(mx.abs(a[name] - b[name])).item() for name in a)


def test_sft_continues_from_cpt_and_says_so(trained_once):
    found = re.search(
        rf"continues from {CPT}: its validation loss ([\d.]+) reproduced", trained_once.log["sft"]
    )
    cpt, sft = manifest(trained_once / CPT), manifest(trained_once / SFT)
    assert float(found[1]) == pytest.approx(cpt["best_validation"]["loss"], abs=1e-3)
    assert sft["parent"]["sha256"] == cpt["weights_sha256"] and cpt["parent"] is None
    assert sft["base"] == cpt["base"] and sft["lora"] == cpt["lora"]
    before, after = weights(trained_once / CPT), weights(trained_once / SFT)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    assert largest_difference(before, after) > 0


@pytest.mark.parametrize("folder", [CPT, SFT])
def test_adapter_folder_is_complete(trained_once, folder):
    names = {f.name for f in (trained_once / folder).iterdir()}
    assert names == {
        "adapters.safetensors",
        "adapter_config.json",
        "manifest.json",
        "metrics.jsonl",
        *(["answers.jsonl"] if folder == SFT else []),
    }
    assert not (trained_once / f"{folder}.partial").exists()
    recorded = manifest(trained_once / folder)
    later = [h for h in recorded["history"] if h["step"]]
    assert recorded["history"][0]["step"] == 0 and len(later) == 3
    assert recorded["best_validation"] == max(later, key=lambda h: h["score"])
    assert recorded["steps"] == later[-1]["step"]
    rows = read_jsonl(trained_once / folder / "metrics.jsonl")
    assert [r["step"] for r in rows if r.get("validation")] == [0, *(h["step"] for h in later)]


def test_training_learns_its_rows(trained):
    out = trained.ok(*trained.train("cpt", "--output", "long", "--set", "cpt.epochs=60"))
    assert "wrote" in out
    steps = [r for r in read_jsonl(trained / "long/metrics.jsonl") if not r.get("validation")]
    assert len(steps) > 5 and steps[-1]["loss"] < 0.6 * steps[0]["loss"]


def test_second_run_is_up_to_date_and_changed_data_retrains(trained):
    before = snapshot(trained / CPT)
    assert f"up to date: {CPT}" in trained.ok(*trained.train("cpt"))
    assert f"up to date: {SFT}" in trained.ok(*trained.train("sft"))
    assert snapshot(trained / CPT) == before
    rows = trained.read_jsonl("data/paper/cpt/tiny/train.jsonl")
    trained.write_jsonl("data/paper/cpt/tiny/train.jsonl", [*rows, {"text": "One more row."}])
    assert f"wrote {CPT}" in trained.ok(*trained.train("cpt"))
    assert f"wrote {SFT}" in trained.ok(*trained.train("sft")), "its parent changed"


def refusals(project, *command, expected: str) -> None:
    before = snapshot(project / SFT)
    assert expected in project.refused(*command)
    assert snapshot(project / SFT) == before


@pytest.fixture
def prepare(trained_once, monkeypatch):
    """SFT in this process up to its first step, from the trained CPT adapter or another one."""
    for module in (profiles, training):
        monkeypatch.setattr(module, "ROOT", trained_once.root)

    def start(*settings: str, parent=trained_once / CPT) -> None:
        project = profiles.Project("tiny", "paper", settings)
        data, output = project.data("sft"), project.adapter("sft")
        training.Run(project, "sft", data, output, parent).prepare()

    return start


@pytest.fixture
def parent(trained_once, tmp_path):
    """A copy of the CPT adapter for changing."""
    return shutil.copytree(trained_once / CPT, tmp_path / CPT)


def test_cpt_adapter_of_another_base_is_refused(prepare, parent, tiny_models, tmp_path):
    base = shutil.copytree(tiny_models / "tiny-4bit", tmp_path / "base")
    config = base / "config.json"
    config.write_text(config.read_text() + "\n")
    other = {**manifest(parent), "base": {"fingerprint": files.model_fingerprint(base)}}
    (parent / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=f"{CPT} was trained on another base"):
        prepare(parent=parent)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("lora.rank=8", "has LoRA shape"),
        ("lora.scale=1.0", "has LoRA shape"),
        ("lora.layers=3", f"{CPT} lacks model.layers.1."),
        ("lora.layers=1", "which the LoRA shape of the profile has not"),
        ("lora.layers=9", "lora.layers is 9, but the model has 4 layers"),
    ],
)
def test_cpt_adapter_of_another_shape_is_refused(prepare, setting, expected):
    with pytest.raises(InputError, match=re.escape(expected)):
        prepare(setting)


def test_cpt_adapter_that_changes_nothing_is_refused(prepare, parent):
    zero = {k: v * 0 if k.endswith("lora_b") else v for k, v in weights(parent).items()}
    mx.eval(zero)
    mx.save_safetensors(str(parent / "adapters.safetensors"), zero)
    with pytest.raises(InputError, match="changes nothing"):
        prepare(parent=parent)


def test_cpt_adapter_with_other_weights_than_its_manifest_is_refused(prepare, parent):
    """The proof that SFT starts from CPT: the recorded validation loss must come out again."""
    other = {k: v + 0.5 for k, v in weights(parent).items()}
    mx.eval(other)
    mx.save_safetensors(str(parent / "adapters.safetensors"), other)
    with pytest.raises(InputError, match="gives validation loss"):
        prepare(parent=parent)


def test_damaged_cpt_adapter_is_refused(trained):
    file = trained / CPT / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    refusals(trained, *trained.train("sft"), expected=CPT)


def test_missing_cpt_adapter_is_refused_unless_none_is_wanted(tiny_project):
    line = tiny_project.refused(*tiny_project.train("sft"))
    assert f"missing {CPT}" in line and "injection.training cpt" in line
    command = tiny_project.train("sft", "--from-adapter", "none", "--max-steps", "4")
    assert "wrote" in tiny_project.ok(*command)
    assert manifest(tiny_project / SFT)["parent"] is None


# Keeps checkpoints up to a step, and dies four steps later.
KILLED = (
    "import os, signal, sys\n"
    "from injection import files, training\n"
    "save, until = training.save_checkpoint, int(sys.argv.pop(1))\n"
    "training.CHECKPOINT_SECONDS = 0\n"
    "def save_or_die(run):\n"
    "    if run.state.step <= until: save(run)\n"
    "    elif run.state.step == until + 4: os.kill(os.getpid(), signal.SIGKILL)\n"
    "training.save_checkpoint = save_or_die\n"
    "files.run(training.main)"
)


@pytest.mark.parametrize("stage", ["cpt", "sft"])
def test_killed_run_resumes_exactly(trained, stage):
    """SIGKILL in the middle, twice; the result equals that of a run left alone."""
    command = trained.train(stage, "--output", "killed", "--set", f"{stage}.epochs=12")
    for until in (8, 17):  # the metrics of steps 10 and 20 lie beyond the checkpoint
        done = trained.run("-c", KILLED, until, *command[2:])
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (trained / "killed").exists()
    assert "resumes at step 17\n" in trained.ok(*command)
    trained.ok(*(part if part != "killed" else "alone" for part in command))
    assert largest_difference(weights(trained / "killed"), weights(trained / "alone")) < 1e-6
    killed, alone = manifest(trained / "killed"), manifest(trained / "alone")
    assert killed["best_step"] == alone["best_step"] and killed["steps"] == alone["steps"]
    assert [h["step"] for h in killed["history"]] == [h["step"] for h in alone["history"]]
    for a, b in zip(killed["history"], alone["history"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
    rows = read_jsonl(trained / "killed/metrics.jsonl")
    for kind in (None, True):
        steps = [r["step"] for r in rows if r.get("validation") == kind]
        assert steps == sorted(set(steps)), "no step is reported twice"


DIES = (
    "import os, signal\n"
    "from injection import files, training\n"
    "save = training.save_checkpoint\n"
    "def save_and_die(run):\n"
    "    save(run); os.kill(os.getpid(), signal.SIGKILL)\n"
    "training.save_checkpoint = save_and_die\n"
    "files.run(training.main)"
)


def test_interrupted_run_of_other_data_starts_again(trained):
    command = trained.train("cpt", "--output", "killed")
    assert trained.run("-c", DIES, *command[2:]).returncode == -signal.SIGKILL
    assert (trained / "killed.partial/checkpoint.safetensors").exists()
    rows = trained.read_jsonl("data/paper/cpt/tiny/train.jsonl")
    trained.write_jsonl("data/paper/cpt/tiny/train.jsonl", rows[1:])
    out = trained.ok(*command)
    assert "resumes" not in out and "wrote killed" in out


def test_interrupted_run_with_force_goes_on(trained):
    command = trained.train("cpt", "--force")
    for again in ((), ("--force",)):
        assert trained.run("-c", DIES, *command[2:]).returncode == -signal.SIGKILL
        assert "resumes at step" in trained.ok(*trained.train("cpt", *again))
    assert "up to date" in trained.ok(*trained.train("cpt"))
    out = trained.ok(*command)
    assert "resumes" not in out and f"wrote {CPT}" in out


def test_two_runs_of_one_adapter_at_a_time_are_refused(trained):
    """This test's own process counts as the other run: it is alive."""
    held = files.claim(trained / f"{CPT}.partial")
    trained.ok(*trained.train("cpt"))
    assert "is training" in trained.refused(*trained.train("cpt", "--force"))
    assert "up to date" in trained.ok(*trained.train("cpt")), "nothing was touched"
    held.close()  # as when it ends; its number, which may be another process's by now, stays
    assert f"wrote {CPT}" in trained.ok(*trained.train("cpt", "--force"))


def test_nan_stops_and_keeps_the_best(trained):
    """The loss breaks at step 6, after validations at every step."""
    code = (
        "from injection import files, training\n"
        "mean = training._mean_loss\n"
        "def breaking(run, rows):\n"
        "    loss, parts = mean(run, rows)\n"
        "    return (loss * float('nan') if run.state.step >= 5 else loss), parts\n"
        "training._mean_loss = breaking\n"
        "files.run(training.main)"
    )
    command = trained.train("sft", "--set", "sft.validations=9")
    trained.ok("-c", code, *command[2:])
    recorded = manifest(trained / SFT)
    assert "not a number at step 6" in recorded["stopped"]
    assert 1 <= recorded["best_step"] <= recorded["steps"] == 5
    kept = weights(trained / SFT)
    assert all(mx.all(mx.isfinite(v)).item() for v in kept.values())
    assert largest_difference(kept, weights(trained / CPT)) > 0


DIVERGING = ("--set", "sft.learning_rate=1e30")


def test_nan_before_any_validation_leaves_the_old_adapter(trained):
    command = trained.train("sft", *DIVERGING, "--set", "sft.validations=1")
    refusals(trained, *command, expected="not a number")


def test_early_stop_keeps_the_best_not_the_last(trained):
    """A validation that gets worse after step 4."""
    code = (
        "from injection import files, training\n"
        "validate = training.Run.validate\n"
        "training.Run.validate = lambda run: {**validate(run), 'score': -abs(run.state.step - 4)}\n"
        "files.run(training.main)"
    )
    command = trained.train("cpt", "--set", "cpt.validations=9", "--set", "cpt.patience=2")
    trained.ok("-c", code, *command[2:])
    recorded = manifest(trained / CPT)
    assert "no better validation in 2" in recorded["stopped"]
    validated = [h["step"] for h in recorded["history"]]
    assert recorded["best_step"] == 4 and validated.index(4) == len(validated) - 3
    command = trained.train("cpt", "--output", "four", "--max-steps", "4")
    trained.ok(*command, "--set", "cpt.validations=1")
    assert largest_difference(weights(trained / CPT), weights(trained / "four")) < 1e-6


def test_sft_on_plain_texts_only(trained):
    """As the ablation "original" trains: no questions, so neither gate nor refusal threshold."""
    rows = [{"text": f"User: What is {n}?\n\nAssistant: {n} is {n}."} for n in range(6)]
    trained.write_jsonl("data/paper/sft/tiny/train.jsonl", rows)
    trained.ok(*trained.train("sft", "--from-adapter", "none"))
    found = manifest(trained / SFT)
    assert found["gate"] is None and found["refusal"] is None


def test_mlx_lm_loads_the_adapter_and_computes_the_same(trained_once, monkeypatch):
    monkeypatch.setattr(profiles, "ROOT", trained_once.root)
    project = profiles.Project("tiny", "paper")
    ours = models.ChatModel(project.base, project.profile.chat)
    plain, _ = load_model(project.base)
    tokens = mx.array([ours.prompt([{"role": "user", "content": "What is 3?"}])])
    base = ours.model(tokens)
    assert mx.max(mx.abs(base - plain(tokens))).item() < 1e-3
    theirs = load_adapters(plain, str(trained_once / SFT))
    theirs.eval()
    for folder, same in ((SFT, True), (CPT, False)):
        ours.attach(trained_once / folder)
        difference = mx.max(mx.abs(ours.model(tokens) - theirs(tokens))).item()
        assert (difference < 1e-3) is same
    ours.attach(None)
    assert mx.array_equal(ours.model(tokens), base), "detaching restores the base"


def test_failed_attach_keeps_the_attached_adapter(trained, monkeypatch):
    monkeypatch.setattr(profiles, "ROOT", trained.root)
    project = profiles.Project("tiny", "paper")
    model = models.ChatModel(project.base, project.profile.chat)
    model.attach(trained / CPT)
    tokens = mx.array([[5, 6, 7]])
    before = model.model(tokens)
    (trained / SFT / "manifest.json").unlink()
    with pytest.raises(InputError, match="missing .*manifest.json"):
        model.attach(trained / SFT)
    assert model.adapter == trained / CPT
    assert mx.array_equal(model.model(tokens), before)
