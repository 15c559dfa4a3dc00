"""The losses that mfpar brings along."""

import dataclasses
from typing import Any

import numpy as np

from mfpar.losses.functions import exp, label, log, positive_part, sigmoid, softplus
from mfpar.losses.loss import Loss, squared_value


def _absolute(r: float, z: float) -> float:
    return abs(r - z)


def _sign(r: float, z: float) -> float:
    return (z > r) - (z < r)


def huber(delta: float = 1.0) -> Loss:
    """½e² for errors e = r − z up to `delta` (in ratings), beyond it delta·(|e| − ½delta) (Huber 1964)."""
    limit = np.float32(delta)

    def value(r: Any, z: Any) -> Any:
        inside = min(abs(r - z), limit)
        return inside * (abs(r - z) - 0.5 * inside)

    def gradient(r: Any, z: Any) -> Any:
        return max(-limit, min(z - r, limit))

    return Loss(gradient, value, name="huber", reg=0.025, lift=0.0, degree=1)


def _kullback_leibler(r: float, z: float) -> float:
    """Rate exp(z) for the count r: its generalised divergence r log(r / rate) − r + rate."""
    return exp(z) - r - r * (z - log(max(r, 1e-30)))


# With labels as random as they are, a branch on the label would be mispredicted half of the time and cost more than all
# else: these functions compute with it.


def _log_loss(r: float, z: float) -> float:
    return softplus(-label(r) * z)


def _log_loss_gradient(r: float, z: float) -> float:
    return -label(r) * sigmoid(-label(r) * z)


def _slack(r: float, z: float) -> float:
    """What a score lacks of being right by a margin of 1: 1 − yz, or 0."""
    return positive_part(label(r) * (label(r) - z))


def _hinge_gradient(r: float, z: float) -> float:
    return -label(r) * (_slack(r, z) > 0)


def _squared_hinge(r: float, z: float) -> float:
    return 0.5 * _slack(r, z) ** 2


def _squared_hinge_gradient(r: float, z: float) -> float:
    return -label(r) * _slack(r, z)


def _bpr(cells: str) -> Loss:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): the log-odds that the rated cell goes before another."""
    return Loss(
        _log_loss_gradient, _log_loss, name=f"bpr-{cells}", rates={"sgd": 0.1, "adagrad": 0.1}, reg=0.01, lift=0.0,
        degree=0, start="zero", cells=cells, metrics=("auc", "loss"), every=25,
    )  # fmt: skip


def _difference(r: float, z: float) -> float:
    return z - r


_BINARY: dict[str, Any] = {"degree": 0, "ratings": "binary"}

BUILTIN = {
    loss.name: loss
    for loss in (
        Loss(_difference, squared_value, name="squared"),
        Loss(_sign, _absolute, name="absolute", lift=0.0, degree=1, metrics=("mae", "rmse")),
        dataclasses.replace(huber(), metrics=("loss", "rmse", "mae")),
        Loss(
            lambda r, z: exp(z) - r, _kullback_leibler, "exp", "poisson", reg=0.05, lift=0.0, degree=0, start="log",
            ratings="counts", metrics=("deviance", "rmse", "mae"), every=25,
        ),
        Loss(
            _log_loss_gradient, _log_loss, "sigmoid", "logistic", {"sgd": 0.05, "adagrad": 0.1}, 0.02, start="logit",
            metrics=("log_loss", "accuracy"), every=25, curvature=0.2, **_BINARY,
        ),
        Loss(
            _hinge_gradient, _slack, name="hinge", reg=0.03, lift=0.0, start="zero",
            metrics=("loss", "accuracy"), **_BINARY,
        ),
        Loss(
            _squared_hinge_gradient, _squared_hinge, name="squared-hinge", reg=0.04, lift=0.0, start="zero",
            metrics=("loss", "accuracy"), **_BINARY,
        ),
        _bpr("row"),
        _bpr("col"),
        Loss(
            _difference, squared_value, name="one-class", rates={"sgd": 0.05, "adagrad": 0.1}, reg=0.01, lift=0.0,
            degree=0, start="zero", cells="one-class", metrics=("loss", "auc"),
        ),
    )
}  # fmt: skip
