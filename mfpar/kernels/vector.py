"""A row of factors held in vector registers: the operations that kernels are written with.

Each operation spells out its rounding steps in LLVM IR (explicit fused multiply-adds, a reduction tree of fixed shape)
and carries no fast-math flag. LLVM then has nothing to contract or reorder, so a kernel yields the same bits wherever
it is inlined and on every CPU that computes in IEEE 754. How many lanes a vector has follows from the row, not from the
machine: a CPU with narrower registers executes each operation in pieces.

A row has `stride` floats, a multiple of 8; lanes beyond the factors hold zeros and stay zero under all of them.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LINE = 64  # bytes of a cache line
# How far ahead kernels ask for memory, in ratings: for the arrays of ratings (which the hardware's prefetcher loses at
# every 4 KB), and for rows of P and Q. Asking changes no bit.
FAR, NEAR = 512, 64
F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


class RowType(types.Type):
    """Numba type of a row: `panels` LLVM vectors of `width` float32 each."""

    def __init__(self, stride: int):
        self.width = 16 if stride % 16 == 0 else 8
        self.panels = stride // self.width
        super().__init__(name=f"Row({stride})")


@register_model(RowType)
class RowModel(models.PrimitiveModel):
    """In LLVM a row is an array of vectors, which lives in registers once optimised."""

    def __init__(self, manager, row):
        super().__init__(manager, row, ir.ArrayType(vector(row.width), row.panels))


def vector(width):
    """LLVM type of `width` float32."""
    return ir.VectorType(F32, width)


def splat(builder, scalar, width):
    """The scalar in every lane."""
    undefined = ir.Constant(vector(width), ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(I32, width), [0] * width))


def fused(builder, x, y, z):
    """x·y + z of three vectors, rounded once."""
    name = f"llvm.fma.v{x.type.count}f32"
    return builder.call(
        cgutils.get_or_insert_function(builder.module, ir.FunctionType(x.type, [x.type] * 3), name), [x, y, z]
    )


def larger(builder, x, y):
    """The larger of two vectors, lane by lane; y where x is not a number."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def smaller(builder, x, y):
    """The smaller of two vectors, lane by lane; y where x is not a number."""
    return builder.select(builder.fcmp_ordered("<", x, y), x, y)


def panels_of(builder, row_type, row):
    """The vectors that a row consists of."""
    return [builder.extract_value(row, t) for t in range(row_type.panels)]


def assemble(builder, row_type, panels):
    """A row from its vectors."""
    row = ir.Constant(ir.ArrayType(vector(row_type.width), row_type.panels), ir.Undefined)
    for t, panel in enumerate(panels):
        row = builder.insert_value(row, panel, t)
    return row


def pointers(context, builder, array_type, array, start, row_type):
    """Pointers to the panels of the row that starts at element `start` of a flat float32 array."""
    data = context.make_array(array_type)(context, builder, array).data
    first = builder.gep(data, [start])
    for t in range(row_type.panels):
        at = builder.gep(first, [ir.Constant(I64, t * row_type.width)])
        yield builder.bitcast(at, vector(row_type.width).as_pointer())


@intrinsic(prefer_literal=True)
def load(typing, array, start, stride):
    """The row of `stride` floats (a compile-time constant) that begins at array[start]."""
    row_type = RowType(stride.literal_value)

    def codegen(context, builder, signature, args):
        at = pointers(context, builder, signature.args[0], args[0], args[1], row_type)
        # Numba aligns arrays to 32 bytes at best; blocks and rows to 32: only what holds for all is promised.
        return assemble(builder, row_type, [builder.load(pointer, align=4) for pointer in at])

    return row_type(array, types.int64, stride), codegen


