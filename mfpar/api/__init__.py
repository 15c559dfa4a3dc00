"""What `import mfpar` and the command line call."""

from mfpar.api.enduring import train_enduringly
from mfpar.api.functions import factorize, load
from mfpar.api.launched import train_on_ranks
from mfpar.api.runs import train_file
from mfpar.api.sources import convert, convert_file
from mfpar.api.tuning import TuningResult, tune, tune_file

__all__ = [
    "TuningResult",
    "convert",
    "convert_file",
    "factorize",
    "load",
    "train_enduringly",
    "train_file",
    "train_on_ranks",
    "tune",
    "tune_file",
]
