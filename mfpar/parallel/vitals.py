"""What tells from inside a process whether it does anything: CPU seconds, but for those of waits."""

import threading
import time

LEAST = 1e-3  # of a core, times the threads of the process: what it uses if it does anything; naps take less


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


class Activity:
    """Tells from CPU seconds whether a process does anything."""

    def __init__(self, timeout: float):
        self._timeout = timeout
        self._time, self._used = 0.0, 0.0  # when it last did something, and what it had used by then

    def idle(self, time: float, used: float) -> float:
        """Seconds since it last did something, now that it is `time` and it has used so many seconds of CPU time."""
        if used - self._used >= LEAST * threading.active_count() * max(self._timeout, time - self._time):
            self._time, self._used = time, used
        return time - self._time
