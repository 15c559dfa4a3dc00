"""A log of each rank at debug level, for whoever has to find out what happened on which of them."""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from mfpar.atomic import reason, storage_errors
from mfpar.parallel import launch

FORMAT = "%(asctime)s.%(msecs)03d {where} %(threadName)s %(name)s: %(message)s"


@contextlib.contextmanager
def debug_log(folder: str | None, rank: int) -> Iterator[None]:
    """Have all that mfpar notes of this process appended to `rank-RANK.log` in a folder; without one, nothing is noted.

    One that was started anew has a number that another has had, or has still: its own id is in the name of its log.

    Raises
    ------
    StorageError
        The folder can't be made, or written to.
    """
    if folder is None:
        yield
        return
    own = f"-{os.getpid()}" if launch.started_anew() else ""
    path = Path(folder) / f"rank-{rank:04d}{own}.log"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _Handler(path, encoding="utf-8")
    where = f"rank {rank} on {socket.gethostname()}"
    handler.setFormatter(logging.Formatter(FORMAT.format(where=where), "%Y-%m-%d %H:%M:%S"))
    log = logging.getLogger("mfpar")
    before = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        log.debug("process %d: %s", os.getpid(), " ".join(sys.argv))
        yield
    except BaseException as error:
        log.debug("ends with %s", type(error).__name__, exc_info=True)
        raise
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        with contextlib.suppress(OSError):  # of which was told
            handler.close()


class _Handler(logging.FileHandler):
    """Gives the file up where it can't be written any more: a log is no reason to end a run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif self.level <= logging.CRITICAL:
            self.setLevel(logging.CRITICAL + 1)
            text = f"mfpar: warning: {self.baseFilename}: could not be written any more: {reason(error)}"
            print(text, file=sys.stderr, flush=True)
