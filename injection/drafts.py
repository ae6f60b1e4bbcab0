"""Drafts of answers: what the rows taught, tried many tokens at once instead of one by one.

Reads:   answers.jsonl in the adapter folder: {"answer": text, "tokens": its ids, stop token last}
Writes:  the same; finishing.py calls it
Command: none of its own; models.ChatModel uses it

What a token costs is reading the weights, so a pass over twenty tokens costs little more than one
over a single token. An adapter mostly says what its rows say: the rest of the answer that fits so
far is fed to the model, and all of it up to the first token that the model would not have said is
kept. The answer is that of plain greedy decoding, up to rounding. Drafts by retrieval are REST's
(arXiv 2311.08252).
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import GenerationResponse, wired_limit

from injection.files import read_jsonl, write_jsonl
from injection.generation import PREFILL, Guess, agreed, head

FILE = "answers.jsonl"
# Tokens tried at once. More would cost too much where the model says something else; in a batch
# every row is padded to the longest draft, and many rows keep a CPU busy as it is.
STREAM, BATCH = 24, 8
START = -1


class Drafts:
    """Known answers, found by the tokens that an answer has so far and those of its question."""

    def __init__(self, answers: Iterable[list[int]]):
        self.answers = [[START, *answer] for answer in answers]
        self.words = [set(answer) for answer in self.answers]
        self.rarity = Counter(token for words in self.words for token in words)
        self.places = defaultdict(list)
        for i, answer in enumerate(self.answers):
            for end in range(2, len(answer)):
                self.places[tuple(answer[end - 2 : end])].append((i, end))

    def guesses(self, tokenizer, questions: list[str], length: int) -> Guess:
        """What may follow in the answers to these questions, up to so many tokens."""
        asked = [set(tokenizer.encode(f" {q}", add_special_tokens=False)) for q in questions]
        return lambda question, said: self.guess(said, asked[question])[:length]

    def guess(self, said: list[int], asked: set[int]) -> list[int]:
        """What may follow said: the rest of the answer that agrees with it over the longest
        stretch, and among those has most in common with the question's tokens."""
        said = [START, *said]
        places = self.places.get(tuple(said[-2:]), [])
        common = {i: sum(1 / self.rarity[t] for t in asked & self.words[i]) for i, _ in places}
        found = max(places, key=lambda p: (self._agreement(said, *p), common[p[0]]), default=None)
        return self.answers[found[0]][found[1] :] if found else []

    def _agreement(self, said: list[int], i: int, end: int) -> int:
        pairs = zip(reversed(said), reversed(self.answers[i][:end]), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(said), end))


def save(folder: Path, tokenizer, answers: Iterable[list[int]]) -> None:
    """Keep each of these answers (token ids, stop token last) once."""
    rows = [
        {"answer": tokenizer.decode(tokens, skip_special_tokens=True), "tokens": list(tokens)}
        for tokens in sorted({tuple(tokens) for tokens in answers})
    ]
    write_jsonl(folder / FILE, rows)


def read_drafts(folder: Path) -> Drafts | None:
    """The drafts of an adapter folder, None when it has none."""
    if not (folder / FILE).exists():
        return None
    return Drafts(row["tokens"] for row in read_jsonl(folder / FILE, keys=("tokens",)))


def greedy(
    model: nn.Module,
    cache: list,
    tokens: list[int],
    guess: Guess,
    bias: mx.array | float,
    first_bias: mx.array | float,
) -> Iterator[tuple[int, bool]]:
    """(token, whether it was drafted) of the greedy continuation of tokens, without an end.

    cache: mlx-lm's, of all that stands before tokens. Biases are added to the logits, first_bias
    to those of the first token as well.
    """
    for start in range(0, len(tokens) - 1, PREFILL):
        piece = tokens[start : min(start + PREFILL, len(tokens) - 1)]
        model.model(mx.array([piece]), cache)
        mx.eval([layer.state for layer in cache])
    said, last, draft = [], tokens[-1], []
    while True:
        hidden = model.model(mx.array([[last, *draft]]), cache)
        logits = head(model, hidden)[0] + bias
        if not said:
            logits = logits + first_bias
        picks = mx.argmax(logits, axis=-1).tolist()
        kept = agreed(draft, picks)
        for layer in cache:
            layer.trim(len(draft) - kept)
        for n, token in enumerate(picks[: kept + 1]):
            yield token, n < kept
        said += picks[: kept + 1]
        last, draft = said[-1], guess(0, said)


def stream(
    model: nn.Module, tokenizer, tokens: Iterator[tuple[int, bool]], prompt: int, max_tokens: int
) -> Iterator[GenerationResponse]:
    """What mlx-lm's stream_generate yields, for tokens that come from greedy()."""
    detokenizer, begun = tokenizer.detokenizer, time.perf_counter()
    with wired_limit(model):
        for n, (token, drafted) in enumerate(tokens, start=1):
            if n == 1:
                read, begun = time.perf_counter() - begun, time.perf_counter()
            reason = "stop" if token in tokenizer.eos_token_ids else None
            reason = reason or ("length" if n == max_tokens else None)
            if reason != "stop":
                detokenizer.add_token(token)
            if reason:
                detokenizer.finalize()
            yield GenerationResponse(
                text=detokenizer.last_segment,
                token=token,
                logprobs=None,
                from_draft=drafted,
                prompt_tokens=prompt,
                prompt_tps=prompt / read,
                generation_tokens=n,
                generation_tps=n / (time.perf_counter() - begun),
                peak_memory=mx.get_peak_memory() / 1e9,
                finish_reason=reason,
            )
            if reason:
                return
