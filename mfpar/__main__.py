"""`python -m mfpar` is `mfpar`."""

import sys

from mfpar.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