@intrinsic(prefer_literal=True)
def prefetch(typing, array, start, count):
    """Ask for the cache lines of array[start : start + count] (a constant); beyond the array's end it does nothing."""
    lines = range(0, count.literal_value * array.dtype.bitwidth // 8, LINE)

    def codegen(context, builder, signature, args):
        pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        first = builder.bitcast(builder.gep(data, [args[1]]), pointer)
        for_write, into_all_levels, of_data = (ir.Constant(I32, code) for code in (1, 3, 1))
        for offset in lines:
            at = builder.gep(first, [ir.Constant(I64, offset)])
            builder.call(function, [at, for_write, into_all_levels, of_data])
        return context.get_dummy_value()

    return types.void(array, types.int64, count), codegen


@intrinsic
def get(typing, array, index):
    """array[index] of a flat array, index ≥ 0: Numba's own indexing spends a third of a kernel on negative indices."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.int64), codegen


@intrinsic
def put(typing, array, index, value):
    """array[index] = value; see `get`."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        builder.store(args[2], builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), codegen


@intrinsic
def store(typing, array, start, row):
    """array[start : start + stride] = row."""

    def codegen(context, builder, signature, args):
        at = pointers(context, builder, signature.args[0], args[0], args[1], row)
        for pointer, panel in zip(at, panels_of(builder, row, args[2]), strict=True):
            builder.store(panel, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, row), codegen


@intrinsic
def scale(typing, row, scalar):
    """row · scalar, each lane rounded once."""

    def codegen(context, builder, signature, args):
        factor = splat(builder, args[1], row.width)
        return assemble(builder, row, [builder.fmul(panel, factor) for panel in panels_of(builder, row, args[0])])

    return row(row, types.float32), codegen


@intrinsic
def add_scaled(typing, row, other, scalar):
    """row + other · scalar, each lane rounded once."""

    def codegen(context, builder, signature, args):
        factor = splat(builder, args[2], row.width)
        pairs = zip(panels_of(builder, row, args[0]), panels_of(builder, row, args[1]), strict=True)
        return assemble(builder, row, [fused(builder, other, factor, panel) for panel, other in pairs])

    return row(row, row, types.float32), codegen


@intrinsic
def shrink(typing, row, threshold):
    """Each lane moved towards zero by `threshold` ≥ 0, and no further (soft thresholding)."""

    def codegen(context, builder, signature, args):
        limit = splat(builder, args[1], row.width)
        lower = builder.fneg(limit)
        panels = []
        for panel in panels_of(builder, row, args[0]):
            inside = larger(builder, smaller(builder, panel, limit), lower)
            panels.append(builder.fsub(panel, inside))
        return assemble(builder, row, panels)

    return row(row, types.float32), codegen


@intrinsic
def not_below_zero(typing, row):
    """Each lane, or zero where it is negative."""

    def codegen(context, builder, signature, args):
        zero = ir.Constant(vector(row.width), None)
        return assemble(builder, row, [larger(builder, panel, zero) for panel in panels_of(builder, row, args[0])])

    return row(row), codegen


def partial_sums(builder, row_type, row, other, start=None):
    """A vector whose lanes add up to start + Σ row[l] · other[l]: panels go round up to four accumulators."""
    sums = []
    pairs = zip(panels_of(builder, row_type, row), panels_of(builder, row_type, other), strict=True)
    for t, (x, y) in enumerate(pairs):
        if t == 0 and start is not None:
            zero = ir.Constant(vector(row_type.width), None)
            sums.append(fused(builder, x, y, builder.insert_element(zero, start, ir.Constant(I32, 0))))
        elif t < 4:
            sums.append(builder.fmul(x, y))
        else:
            sums[t % 4] = fused(builder, x, y, sums[t % 4])
    while len(sums) > 1:
        half = (len(sums) + 1) // 2
        sums = [builder.fadd(sums[t], sums[t + half]) if t + half < len(sums) else sums[t] for t in range(half)]
    return sums[0]


def reduced(builder, row_type, row, other, start=None):
    """start + Σ row[l] · other[l]: the partial sums, folded in halves down to one."""
    total = partial_sums(builder, row_type, row, other, start)
    while total.type.count > 1:
        half = total.type.count // 2
        low, high = (ir.Constant(ir.VectorType(I32, half), list(range(s, s + half))) for s in (0, half))
        undefined = ir.Constant(total.type, ir.Undefined)
        total = builder.fadd(
            builder.shuffle_vector(total, undefined, low), builder.shuffle_vector(total, undefined, high)
        )
    return builder.extract_element(total, ir.Constant(I32, 0))


@intrinsic
def dot(typing, row, other):
    """Σ row[l] · other[l]."""

    def codegen(context, builder, signature, args):
        return reduced(builder, row, *args)

    return types.float32(row, row), codegen


@intrinsic
def dot_from(typing, row, other, start):
    """start + Σ row[l] · other[l]; start enters with the first product, whose lane it is rounded with."""

    def codegen(context, builder, signature, args):
        return reduced(builder, row, *args)

    return types.float32(row, row, types.float32), codegen
