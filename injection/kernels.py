"""Functions that are fast on mlx's CPU backend, equal to mlx's within 1e-6.

mlx evaluates `exp` there one element at a time (10-20 ns each), which costs more than the matrix
products around it. Here exp(x) = 2^n * p(f) with n + f = x / ln 2, |f| <= 1/2 and p the degree-5
polynomial of least relative error (7e-8): only multiplications, additions and bit shifts, 4 times
faster. SiLU and softmax keep theirs for the backward pass.

Decoding is the other way round: arrays are so small that every operation costs the same few
microseconds, and what counts is to need few of them.
"""

import math

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.llama as llama
from mlx_lm.tuner.lora import LoRALinear

LOG2_E = 1.4426950408889634
EXP2_COEFFICIENTS = (
    0.001327646430581808,
    0.009675540961325169,
    0.05550713464617729,
    0.24022120237350464,
    0.6931469440460205,
    1.0,
)
# Added to a small float, 1.5 * 2^23 leaves its nearest integer in the lowest bits.
ROUNDER = 12582912.0
# Elements from which the polynomial, some 20 operations, beats mlx's exp, which is one.
LARGE = 6144


def exp(x: mx.array) -> mx.array:
    """e^x of a float32 array, relative error below 5e-7; inputs are clipped to e^±87."""
    return exp_below(mx.minimum(x, 87.0))


def exp_below(x: mx.array) -> mx.array:
    """The same where no x is above 87, as behind the maximum of a softmax."""
    y = mx.maximum(x * LOG2_E, -126.0)
    shifted = y + ROUNDER
    part = y - (shifted - ROUNDER)
    value = mx.array(EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        value = value * part + coefficient
    # 2^n as a float: n + 127 in the exponent bits; the rounder's own bits are shifted out.
    power = ((shifted.view(mx.int32) << 23) + (127 << 23)).view(mx.float32)
    return value * power


def sigmoid(x: mx.array) -> mx.array:
    return 1.0 / (1.0 + exp(-x))


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    # The sigmoid is handed on to the backward pass: it costs more than keeping it.
    s = sigmoid(gate)
    return gate * s * x, s


@_swiglu.vjp
def _swiglu_vjp(primals, cotangents, outputs):
    (gate, x), cotangent, s = primals, cotangents[0], outputs[1]
    silu = gate * s
    return cotangent * x * (s + silu * (1.0 - s)), cotangent * silu


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, as in llama's MLP."""
    return gate * mx.sigmoid(gate) * x if gate.size < LARGE else _swiglu(gate, x)[0]


def _softmax(scores: mx.array) -> mx.array:
    powers = exp_below(scores - mx.max(scores, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def attention(queries, keys, values, cache=None, scale: float = 1.0, mask=None):
    """Softmax attention, as mlx-lm's scaled_dot_product_attention.

    queries: (rows, heads, tokens, dim); keys, values: (rows, kv heads, columns, dim). mask: None,
    "causal" (the last query sees the last column), or boolean, broadcast to (rows, heads, tokens,
    columns).
    """
    rows, heads, tokens, dim = queries.shape
    if tokens == 1:
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    kv_heads, columns = keys.shape[1:3]
    if isinstance(mask, str):
        mask = mx.arange(columns) <= mx.arange(columns - tokens, columns)[:, None]
    # The query heads that share a key head form one matrix: no copies of the keys, larger products.
    grouped = (rows, kv_heads, heads // kv_heads * tokens, dim)

    @mx.custom_function
    def attend(queries, keys, values):
        scores = (scale * queries).reshape(grouped) @ keys.swapaxes(-1, -2)
        if mask is not None:
            split = scores.reshape(rows, heads, tokens, columns)
            scores = mx.where(mask, split, -1e30).reshape(scores.shape)
        weights = _softmax(scores)
        return (weights @ values).reshape(queries.shape), weights

    @attend.vjp
    def attend_vjp(primals, cotangents, outputs):
        (queries, keys, values), weights = primals, outputs[1]
        cotangent = cotangents[0].reshape(grouped)
        d_weights = cotangent @ values.swapaxes(-1, -2)
        d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True))
        d_queries = scale * (d_scores @ keys).reshape(queries.shape)
        d_keys = scale * (d_scores.swapaxes(-1, -2) @ queries.reshape(grouped))
        return d_queries, d_keys, weights.swapaxes(-1, -2) @ cotangent

    return attend(queries, keys, values)[0]


class SharedRope(nn.Module):
    """nn.RoPE (dims, base, scale) whose sines and cosines are computed once for all layers.

    One instance stands in for the rotary embeddings of every layer: they are all called with the
    same positions before the next ones come.
    """

    def __init__(self, rope: nn.RoPE):
        super().__init__()
        half = rope.dims // 2
        self._frequencies = rope.scale * mx.exp(mx.arange(half) * (-math.log(rope.base) / half))
        self._at = self._cos = self._sin = None

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """x: (rows, heads, tokens, dims); offset: of the first token, one or (rows,)."""
        tokens, half = x.shape[2], x.shape[3] // 2
        if not self._has(offset, tokens):
            self._compute(offset, tokens)
        swapped = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
        return x * self._cos + swapped * self._sin

    def _has(self, offset: int | mx.array, tokens: int) -> bool:
        if self._at is None or self._at[1] != tokens:
            return False
        # Arrays by identity: to compare their contents would cost what is to be saved.
        before = self._at[0]
        return before is offset or (type(before) is type(offset) is int and before == offset)

    def _compute(self, offset: int | mx.array, tokens: int) -> None:
        start = mx.array(offset).reshape(-1, 1, 1, 1)
        angles = (start + mx.arange(tokens)[:, None]) * self._frequencies
        sin, cos = mx.sin(angles), mx.cos(angles)
        self._cos = mx.concatenate([cos, cos], axis=-1)
        self._sin = mx.concatenate([-sin, sin], axis=-1)
        # Evaluated, for lazy arrays could not be used by another thread.
        mx.eval(self._cos, self._sin)
        self._at = offset, tokens


def _share_rope(model: nn.Module) -> None:
    """Let the layers share one rotary embedding, where it is a plain one."""
    rope = model.layers[0].self_attn.rope
    if type(rope) is nn.RoPE and not rope.traditional:
        shared = SharedRope(rope)
        for layer in model.layers:
            layer.self_attn.rope = shared


def lora_linear(self: LoRALinear, x: mx.array) -> mx.array:
    """LoRALinear's forward pass; its sum is left to the matrix product, and what is scaled is as
    narrow as the rank."""
    low = self.scale * (self.dropout(x) @ self.lora_a)
    return mx.addmm(self.linear(x), low, self.lora_b)


def use_fast_layers(model: nn.Module) -> None:
    """Let mlx-lm's llamas, and this one's layers, use these functions (fp32 on CPU only)."""
    _share_rope(model)
    llama.swiglu = swiglu
    llama.scaled_dot_product_attention = attention
    LoRALinear.__call__ = lora_linear
