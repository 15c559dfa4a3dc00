"""Taking turns at column-blocks: how workers, threads or processes, keep to the schedule without a word between them.

A worker visits its row-blocks step by step. In step s row-block i meets column-block j = order[(i + s) mod G], which
row-block i + 1 met in step s − 1. So all that a worker has to know is how often j has been visited: a count on the
*board*, which every worker of a node sees. It waits until the count says that it is its turn, and adds one when it has
done. No worker waits for a step to end everywhere; a slow one holds up its neighbours only once they have used up what
lies between them. The order in which a row-block meets its column-blocks, and a column-block its row-blocks, stays that
of the schedule, and with it every bit.

Who has to wait long sleeps in the kernel of the operating system (Linux's futex: Franke, Russell, Kirkwood: Fuss,
futexes and furwocks, Ottawa Linux Symposium 2002), so that it leaves its core to those that work.
"""

import platform
import sys
import time
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mfpar.kernels.compile import compiled, inlined

# The board is int32[G + 2, WIDTH], a cache line for each column-block: how often it has been visited, whether somebody
# sleeps until that changes, in which slot it lies. Line G says, in its first place, that all shall stop; line G + 1
# counts the workers that have ended a pass, over all passes.
DONE, ASLEEP, SLOT = range(3)
WIDTH = 16

# The clocks of a row-block: nanoseconds that its worker has waited for turns, and worked; when it came to its first
# visit, and ended the last. The marks of a visit: when the worker came, began, ended.
WAITED, WORKED, STARTED, FINISHED = range(4)
CLOCKS = 4
CAME, BEGAN, ENDED = range(3)

LOOKS = 100  # at the count before a worker lies down: some microseconds
NAP = 50_000_000  # nanoseconds, after which a sleeper looks whether all shall stop
FUTEX = {"x86_64": 202, "aarch64": 98, "ppc64le": 221, "riscv64": 98}.get(platform.machine())  # number of the call
FUTEX = FUTEX if sys.platform == "linux" else None
FUTEX_WAIT, FUTEX_WAKE = 0, 1
POLL = 50  # microseconds of sleep between looks, where there is no futex
CLOCK = getattr(time, "CLOCK_MONOTONIC", 1)  # that of Python's time.monotonic_ns

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class Turns(NamedTuple):
    """What a worker visits, and when.

    Row-blocks first … last − 1, `origin` being the number of row-block 0 in the grid; in each of `steps` steps from
    `since` on all of them, row-block i in step s column-block order[(origin + i + s) mod G] when the board says
    turn + s.
    """

    first: Any  # int64
    last: Any  # int64
    origin: Any  # int64
    since: Any  # int64
    steps: Any  # int64
    turn: Any  # int64: below 2^31
    order: Any  # int64[G]
    board: Any  # int32[G + 2, WIDTH]
    starts: Any  # int64[slots]: where each slot begins in Q
    clocks: Any  # int64[B, CLOCKS], of which the first two grow
    marks: Any  # int64[B, since + steps, 3], or int64[B, 0, 3] if nobody wants to know


_INTEGERS, _LINE, _TABLE, _SHEETS = types.int64, types.int64[::1], types.int64[:, ::1], types.int64[:, :, ::1]
TURNS = types.NamedTuple((*(_INTEGERS,) * 6, _LINE, types.int32[:, ::1], _LINE, _TABLE, _SHEETS), Turns)


def _call(builder, name, result, *arguments):
    """Call a function of the C library by its name, which the linker of a cached kernel will find again."""
    function_type = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _at(context, builder, signature, args):
    """Pointer to board[line, field], of (board, line, field, …)."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    return builder.gep(data, [builder.add(builder.mul(args[1], ir.Constant(I64, WIDTH)), args[2])])


def _count_at(context, builder, signature, args):
    """Pointer to the count of a line, of (board, line, …)."""
    return _at(context, builder, signature, [*args[:2], ir.Constant(I64, DONE)])


def _futex(builder, at, operation, value, timeout):
    """Call futex on a count; what it takes besides are int64."""
    address, nothing = builder.ptrtoint(at, I64), ir.Constant(I64, 0)
    operation = ir.Constant(I64, operation)
    _call(builder, "syscall", I64, ir.Constant(I64, FUTEX), address, operation, value, timeout, nothing, nothing)


@intrinsic
def look(typing, board, line, field):
    """board[line, field] as others have left it, with all that they did before."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_at(context, builder, signature, args), "seq_cst", 4)

    return types.int32(board, types.int64, types.int64), codegen


@intrinsic
def show(typing, board, line, field, value):
    """board[line, field] = value, for all to see after what was done before."""

    def codegen(context, builder, signature, args):
        at = _at(context, builder, signature, args)
        builder.atomic_rmw("xchg", at, args[3], "seq_cst")
        return context.get_dummy_value()

    return types.void(board, types.int64, types.int64, types.int32), codegen


