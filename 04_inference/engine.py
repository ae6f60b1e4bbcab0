"""The one thread that loads models and answers.

Reads:   models/<4-bit folder>, the weights of adapters_*/
Command: none of its own; infer_ui.py and the tests use it

mlx's streams belong to a thread and Streamlit runs every click on a new one, so a single worker
does all the mlx work. It owns the answers too: a page that goes away loses nothing.
"""

import gc
import logging
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from adapters import BASE_NAME, changed

from injection import runtime
from injection.files import InputError
from injection.profiles import Chat


@dataclass(frozen=True)
class Request:
    """One question and everything its answer depends on. `turns` are (question, answer).

    `begun` and `begun_text` are the tokens and the text of an answer to be continued. `seed` None
    stands for one that seeded() draws.
    """

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
    seed: int | None = 0
    use_gate: bool = True
    begun: tuple[int, ...] = ()
    begun_text: str = ""
    view: str = "chat"

    def messages(self, dropped: int = 0) -> list[dict]:
        """The conversation without its `dropped` oldest turns."""
        pairs = [("system", self.system)] if self.system.strip() else []
        for question, answer in self.turns[dropped:]:
            pairs += [("user", question), ("assistant", answer)]
        pairs.append(("user", self.question))
        return [{"role": role, "content": content} for role, content in pairs]

    def seeded(self) -> "Request":
        """The same with a seed: the chosen one, or a random one where it matters."""
        drawn = secrets.randbelow(2**31) if self.temperature else 0
        return replace(self, seed=drawn) if self.seed is None else self


