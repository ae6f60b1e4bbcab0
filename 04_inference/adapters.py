"""What can be loaded: base models and adapters, each with what speaks against it.

Reads:   models/*.yaml, models/<4-bit folder>/config.json, adapters_*/manifest.json
Command: none of its own; the views and the tests use it
"""

import functools
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, ValidationError

from injection.files import ROOT, InputError, model_fingerprint, read_json, shown
from injection.profiles import Project

STAGE_NAMES = {"cpt": "Stage 1 (CPT)", "sft": "Stage 2 (SFT)"}
BASE_NAME = "Base model (no adapter)"


@dataclass(frozen=True)
class Base:
    """A profile; `problem` says why it cannot be used, empty when it can.

    Titles differ: Streamlit takes options of a picker that look the same for one.
    """

    name: str
    project: Project | None
    problem: str
    namesake: bool = False

    @property
    def title(self) -> str:
        title = self.project.profile.title if self.project else self.name
        return f"{title} ({self.name})" if self.namesake else title


def bases() -> list[Base]:
    """Every profile in models/, usable or not."""
    found = []
    for file in sorted((ROOT / "models").glob("*.yaml")):
        try:
            project = Project(file.stem, first_document())
        except InputError as error:
            found.append(Base(file.stem, None, str(error)))
            continue
        made = (project.base / "config.json").exists()
        command = f"python 03_quantization/quantize.py --profile {file.stem}"
        found.append(Base(file.stem, project, "" if made else f"not made yet, run {command}"))
    return _told_apart(found, lambda base: base.title)


def _told_apart(found: list, name) -> list:
    """The bases or adapters, marked where another one has the same name."""
    times = Counter(map(name, found))
    return [replace(one, namesake=times[name(one)] > 1) for one in found]


def documents() -> list[str]:
    """Names of the folders in data/ that hold a document, the shipped one first."""
    found = sorted(f.parent.name for f in (ROOT / "data").glob("*/document.yaml"))
    return sorted(found, key=lambda name: name != "paper")


def first_document() -> str:
    return next(iter(documents()), "paper")


class _Fingerprint(BaseModel):
    fingerprint: str


class _Rank(BaseModel):
    rank: int


class Manifest(BaseModel):
    """The part of manifest.json that the app shows."""

    stage: str
    profile: str
    document: str
    created: str
    base: _Fingerprint
    lora: _Rank
    best_step: int
    best_validation: dict

    @property
    def score(self) -> str:
        """Share of the dev questions answered right, or the loss where there are none."""
        found = self.best_validation
        if "dev" in found and "score" in found:
            return f"dev {found['score']:.0%}"
        return f"validation loss {found['loss']:.2f}" if "loss" in found else "no score"


@dataclass(frozen=True)
class Adapter:
    """An adapter's folder. Labels differ, as the titles of the bases do."""

    path: Path
    manifest: Manifest | None
    problem: str
    namesake: bool = False

    @property
    def label(self) -> str:
        m = self.manifest
        if m is None:
            return self.path.name
        name = f"{STAGE_NAMES.get(m.stage, m.stage)}, {m.document}"
        usual = f"adapters_{m.profile}_{m.document}_{m.stage}"
        plain = self.path.name == usual and not self.namesake
        return name if plain else f"{name} ({self.path.name})"

    @property
    def detail(self) -> str:
        m = self.manifest
        date = m.created[:16].replace("T", " ")
        return f"{date} · best step {m.best_step} · {m.score} · rank {m.lora.rank}"


def adapters(base: Path) -> list[Adapter]:
    """Every adapter folder, the furthest stage and newest first, with what speaks against it."""
    folders = sorted(f for f in ROOT.glob("adapters_*") if f.is_dir())
    found = _told_apart([_adapter(folder, base) for folder in folders], lambda a: a.label)
    order = {a.path: (a.manifest.stage, a.manifest.created) for a in found if a.manifest}
    return sorted(found, key=lambda a: order.get(a.path, ("", "")), reverse=True)


def _adapter(folder: Path, base: Path) -> Adapter:
    if folder.name.endswith(".partial"):
        return Adapter(folder, None, "its training has not finished")
    try:
        manifest = Manifest.model_validate(read_json(folder / "manifest.json"))
    except InputError as error:
        return Adapter(folder, None, str(error))
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        return Adapter(folder, None, f"manifest.json: {key} is missing or wrong")
    problem = ""
    if not (folder / "adapters.safetensors").exists():
        problem = "adapters.safetensors is missing"
    elif manifest.base.fingerprint != _fingerprint(base, changed(base / "config.json")):
        problem = f"trained on another base than {shown(base)}"
    return Adapter(folder, manifest, problem)


@functools.lru_cache(maxsize=16)
def _fingerprint(base: Path, _changed: int) -> str:
    return model_fingerprint(base)


def changed(file: Path) -> int:
    """Another number when the file is written again, so that a new training is noticed."""
    return file.stat().st_mtime_ns if file.exists() else 0
