"""Signals to the supervisor that ask to stop."""

import contextlib
import signal
import threading
import time
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Requests:
    """Catches them while it is entered, on the main thread; elsewhere nothing is caught.

    Parameters
    ----------
    checkpoints : bool
        Whether ranks can leave a checkpoint when they stop. If not, signals do what they did before, and SIGUSR1 what
        SIGTERM does. If they can, a second SIGINT interrupts at once.

    Attributes
    ----------
    asked : float, optional
        When somebody has asked to stop (`time.monotonic`).
    urgent : bool
        Whether somebody did who will not wait for long.
    """

    def __init__(self, checkpoints: bool):
        self.asked: float | None = None
        self.urgent = False
        self._checkpoints = checkpoints
        self._before: dict[int, Any] = {}
        self._interrupts = 0
        self._came = threading.Event()

    def __enter__(self) -> Self:
        with contextlib.suppress(ValueError):  # not the main thread: somebody calls this from a program
            for number in STOPPING if self._checkpoints else STOPPING[-1:]:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pause(self, seconds: float) -> None:
        """Sleep, until somebody asks to stop."""
        self._came.wait(seconds)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._checkpoints:
            signal.raise_signal(signal.SIGTERM)
            return
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            signal.default_int_handler(number, frame)
        self.asked = self.asked or time.monotonic()
        self.urgent = self.urgent or number != signal.SIGINT
        self._came.set()
