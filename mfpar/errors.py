"""The exceptions of mfpar: each message is one sentence that says what is wrong, where, and what to do.

Every class also derives from the fitting builtin, so that callers who know nothing of mfpar can catch it.
`exit_code` is what the command line ends with: 2 for a request that can't be met as it stands, 1 for a failure, 75 (as
EX_TEMPFAIL of sysexits.h) where nothing is wrong but time is up: the same command with --resume auto goes on; 130 where
somebody would not wait for that.
"""


class MfparError(Exception):
    """Base of all errors that mfpar raises on purpose."""

    exit_code = 1


class ConfigError(MfparError, ValueError):
    """A setting outside its range, or settings that do not fit each other or the data."""

    exit_code = 2


class OutputExistsError(MfparError, FileExistsError):
    """An output path is taken and overwriting was not asked for."""

    exit_code = 2


class LaunchError(MfparError, RuntimeError):
    """MPI is missing, could not be started, or was started by a launcher of another MPI library."""

    exit_code = 2


class RatingsError(MfparError, ValueError):
    """A source of ratings that can't be read as ratings; names the file and, where there is one, the line."""


class FormatError(MfparError, ValueError):
    """A file that is not what it should be: foreign, truncated, damaged, or of another version."""


class StorageError(MfparError, OSError):
    """A file that could not be read or written: disk full, folder missing, no permission."""


class UnknownIdError(MfparError, KeyError):
    """An id that the model has never seen, where a known one is needed."""

    __str__ = Exception.__str__  # KeyError would show the sentence in quotes


class DivergedError(MfparError, ArithmeticError):
    """Training produced infinite or undefined factors."""


class RankError(MfparError, RuntimeError):
    """Another rank failed with an error that has no class of mfpar's."""


class RankLostError(RankError):
    """A rank has died, or is taken for dead; those that are left can go on together if MPI lets them."""


class RankNotNeededError(RankLostError):
    """The ranks that have started this one, in place of one that has died, go on without it: nothing has failed."""

    exit_code = 0


class RankInterruptedError(MfparError, RuntimeError):
    """Somebody has interrupted another rank, by Ctrl-C or a signal: nothing has failed, and nothing is to be mended."""

    exit_code = 130


class PreemptedError(MfparError, RuntimeError):
    """A run was asked to stop and has left a checkpoint to go on from."""

    exit_code = 75
