"""Profiles and documents: what ships is valid, and what is wrong is named with its path."""

import pytest
import yaml
from support import ROOT

from injection import profiles
from injection.files import InputError

SHIPPED = sorted(f.stem for f in (ROOT / "models").glob("*.yaml"))
DOCUMENTS = sorted(f.parent.name for f in (ROOT / "data").glob("*/document.yaml"))


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A root with one profile and one document; returns edit(file, path, value)."""
    for name in ("models/smollm2_135m.yaml", "data/paper/document.yaml"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    monkeypatch.setattr(profiles, "ROOT", tmp_path)

    def edit(name, path, value):
        file = tmp_path / name
        content = yaml.safe_load(file.read_text())
        *parents, last = path
        place = content
        for key in parents:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
        file.write_text(yaml.safe_dump(content))

    return edit


def load(*overrides, profile="smollm2_135m", document="paper"):
    return profiles.Project(profile, document, list(overrides))


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("profile", SHIPPED)
def test_shipped_profiles_and_documents_validate(profile, document):
    project = load(profile=profile, document=document)
    assert project.profile.title and project.document.key_questions
    assert project.adapter("sft").name == f"adapters_{profile}_{document}_sft"
    assert project.data("cpt") == ROOT / "data" / document / "cpt" / profile


def test_both_profiles_of_the_issue_ship():
    assert {"omni_8b", "smollm2_135m"} <= set(SHIPPED)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("lora", "rnak"), 8, "lora.rnak: Extra inputs"),
        (("title",), None, "title: Field required"),
        (("sft", "learning_rate"), None, "sft.learning_rate: Field required"),
        (("cpt", "learning_rate"), 0, "cpt.learning_rate: Input should be greater than 0"),
        (("quantization", "bits"), 5, "quantization.bits: Input should be 4, 8 or"),
        (("chat", "stop_tokens"), [], "chat.stop_tokens: List should have at least 1"),
        (("sft_mix", "reply"), "poem", "sft_mix.reply: Input should be 'statement'"),
        (("generation",), [], "generation: Input should be a valid dictionary"),
        pytest.param(("lora", "layers"), 0, "lora.layers"),
    ],
)
def test_wrong_profile_is_named_with_file_and_path(sandbox, path, value, complaint):
    sandbox("models/smollm2_135m.yaml", path, value)
    with pytest.raises(InputError) as error:
        load()
    assert "models/smollm2_135m.yaml" in str(error.value) and complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("titel",), "x", "titel: Extra inputs"),
        (("key_questions", 1, "question"), None, "key_questions.1.question: Field required"),
        (("verify_threshold",), 80, "verify_threshold: Input should be less than or equal to 1"),
    ],
)
def test_wrong_document_is_named_with_file_and_path(sandbox, path, value, complaint):
    sandbox("data/paper/document.yaml", path, value)
    with pytest.raises(InputError) as error:
        load()
    assert "data/paper/document.yaml" in str(error.value) and complaint in str(error.value)


def test_several_mistakes_are_counted(sandbox):
    sandbox("models/smollm2_135m.yaml", ("lora", "rank"), 0)
    sandbox("models/smollm2_135m.yaml", ("lora", "scale"), -1)
    sandbox("models/smollm2_135m.yaml", ("cpt", "epochs"), "many")
    with pytest.raises(InputError, match="lora.rank: .*and 2 more"):
        load()


@pytest.mark.parametrize("name", ["nope", "../paper", "smollm2_135m.yaml", "", "."])
def test_unknown_profile_lists_the_known_ones(name):
    with pytest.raises(InputError, match="choose from .*omni_8b.*smollm2_135m"):
        load(profile=name)


@pytest.mark.parametrize("name", ["nope", "general", "paper/cpt"])
def test_unknown_document_lists_the_known_ones(name):
    with pytest.raises(InputError, match="choose from .*paper"):
        load(document=name)


def test_set_overrides_only_what_it_names():
    plain, changed = load(), load("sft.epochs=9", "chat.stop_tokens=[a, b]", "lora.scale=0.5")
    assert changed.profile.sft.epochs == 9 != plain.profile.sft.epochs
    assert changed.profile.chat.stop_tokens == ["a", "b"]
    assert changed.profile.lora.scale == 0.5
    assert changed.profile.cpt == plain.profile.cpt
    assert "epochs: 9" not in plain.profile_file.read_text()


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("sft.epoch=2", "--set sft.epoch=2: .* has no key sft.epoch"),
        ("no.such.thing=2", "has no key no.such.thing"),
        ("title.deeper=2", "has no key title.deeper"),
        ("sft.epochs=0", "sft.epochs: Input should be greater than or equal to 1"),
        ("sft.epochs", "sft.epochs: Input should be a valid integer"),
        pytest.param("chat.stop_tokens=[a", "--set"),
    ],
)
def test_bad_set_is_named(override, complaint):
    with pytest.raises(InputError, match=complaint):
        load(override)


def test_lora_shape_is_one_for_both_stages():
    """No setting of a stage could make its LoRA shape differ from the other stage's."""
    stage = profiles.Training.model_fields.keys() | profiles.CptMix.model_fields.keys()
    assert {"rank", "scale", "layers", "keys"} <= profiles.Lora.model_fields.keys()
    assert not stage & profiles.Lora.model_fields.keys()


def test_default_profile_prefers_the_reference_when_it_is_there(sandbox, tmp_path):
    omni = tmp_path / "models/omni_8b.yaml"
    omni.write_text((ROOT / "models/omni_8b.yaml").read_text())
    assert profiles.default_profile() == "smollm2_135m"
    folder = tmp_path / "models" / yaml.safe_load(omni.read_text())["quantization"]["folder"]
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert profiles.default_profile() == "omni_8b"


@pytest.mark.parametrize(
    ("steps", "epochs", "passes"),
    [(1000, 3, 2.0), (400, 3, 2.0), (200, 7, 4.0), (100, 15, 8.0)],
)
def test_a_small_document_gets_more_epochs(steps, epochs, passes):
    settings = load("sft.epochs=3", "sft.hard_share=0.5", "sft.min_steps=800").profile.sft
    assert settings.all_epochs(steps, steps // 2) == epochs
    assert settings.passes(steps) == passes
