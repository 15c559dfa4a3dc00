"""Ranks that are threads of this process: a communicator as nasty as the contract of `Communicator` allows.

A message is copied at some random moment between its start and the return of `wait`, from the sender's buffer as it is
then. A buffer that receives is spoilt until then, one that has sent is spoilt from then on (floats are NaN): whoever
touches a block that is not his to touch is found out.

Ranks can die (`Hub.kill`), where they are asked to be tolerant: the rank's thread ends at its next call, and some of
the others notice before others do.
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

from mfpar.errors import LaunchError, MfparError, RankError, RankLostError
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
    size: int, body: Callable[["Simulated"], Result], seed: int = 0, team: int = 1, tolerant: bool = False
) -> list[Result | BaseException]:
    """As `run`, but returns every rank's result or error.

    With `tolerant`, ranks may die, and `body` has to use `guard` itself, as a guard ends with its communicator. The
    result of a rank that was killed is `Death`; those of ranks that were started later follow.
    """
    outcomes: list[Any] = []
    threads: list[threading.Thread] = []

    def start(comm: "Simulated") -> None:
        place = len(outcomes)
        outcomes.append(None)

        def target() -> None:
            try:
                with contextlib.nullcontext() if tolerant else comm.guard():
                    outcomes[place] = body(comm)
            except BaseException as error:
                outcomes[place] = error

        threads.append(threading.Thread(target=target))
        threads[-1].start()

    hub = Hub(World(team, start if tolerant else None), list(range(size)), seed)
    for comm in [Simulated(hub, rank) for rank in range(size)]:
        start(comm)
    for thread in threads:  # grows while ranks start others
        thread.join()
    return outcomes


def spoil(buffer: np.ndarray) -> None:
    """Fill with ones, bit by bit: floats are NaN then."""
    if buffer.flags.writeable:  # bytes of Python's, that nobody can touch anyway, are left alone
        buffer.view(np.uint8)[:] = 255


class Death(BaseException):
    """Ends the thread of a rank that was killed."""


class World:
    """All processes that ranks are, whatever communicators they form; known by numbers that never change.

    `start` starts the process of one more rank; without it nobody may die.
    """

    def __init__(self, team: int, start: Callable[["Simulated"], None] | None):
        self.team, self.start = team, start
        self.lock = threading.RLock()
        self.processes = 0
        self.doomed: dict[int, int] = {}  # how many more calls each of those that are to be killed will end
        self.killed: set[int] = set()  # dead as soon as they notice
        self.dead: set[int] = set()
        self.startable = 1 << 30  # processes that can be started yet


class Hub:
    """Where the ranks of a communicator meet.

    Parameters
    ----------
    members : process of each rank
    whole : where all ranks meet, for a group of them: what one of those meets with is known to all
    """

    def __init__(self, world: World, members: list[int], seed: int, whole: "Hub | None" = None):
        self.world, self.members, self.size = world, members, len(members)
        self.lock = world.lock
        self.random = random.Random(seed)
        self.shared: dict[tuple[int, int], np.ndarray] = {}  # by the number of the call, and of the team's first rank
        self.whole = whole or self
        self.failure: BaseException | None = None
        self.revoked = False  # somebody has noticed that a rank is lost
        self.groups: dict[tuple[int, int], Hub] = {}  # by the number of the split, and of the group in it
        self.gathered: dict[int, dict[int, str]] = collections.defaultdict(dict)
        self.votes: dict[int, dict[int, tuple[bool, bool]]] = collections.defaultdict(dict)  # by guard and rank
        self.verdicts: dict[int, tuple[bool, bool]] = {}
        self.left: set[int] = set()  # who has come to form the next communicator
        self.next: Hub | None = None
        # By sender, receiver and tag: messages of which the other half has not come yet, and pairs under way.
        self.posted: dict[tuple[int, int, int], dict[str, collections.deque[tuple[Message, Flight]]]] = {}
        world.processes = max(world.processes, *(member + 1 for member in members))

    def kill(self, rank: int, after: int = 0) -> None:
        """Rank `rank` dies: at once if it waits, else at its next call; or in a call after so many others.

        If it has a share in a gather then, it dies before or after giving it.
        """
        assert self.world.start, "run_all(..., tolerant=True)"
        with self.lock:
            if after:
                self.world.doomed[self.members[rank]] = after
            else:
                self.world.killed.add(self.members[rank])

    @property
    def lost(self) -> list[int]:
        """Ranks that have died."""
        return [rank for rank, member in enumerate(self.members) if member in self.world.dead]

    def group(self, split: int, group: int, members: list[int]) -> "Hub":
        with self.lock:
            return self.groups.setdefault((split, group), Hub(self.world, members, group, self.whole))

    def succeed(self, respawn: int) -> "Hub | None":
        """The hub of those that are left and of those that they start, once all of them have come here."""
        with self.lock:
            left = [member for member in self.members if member not in self.world.dead]
            if not self.next and self.left >= set(left):
                new = min(respawn, self.world.startable)
                self.world.startable -= new
                first = self.world.processes
                self.next = Hub(self.world, [*left, *range(first, first + new)], self.random.randrange(1 << 30))
                for rank in range(len(left), self.next.size):
                    self.world.start(Simulated(self.next, rank, joined=True))
            return self.next

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

    def __init__(self, hub: Hub, rank: int, joined: bool = False, warning: str = ""):
        self.hub, self.rank, self.size = hub, rank, hub.size
        self.joined, self.warning = joined, warning
        self.tolerant = hub.world.start is not None
        self.bytes_sent = 0
        hosts = [member // hub.world.team for member in hub.members]
        self.leaders = list(range(hub.size))
        for other in range(1, hub.size):
            if hosts[other] == hosts[other - 1]:
                self.leaders[other] = self.leaders[other - 1]
        self._gathers, self._splits, self._shares, self._guards = 0, 0, 0, 0

    def start(self, sends: list[Message], receives: list[Message]) -> Flight:
        self._call()
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
        self._call(revocable=False)
        self._wait(condition)

    def share(self, size: int) -> np.ndarray:
        self._call()
        self._shares += 1
        with self.hub.lock:
            return self.hub.shared.setdefault((self._shares, self.leaders[self.rank]), aligned(size))

    def gather(self, value: Any) -> list[Any]:
        self._call()
        mine = self.hub.gathered[self._gathers]
        self._gathers += 1
        mine[self.rank] = json.dumps(value)
        self._wait(lambda: len(mine) == self.size)
        return [json.loads(mine[rank]) for rank in range(self.size)]

    def split(self, group: int) -> "Simulated":
        members = [rank for rank, named in enumerate(self.gather(group)) if named == group]
        self._splits += 1
        processes = [self.hub.members[rank] for rank in members]
        return Simulated(self.hub.group(self._splits, group, processes), members.index(self.rank))

    def close(self) -> None:
        pass

    def watch(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # threads don't hang

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        self._guards += 1
        number = self._guards
        try:
            yield
            self.gather(None)
        except BaseException as error:
            lost = self.tolerant and isinstance(error, RankLostError)
            if lost:
                self.hub.whole.revoked = True
            elif not self.hub.whole.failure and not isinstance(error, Death):
                known = isinstance(error, MfparError)
                self.hub.whole.failure = error if known else RankError(f"rank {self.rank} failed: {error!r}")
            if self.hub is self.hub.whole and not isinstance(error, Death):
                self._agree(number, False, lost)
            raise
        if self.tolerant and self.hub is self.hub.whole:
            self._agree(number, True, True)

    def survivors(self, respawn: int = 0) -> "Simulated":
        self._call(revocable=False)
        if not self.tolerant:
            raise LaunchError("simulated ranks that are not tolerant do not outlive each other")
        hub = self.hub.whole
        hub.revoked = True
        hub.posted.clear()
        mine = self.hub.members[self.rank]
        hub.left.add(mine)
        self._wait(lambda: hub.succeed(respawn) is not None, revocable=False)
        came = hub.next.size - sum(member in hub.left for member in hub.next.members)
        short = f"{respawn - came} of {respawn} ranks could not be started" if came < respawn else ""
        return Simulated(hub.next, hub.next.members.index(mine), warning=short)

    def _agree(self, guard: int, well: bool, unfailed: bool) -> None:
        """Those that are left leave a guard in one way; raises RankLostError on all of them, or RankError."""
        hub = self.hub
        votes = hub.votes[guard]
        votes[self.rank] = well, unfailed
        if not unfailed:
            return  # its own error is what it leaves with

        def all_have_voted() -> bool:
            with hub.lock:
                if guard not in hub.verdicts and votes.keys() | set(hub.lost) == set(range(hub.size)):
                    wells, unfaileds = zip(*votes.values(), strict=True)
                    hub.verdicts[guard] = all(wells) and not hub.lost, all(unfaileds)
            return guard in hub.verdicts

        self._wait(all_have_voted, revocable=False)
        all_well, nobody_failed = hub.verdicts[guard]
        if not nobody_failed:
            raise RankError("a rank has died while another one failed")
        if not all_well:
            hub.revoked = True
            raise self._loss()

    def _call(self, revocable: bool = True) -> None:
        """Begin a call of this rank; revocable ones raise if somebody has noticed that a rank is lost."""
        self._die_if_killed()
        world, mine = self.hub.world, self.hub.members[self.rank]
        with world.lock:
            if mine in world.doomed:
                world.doomed[mine] -= 1
                if world.doomed[mine] < 0:
                    world.killed.add(mine)
        if self.hub.random.random() < 0.5:
            self._die_if_killed()
        if revocable and self.hub.whole.revoked:
            raise self._loss()

    def _die_if_killed(self) -> None:
        world, mine = self.hub.world, self.hub.members[self.rank]
        if mine in world.killed:
            with world.lock:
                world.dead.add(mine)
            raise Death

    def _wait(self, condition: Callable[[], bool], revocable: bool = True) -> None:
        started = time.perf_counter()
        early = self.hub.random.random() < 0.5
        while True:
            self._die_if_killed()
            lost = revocable and (self.hub.whole.revoked or self.hub.whole.lost)
            if lost and early:
                raise self._loss()
            if condition():
                return
            if self.hub.whole.failure:
                raise self.hub.whole.failure
            if lost:
                raise self._loss()
            if time.perf_counter() - started > PATIENCE:
                raise TimeoutError(f"rank {self.rank} waits forever")
            time.sleep(1e-5)

    def _loss(self) -> RankLostError:
        """Names those of whom this rank knows: none, perhaps, if it hears of the loss from others."""
        self.hub.whole.revoked = True
        lost = self.hub.whole.lost
        return RankLostError(f"rank {', '.join(map(str, lost))} has died" if lost else "a rank has died")
