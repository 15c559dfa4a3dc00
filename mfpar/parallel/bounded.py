"""Bounds on what ranks do together while nothing else watches over them: before they have met, and after a loss."""

import contextlib
import faulthandler
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence

from mfpar.parallel.processes import Process, kill_stopped

LOOKS = 3  # in the time that there is; at each of them ranks that are stopped are ended
LOCKED = 5.0  # seconds more for a process that can't even say why, as it waits for MPI with Python's lock
HERALD = 'read -r anything && printf "%s\\n" "$1" >&2'


@contextlib.contextmanager
def bounded(seconds: float, what: str, others: Sequence[Process] = ()) -> Iterator[None]:
    """End this process, with a sentence and exit code 1, if what is done inside takes longer. Local.

    Before, those of the others on this machine that were stopped are ended: then MPI, if it can, goes on without them.

    Parameters
    ----------
    seconds : 0: as long as it takes
    what : the sentence, up to the time
    others : processes of other ranks
    """
    if not seconds:
        yield
        return
    sentence = f"mfpar: error: {what} within {seconds:g} s; the job is ended"
    over = threading.Event()

    def wait() -> None:
        for _ in range(LOOKS):
            if over.wait(seconds / LOOKS):
                return
            kill_stopped(others)
        os.write(2, f"{sentence}\n".encode())
        os._exit(1)

    threading.Thread(target=wait, name="mfpar-bound", daemon=True).start()
    # Where this process can't say why itself, another does, as soon as it hears anything.
    herald = subprocess.Popen(["sh", "-c", HERALD, "sh", sentence], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    with herald:
        faulthandler.dump_traceback_later(seconds + LOCKED, exit=True, file=herald.stdin)  # type: ignore[arg-type]
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            over.set()
