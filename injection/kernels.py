"""Element-wise functions that are fast on mlx's CPU backend, equal to mlx's within 1e-6.

mlx evaluates `exp` there one element at a time (10-20 ns each), which costs more than the matrix
products around it. Here exp(x) = 2^n * p(f) with n + f = x / ln 2, |f| <= 1/2 and a degree-6
polynomial p (Cephes `exp2f` coefficients): only multiplications and additions, 3-5 times faster.
"""

import mlx.core as mx
import mlx_lm.models.llama as llama

LOG2_E = 1.4426950408889634
EXP2_COEFFICIENTS = (
    1.5403530393381609e-4,
    1.3333558146428443e-3,
    9.6181291076284772e-3,
    5.5504108664821580e-2,
    2.4022650695910072e-1,
    6.9314718055994531e-1,
    1.0,
)


def exp(x: mx.array) -> mx.array:
    """e^x of a float32 array, relative error below 5e-7; inputs are clipped to e^±87."""
    y = mx.clip(x * LOG2_E, -126.0, 126.0)
    whole = mx.floor(y + 0.5)
    part = y - whole
    value = mx.array(EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        value = value * part + coefficient
    power = ((whole.astype(mx.int32) + 127) << 23).view(mx.float32)
    return value * power


def sigmoid(x: mx.array) -> mx.array:
    return 1.0 / (1.0 + exp(-x))


@mx.custom_function
def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, as in llama's MLP."""
    return gate * sigmoid(gate) * x


@swiglu.vjp
def _swiglu_vjp(primals, cotangent, _):
    gate, x = primals
    s = sigmoid(gate)
    silu = gate * s
    return cotangent * x * (s + silu * (1.0 - s)), cotangent * silu


def use_fast_activations() -> None:
    """Let mlx-lm's llama use the fast swiglu from now on (fp32 on CPU only)."""
    llama.swiglu = swiglu
