"""From scores to predictions on the ratings' scale, for arrays."""

from collections.abc import Callable

import numpy as np

from mfpar.losses import LARGEST_EXPONENT, Loss


def _exp(scores: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(np.clip(scores, -LARGEST_EXPONENT, LARGEST_EXPONENT)))


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + _exp(-scores)))


# By the name that a model file holds; float32[n] to float32[n].
TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda scores: scores,
    "sigmoid": _sigmoid,
    "exp": _exp,
}


def apply_link(loss: Loss, scores: np.ndarray) -> np.ndarray:
    """float32[n] predictions from float32[n] scores, by the compiled link of a loss of one's own."""
    # Here, not above: the other links do without the JIT.
    from mfpar.kernels import link_kernel, register

    predictions = np.empty(len(scores), np.float32)
    link_kernel(register(loss))(np.ascontiguousarray(scores, np.float32), predictions)
    return predictions
