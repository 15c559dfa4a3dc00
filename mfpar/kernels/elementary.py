"""The elementary functions of `mfpar.losses`, compiled: a few fused multiply-adds each, the same bits on every machine.

A C library's `expf` and `logf` differ between versions and CPUs, cost a call, and make the caller spill its vectors.
These are polynomials after an exact reduction of the argument (Muller: Elementary functions, 3rd ed. 2016, chapter 11);
the coefficients were fitted for the least maximum relative error, below 2e-7, so that float32 errs by a few units in
the last place (of e^x, for |x| up to 10; by 3e-6 at its ends).
"""

from decimal import Decimal

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from mfpar import losses
from mfpar.kernels.compile import inlined
from mfpar.kernels.vector import get

F, I32 = np.float32, np.int32

LARGEST = F(losses.LARGEST_EXPONENT)
MOST, LEAST = F(6.0760302e37), F(1.6458115e-38)  # e^87, e^−87
LOG2_E = F(1.44269504)
SHIFT = F(1.5 * 2**23)  # adding it rounds to an integer, which then stands in the last bits
LN2 = F(0.69314718)
LN2_HIGH, LN2_LOW = F(0.693359375), F(-2.12194440e-4)  # the same in two parts, the first of few bits
# e^r ≈ 1 + r + r²·(…), |r| ≤ ½ ln 2
E2, E3, E4, E5 = (F(c) for c in (0.49999231, 0.16667114, 0.041890115, 0.0083125252))
# log(1 + f) ≈ f − ½f² + f³·(…), √½ ≤ 1 + f < √2
L3, L4, L5, L6, L7, L8, L9 = (
    F(c) for c in (0.33333910, -0.25001338, 0.19963063, -0.16577585, 0.14914769, -0.14267486, 0.087004349)
)
# log(1 + u) ≈ u·(…), 0 ≤ u ≤ 1
S1, S2, S3, S4, S5, S6, S7, S8 = (
    F(c)
    for c in (0.99999982, -0.49997404, 0.33275479, -0.24495462, 0.17745240, -0.10768169, 0.044089615, -0.0085392045)
)
ZERO, ONE, HALF = F(0), F(1), F(0.5)

# The logistic function in quadratic pieces around the multiples of 1/16 from −16 to 16: a step waits half as long for
# it as for an exponential and a division. Each piece goes through three Chebyshev points, which errs by 2e-7 at most.
PIECES, REACH = 16, 16


def _pieces():
    """float32[pieces · 4]: c0, c1, c2 and nothing, of c0 + c1·d + c2·d² around each node."""
    spread = Decimal(3).sqrt() / (4 * PIECES)
    table = np.zeros((2 * REACH * PIECES + 1, 4), F)
    for n in range(len(table)):
        node = Decimal(n) / PIECES - REACH
        # Decimal's exp is rounded correctly, and so the same everywhere.
        low, middle, high = (1 / (1 + (-(node + step * spread)).exp()) for step in (-1, 0, 1))
        table[n, :3] = middle, (high - low) / (2 * spread), (high + low - 2 * middle) / (2 * spread**2)
    return table.ravel()


SIGMOID = _pieces()
NODES, WIDTH, FARTHEST = F(PIECES), F(1 / PIECES), F(REACH)
SHIFT_PATTERN = I32(SHIFT.view(I32)) - I32(REACH * PIECES)
BITS, EXPONENT_OF_HALF_ROOT = I32(23), I32(0x3F3504F3)  # the pattern of √½


@intrinsic
def fma(typing, x, y, z):
    """x·y + z of three float32, rounded once."""

    def codegen(context, builder, signature, args):
        function_type = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.fma.f32"), args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def pattern(typing, x):
    """The bits of a float32 as int32."""
    return types.int32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@intrinsic
def number(typing, bits):
    """The float32 of these bits."""
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


@intrinsic
def add_exponent(typing, x, shifted):
    """x·2^n, n being what SHIFT has left in the last bits of `shifted`.

    On a vector of four, of which one lane counts: so the numbers stay where they are, in a vector register.
    """
    wide = ir.VectorType(ir.IntType(32), 4)

    def codegen(context, builder, signature, args):
        first = ir.Constant(ir.IntType(32), 0)
        none = ir.Constant(ir.VectorType(ir.FloatType(), 4), None)
        lanes = [builder.bitcast(builder.insert_element(none, arg, first), wide) for arg in args]
        exponents = builder.shl(lanes[1], ir.Constant(wide, [BITS] * 4))
        total = builder.bitcast(builder.add(lanes[0], exponents), ir.VectorType(ir.FloatType(), 4))
        return builder.extract_element(total, first)

    return types.float32(types.float32, types.float32), codegen


