"""How readily an adapter refuses: a bias on the first token of its refusal, set on dev questions.

Reads:   dev questions that the document answers
Writes:  "refusal" in the adapter's manifest.json: {"token", "bias", "known_refused"}
Command: none of its own; finishing.py calibrates it, models.ChatModel uses it

Whether an answer is a refusal is decided in its first token, and cross-entropy puts that decision
where both errors cost the same. A user pays differently: an invented answer is believed. So the
threshold is moved until the refusal begins ALLOWED of the answers that the document has, as in
Neyman-Pearson classification; questions it does not answer take no part in setting it.
"""

import math

import mlx.core as mx
import numpy as np

from injection import generation, prompts
from injection.profiles import Chat

ALLOWED = 0.02
# Shares of known questions refused, for which the report says what they would bring.
TRADED = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)


def margins(
    model, tokenizer, chat: Chat, questions: list[str], token: int, size: int
) -> np.ndarray:
    """By how much the best other first token leads `token`, in logits (questions,)."""
    asked = [
        prompts.prompt_tokens(tokenizer, [{"role": "user", "content": q}], chat) for q in questions
    ]
    result = np.zeros(len(asked))
    for group in generation.by_length(asked, size):
        logits = generation.first_logits(model, [asked[i] for i in group])
        own = logits[:, token]
        logits[:, token] = -mx.inf
        result[group] = np.array(logits.max(axis=-1) - own)
    return result


def calibrate(known: np.ndarray, allowed: float = ALLOWED) -> float:
    """The largest bias at which at most this share of the known questions is refused.

    known: margins of questions that the document answers. The bias is negative where the adapter
    refuses more of them than that.
    """
    known = np.sort(known)
    refused = math.floor(allowed * len(known))
    # Half-way to the next margin: a bias on a margin itself would hang on rounding.
    return float((known[max(refused - 1, 0)] + known[refused]) / 2)


def tradeoff(known: np.ndarray, unknown: np.ndarray) -> list[dict[str, float]]:
    """What every threshold costs and brings: [{"bias", "known", "unknown"}], the latter two the
    shares of these questions that are refused. Both arguments are margins (questions,)."""
    biases = [calibrate(known, share) for share in TRADED]
    return [
        {"bias": b, "known": float((known < b).mean()), "unknown": float((unknown < b).mean())}
        for b in biases
    ]


def first_bias(manifest: dict, vocabulary: int) -> mx.array | float:
    """What an adapter's manifest adds to the logits of an answer's first token."""
    found = manifest.get("refusal")
    if not found:
        return 0.0
    bias = mx.zeros(vocabulary)
    bias[found["token"]] = found["bias"]
    return bias
