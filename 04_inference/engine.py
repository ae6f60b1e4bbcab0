"""What can be loaded, and the one thread that loads it and answers.

Reads:   models/*.yaml, models/<4-bit folder>, adapters_*/manifest.json and the adapter weights
Command: none of its own; infer_ui.py and the tests use it

mlx's streams belong to a thread and Streamlit runs every click on a new one, so a single worker
does all the mlx work. It owns the answers too: a page that goes away loses nothing.
"""

import functools
import gc
import logging
import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from injection.files import ROOT, InputError, model_fingerprint, read_json, shown
from injection.profiles import Chat, Project

STAGE_NAMES = {"cpt": "Stage 1 (CPT)", "sft": "Stage 2 (SFT)"}
BASE_NAME = "Base model (no adapter)"


@dataclass(frozen=True)
class Base:
    """A profile; `problem` says why it cannot be used, empty when it can."""

    name: str
    project: Project | None
    problem: str

    @property
    def title(self) -> str:
        return self.project.profile.title if self.project else self.name


def bases() -> list[Base]:
    """Every profile in models/, usable or not."""
    found = []
    for file in sorted((ROOT / "models").glob("*.yaml")):
        try:
            project = Project(file.stem, "paper")
        except InputError as error:
            found.append(Base(file.stem, None, str(error)))
            continue
        made = (project.base / "config.json").exists()
        command = f"python 03_quantization/quantize.py --profile {file.stem}"
        found.append(Base(file.stem, project, "" if made else f"not made yet, run {command}"))
    return found


class _Fingerprint(BaseModel):
    fingerprint: str


class _Rank(BaseModel):
    rank: int


class Manifest(BaseModel):
    """The part of manifest.json that the pickers show."""

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
    path: Path
    manifest: Manifest | None
    problem: str

    @property
    def label(self) -> str:
        m = self.manifest
        if m is None:
            return self.path.name
        name = f"{STAGE_NAMES.get(m.stage, m.stage)}, {m.document}"
        usual = f"adapters_{m.profile}_{m.document}_{m.stage}"
        return name if self.path.name == usual else f"{name} ({self.path.name})"

    @property
    def detail(self) -> str:
        m = self.manifest
        date = m.created[:16].replace("T", " ")
        return f"{date} · best step {m.best_step} · {m.score} · rank {m.lora.rank}"


def adapters(base: Path) -> list[Adapter]:
    """Every adapter folder, the furthest stage and newest first, with what speaks against it."""
    folders = sorted(f for f in ROOT.glob("adapters_*") if f.is_dir())
    found = [_adapter(folder, base) for folder in folders]
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
    elif manifest.base.fingerprint != _fingerprint(base, _stamp(base / "config.json")):
        problem = f"trained on another base than {shown(base)}"
    return Adapter(folder, manifest, problem)


@functools.lru_cache(maxsize=16)
def _fingerprint(base: Path, _changed: int) -> str:
    return model_fingerprint(base)


def _stamp(file: Path) -> int:
    """Changes when the file is written again, so that a new training is noticed."""
    return file.stat().st_mtime_ns if file.exists() else 0


@dataclass(frozen=True)
class Request:
    """One question and everything its answer depends on. `turns` are (question, answer)."""

    base: Path
    chat: Chat
    context: int
    question: str
    adapter: Path | None = None
    label: str = BASE_NAME
    system: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    use_gate: bool = True

    def messages(self, dropped: int = 0) -> list[dict]:
        """The conversation without its `dropped` oldest turns."""
        pairs = [("system", self.system)] if self.system.strip() else []
        for question, answer in self.turns[dropped:]:
            pairs += [("user", question), ("assistant", answer)]
        pairs.append(("user", self.question))
        return [{"role": role, "content": content} for role, content in pairs]


@dataclass(frozen=True)
class Stats:
    tokens_in: int
    tokens_out: int
    tokens_per_second: float
    first_token: float
    peak_gb: float
    finish: str | None


