"""A number for each of sixteen ratings, in the lanes of a vector: operations on them, and their way from and to arrays.

Like those of `mfpar.kernels.vector` each spells out its rounding steps, so that a lane holds the bits that a scalar
would.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mfpar.kernels.vector import I32, I64, RowType, fused, larger, partial_sums, pointers, splat, vector

LANES = 16
LANES_TYPE = RowType(LANES)
SINGLE = ir.ArrayType(vector(LANES), 1)


def wrapped(builder, lanes):
    """The vector as a row of one panel."""
    return builder.insert_value(ir.Constant(SINGLE, ir.Undefined), lanes, 0)


def _operation(build):
    """Code of an operation on lanes, or on float32 that stand in each lane."""

    def codegen(context, builder, signature, args):
        vectors = [
            builder.extract_value(arg, 0) if isinstance(kind, RowType) else splat(builder, arg, LANES)
            for kind, arg in zip(signature.args, args, strict=True)
        ]
        return wrapped(builder, build(builder, *vectors))

    return codegen


def _root(builder, x):
    kind = ir.FunctionType(x.type, [x.type])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.sqrt.v{LANES}f32"), [x])


@intrinsic
def plus(typing, x, y):
    """x + y."""
    return LANES_TYPE(x, y), _operation(lambda builder, x, y: builder.fadd(x, y))


@intrinsic
def minus(typing, x, y):
    """x − y."""
    return LANES_TYPE(x, y), _operation(lambda builder, x, y: builder.fsub(x, y))


@intrinsic
def times(typing, x, y):
    """x · y."""
    return LANES_TYPE(x, y), _operation(lambda builder, x, y: builder.fmul(x, y))


@intrinsic
def over(typing, x, y):
    """x / y."""
    return LANES_TYPE(x, y), _operation(lambda builder, x, y: builder.fdiv(x, y))


@intrinsic
def times_plus(typing, x, y, z):
    """x · y + z, rounded once."""
    return LANES_TYPE(x, y, z), _operation(fused)


@intrinsic
def negative(typing, x):
    """−x."""
    return LANES_TYPE(x), _operation(lambda builder, x: builder.fneg(x))


@intrinsic
def root(typing, x):
    """The square root, correctly rounded."""
    return LANES_TYPE(x), _operation(_root)


@intrinsic
def each(typing, x):
    """A float32 in each lane."""
    return LANES_TYPE(x), _operation(lambda builder, x: x)


@intrinsic
def positive(typing, x):
    """max(x, 0)."""
    return LANES_TYPE(x), _operation(lambda builder, x: larger(builder, x, ir.Constant(x.type, None)))


@intrinsic
def distinct(typing, array, start):
    """Whether the sixteen integers from array[start] on all differ."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        kind = ir.VectorType(data.type.pointee, LANES)
        at = builder.bitcast(builder.gep(data, [args[1]]), kind.as_pointer())
        x = builder.load(at, align=array.dtype.bitwidth // 8)
        same = ir.Constant(ir.VectorType(ir.IntType(1), LANES), None)
        for turn in range(1, LANES // 2 + 1):
            order = ir.Constant(ir.VectorType(I32, LANES), [(lane + turn) % LANES for lane in range(LANES)])
            turned = builder.shuffle_vector(x, ir.Constant(kind, ir.Undefined), order)
            same = builder.or_(same, builder.icmp_unsigned("==", x, turned))
        return builder.icmp_unsigned("==", builder.bitcast(same, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(array, types.int64), codegen


@intrinsic
def gather(typing, array, start, indices, first):
    """array[start + indices[first + l]] in lane l."""

    def codegen(context, builder, signature, args):
        lanes = ir.Constant(vector(LANES), ir.Undefined)
        for lane, pointer in enumerate(_places(context, builder, signature, args)):
            lanes = builder.insert_element(lanes, builder.load(pointer), ir.Constant(I32, lane))
        return wrapped(builder, lanes)

    return LANES_TYPE(array, types.int64, indices, types.int64), codegen


@intrinsic
def scatter(typing, array, start, indices, first, lanes):
    """array[start + indices[first + l]] = lane l."""

    def codegen(context, builder, signature, args):
        lanes = builder.extract_value(args[4], 0)
        for lane, pointer in enumerate(_places(context, builder, signature, args)):
            builder.store(builder.extract_element(lanes, ir.Constant(I32, lane)), pointer)
        return context.get_dummy_value()

    return types.void(array, types.int64, indices, types.int64, lanes), codegen


def _places(context, builder, signature, args):
    array, indices = (context.make_array(signature.args[n])(context, builder, args[n]).data for n in (0, 2))
    for lane in range(LANES):
        at = builder.gep(indices, [builder.add(args[3], ir.Constant(I64, lane))])
        yield builder.gep(array, [builder.add(args[1], builder.zext(builder.load(at), I64))])


@intrinsic
def put_dots(typing, array, start, rows, others):
    """array[start + n] = Σ rows[n][l] · others[n][l] for four pairs of rows, added in the order of `vector.dot`."""
    row = rows.dtype

    def codegen(context, builder, signature, args):
        sums = [
            partial_sums(builder, row, builder.extract_value(args[2], n), builder.extract_value(args[3], n))
            for n in range(4)
        ]
        width, undefined = row.width, lambda v: ir.Constant(v.type, ir.Undefined)
        # Two vectors of several segments each fold into one of twice as many, half as wide.
        while width > 1:
            half, count, joined = width // 2, sums[0].type.count // width, len(sums) > 1
            segments = [segment * width for segment in range(count * (1 + joined))]
            low = [first + lane for first in segments for lane in range(half)]
            pairs = zip(sums[::2], sums[1::2], strict=True) if joined else [(sums[0], undefined(sums[0]))]
            sums, width = [_folded(builder, x, y, low, half) for x, y in pairs], half
        (at,) = pointers(context, builder, signature.args[0], args[0], args[1], _FOUR)
        builder.store(sums[0], at, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, rows, others), codegen


def _folded(builder, x, y, low, half):
    """The sum of those lanes of two vectors joined, and of those `half` a segment behind."""
    orders = [ir.Constant(ir.VectorType(I32, len(low)), [lane + shift for lane in low]) for shift in (0, half)]
    return builder.fadd(*(builder.shuffle_vector(x, y, order) for order in orders))


class _FOUR:  # stands for the type of a row of four floats
    width, panels = 4, 1
