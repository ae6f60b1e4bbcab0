"""How readily an adapter refuses: a bias on the first token of its refusal, set on dev questions.

Reads:   dev questions that the document answers
Writes:  "refusal" in the adapter's manifest.json: {"token", "bias", "known_refused"}
Command: none of its own; finishing.py calibrates it, models.ChatModel uses it

Whether an answer is a refusal is decided in its first token, and cross-entropy puts that decision
where both errors cost the same. A user pays differently: an invented answer is believed. So the
threshold is moved until the refusal begins as many of the answers that the document has as may be,
in Neyman-Pearson classification (umbrella algorithm, arXiv 1608.03109): dev questions are few, and
to refuse ALLOWED of them would often be to refuse more of all. Questions that the document does not
answer take no part in it.
"""

import math

import mlx.core as mx
import numpy as np

from injection import generation, prompts
from injection.profiles import Chat

# Share of all known questions that may be refused, and the chance that it is more after all.
ALLOWED = 0.03
DOUBT = 0.1
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


def refusable(questions: int) -> int:
    """How many of so many known questions a threshold may refuse: if more than ALLOWED of all were
    refused, so few of these would be with a chance below DOUBT. 0 where not even none is so few."""
    chance = 0.0
    for refused in range(questions + 1):
        answered = questions - refused
        ways = math.lgamma(questions + 1) - math.lgamma(refused + 1) - math.lgamma(answered + 1)
        chance += math.exp(ways + refused * math.log(ALLOWED) + answered * math.log1p(-ALLOWED))
        if chance > DOUBT:
            break
    return max(refused - 1, 0)


def calibrate(known: np.ndarray, refused: int) -> float:
    """The bias at which this many of the known questions are refused.

    known: margins of questions that the document answers. The bias is negative where the adapter
    refuses more of them than that.
    """
    known = np.sort(known)
    # Half-way between two margins: a bias on a margin itself would hang on rounding.
    below = known[refused - 1] if refused else 2 * known[0] - known[1]
    return float((below + known[refused]) / 2)


def tradeoff(known: np.ndarray, unknown: np.ndarray) -> list[dict[str, float]]:
    """What every threshold costs and brings: [{"bias", "known", "unknown"}], the latter two the
    shares of these questions that are refused. Both arguments are margins (questions,)."""
    biases = [calibrate(known, math.floor(share * len(known))) for share in TRADED]
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
