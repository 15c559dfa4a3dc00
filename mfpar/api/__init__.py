"""What `import mfpar` and the command line call."""

from mfpar.api.functions import convert, factorize, load
from mfpar.api.runs import train_file, train_on_ranks

__all__ = ["convert", "factorize", "load", "train_file", "train_on_ranks"]
