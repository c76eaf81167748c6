"""GELU, x Phi(x), and its slope, for kernels that load x in fp32 (as it is) or in 16 bits (HALF).

An erf of full precision is some forty instructions: more time than the memory takes that a kernel reads and writes. For
16 bits, whose rounding is 40 times as coarse and more, Phi is an odd polynomial between -4.2 and 4.2, where it comes
to 0 and 1: no more than 1.3e-5 off (a minimax fit of ours), in 13 instructions and none of the slow units'.
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportInvalidTypeForm=false, reportPossiblyUnboundVariable=false
from srattn.ops.triton.language import jit, tl

SQRT_HALF = tl.constexpr(0.7071067811865476)
PEAK = tl.constexpr(0.3989422804014327)  # of the normal distribution, 1 / sqrt(2 pi)
HALF_LOG2_E = tl.constexpr(0.7213475204444817)
END = tl.constexpr(4.2)
P0, P1, P2 = tl.constexpr(0.398911953), tl.constexpr(-0.066361323), tl.constexpr(0.00983042922)
P3, P4, P5 = tl.constexpr(-0.00111423584), tl.constexpr(9.45912252e-05), tl.constexpr(-5.76268894e-06)
P6, P7, P8 = tl.constexpr(2.34493328e-07), tl.constexpr(-5.63770053e-09), tl.constexpr(6.00433175e-11)


@jit
def below(x, HALF: tl.constexpr):
    """Phi(x), the share of the normal distribution below x."""
    if HALF:
        z = tl.minimum(tl.maximum(x, -END), END)
        t = z * z
        p = P4 + t * (P5 + t * (P6 + t * (P7 + t * P8)))
        p = P0 + t * (P1 + t * (P2 + t * (P3 + t * p)))
        return 0.5 + z * p
    return 0.5 * (1.0 + tl.erf(x * SQRT_HALF))


@jit
def density(x):
    """phi(x) of the normal distribution."""
    return tl.exp2(x * x * -HALF_LOG2_E) * PEAK


@jit
def gelu(x, HALF: tl.constexpr):
    return x * below(x, HALF)


@jit
def gelu_slope(x, HALF: tl.constexpr):
    """Phi(x) + x phi(x)."""
    return below(x, HALF) + x * density(x)


@jit
def gelu_and_slope(x, HALF: tl.constexpr):
    share = below(x, HALF)
    return x * share, share + x * density(x)
