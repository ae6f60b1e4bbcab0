"""Cross-entropy through a frozen output head, without keeping logits for the backward pass.

The head does not train, so all that is needed is d loss / d hidden = (softmax - target) @ W. It is
computed together with the loss, a block of positions at a time: memory is blocks x vocabulary
instead of positions x vocabulary, and the exponentials are taken once. Idea as in Cut
Cross-Entropy (arXiv 2411.09009).
"""

import mlx.core as mx
import mlx.nn as nn

from injection import kernels, runtime
from injection.generation import head

# Logits in memory at once, in each of about 14 arrays of this size: 32 MB in fp32.
BLOCK_LOGITS = 2**23


def block_size(vocabulary: int) -> int:
    """Positions of a block."""
    return max(1, BLOCK_LOGITS // vocabulary)


def frozen_head_loss(
    model: nn.Module, hidden: mx.array, targets: mx.array, teacher: mx.array | None = None
) -> mx.array:
    """Loss of each position, (positions,), differentiable with respect to hidden.

    hidden: (positions, hidden size) after the final norm. targets: (positions,) token ids, used
    where there is no teacher. teacher: (positions, hidden size), the base model's final hidden
    states; then the loss is KL(base || model) over the whole vocabulary.
    """

    @mx.custom_function
    def both(hidden):
        parts = []
        size = block_size(model.args.vocab_size)
        for start in range(0, hidden.shape[0], size):
            rows = slice(start, start + size)
            # Blocks one after the other: mlx would begin many at once and keep all their logits.
            block = mx.depends([hidden[rows]], list(parts[-1]))[0] if parts else hidden[rows]
            if teacher is None:
                parts.append(_hard(model, block, targets[rows]))
            else:
                parts.append(_soft(model, block, teacher[rows]))
        return mx.concatenate([p[0] for p in parts]), mx.concatenate([p[1] for p in parts])

    @both.vjp
    def both_vjp(_, cotangents, outputs):
        return (cotangents[0][:, None] * outputs[1]).astype(hidden.dtype)

    return both(hidden)[0]


def _softmax(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """(powers, their sum, log of the normaliser): probabilities are powers / sum."""
    top = mx.max(logits, axis=-1, keepdims=True)
    exp = kernels.exp_below if runtime.on_cpu() else mx.exp
    powers = exp(logits - top)
    total = powers.sum(axis=-1, keepdims=True)
    return powers, total, (mx.log(total) + top)[:, 0]


def _hard(model, hidden, targets):
    logits = head(model, hidden).astype(mx.float32)
    powers, total, normaliser = _softmax(logits)
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    # Divided behind the head, where a position has far fewer numbers than the vocabulary.
    gradient = _back(model, powers) / total - _head_rows(model, targets)
    return normaliser - picked, gradient


def _soft(model, hidden, teacher):
    logits = head(model, hidden).astype(mx.float32)
    wanted = head(model, teacher).astype(mx.float32)
    powers, total, normaliser = _softmax(logits)
    target, target_total, target_normaliser = _softmax(wanted)
    target = target / target_total
    difference = (wanted - target_normaliser[:, None]) - (logits - normaliser[:, None])
    return (target * difference).sum(axis=-1), _back(model, powers / total - target)


def _head_module(model):
    return model.model.embed_tokens if model.args.tie_word_embeddings else model.lm_head


def _back(model, d_logits: mx.array) -> mx.array:
    """d_logits (positions, vocabulary) through the head: (positions, hidden)."""
    module = _head_module(model)
    if "scales" not in module:
        return d_logits @ module.weight.astype(mx.float32)
    return mx.quantized_matmul(
        d_logits.astype(module.scales.dtype),
        module.weight,
        scales=module.scales,
        biases=module.biases,
        transpose=False,
        group_size=module.group_size,
        bits=module.bits,
    ).astype(mx.float32)


def _head_rows(model, ids: mx.array) -> mx.array:
    module = _head_module(model)
    if "scales" not in module:
        return module.weight[ids].astype(mx.float32)
    return mx.dequantize(
        module.weight[ids],
        module.scales[ids],
        module.biases[ids],
        group_size=module.group_size,
        bits=module.bits,
    ).astype(mx.float32)
