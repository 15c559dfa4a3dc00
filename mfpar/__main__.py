"""`mfpar`, and `python -m mfpar`, which is the same."""

import os
import signal
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    # Nobody wants to see which import an interrupt came into the midst of. Who ignores them goes on to do so.
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_streams()
    from mfpar.cli.main import end
    from mfpar.cli.main import main as run

    signal.signal(signal.SIGINT, interrupted)
    return end(run())


def _open_streams() -> None:
    """Make streams that can be written to: closed ones lead nowhere, and a letter that one has not is shown by number.

    Else the next file that is opened would get the number of a closed stream, and all that some library says.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode))  # noqa: SIM115 - open as long as Python runs
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


if __name__ == "__main__":
    sys.exit(main())
