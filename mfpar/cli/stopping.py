"""Signals that ask a run to leave a checkpoint and end."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from mfpar.errors import PreemptedError
from mfpar.supervise.requests import STOPPING


@contextlib.contextmanager
def stopping(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether one of the signals has come; a second SIGINT interrupts at once.

    Parameters
    ----------
    wanted : whether signals are to be caught at all; otherwise they do what they do, and the function says no
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in asked:
            signal.default_int_handler(number, frame)
        asked.append(number)

    before, stopped = {}, False
    try:
        if wanted:
            with contextlib.suppress(ValueError):  # not the main thread: somebody calls this from a program
                before = {number: signal.signal(number, note) for number in STOPPING}
        yield lambda: bool(asked)
    except PreemptedError:  # asked may have been another rank
        stopped = True
        raise
    finally:
        for number, handler in before.items():
            # All that is to stay is on the disk: who asks once more shall not kill what is about to end.
            done = (asked or stopped) and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if done else handler)
