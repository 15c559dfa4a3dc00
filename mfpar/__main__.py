"""`mfpar`, and `python -m mfpar`, which is the same."""

import signal
import sys


def main() -> int:
    """Run the command line; returns the exit code."""
    # Nobody wants to see which import an interrupt came into the midst of. Who ignores them goes on to do so.
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mfpar.cli.main import main as run

    signal.signal(signal.SIGINT, interrupted)
    return run()


if __name__ == "__main__":
    sys.exit(main())
