"""From training rows to batches: tokens, frozen hidden states computed once, shared prefixes.

With adapters on the top layers only, everything below them is constant. Each row's hidden states
at the first adapted layer are computed once and kept, so that training runs the upper part only.
The tokens that all chat rows begin with (the template's system turn) go through the upper part
once a step, whatever the batch size.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from injection import prompts
from injection.files import InputError
from injection.generation import by_length, padded, shared_prefix
from injection.profiles import Chat


@dataclass
class Row:
    """One training example. Targets are tokens[start:]; `from_base` rows imitate the base model.

    `weight` multiplies its loss; `kind` is the first word of its source ("fact", "unknown"). A chat
    row's user message begins at tokens[question], a plain text has None there. `hidden` (tokens
    after the prefix, hidden size) enters the first adapted layer; `teacher` (targets, hidden size)
    is the base model's final state.
    """

    tokens: list[int]
    start: int
    prefix: int
    from_base: bool
    question: int | None = None
    weight: float = 1.0
    kind: str = ""
    hidden: mx.array | None = None
    teacher: mx.array | None = None

    @property
    def inputs(self) -> list[int]:
        return self.tokens[self.prefix : -1]

    @property
    def targets(self) -> list[int]:
        return self.tokens[self.start :]


def tokenize(rows: list[dict], tokenizer, chat: Chat, limit: int) -> list[Row]:
    """Rows {"text"} (loss on all but the first token) or {"messages"} (loss on the answer).

    {"messages", "open": true} is an answer that was cut off: no stop token is trained. Raises
    InputError for a row longer than `limit` tokens, for cutting it would train on half an answer.
    """
    result = []
    for number, row in enumerate(rows, 1):
        if "text" in row:
            ids, start = prompts.text_tokens(tokenizer, row["text"]), 1
            question = None
            ids = ids + [tokenizer.eos_token_id]
        else:
            ids, start = prompts.example_tokens(tokenizer, row["messages"], chat)
            ids = ids[:-1] if row.get("open") else ids
            question = len(prompts.user_header(tokenizer, chat, row["messages"][:-2]))
        if len(ids) > limit:
            where = row.get("source", f"row {number}")
            raise InputError(f"{where} has {len(ids)} tokens, more than max_tokens {limit}")
        if len(ids) > start:
            from_base, weight = row.get("target") == "base", row.get("weight", 1.0)
            kind = row.get("source", "").partition(" ")[0]
            result.append(Row(ids, start, 0, from_base, question, weight, kind))
    chat_rows = [r for r in result if r.start > 1]
    if len(chat_rows) > 1:
        common = shared_prefix([r.tokens[: r.start] for r in chat_rows])
        common = min(common, *(r.question for r in chat_rows))
        for row in chat_rows:
            row.prefix = common
    return result


class Upper:
    """The trainable top of a model: its adapted layers, the final norm, and what feeds them."""

    def __init__(self, model: nn.Module, layers: int, checkpointing: bool = False):
        self.model, self.checkpointing = model, checkpointing
        self.first = len(model.layers) - layers
        self.prefixes: dict[tuple[int, ...], tuple[mx.array, list[_PrefixCache]]] = {}

    def lower(self, tokens: mx.array, cache=None) -> mx.array:
        """Hidden states (rows, tokens, hidden) at the first adapted layer."""
        hidden = self.model.model.embed_tokens(tokens)
        return _through(self.model.layers[: self.first], hidden, cache)

    def forward(self, hidden: mx.array, prefix: mx.array | None) -> mx.array:
        """Upper part up to, not including, the final norm. prefix: (1, tokens, hidden) or None."""
        layers = self.model.layers[self.first :]
        if self.checkpointing:
            if prefix is not None:
                shared = mx.broadcast_to(prefix, (hidden.shape[0], *prefix.shape[1:]))
                joined = mx.concatenate([shared, hidden], axis=1)
                return _through(map(_checkpointed, layers), joined)[:, prefix.shape[1] :]
            return _through(map(_checkpointed, layers), hidden)
        if prefix is None:
            return self.higher(hidden)
        cache = [_PrefixCache(prefix.shape[1]) for _ in layers]
        self.higher(prefix, cache)
        return self.higher(hidden, cache)

    def higher(self, hidden: mx.array, cache=None) -> mx.array:
        """Hidden states before the final norm, from those that lower() gives."""
        return _through(self.model.layers[self.first :], hidden, cache)

    def prefix_of(self, row: Row) -> tuple[mx.array | None, list["_PrefixCache"] | None]:
        """What the frozen layers make of the row's prefix: states (1, prefix, hidden), caches."""
        if not row.prefix:
            return None, None
        key = tuple(row.tokens[: row.prefix])
        if key not in self.prefixes:
            self.prefixes[key] = self.read_prefix(key)
        return self.prefixes[key]

    def read_prefix(self, tokens: Sequence[int]) -> tuple[mx.array, list["_PrefixCache"]]:
        """Hidden states (1, tokens, hidden) of what rows have in common, and caches for lower()."""
        caches = [_PrefixCache(len(tokens)) for _ in range(self.first)]
        hidden = self.lower(mx.array([tokens]), caches)
        mx.eval(hidden)
        return hidden, caches


