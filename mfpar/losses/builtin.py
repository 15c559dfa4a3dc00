"""The losses that mfpar brings along."""

from typing import Any

from mfpar.losses.functions import clamp, exp, label, log, positive_part, sigmoid, sign, softplus
from mfpar.losses.loss import Loss, squared_value


def _absolute(r: float, z: float) -> float:
    return abs(r - z)


def _sign(r: float, z: float) -> float:
    return sign(z - r)


def huber_of(delta: float) -> Loss:
    """½e² for errors e = r − z up to `delta` (in ratings), beyond it delta·(|e| − ½delta) (Huber 1964)."""

    def value(r: float, z: float) -> float:
        inside = clamp(abs(r - z), delta)
        return inside * (abs(r - z) - 0.5 * inside)

    def gradient(r: float, z: float) -> float:
        return clamp(z - r, delta)

    return Loss(gradient, value, name="huber", reg=0.025, lift=0.0, degree=1, metrics=("loss", "rmse", "mae"))


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
    return -label(r) * sign(_slack(r, z))


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


squared = Loss(_difference, squared_value, name="squared")
absolute = Loss(_sign, _absolute, name="absolute", lift=0.0, degree=1, metrics=("mae", "rmse"))
huber = huber_of(1.0)
poisson = Loss(
    lambda r, z: exp(z) - r, _kullback_leibler, "exp", "poisson", reg=0.05, lift=0.0, degree=0, start="log",
    ratings="counts", metrics=("deviance", "rmse", "mae"), every=25,
)  # fmt: skip
logistic = Loss(
    _log_loss_gradient, _log_loss, "sigmoid", "logistic", rates={"sgd": 0.05, "adagrad": 0.1}, reg=0.02, curvature=0.2,
    degree=0, start="logit", ratings="binary", metrics=("log_loss", "accuracy"), every=25,
)  # fmt: skip
_MARGIN: dict[str, Any] = {
    "lift": 0.0, "degree": 0, "start": "zero", "ratings": "binary", "metrics": ("loss", "accuracy"),
}  # fmt: skip
hinge = Loss(_hinge_gradient, _slack, name="hinge", reg=0.03, **_MARGIN)
squared_hinge = Loss(_squared_hinge_gradient, _squared_hinge, name="squared-hinge", reg=0.04, **_MARGIN)
bpr_row, bpr_col = _bpr("row"), _bpr("col")
one_class = Loss(
    _difference, squared_value, name="one-class", rates={"sgd": 0.05, "adagrad": 0.1}, reg=0.01, lift=0.0, degree=0,
    start="zero", cells="one-class", metrics=("loss", "auc"),
)  # fmt: skip

BUILTIN = {
    loss.name: loss
    for loss in (
        *(squared, absolute, huber, poisson, logistic, hinge, squared_hinge),
        *(bpr_row, bpr_col, one_class),
    )
}