class Answer:
    """A request on its way: queued, loading, running, then done, stopped or failed.

    The worker writes, any thread reads; wait() returns when there is something new.
    """

    def __init__(self, request: Request | None):
        self.request = request
        self.state, self.text, self.error, self.dropped = "queued", "", "", 0
        self.stats: Stats | None = None
        self.by_adapter: bool | None = None
        self.cancelled = threading.Event()
        self._version, self._changed = 0, threading.Condition()

    @property
    def finished(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    def update(self, **changes) -> None:
        with self._changed:
            vars(self).update(changes)
            self._version += 1
            self._changed.notify_all()

    def begin(self) -> bool:
        """Leave the queue; False when it was cancelled there."""
        with self._changed:
            if self.state == "queued":
                self.update(state="loading")
            return self.state == "loading"

    def cancel(self) -> None:
        """Stop at the next token, at once if still queued; the text so far stays."""
        self.cancelled.set()
        with self._changed:
            if self.state == "queued":
                self.update(state="stopped")

    def wait(self, seen: int, timeout: float) -> int:
        """Block until there is news after version `seen`, or the timeout; the version now."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout)
            return self._version

    def result(self, timeout: float = 600) -> str:
        """Block until finished; the text."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.finished, timeout):
                raise TimeoutError(f"no answer within {timeout} s")
        return self.text


def load(base: Path, chat: Chat):
    """A ChatModel. Imported here, so that mlx starts on the worker and the page shows at once."""
    from injection.models import ChatModel

    return ChatModel(base, chat)


class Engine:
    """First come, first served. One base in memory; adapters are swapped on it."""

    def __init__(self, load=load):
        self._load = load
        self._model = self._base = self._adapter = None
        self._queue: deque[Answer | None] = deque()
        self._current: Answer | None = None
        self._ready = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlx")
        self._thread.start()

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def submit(self, request: Request | None) -> Answer:
        answer = Answer(request)
        with self._ready:
            self._queue.append(answer)
            self._ready.notify()
        return answer

    def unload(self) -> Answer:
        """Free the model's memory when everything asked before is answered."""
        return self.submit(None)

    def ahead(self, answer: Answer) -> int:
        """How many answers come before this one."""
        with self._ready:
            line = [self._current, *self._queue]
        before = line[: line.index(answer)] if answer in line else []
        return sum(1 for a in before if a and not a.finished)

    def close(self) -> None:
        """Finish what is queued, then end the worker."""
        with self._ready:
            self._queue.append(None)
            self._ready.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._queue)
                self._current = self._queue.popleft()
            if self._current is None:
                return self._unload()
            if self._current.begin():
                self._serve(self._current)

    def _serve(self, answer: Answer) -> None:
        try:
            if answer.request is None:
                self._unload()
            else:
                self._generate(answer)
            answer.update(state="stopped" if answer.cancelled.is_set() else "done")
        except InputError as error:
            answer.update(state="failed", error=str(error))
        except Exception as error:
            logging.getLogger(__name__).exception("answer failed")
            self._unload()
            first_line = str(error).strip().split("\n")[0]
            answer.update(state="failed", error=f"{type(error).__name__}: {first_line}")

    def _generate(self, answer: Answer) -> None:
        import mlx.core as mx

        request = answer.request
        self._prepare(request)
        if answer.cancelled.is_set():
            return
        dropped, room = fit(self._model, request)
        answer.update(state="running", dropped=dropped)
        self._model.use_gate = request.use_gate
        mx.reset_peak_memory()
        started, first = time.monotonic(), None
        options = (room, request.temperature, request.top_p, request.seed)
        with closing(self._model.stream(request.messages(dropped), *options)) as stream:
            for reply in stream:
                first = first or time.monotonic() - started
                answer.update(
                    text=answer.text + reply.text,
                    stats=_stats(reply, first),
                    by_adapter=self._model.adapter_speaks,
                )
                if answer.cancelled.is_set():
                    return

    def _prepare(self, request: Request) -> None:
        base = (request.base, _stamp(request.base / "config.json"), request.chat)
        if base != self._base:
            self._unload()
            self._model = self._load(request.base, request.chat)
            self._base, self._adapter = base, (None, 0)
        path = request.adapter
        adapter = (path, _stamp(path / "adapters.safetensors") if path else 0)
        if adapter != self._adapter:
            # Unknown until attach() succeeds.
            self._adapter = None
            self._model.attach(path)
            self._adapter = adapter

    def _unload(self) -> None:
        if self._model is None:
            return
        import mlx.core as mx

        self._model = self._base = self._adapter = None
        gc.collect()
        mx.clear_cache()


def _stats(reply, first: float) -> Stats:
    return Stats(
        tokens_in=reply.prompt_tokens,
        tokens_out=reply.generation_tokens,
        tokens_per_second=reply.generation_tps,
        first_token=first,
        peak_gb=reply.peak_memory,
        finish=reply.finish_reason,
    )


def fit(model, request: Request) -> tuple[int, int]:
    """(oldest turns to drop, tokens left for the answer) so that all fits in the context."""
    for dropped in range(len(request.turns) + 1):
        used = len(model.prompt(request.messages(dropped)))
        if used + request.max_tokens <= request.context:
            return dropped, request.max_tokens
    if used >= request.context:
        limit = request.context
        raise InputError(f"the question has {used} tokens, the model takes {limit}: shorten it")
    return dropped, request.context - used