@inlined
def exp_inside(x):
    """e^x of a float32 from −87 to 87; the shortest chain of operations, because updates wait for it."""
    shifted = fma(x, LOG2_E, SHIFT)
    r = fma(shifted - SHIFT, -LN2, x)
    square = r * r
    p = fma(square, fma(r, E5, E4), fma(r, E3, E2))
    p = fma(square, p, r) + ONE
    return add_exponent(p, shifted)


@inlined
def exp32(x):
    """e^x of a float32, cut to ±87; at the end, where what it takes is known long before."""
    inside = exp_inside(x)
    return MOST if x > LARGEST else LEAST if x < -LARGEST else inside


@inlined
def log32(x):
    """Natural logarithm of a normal float32 > 0; NaN for what is below zero, −∞ for zero."""
    if not x > ZERO:
        return np.log(x)
    bits = pattern(x)
    exponent = I32((bits - EXPONENT_OF_HALF_ROOT) >> BITS)
    f = number(I32(bits - (exponent << BITS))) - ONE
    p = fma(f, fma(f, fma(f, fma(f, fma(f, fma(f, L9, L8), L7), L6), L5), L4), L3)
    e, s = F(exponent), f * f
    return fma(e, LN2_HIGH, fma(e, LN2_LOW, fma(f * s, p, fma(-HALF, s, f))))


@inlined
def log_one_plus(u):
    """log(1 + u) of a float32 from 0 to 1."""
    return u * fma(u, fma(u, fma(u, fma(u, fma(u, fma(u, fma(u, S8, S7), S6), S5), S4), S3), S2), S1)


@inlined
def sigmoid32(z):
    """1 / (1 + e^−z); the argument is cut to ±16."""
    z = max(-FARTHEST, min(z, FARTHEST))
    shifted = fma(z, NODES, SHIFT)
    at = np.int64(I32(pattern(shifted) - SHIFT_PATTERN)) * 4
    d = fma(SHIFT - shifted, WIDTH, z)
    return fma(fma(get(SIGMOID, at + 2), d, get(SIGMOID, at + 1)), d, get(SIGMOID, at))


@inlined
def softplus32(z):
    """log(1 + e^z)."""
    return max(z, ZERO) + log_one_plus(exp_inside(max(-abs(z), -LARGEST)))


@inlined
def positive_part32(x):
    """The larger of x and 0."""
    return max(x, ZERO)


@inlined
def label32(r):
    """1 for a rating above zero, −1 for any other."""
    return ONE if r > ZERO else -ONE


@inlined
def sign32(x):
    """1, 0 or −1, like x."""
    return (ONE if x > ZERO else ZERO) - (ONE if x < ZERO else ZERO)


@inlined
def shrunk(x, limit):
    """A number moved towards zero by `limit` ≥ 0, and no further."""
    return max(x - limit, ZERO) + min(x + limit, ZERO)


@inlined
def clamp32(x, limit):
    """x, cut to −limit … limit."""
    return max(-limit, min(x, limit))


def _compiled(function, single):
    """Let kernels call `single` where a loss calls `function`."""

    def choose(x):
        return (lambda x: single(F(x))) if isinstance(x, types.Number) else None

    def choose_limited(x, limit):
        numbers = isinstance(x, types.Number) and isinstance(limit, types.Number)
        return (lambda x, limit: single(F(x), F(limit))) if numbers else None

    choice = choose_limited if single is clamp32 else choose
    overload(function, jit_options={"forceinline": True, "error_model": "numpy"})(choice)


# What a loss may call, and what is compiled in its place.
ELEMENTARY = {
    losses.exp: exp32,
    losses.log: log32,
    losses.sigmoid: sigmoid32,
    losses.softplus: softplus32,
    losses.positive_part: positive_part32,
    losses.label: label32,
    losses.sign: sign32,
    losses.clamp: clamp32,
}

for _function, _single in ELEMENTARY.items():
    _compiled(_function, _single)
