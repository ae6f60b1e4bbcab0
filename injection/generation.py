"""Greedy answers to many questions at once.

Rows of different length are decoded together without left padding: prompts are padded on the
right, every row keeps its own position, and padding columns are masked out. What all prompts
begin with (the template's system turn) is computed once. The result equals decoding one by one.
"""

import re
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask

from injection import prompts
from injection.profiles import Chat, Generation

# Tokens of a prompt that are read at once, as mlx-lm does: more would cost memory.
PREFILL = 2048
# Of an any-to-any model: <|vision00017|>, <|audio0017|>, and the marks around such codes.
NOT_TEXT = re.compile(r"<\|\w*(?:vision|image|video|audio)[^|]*\|>", re.IGNORECASE)


# (number of the prompt, what was said so far) to what may follow.
Guess = Callable[[int, list[int]], list[int]]


@dataclass
class Answer:
    """`text` is what was said, without think blocks; `tokens` counts those as well."""

    text: str
    tokens: int
    finish_reason: str


class _Batch:
    """State that all layers share: each row's next position and which columns are real."""

    def __init__(self, columns: int):
        self.columns = columns
        self.offset: int | mx.array = 0
        self.filled = 0
        self.real: mx.array | None = None

    def advance(self, n: int, kept: mx.array | None = None) -> None:
        """After a pass over n columns, of which each row keeps the first `kept` (rows,)."""
        if kept is not None:
            all_real = mx.ones((kept.size, self.filled), dtype=mx.bool_)
            before = all_real if self.real is None else self.real
            self.real = mx.concatenate([before, mx.arange(n) < kept[:, None]], axis=1)
        self.offset = self.offset + (n if kept is None else kept)
        self.filled += n

    def mask(self, n: int):
        if self.real is None:
            return create_causal_mask(n, offset=self.offset) if self.offset else "causal"
        before = mx.broadcast_to(self.real[:, None, None], (len(self.real), 1, n, self.filled))
        new = mx.broadcast_to(create_causal_mask(n), (len(self.real), 1, n, n))
        return mx.concatenate([before, new], axis=-1)

    def keep(self, rows: mx.array) -> None:
        self.real, self.offset = self.real[rows], self.offset[rows]


class _LayerCache:
    """Keys and values of one layer, (rows, kv heads, columns, head dim), mlx-lm's interface."""

    def __init__(self, batch: _Batch):
        self.batch = batch
        self.keys = self.values = None

    @property
    def offset(self):
        return self.batch.offset

    def make_mask(self, n: int, **_):
        return self.batch.mask(n)

    def update_and_fetch(self, keys: mx.array, values: mx.array):
        rows, heads, n, dim = keys.shape
        start, end = self.batch.filled, self.batch.filled + n
        if self.keys is None:
            self.keys = mx.zeros((rows, heads, self.batch.columns, dim), keys.dtype)
            self.values = mx.zeros((rows, heads, self.batch.columns, dim), values.dtype)
        elif self.keys.shape[0] != rows:
            # The shared prefix was computed as one row.
            self.keys = mx.repeat(self.keys, rows, axis=0)
            self.values = mx.repeat(self.values, rows, axis=0)
        if end > self.keys.shape[2]:
            # Drafts that were not kept took columns as well.
            more = mx.zeros((rows, heads, max(n, self.batch.columns), dim), keys.dtype)
            self.keys = mx.concatenate([self.keys, more], axis=2)
            self.values = mx.concatenate([self.values, more], axis=2)
        self.keys[..., start:end, :] = keys
        self.values[..., start:end, :] = values
        return self.keys[..., :end, :], self.values[..., :end, :]

    def keep(self, rows: mx.array) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


def no_guess(prompt: int, said: list[int]) -> list[int]:
    return []


def head(model: nn.Module, hidden: mx.array) -> mx.array:
    """Logits (..., vocabulary) of final hidden states (..., hidden)."""
    tied = model.args.tie_word_embeddings
    return model.model.embed_tokens.as_linear(hidden) if tied else model.lm_head(hidden)


def text_bias(tokenizer, vocabulary: int) -> mx.array | float:
    """What to add to logits, (vocabulary,), so that no image or audio code is said.

    The codes are found by name in the tokenizer; 0 when it has none.
    """
    names = tokenizer.get_added_vocab()
    codes = [i for name, i in names.items() if NOT_TEXT.fullmatch(name) and i < vocabulary]
    if not codes:
        return 0.0
    bias = mx.zeros(vocabulary)
    bias[mx.array(codes)] = -mx.inf
    return bias


def shared_prefix(prompts: list[list[int]]) -> int:
    """Number of tokens that all prompts begin with; at least one token of each is left over."""
    shortest = min(map(len, prompts)) - 1
    first = prompts[0]
    for i in range(shortest):
        if any(p[i] != first[i] for p in prompts):
            return i
    return shortest


def padded(rows: list[list[int]]) -> mx.array:
    width = max(map(len, rows))
    return mx.array([r + [0] * (width - len(r)) for r in rows])


