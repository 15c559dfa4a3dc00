"""Whether a process does anything, told by the CPU time that it uses."""

import time

# Of a core: what a process uses if it does anything. A rank that waits for another one looks for it two thousand times
# a second, and takes ten times as much; a thread that naps and beats takes less.
LEAST = 1e-3


STEP = 4  # periods of time that passes at most between two looks: what is more, this process was not there


class Presence:
    """Time that passes while this process is there: what a stop or a suspended machine took is nobody's silence.

    Parameters
    ----------
    period : seconds between looks, about

    Attributes
    ----------
    now : seconds that have passed by the last look
    """

    def __init__(self, period: float):
        self._most, self._before = STEP * period, time.monotonic()
        self.now = 0.0

    def look(self, most: float | None = None) -> float:
        """Seconds that have passed since the last look, at most some periods, or `most`; they are added up."""
        now = time.monotonic()
        passed = min(now - self._before, self._most if most is None else most)
        self._before = now
        self.now += passed
        return passed


def used() -> float:
    """Seconds of CPU time that this process has used so far, apart from the thread that asks. Local."""
    return time.process_time() - time.thread_time()


class Activity:
    """Tells from CPU seconds for how long a process has done nothing.

    Parameters
    ----------
    timeout : seconds over which it has to use more than next to nothing
    """

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._time, self._used = 0.0, 0.0  # when it last did something, and what it had used by then

    def idle(self, now: float, used: float, threads: int = 1) -> float:
        """Seconds since it last did something, now that it is `now` and it has used so many seconds of CPU time.

        So many `threads` of it nap, each of which may use next to nothing.
        """
        if used - self._used >= LEAST * threads * max(self._timeout, now - self._time):
            self._time, self._used = now, used
        return now - self._time


class Waits:
    """What the main thread tells of its waits for other ranks, for the pulse to see."""

    def __init__(self) -> None:
        self.looks = 0  # that anybody has taken
        self.used = 0.0  # seconds of CPU time that waits have taken

    def look(self, before: float | None) -> float:
        """Count another look of a wait; takes what the last look of the same wait returned, None at first."""
        now = time.thread_time()
        if before is not None:
            self.used += now - before
        self.looks += 1
        return now
