"""What quantization cost: two models on one text, with one layer in memory at a time.

The whole text passes the first layer, then the second, and so on; a layer is read when it is its
turn and freed afterwards, so 8 billion parameters need the memory of one layer and of two heads. Of
the source its final hidden states and its head are kept, and its probabilities are computed anew
beside those of each quantized model: exact, at the cost of one product with the head, where storing
them would take vocabulary x positions. Every weight is read from disk once a model.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import load_model

from injection import kernels, runtime
from injection.generation import head
from injection.models import expanded, to_fp32
from injection.progress import Progress

# Positions whose probabilities are in memory at once.
BLOCK = 128


class Streamed(NamedTuple):
    """A model's final hidden states, one (tokens - 1, hidden) per piece, and its head."""

    states: list[mx.array]
    head: Callable[[mx.array], mx.array]


def stream(folder: Path, pieces: list[list[int]], label: str) -> Streamed:
    """Run the model in folder over pieces (token ids), layer by layer, as load_base computes."""
    model, _ = load_model(folder, lazy=True)
    inner, layers = model.model, model.model.layers
    hidden = [_embedded(inner.embed_tokens, mx.array([ids[:-1]])) for ids in pieces]
    mx.eval(hidden)
    if not model.args.tie_word_embeddings:
        inner.embed_tokens = nn.Identity()
    if runtime.on_cpu():
        # Nothing more is read yet: a layer is expanded when it is evaluated.
        to_fp32(model)
        kernels.use_fast_layers(model)
    bar = Progress(label, len(layers))
    for i, layer in enumerate(layers):
        mx.eval(layer.parameters())
        for n, states in enumerate(hidden):
            hidden[n] = layer(states, "causal", None)
            mx.eval(hidden[n])
        layers[i] = layer = None
        bar.update(i + 1)
    hidden = [inner.norm(states)[0] for states in hidden]
    # The head now, by itself: what expanding it takes must not meet the logits.
    mx.eval(hidden, model.parameters())
    runtime.return_freed_memory()
    return Streamed(hidden, lambda states: head(model, states))


def _embedded(embedding: nn.Module, ids: mx.array) -> mx.array:
    # On CPU in fp32 like all the rest, but of these tokens only.
    return expanded(embedding, ids) if runtime.on_cpu() else embedding(ids)


def compare(source: Streamed, other: Streamed, pieces: list[list[int]]) -> dict:
    """How far other is from source on pieces, over every predicted token.

    {"kl": mean KL(source || other) in nats, "top1": share of tokens where both think the same one
    most likely, "perplexity" of other, "source_perplexity", "tokens"}
    """
    kl = same = loss = source_loss = tokens = 0.0
    for n, ids in enumerate(pieces):
        for start in range(0, len(ids) - 1, BLOCK):
            rows = slice(start, min(start + BLOCK, len(ids) - 1))
            targets = mx.array(ids[1:])[rows, None]
            p, q = (_log_probabilities(m.head(m.states[n][rows])) for m in (source, other))
            kl += (mx.exp(p) * (p - q)).sum().item()
            same += (mx.argmax(p, axis=-1) == mx.argmax(q, axis=-1)).sum().item()
            source_loss -= mx.take_along_axis(p, targets, axis=-1).sum().item()
            loss -= mx.take_along_axis(q, targets, axis=-1).sum().item()
            tokens += targets.size
    return {
        "kl": kl / tokens,
        "top1": same / tokens,
        "perplexity": math.exp(loss / tokens),
        "source_perplexity": math.exp(source_loss / tokens),
        "tokens": int(tokens),
    }


def _log_probabilities(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
