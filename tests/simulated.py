"""Ranks that are threads of this process: a communicator as nasty as the contract of `Communicator` allows.

A message is copied at some random moment between its start and the return of `wait`, from the sender's buffer as it is
then. A buffer that receives is spoilt until then, one that has sent is spoilt from then on (floats are NaN): whoever
touches a block that is not his to touch is found out.
"""

import collections
import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from mfpar.errors import MfparError, RankError
from mfpar.parallel.comm import Message
from mfpar.parallel.memory import aligned

Result = TypeVar("Result")

PATIENCE = 60.0  # seconds until a wait is taken for a deadlock


def run(size: int, body: Callable[["Simulated"], Result], seed: int = 0, team: int = 1) -> list[Result]:
    """Run `body(comm)` on every rank, within its guard, and return the results; raises what the first rank raised.

    Each `team` ranks that follow one on the other share memory.
    """
    outcomes = run_all(size, body, seed, team)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes  # type: ignore[return-value]


def run_all(
    size: int, body: Callable[["Simulated"], Result], seed: int = 0, team: int = 1
) -> list[Result | BaseException]:
    """As `run`, but returns every rank's result or error."""
    hub = Hub(size, seed, team)
    outcomes: list[Any] = [None] * size

    def target(rank: int) -> None:
        try:
            comm = Simulated(hub, rank)
            with comm.guard():
                outcomes[rank] = body(comm)
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=target, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def spoil(buffer: np.ndarray) -> None:
    """Fill with ones, bit by bit: floats are NaN then."""
    if buffer.flags.writeable:  # bytes of Python's, that nobody can touch anyway, are left alone
        buffer.view(np.uint8)[:] = 255


class Hub:
    """Where ranks meet."""

    def __init__(self, size: int, seed: int, team: int, whole: "Hub | None" = None):
        self.size, self.team = size, team
        self.shared: dict[tuple[int, int], np.ndarray] = {}  # by the number of the call, and of the team's first rank
        self.lock = threading.RLock()
        self.random = random.Random(seed)
        self.failures: list[BaseException] = whole.failures if whole else []  # a group's are those of all ranks
        self.groups: dict[tuple[int, int], Hub] = {}  # by the number of the split, and of the group in it
        self.gathered: dict[int, dict[int, str]] = collections.defaultdict(dict)
        # By sender, receiver and tag: messages of which the other half has not come yet, and pairs under way.
        self.posted: dict[tuple[int, int, int], dict[str, collections.deque[tuple[Message, Flight]]]] = {}

    @property
    def failure(self) -> BaseException | None:
        return self.failures[0] if self.failures else None

    def group(self, split: int, group: int, size: int) -> "Hub":
        with self.lock:
            return self.groups.setdefault((split, group), Hub(size, group, self.team, self))

    def post(self, kind: str, sender: int, receiver: int, message: Message, flight: "Flight") -> None:
        with self.lock:
            route = self.posted.setdefault(
                (sender, receiver, message.tag), {"send": collections.deque(), "receive": collections.deque()}
            )
            route[kind].append((message, flight))

    def move(self) -> None:
        """Let some of the messages arrive, in order on each route."""
        with self.lock:
            for route in self.posted.values():
                if route["send"] and route["receive"] and self.random.random() < 0.5:
                    (sent, sender), (received, receiver) = route["send"].popleft(), route["receive"].popleft()
                    received.buffer[:] = sent.buffer
                    spoil(sent.buffer)
                    sender.left -= 1
                    receiver.left -= 1


class Flight:
    """See `mfpar.parallel.comm.Pending`."""

    def __init__(self, comm: "Simulated", messages: int):
        self._comm, self.left = comm, messages

    def arrived(self) -> bool:
        self._comm.hub.move()
        return self.left == 0

    def wait(self) -> None:
        self._comm.wait_until(self.arrived)


class Simulated:
    """See `mfpar.parallel.comm.Communicator`."""

    library = "simulated"

    def __init__(self, hub: Hub, rank: int):
        self.hub, self.rank, self.size = hub, rank, hub.size
        self.bytes_sent = 0
        self.leaders = [other // hub.team * hub.team for other in range(hub.size)]
        self._gathers, self._splits, self._shares = 0, 0, 0

    def start(self, sends: list[Message], receives: list[Message]) -> Flight:
        flight = Flight(self, len(sends) + len(receives))
        for message in receives:
            spoil(message.buffer)
            self.hub.post("receive", message.peer, self.rank, message, flight)
        for message in sends:
            assert message.buffer.flags.c_contiguous
            assert 0 <= message.tag < 32768
            self.bytes_sent += message.buffer.nbytes
            self.hub.post("send", self.rank, message.peer, message, flight)
        return flight

    def wait_until(self, condition: Callable[[], bool]) -> None:
        started = time.perf_counter()
        while not condition():
            if self.hub.failure:
                raise self.hub.failure
            if time.perf_counter() - started > PATIENCE:
                raise TimeoutError(f"rank {self.rank} waits forever")
            time.sleep(1e-5)

    def share(self, size: int) -> np.ndarray:
        self._shares += 1
        with self.hub.lock:
            return self.hub.shared.setdefault((self._shares, self.leaders[self.rank]), aligned(size))

    def gather(self, value: Any) -> list[Any]:
        mine = self.hub.gathered[self._gathers]
        self._gathers += 1
        mine[self.rank] = json.dumps(value)
        self.wait_until(lambda: len(mine) == self.size)
        return [json.loads(mine[rank]) for rank in range(self.size)]

    def split(self, group: int) -> "Simulated":
        members = [rank for rank, named in enumerate(self.gather(group)) if named == group]
        self._splits += 1
        return Simulated(self.hub.group(self._splits, group, len(members)), members.index(self.rank))

    def close(self) -> None:
        pass

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        try:
            yield
            self.gather(None)
        except BaseException as error:
            if not self.hub.failure:
                known = isinstance(error, MfparError)
                self.hub.failures.append(error if known else RankError(f"rank {self.rank} failed: {error!r}"))
            raise