@dataclass(frozen=True)
class Stats:
    """Token counts; tokens/s without the prompt, 0 for a single token; seconds from question to
    first token."""

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
        self.request, self.id = request, secrets.token_hex(8)
        self.state, self.error, self.dropped = "queued", "", 0
        self.text = request.begun_text if request else ""
        self.tokens: tuple[int, ...] = request.begun if request else ()
        self.stats: Stats | None = None
        self.by_adapter: bool | None = None
        self.vote: int | None = None
        self.cancelled = threading.Event()
        self._version, self._changed = 0, threading.Condition()

    @property
    def finished(self) -> bool:
        return self.state in ("done", "stopped", "failed")

    @property
    def gated(self) -> bool:
        """Whether there is an adapter and its gate let the base model answer."""
        return bool(self.request.adapter) and self.by_adapter is False

    @property
    def unfinished_text(self) -> bool:
        """Whether there is more to say: stopped by the user or by the token limit."""
        cut = self.stats is not None and self.stats.finish == "length"
        return self.finished and bool(self.tokens) and (self.state == "stopped" or cut)

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

    def wait_for_text(self, timeout: float) -> None:
        """Block until there is text to show, the answer has ended, or the timeout is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.text or self.finished, timeout)

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
    """First come, first served. One base in memory; adapters are swapped on it.

    `finished` is called on the worker with every answer that it began, when it ends. One that is
    cancelled in the queue never gets there.
    """

    def __init__(self, load=load, finished: Callable[[Answer], None] = lambda answer: None):
        self._load, self._finished = load, finished
        self._model = self._base = self._adapter = None
        self._queue: deque[Answer | None] = deque()
        self._later: deque[Answer | None] = deque()
        self._current: Answer | None = None
        self._ready = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="mlx")
        self._thread.start()

    @property
    def loaded(self) -> bool:
        return self._model is not None

    def submit(self, request: Request | None, later: bool = False) -> Answer:
        """Queue a request. With `later` it lets everything else go first: a long set of them."""
        answer = Answer(request)
        self._put(answer, later)
        return answer

    def _put(self, answer: Answer | None, later: bool) -> None:
        with self._ready:
            (self._later if later else self._queue).append(answer)
            self._ready.notify()

    def unload(self) -> Answer:
        """Free the model's memory when everything asked before is answered."""
        return self.submit(None, later=True)

    def ahead(self, answer: Answer) -> int:
        """How many answers come before this one."""
        with self._ready:
            line = [self._current, *self._queue, *self._later]
        before = line[: line.index(answer)] if answer in line else []
        return sum(1 for a in before if a and not a.finished)

    def close(self) -> None:
        """Finish what is queued, then end the worker."""
        self._put(None, later=True)
        self._thread.join()

    def abort(self) -> None:
        """Stop what is running, drop what is queued, end the worker."""
        with self._ready:
            left = [self._current, *self._queue, *self._later]
        for answer in left:
            if answer:
                answer.cancel()
        self.close()

    def _work(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._queue or self._later)
                self._current = (self._queue or self._later).popleft()
            if self._current is None:
                return self._end()
            if self._current.begin():
                self._serve(self._current)

    def _serve(self, answer: Answer) -> None:
        try:
            if answer.request is None:
                self._unload()
            else:
                self._generate(answer)
            end = {"state": "stopped" if answer.cancelled.is_set() else "done"}
        except InputError as error:
            end = {"state": "failed", "error": str(error)}
        except Exception as error:
            logging.getLogger(__name__).exception("answer failed")
            self._unload()
            first_line = str(error).strip().split("\n")[0]
            end = {"state": "failed", "error": f"{type(error).__name__}: {first_line}"}
        answer.update(**end)
        if answer.request:
            self._finished(answer)

    def _generate(self, answer: Answer) -> None:
        import mlx.core as mx

        request, started = answer.request, time.monotonic()
        if self._prepare(request):
            # The model had to be loaded or the adapter swapped: no part of reading the question.
            started = time.monotonic()
        if answer.cancelled.is_set():
            return
        dropped, used, room = fit(self._model, request)
        answer.update(state="running", dropped=dropped)
        self._model.use_gate = request.use_gate
        mx.reset_peak_memory()
        first, tokens = None, list(request.begun)
        options = (room, request.temperature, request.top_p, request.seed, request.begun)
        with closing(self._model.stream(request.messages(dropped), *options)) as stream:
            for reply in stream:
                first = first or time.monotonic() - started
                if reply.finish_reason != "stop":
                    tokens.append(reply.token)
                answer.update(
                    text=self._model.opening + self._model.decode(tokens),
                    tokens=tuple(tokens),
                    stats=_stats(reply, used, len(tokens), first),
                    by_adapter=self._model.adapter_speaks,
                )
                if answer.cancelled.is_set():
                    return

    def _prepare(self, request: Request) -> bool:
        """Load the base and swap the adapter where they differ; whether they did."""
        base = (request.base, changed(request.base / "config.json"), request.chat)
        path = request.adapter
        adapter = (path, changed(path / "adapters.safetensors") if path else 0)
        if (base, adapter) == (self._base, self._adapter):
            return False
        if base != self._base:
            self._unload()
            self._model = self._load(request.base, request.chat)
            # Streamlit collects garbage after every run of a page. It need not search the model
            # and the libraries, 80 ms in which no token is made.
            gc.collect()
            gc.freeze()
            self._base, self._adapter = base, (None, 0)
        if adapter != self._adapter:
            # Unknown until attach() succeeds.
            self._adapter = None
            self._model.attach(path)
            self._adapter = adapter
        return True

    def _unload(self) -> None:
        if self._model is None:
            return
        import mlx.core as mx

        self._model = self._base = self._adapter = None
        gc.unfreeze()
        gc.collect()
        mx.clear_cache()
        runtime.return_freed_memory()

    def _end(self) -> None:
        if "mlx.core" not in sys.modules:
            return
        import mlx.core as mx

        self._unload()
        # A thread that ends without this makes the process abort when it exits.
        mx.clear_streams()


def _stats(reply, tokens_in: int, tokens_out: int, first: float) -> Stats:
    return Stats(
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        tokens_per_second=reply.generation_tps if reply.generation_tokens > 1 else 0.0,
        first_token=first,
        peak_gb=reply.peak_memory,
        finish=reply.finish_reason,
    )


def fit(model, request: Request) -> tuple[int, int, int]:
    """(oldest turns to drop, prompt tokens, tokens left for the answer) within the context."""
    begun = len(request.begun)
    for dropped in range(len(request.turns) + 1):
        used = len(model.prompt(request.messages(dropped)))
        if used + begun + request.max_tokens <= request.context:
            return dropped, used, request.max_tokens
    if used + begun >= request.context:
        limit = request.context
        asked = used + begun
        raise InputError(f"the question has {asked} tokens, the model takes {limit}: shorten it")
    return dropped, used, request.context - used - begun
