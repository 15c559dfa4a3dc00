"""`mfpar VERB …`: parses, runs the verb, and turns every error into one sentence and an exit code.

Exit codes: 0 done, 1 failed, 2 asked for what can't be, 75 stopped as asked, with a checkpoint to go on from, 130
interrupted, 143 terminated. Under mpirun the first rank alone speaks; verbs that are not collective run on it alone.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from mfpar.cli import convert, doctor, inspect, plan, serve, train, tune, verify
from mfpar.cli.display import print_event
from mfpar.errors import MfparError, PreemptedError, RankInterruptedError, RankNotNeededError
from mfpar.parallel import launch
from mfpar.supervise.requests import STOPPING

TERMINATED = 143
LAUNCHER = os.getppid()
GOODBYE = 15.0  # seconds that other ranks, whose end would be its end, give the first to speak and to end them all


class _Parser(argparse.ArgumentParser):
    """Complains on the first rank only."""

    def error(self, message: str) -> NoReturn:
        if launch.launched_rank() > 0:
            _linger(GOODBYE)
            sys.exit(2)
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; each sets `run`, a function of what is parsed, and `collective` if all ranks run it."""
    parser = _Parser(
        prog="mfpar",
        description="Model-parallel matrix factorization: the same bits on any number of ranks and threads.",
        epilog="`mfpar VERB --help` tells more about a verb.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for module in (convert, plan, train, tune, inspect, verify, serve, doctor):
        module.add_verbs(verbs)
    for verb in verbs.choices.values():
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import mfpar

        print(f"mfpar {mfpar.__version__}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (and does not return where MPI has to be ended by force)."""
    code = _run(arguments)
    _flush()
    if launch.outlived():
        leave(code)
    return code


def end(code: int) -> int:
    """Come to MPI's end with all ranks, as the last thing that this process does; returns the exit code. Collective."""
    for number in STOPPING:  # there is nothing left to stop
        signal.signal(number, signal.SIG_IGN)
    if launch.mpi_runs():
        launch.finish(lambda: leave(code))
    return code


def _flush() -> None:
    """Write out what has been said; what can't be leads nowhere, as Python would end with an error of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def leave(code: int) -> NoReturn:
    """End this process, which has outlived others, past MPI: that may never come to its end now, on one host either."""
    _flush()
    if not code:
        launch.sign_off()
    os._exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    args = build_parser().parse_args(arguments)
    asked = list[int]()  # SIGTERM: what is half done is cleaned up, as after SIGINT

    def terminate(number: int, frame: object) -> NoReturn:
        asked.append(number)  # not an exception of its own, of which DuckDB would make another
        raise KeyboardInterrupt

    _on_sigterm(terminate)
    if not getattr(args, "collective", False) and launch.launched_rank() > 0:
        return 0
    done = False
    try:
        args.run(args)
        done = True
        sys.stdout.flush()
    except BrokenPipeError:
        if done or args.run not in (convert.run, train.run, tune.run):
            return 0  # whoever read our output has seen enough
        return _fail("standard output was closed before the end; nothing was written", "StorageError", 1, args)
    except KeyboardInterrupt:
        if asked:
            return _fail("terminated", "RankError", TERMINATED, args)
        return _fail("interrupted", RankInterruptedError.__name__, RankInterruptedError.exit_code, args)
    except PreemptedError as error:
        return _stop(str(error), error.exit_code)
    except RankNotNeededError:
        return 0
    except MfparError as error:
        return _fail(str(error), type(error).__name__, error.exit_code, args)
    except MemoryError as error:
        return _fail(f"out of memory: {error or 'the request was too large'}", "StorageError", 1, args)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", "StorageError", 1, args)
    except Exception as error:  # noqa: BLE001 - whatever it is, it ends in one sentence
        text = f"internal error, {type(error).__name__}: {error} (run again with --debug and report it)"
        return _fail(text, "RankError", 1, args)
    return 0


def _on_sigterm(handler: Callable[..., object] | int) -> None:
    with contextlib.suppress(ValueError):  # not the main thread: somebody calls this from a program
        signal.signal(signal.SIGTERM, handler)


def _linger(seconds: float) -> None:
    """Leave it to the first rank to end all, as long as there is the launcher that would."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and os.getppid() == LAUNCHER:
        time.sleep(0.1)


def _stop(message: str, code: int) -> int:
    """End as asked, all ranks by themselves: nothing has failed, and all that is to stay is on the disk."""
    _on_sigterm(signal.SIG_IGN)
    if launch.speaks():
        print(f"mfpar: {message}", file=sys.stderr, flush=True)
    return code


def _fail(message: str, kind: str, code: int, args: argparse.Namespace) -> int:
    """Say what went wrong, once, and end every rank that was launched with this one."""
    _on_sigterm(signal.SIG_DFL)  # all is cleaned up: from here on the launcher may end this rank at any time
    first = launch.speaks()
    if args.debug:
        traceback.print_exc()
    if first:
        told = False
        if getattr(args, "progress", None) == "json":
            with contextlib.suppress(OSError):  # where standard output is full, the other way is left
                print_event({"kind": "error", "error": kind, "message": message})
                told = True
        if not told:
            print(f"mfpar: error: {message}", file=sys.stderr)
        _flush()
    together = launch.mpi_runs()
    if not first:
        _linger(GOODBYE if together else GOODBYE / 10)
    if together:
        if not first:
            print(f"mfpar: error: {message}", file=sys.stderr, flush=True)
        launch.abort(code)
    return code
