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


@dataclass
class Answer:
    """`text` is what was said, without think blocks; `tokens` counts those as well."""

    text: str
    tokens: int
    finish_reason: str


class _Batch:
    """State that all layers share: each row's next position and which columns are real."""

    def __init__(self, prefix: int, lengths: list[int], room: int):
        self.prefix, self.lengths = prefix, mx.array(lengths)
        self.padded = max(lengths)
        self.columns = prefix + self.padded + room
        self.offset = 0
        self.filled = 0

    def begin_decoding(self) -> None:
        self.offset = self.prefix + self.lengths

    def advance(self, n: int) -> None:
        self.filled += n
        self.offset = self.offset + n

    def mask(self, n: int):
        if isinstance(self.offset, int):
            return create_causal_mask(n, offset=self.offset) if self.offset else "causal"
        column = mx.arange(self.filled + n)
        start, end = self.prefix + self.lengths[:, None], self.prefix + self.padded
        return ((column < start) | (column >= end))[:, None, None, :]

    def keep(self, rows: mx.array) -> None:
        self.lengths, self.offset = self.lengths[rows], self.offset[rows]


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
        self.keys[..., start:end, :] = keys
        self.values[..., start:end, :] = values
        return self.keys[..., :end, :], self.values[..., :end, :]

    def keep(self, rows: mx.array) -> None:
        self.keys, self.values = self.keys[rows], self.values[rows]


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
) -> list[list[int]]:
    """Greedy continuation of each prompt (token ids), without the stop token.

    bias: added to the logits, see text_bias; first_bias: to those of the first token as well.
    """
    batch, cache, logits = _read(model, prompts, max_tokens)
    token = mx.argmax(logits + bias + first_bias, axis=-1)
    return _decode(model, batch, cache, token, max_tokens, stop, bias)


def first_logits(model: nn.Module, prompts: list[list[int]]) -> mx.array:
    """Logits (prompts, vocabulary) of the first token after each prompt."""
    return _read(model, prompts, 0)[2]


def _read(model, prompts, room: int) -> tuple[_Batch, list[_LayerCache], mx.array]:
    """Everything after the prompts went through the model, and the logits of the next token."""
    prefix = shared_prefix(prompts)
    tails = [p[prefix:] for p in prompts]
    batch = _Batch(prefix, [len(t) for t in tails], room)
    cache = [_LayerCache(batch) for _ in model.layers]
    if prefix:
        mx.eval(model.model(mx.array([prompts[0][:prefix]]), cache))
        batch.advance(prefix)
    padded = mx.array([t + [0] * (batch.padded - len(t)) for t in tails])
    hidden = model.model(padded, cache)
    batch.advance(batch.padded)
    batch.begin_decoding()
    last = mx.take_along_axis(hidden, (batch.lengths - 1)[:, None, None], axis=1)
    return batch, cache, head(model, last)[:, 0]


def _decode(model, batch, cache, token, max_tokens, stop, bias) -> list[list[int]]:
    results: list[list[int]] = [[] for _ in range(token.size)]
    active = list(range(token.size))
    for step in range(max_tokens):
        ids = token.tolist()
        alive = [i for i, t in enumerate(ids) if active[i] >= 0 and t not in stop]
        for i in alive:
            results[active[i]].append(ids[i])
        if not alive or step == max_tokens - 1:
            break
        if len(alive) <= 0.75 * len(active):
            rows = mx.array(alive)
            active, token = [active[i] for i in alive], token[rows]
            batch.keep(rows)
            for layer in cache:
                layer.keep(rows)
        else:
            active = [a if i in set(alive) else -1 for i, a in enumerate(active)]
        hidden = model.model(token[:, None], cache)
        batch.advance(1)
        token = mx.argmax(head(model, hidden)[:, 0] + bias, axis=-1)
    return results


def answer_questions(
    model: nn.Module,
    tokenizer,
    chat: Chat,
    questions: list[str],
    settings: Generation,
    stop: set[int],
    progress: Callable[[int], None] = lambda done: None,
    first_bias: mx.array | float = 0.0,
) -> list[Answer]:
    """Greedy answers to single-turn questions, in the order given. first_bias: see greedy_batch.

    Batches are made of prompts of similar length, so that little is padded.
    """
    tokens = [
        prompts.prompt_tokens(tokenizer, [{"role": "user", "content": q}], chat) for q in questions
    ]
    bias = text_bias(tokenizer, model.args.vocab_size)
    answers: dict[int, Answer] = {}
    for batch in by_length(tokens, settings.batch_size):
        batch_tokens = [tokens[i] for i in batch]
        replies = greedy_batch(model, batch_tokens, settings.max_tokens, stop, bias, first_bias)
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
    batch = _Batch(0, [len(prompt)], max_tokens)
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