@intrinsic
def raised(typing, board, line):
    """The count of `line`, which grows by one at the same moment."""

    def codegen(context, builder, signature, args):
        at, one = _count_at(context, builder, signature, args), ir.Constant(I32, 1)
        return builder.add(builder.atomic_rmw("add", at, one, "seq_cst"), one)

    return types.int32(board, types.int64), codegen


@intrinsic
def sleep(typing, board, line, seen):
    """Sleep until somebody wakes those who look at the count of `line`, unless it is no longer `seen`; not for long."""

    def codegen(context, builder, signature, args):
        if FUTEX is None:
            _call(builder, "usleep", I32, ir.Constant(I32, POLL))
        else:
            nap = cgutils.alloca_once_value(builder, ir.Constant(ir.ArrayType(I64, 2), [0, NAP]))
            at, seen = _count_at(context, builder, signature, args), builder.sext(args[2], I64)
            _futex(builder, at, FUTEX_WAIT, seen, builder.ptrtoint(nap, I64))
        return context.get_dummy_value()

    return types.void(board, types.int64, types.int32), codegen


@intrinsic
def wake(typing, board, line):
    """Wake all who sleep at the count of `line`."""

    def codegen(context, builder, signature, args):
        if FUTEX is not None:
            at, everybody = _count_at(context, builder, signature, args), ir.Constant(I64, 2**31 - 1)
            _futex(builder, at, FUTEX_WAKE, everybody, ir.Constant(I64, 0))
        return context.get_dummy_value()

    return types.void(board, types.int64), codegen


@intrinsic
def now(typing):
    """int64: nanoseconds on the clock of Python's time.monotonic_ns."""

    def codegen(context, builder, signature, args):
        time_type = ir.ArrayType(I64, 2)
        at = cgutils.alloca_once(builder, time_type)
        _call(builder, "clock_gettime", I32, ir.Constant(I32, CLOCK), builder.bitcast(at, I8.as_pointer()))
        seconds, rest = (builder.extract_value(builder.load(at), part) for part in (0, 1))
        return builder.add(builder.mul(seconds, ir.Constant(I64, 10**9)), rest)

    return types.int64(), codegen


@inlined
def announce(board, line, count):
    """Set the count of a column-block, and wake who waits for it."""
    show(board, line, DONE, count)
    if look(board, line, ASLEEP) != 0:
        show(board, line, ASLEEP, 0)
        wake(board, line)


@inlined
def come(turns, n):
    """Wait for the n-th visit of a worker: its row-block i, column-block j, and where that begins; i < 0: all stop."""
    held = turns.last - turns.first
    step, place = turns.since + n // held, n % held
    i = turns.first + place
    j = turns.order[(turns.origin + i + step) % len(turns.order)]
    came = now()
    stop = len(turns.order)
    looks = 0
    while look(turns.board, stop, DONE) == 0:
        seen = look(turns.board, j, DONE)
        if seen == turns.turn + step:
            began = now()
            turns.clocks[i, WAITED] += began - came
            turns.clocks[i, WORKED] -= began
            if step == 0:
                turns.clocks[i, STARTED] = came
            if turns.marks.shape[1] > 0:
                turns.marks[i, step, CAME], turns.marks[i, step, BEGAN] = came, began
            return i, j, turns.starts[look(turns.board, j, SLOT)]
        looks += 1
        if looks > LOOKS:
            show(turns.board, j, ASLEEP, 1)
            sleep(turns.board, j, seen)
    return -1, j, 0


@inlined
def go(turns, n, i, j):
    """End the n-th visit: the next may come."""
    step = turns.since + n // (turns.last - turns.first)
    ended = now()
    turns.clocks[i, WORKED] += ended
    turns.clocks[i, FINISHED] = ended
    if turns.marks.shape[1] > 0:
        turns.marks[i, step, ENDED] = ended
    announce(turns.board, j, turns.turn + step + 1)


@compiled("board", types.void(types.int32[:, ::1], types.int64[::1], types.int64))
def announce_all(board, lines, count):
    """Set the count of some column-blocks, from Python: board int32[G + 2, WIDTH], lines int64[n], count."""
    for line in lines:
        announce(board, line, count)


@compiled("board", types.void(types.int32[:, ::1], types.int64))
def finish(board, count):
    """Add one to the workers that have ended; who makes them `count` wakes those who wait for that."""
    line = len(board) - 1
    if raised(board, line) == count:
        wake(board, line)


@compiled("board", types.boolean(types.int32[:, ::1], types.int64))
def have_ended(board, count):
    """Whether `count` workers have ended, or more: others may be through with a short pass that comes next.

    Sleeps, not for long, if not.
    """
    line = len(board) - 1
    seen = look(board, line, DONE)
    if seen >= count:
        return True
    sleep(board, line, seen)
    return look(board, line, DONE) >= count
