"""Settings: what the model is (`ModelConfig`), how this run goes (`TrainConfig`), what keeps it safe (`SafetyConfig`).

Each default stands here only. None stands for what follows from other settings: `resolved` fills it in.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from mfpar.errors import ConfigError
from mfpar.losses import BUILTIN, Loss, find, huber_of
from mfpar.settings import Settings, choice, flag, integer, is_int, is_real, number, setting, size

LOSSES = ", ".join(BUILTIN)
OPTIMIZERS = ("sgd", "adagrad")
RULES = ("constant", "inverse", "exponential", "bold-driver")
INITS = ("uniform", "normal", "positive")
EVERY = r"([1-9]\d*)(s|m|h|ep|steps?)"  # how often there is a checkpoint
SECONDS = {"s": 1, "m": 60, "h": 3600}


def _is_rate(value: Any) -> bool:
    return is_real(value) and 0 < value <= 1e6


def _are_rates(value: Any) -> bool:
    several = isinstance(value, tuple) and len(value) > 0 and all(map(_is_rate, value))
    return value is None or value == "auto" or _is_rate(value) or several


def _rates(text: str) -> float | str | tuple[float, ...]:
    """The parser of `--lr`: a number, "auto", or numbers separated by commas."""
    if text == "auto":
        return text
    rates = tuple(float(part) for part in text.split(","))
    return rates if len(rates) > 1 else rates[0]


@dataclass(frozen=True)
class ModelConfig(Settings):
    """What the model is: a score base + row bias + column bias + P[row]·Q[column], and the loss that it minimises."""

    factors: int = integer(32, "length of each row of P and Q", 1, 4096)
    loss: str | Loss = setting(  # noqa: RUF009 - a field like the others, whose types ruff knows
        "squared",
        f"{LOSSES}, or MODULE:NAME of your own Python code, which is run",
        f"one of {LOSSES}, MODULE:NAME, or an mfpar.Loss",
        lambda v: isinstance(v, Loss) or (isinstance(v, str) and (v in BUILTIN or ":" in v)),
    )
    huber_delta: float = number(1.0, "error, in ratings, from which on the huber loss is linear", 1e-30, 1e30)
    biases: bool = flag(True, "learn a bias for each row and each column")
    mean: bool | None = flag(
        None, "start from the ratings' mean (default: yes, but for non-negative factors without biases)"
    )
    nonnegative: bool = flag(False, "keep P and Q at or above zero")
    reg: float | None = number(None, "L2 regularisation of factors and biases (default: by loss)", optional=True)
    reg_p: float | None = number(None, "of P instead of --reg", optional=True)
    reg_q: float | None = number(None, "of Q instead of --reg", optional=True)
    reg_row_bias: float | None = number(None, "of row biases instead of --reg", optional=True)
    reg_col_bias: float | None = number(None, "of column biases instead of --reg", optional=True)
    l1_p: float = number(0.0, "L1 regularisation of P")
    l1_q: float = number(0.0, "L1 regularisation of Q")
    l1_row_bias: float = number(0.0, "L1 regularisation of row biases")
    l1_col_bias: float = number(0.0, "L1 regularisation of column biases")
    reg_per: str = choice(
        "rating", "regularise at each rating, so that long rows feel more of it (as with ALS-WR), or once per row",
        ("rating", "row"),
    )  # fmt: skip
    lift: float | None = number(
        None,
        "how far below the ratings biases start: in their standard deviations, or in scores (default: by loss)",
        optional=True,
    )
    clip: bool = flag(False, "cut predictions to the range of the training ratings")
    init: str = choice("uniform", "starting factors: uniform or normal around zero, or positive (uniform)", INITS)
    init_scale: float = number(0.01, "root mean square of the starting factors")
    negatives: str = choice(
        "sampled",
        "one-class: cells without a rating that count: sampled (one for each rating) or all",
        ("sampled", "all"),
    )
    negative_weight: float | None = number(
        None, "one-class: weight of a cell without a rating (default: 1 sampled, 0.05 all)", optional=True
    )
    negative_target: float = number(0.0, "one-class: rating that such a cell is taken for", -1e6)

    def resolved(self) -> tuple["ModelConfig", Loss]:
        """These settings with nothing left open, and the loss that they name.

        Raises
        ------
        ConfigError
            There is no such loss.
        """
        loss = find(self.loss)
        if loss.name == "huber":
            loss = dataclasses.replace(loss, gradient=(own := huber_of(self.huber_delta)).gradient, value=own.value)
        lifted = self.biases and self.mean is not False
        reg = loss.reg if self.reg is None else self.reg
        parts = ("reg_p", "reg_q", "reg_row_bias", "reg_col_bias")
        filled: dict[str, Any] = {name: reg for name in parts if getattr(self, name) is None}
        if self.mean is None:
            filled["mean"] = self.biases or not self.nonnegative
        if self.lift is None:
            filled["lift"] = loss.lift
        if not lifted:
            filled["lift"] = 0.0
        if self.negative_weight is None:
            filled["negative_weight"] = 1.0 if self.negatives == "sampled" else 0.05
        return self.having(reg=reg, **filled), loss


@dataclass(frozen=True)
class TrainConfig(Settings):
    """How this run goes. `threads` alone can't change a bit of the result."""

    epochs: int = integer(30, "how often each rating is visited", 1, 2**62)
    seed: int = integer(0, "seed of starting values, samples and block order", 0, 2**63 - 1)
    optimizer: str = choice("sgd", "step rule: sgd, or adagrad (a rate per row)", OPTIMIZERS)
    lr: float | str | tuple[float, ...] | None = setting(
        None,
        "learning rate; a list with commas gives one for each epoch; auto finds it on a sample (default: by loss)",
        "a number > 0, at most 1e6, a list of such, or 'auto'",
        _are_rates,
        _rates,
    )
    lr_rule: str = choice(
        "exponential",
        "what becomes of the rate: constant, inverse (lr / (1 + (1 − decay)·epoch)), exponential (lr·decay^epoch), or "
        "bold-driver (5 %% more after an epoch that lowered the loss, half after one that did not, which is undone)",
        RULES,
    )
    lr_decay: float = setting(
        0.95, "decay of the rate", "a number from 0 to 1, not 0", lambda v: is_real(v) and 0 < v <= 1, float
    )
    lr_row_bias: float | None = number(None, "rate of row biases in the first epoch instead of --lr", 1e-30, 1e6, True)
    lr_col_bias: float | None = number(None, "the same of column biases", 1e-30, 1e6, True)
    validation_fraction: float = setting(
        0.0, "share of the training ratings to hold out, by seed, and to watch",
        "a number from 0 to 1, not 1", lambda v: is_real(v) and 0 <= v < 1, float,
    )  # fmt: skip
    folds: int | None = integer(None, "cut the training ratings into so many folds, by seed", 2, 1000, True)
    fold: int = integer(1, "which of the folds to hold out and to watch, from 1", 1, 1000)
    patience: int | None = integer(
        None, "stop after so many epochs without a better validation measure, and go back to the best", 1, 2**62, True
    )
    threads: int = integer(1, "threads of each rank", 1, 2**62)
    memory: int | None = setting(
        None,
        "bytes that each rank may take, as 512M or 2G (default: its share of what the job or the machine has); ratings "
        "that don't fit are streamed from the file",
        "a number of bytes > 0", lambda v: v is None or (is_int(v) and v > 0), size,
    )  # fmt: skip
    spill: str | None = setting(
        None, "folder for a file with the rows of P, if they don't fit the memory", "the path of a folder",
        lambda v: v is None or isinstance(v, str), str,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds is not None and self.fold > self.folds:
            raise ConfigError(f"fold={self.fold}: expected one from 1 to folds={self.folds}")
        if self.folds is not None and self.validation_fraction:
            raise ConfigError("folds and validation_fraction exclude each other: both say what to hold out")
        if self.patience is not None and not self.validates:
            raise ConfigError(
                f"patience={self.patience}: early stopping needs a validation part; give validation_fraction or folds"
            )
        if isinstance(self.lr, tuple) and self.lr_rule == "bold-driver":
            raise ConfigError("a rate for each epoch and the bold driver exclude each other: both set the rate")

    @property
    def validates(self) -> bool:
        """Whether a part of the training ratings is held out for validation."""
        return bool(self.validation_fraction) or self.folds is not None

    @property
    def ways_back(self) -> int:
        """How many states a cut has besides that of now: the best, and the last where any epoch may be undone."""
        return (self.patience is not None) + (self.lr_rule == "bold-driver")

    def resolved(self, loss: Loss) -> "TrainConfig":
        """These settings with the loss's rate where none is given."""
        return self if self.lr is not None else self.having(lr=loss.rates[self.optimizer])


@dataclass(frozen=True)
class SafetyConfig(Settings):
    """What keeps a run safe from crashes, and what it goes on from; none of it changes a bit of the result."""

    checkpoint: str | None = setting(
        None, "folder for checkpoints, on a file system that all ranks share",
        "the path of a folder", lambda v: v is None or (isinstance(v, str) and bool(v)),
    )  # fmt: skip
    checkpoint_every: str = setting(
        "5m", "how often: by time (90s, 5m, 1h), epochs (3ep) or steps (100steps)",
        "a time, epochs or steps, as 5m, 3ep or 100steps",
        lambda v: isinstance(v, str) and bool(re.fullmatch(EVERY, v)),
    )  # fmt: skip
    keep: int = integer(2, "how many checkpoints stay", 1, 10**6)
    resume: str | None = setting(
        None, "go on from a checkpoint: its PATH, or auto for the newest whole one of --checkpoint, if there is any",
        "auto, or the path of a checkpoint", lambda v: v is None or (isinstance(v, str) and bool(v)),
    )  # fmt: skip
    replicas: int = integer(
        0, "copies of each rank's shard in a neighbour's memory, to go back to when a rank dies", 0, 1
    )
    respawn: bool = flag(False, "start ranks in place of those that died (Open MPI with ULFM)")
    hang_timeout: float = number(
        60.0, "seconds without a sign of life after which a rank is taken for dead; 0: never", 0.0, 1e6
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume == "auto" and self.checkpoint is None:
            raise ConfigError("resume='auto': needs the folder of the checkpoints; give checkpoint too")

    @property
    def interval(self) -> tuple[int, str]:
        """How often there is a checkpoint: a number, and "seconds", "epochs" or "steps".

        >>> SafetyConfig(checkpoint_every="5m").interval, SafetyConfig(checkpoint_every="3ep").interval
        ((300, 'seconds'), (3, 'epochs'))
        """
        unit = self.checkpoint_every.lstrip("0123456789")
        count = int(self.checkpoint_every.removesuffix(unit))
        if unit in SECONDS:
            return count * SECONDS[unit], "seconds"
        return count, "epochs" if unit == "ep" else "steps"