class _PrefixCache:
    """mlx-lm's cache interface for one layer: the first call is the prefix, the second the rows."""

    def __init__(self, prefix: int):
        self.prefix, self.keys, self.values = prefix, None, None

    @property
    def offset(self) -> int:
        return 0 if self.keys is None else self.prefix

    def update_and_fetch(self, keys: mx.array, values: mx.array):
        if self.keys is None:
            self.keys, self.values = keys, values
            return keys, values
        return _prepend(self.keys, keys), _prepend(self.values, values)


def _prepend(prefix: mx.array, rows: mx.array) -> mx.array:
    shared = mx.broadcast_to(prefix, (rows.shape[0], *prefix.shape[1:]))
    return mx.concatenate([shared, rows], axis=2)


def _through(layers, hidden: mx.array, cache=None) -> mx.array:
    # "causal" aligns the last query with the last key, so it is right with a prefix as well.
    for i, layer in enumerate(layers):
        hidden = layer(hidden, "causal", None if cache is None else cache[i])
    return hidden


def _checkpointed(layer: nn.Module):
    def run(parameters, *args):
        layer.update(parameters)
        return layer(*args)

    return lambda hidden, mask, _: mx.checkpoint(run)(layer.trainable_parameters(), hidden, mask)


def fill_cache(upper: Upper, rows: list[Row], batch_size: int, progress) -> int:
    """Compute row.hidden (and row.teacher) of every row, with the adapter switched off.

    Must run before the adapter changes anything, i.e. on fresh LoRA layers. Returns the bytes
    kept. Rows are grouped by length; nothing is dropped.
    """
    kept = done = 0
    for prefix in sorted({r.prefix for r in rows}):
        same = [r for r in rows if r.prefix == prefix]
        for batch in by_length([r.tokens for r in same], batch_size):
            kept += _fill(upper, [same[i] for i in batch])
            done += len(batch)
            progress(done)
    return kept


def _fill(upper: Upper, group: list[Row]) -> int:
    prefix, caches = upper.prefix_of(group[0])
    hidden = upper.lower(padded([r.inputs for r in group]), caches)
    for i, row in enumerate(group):
        row.hidden = hidden[i, : len(row.inputs)] + 0
    if base := [i for i, row in enumerate(group) if row.from_base]:
        final = upper.model.model.norm(upper.forward(hidden[mx.array(base)], prefix))
        for i, row in enumerate(group[i] for i in base):
            row.teacher = final[i, row.start - 1 - row.prefix : len(row.inputs)] + 0
    mx.eval([r.hidden for r in group], [r.teacher for r in group if r.from_base])
    return sum(r.hidden.nbytes + (r.teacher.nbytes if r.from_base else 0) for r in group)


def epoch_batches(rows: list[Row], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Indices of the rows of every batch: similar lengths together, order random but repeatable.

    Every row occurs exactly once; rows with different prefixes never share a batch.
    """
    rng = random.Random(f"{seed}-{epoch}")
    # A little jitter makes other neighbours every epoch; more of it would cost padding.
    size = [len(r.inputs) * rng.uniform(0.98, 1.02) for r in rows]
    batches = []
    for prefix in sorted({r.prefix for r in rows}):
        group = sorted((i for i, r in enumerate(rows) if r.prefix == prefix), key=lambda i: size[i])
        batches += [group[s : s + batch_size] for s in range(0, len(group), batch_size)]
    rng.shuffle(batches)
    return batches


def hardest(rows: list[Row], hardness: np.ndarray, share: float) -> np.ndarray:
    """Indices of this share of the rows, those with the highest hardness, in rising order.

    The share is taken of every kind, so that the mix stays what it was: refusals are soon easy, and
    a run that left them out forgot how to refuse.
    """

    def group_of(row: Row) -> tuple:
        return row.prefix, row.from_base, row.kind

    kept: list[int] = []
    for kind in sorted({group_of(r) for r in rows}):
        group = [i for i, r in enumerate(rows) if group_of(r) == kind]
        group.sort(key=lambda i: -hardness[i])
        kept += group[: math.ceil(share * len(group))]
    return np.array(sorted(kept))


def stack(rows: list[Row]) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """(hidden (rows, width, size), row index, column index, target) of supervised positions."""
    width = max(len(r.inputs) for r in rows)
    hidden = mx.stack([mx.pad(r.hidden, ((0, width - len(r.inputs)), (0, 0))) for r in rows])
    places = [
        (i, r.start - 1 - r.prefix + j, target)
        for i, r in enumerate(rows)
        for j, target in enumerate(r.targets)
    ]
    row, column, target = map(mx.array, zip(*places, strict=True))
    return hidden, row, column, target


def pad_waste(rows: list[Row], batches: list[list[int]]) -> float:
    """Share of computed positions that are padding."""
    real = sum(len(r.inputs) for r in rows)
    computed = sum(len(b) * max(len(rows[i].inputs) for i in b) for b in batches)
    return 1 - real / computed
