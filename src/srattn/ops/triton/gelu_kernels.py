"""The exact GELU, x Phi(x), and its slope, for kernels that load x in fp32 (as it is) or in 16 bits (HALF).

An erf of full precision is some forty instructions: more time than the memory takes that a kernel reads and writes. In
halves Phi comes from Abramowitz and Stegun's formula 7.1.26 (error 1.5e-7), whose exponential is the slope's as well.
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
from srattn.ops.triton.language import jit, tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
PEAK = tl.constexpr(0.3989422804014327)  # of the normal distribution, 1 / sqrt(2 pi)
A1, A2, A3 = tl.constexpr(0.254829592), tl.constexpr(-0.284496736), tl.constexpr(1.421413741)
A4, A5, P = tl.constexpr(-1.453152027), tl.constexpr(1.061405429), tl.constexpr(0.3275911)


@jit
def normal(x, HALF: tl.constexpr):
    """Phi(x), the share of the normal distribution below x, and exp(-x^2 / 2)."""
    bell = tl.exp(-0.5 * x * x)
    if HALF:
        t = 1.0 / (1.0 + P * SQRT_HALF * tl.abs(x))
        tail = 0.5 * bell * t * (A1 + t * (A2 + t * (A3 + t * (A4 + t * A5))))
        below = tl.where(x < 0.0, tail, 1.0 - tail)
    else:
        below = 0.5 * (1.0 + tl.erf(x * SQRT_HALF))
    return below, bell


@jit
def gelu(x, HALF: tl.constexpr):
    below, _ = normal(x, HALF)
    return x * below


@jit
def gelu_slope(x, HALF: tl.constexpr):
    """Phi(x) + x phi(x)."""
    below, bell = normal(x, HALF)
    return below + x * bell * PEAK


@jit
def gelu_and_slope(x, HALF: tl.constexpr):
    below, bell = normal(x, HALF)
    return x * below, below + x * bell * PEAK