def by_length(rows: Sequence[Sized], size: int) -> Iterator[list[int]]:
    """Indices of the rows in batches of similar length, the shortest first."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def greedy_batch(
    model: nn.Module,
    prompts: list[list[int]],
    max_tokens: int,
    stop: set[int],
    bias: mx.array | float = 0.0,
    first_bias: mx.array | float = 0.0,
    guess: Guess = no_guess,
) -> list[list[int]]:
    """Greedy continuation of each prompt (token ids), without the stop token.

    bias: added to the logits, see text_bias; first_bias: to those of the first token as well.
    guess: what may follow, given a prompt's number and its continuation so far: all of it that the
    model would have said is taken at once (drafts.py).
    """
    batch, cache, logits = _read(model, prompts, max_tokens)
    token = mx.argmax(logits + bias + first_bias, axis=-1)
    return _decode(model, batch, cache, token, max_tokens, stop, bias, guess)


def first_logits(model: nn.Module, prompts: list[list[int]]) -> mx.array:
    """Logits (prompts, vocabulary) of the first token after each prompt."""
    return _read(model, prompts, 0)[2]


def _read(model, prompts, room: int) -> tuple[_Batch, list[_LayerCache], mx.array]:
    """Everything after the prompts went through the model, and the logits of the next token."""
    prefix = shared_prefix(prompts)
    tails = [p[prefix:] for p in prompts]
    lengths = mx.array([len(t) for t in tails])
    longest = max(map(len, tails))
    batch = _Batch(prefix + longest + room)
    cache = [_LayerCache(batch) for _ in model.layers]
    if prefix:
        mx.eval(model.model(mx.array([prompts[0][:prefix]]), cache))
        batch.advance(prefix)
    hidden = model.model(padded(tails), cache)
    batch.advance(longest, lengths)
    last = mx.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return batch, cache, head(model, last)[:, 0]


def _decode(model, batch, cache, token, max_tokens, stop, bias, guess) -> list[list[int]]:
    results: list[list[int]] = [[] for _ in range(token.size)]
    active, done = list(range(token.size)), set()
    said = [[t] for t in token.tolist()]
    while True:
        for i, new in zip(active, said, strict=True):
            if i not in done and not _extend(results[i], new, max_tokens, stop):
                done.add(i)
        alive = [row for row, i in enumerate(active) if i not in done]
        if not alive:
            return results
        if len(alive) <= 0.75 * len(active):
            active = [active[row] for row in alive]
            batch.keep(mx.array(alive))
            for layer in cache:
                layer.keep(mx.array(alive))
        drafts = [[] if i in done else guess(i, results[i]) for i in active]
        last = [results[i][-1:] or [0] for i in active]
        tokens = padded([a + b for a, b in zip(last, drafts, strict=True)])
        hidden = model.model(tokens, cache)
        picks = mx.argmax(head(model, hidden) + bias, axis=-1).tolist()
        said = [p[: agreed(d, p) + 1] for d, p in zip(drafts, picks, strict=True)]
        batch.advance(tokens.shape[1], mx.array([len(s) for s in said]))


def _extend(result: list[int], new: list[int], max_tokens: int, stop: set[int]) -> bool:
    """Append new tokens up to a stop token or the limit; whether the answer goes on."""
    for token in new:
        if token in stop:
            return False
        result.append(token)
        if len(result) == max_tokens:
            return False
    return True


def agreed(draft: list[int], picks: list[int]) -> int:
    """How many tokens of a draft are those that the model picks."""
    pairs = zip(draft, picks, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), len(draft))


def answer_questions(
    model: nn.Module,
    tokenizer,
    chat: Chat,
    questions: list[str],
    settings: Generation,
    stop: set[int],
    progress: Callable[[int], None] = lambda done: None,
    first_bias: mx.array | float = 0.0,
    guess: Guess = no_guess,
) -> list[Answer]:
    """Greedy answers to single-turn questions, in the order given. first_bias, guess: see
    greedy_batch, but guess gets the number of the question.

    Batches are made of prompts of similar length, so that little is padded.
    """
    tokens = [
        prompts.prompt_tokens(tokenizer, [{"role": "user", "content": q}], chat) for q in questions
    ]
    bias = text_bias(tokenizer, model.args.vocab_size)
    answers: dict[int, Answer] = {}
    for batch in by_length(tokens, settings.batch_size):
        batch_tokens = [tokens[i] for i in batch]
        replies = greedy_batch(
            model,
            batch_tokens,
            settings.max_tokens,
            stop,
            bias,
            first_bias,
            lambda row, said, batch=batch: guess(batch[row], said),
        )
        for i, ids in zip(batch, replies, strict=True):
            reason = "stop" if len(ids) < settings.max_tokens else "length"
            raw = prompts.open_block(tokenizer, tokens[i]) + tokenizer.decode(ids)
            answers[i] = Answer(prompts.without_thoughts(raw), len(ids), reason)
        progress(len(answers))
    return [answers[i] for i in range(len(tokens))]


def sample_batch(
    model: nn.Module, tokenizer, prompt: list[int], rows: int, max_tokens: int, seed: int
) -> list[str]:
    """`rows` random continuations (temperature 1) of one prompt, up to the stop token."""
    mx.random.seed(seed)
    batch = _Batch(len(prompt) + max_tokens)
    cache = [_LayerCache(batch) for _ in model.layers]
    hidden = model.model(mx.array([prompt]), cache)
    batch.advance(len(prompt))
    bias = text_bias(tokenizer, model.args.vocab_size)
    logits = mx.repeat(head(model, hidden[:, -1]), rows, axis=0)
    texts, done = [[] for _ in range(rows)], [False] * rows
    for _ in range(max_tokens):
        token = mx.random.categorical(logits.astype(mx.float32) + bias)
        for i, t in enumerate(token.tolist()):
            done[i] = done[i] or t in tokenizer.eos_token_ids
            if not done[i]:
                texts[i].append(t)
        if all(done):
            break
        logits = head(model, model.model(token[:, None], cache)[:, -1])
        batch.advance(1)
    return [tokenizer.decode(t) for t in texts]
