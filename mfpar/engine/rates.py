"""Step rules: what becomes of the learning rate from epoch to epoch."""

from mfpar.config import TrainConfig

GROWTH, CUT = 1.05, 0.5  # of the bold driver (Battiti: Accelerated backpropagation learning, Complex Systems 3, 1989)


class Rates:
    """The rate of the current epoch.

    Products only, one after the other, which round alike everywhere; powers need not.

    Parameters
    ----------
    train : TrainConfig
    first : float
        Rate of the first epoch.
    """

    def __init__(self, train: TrainConfig, first: float):
        self._train, self._first = train, first
        self._rate = first  # by the rule alone
        self._repairs = 1.0  # what steps back have left of it

    @property
    def bold(self) -> bool:
        """Whether the loss decides on the rate."""
        return self._train.lr_rule == "bold-driver"

    @property
    def now(self) -> float:
        """Rate of the current epoch."""
        return self._rate * self._repairs

    @property
    def share(self) -> float:
        """The current rate as a share of the first one, for rates that are given apart."""
        return self.now / self._first

    @property
    def memory(self) -> list[float]:
        """All that has become of it so far; to be set when a run goes on from there."""
        return [self._first, self._rate, self._repairs]

    @memory.setter
    def memory(self, memory: list[float]) -> None:
        """Go on from there."""
        self._first, self._rate, self._repairs = memory

    def advance(self, epoch: int) -> None:
        """Go on to the epoch after `epoch`."""
        if isinstance(self._train.lr, tuple):
            self._rate = self._train.lr[min(epoch, len(self._train.lr) - 1)]
        elif self.bold:
            self._rate *= GROWTH
        elif self._train.lr_rule == "exponential":
            self._rate *= self._train.lr_decay
        elif self._train.lr_rule == "inverse":
            self._rate = self._first / (1 + (1 - self._train.lr_decay) * epoch)

    def cut(self, times: int = 1) -> None:
        """Halve the rate, from here on, so many times."""
        self._repairs *= CUT**times
