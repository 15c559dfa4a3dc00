"""One training by another package; runs with the Python of the environment that has these packages, without mfpar.

`PEER_PYTHON peer_fit.py SYSTEM DATA.npz '{"setting": value, …}'` prints {"seconds": …, "rmse": …}: seconds of the fit
alone, and the RMSE on the held-out part. DATA has users, items (from 0) and ratings, and the same with `test_` before.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


def surprise(data: dict, shape: tuple[int, int], **settings: float) -> tuple[float, Predict]:
    """SVD of scikit-surprise: stochastic gradient descent with biases, in Cython."""
    from surprise import SVD
    from surprise.trainset import Trainset

    by_user: dict[int, list] = {}
    by_item: dict[int, list] = {}
    columns = (data[name].tolist() for name in ("users", "items", "ratings"))
    for user, item, rating in zip(*columns, strict=True):
        by_user.setdefault(user, []).append((item, rating))
        by_item.setdefault(item, []).append((user, rating))
    names = [{number: number for number in range(size)} for size in shape]
    scale = float(data["ratings"].min()), float(data["ratings"].max())
    training = Trainset(by_user, by_item, *shape, len(data["users"]), scale, *names)
    model = SVD(random_state=1, **settings)
    seconds = timed(lambda: model.fit(training))

    def predict(users: np.ndarray, items: np.ndarray) -> np.ndarray:
        known = np.isin(items, data["items"])  # the others keep their random starting factors
        products = np.einsum("ij,ij->i", model.pu[users], model.qi[items]) * known
        return training.global_mean + model.bu[users] + model.bi[items] * known + products

    return seconds, predict


def cmfrec(data: dict, shape: tuple[int, int], **settings: float) -> tuple[float, Predict]:
    """CMF of cmfrec: alternating least squares with biases, in C and BLAS."""
    from cmfrec import CMF
    from scipy.sparse import coo_matrix

    matrix = coo_matrix((data["ratings"].astype(np.float32), (data["users"], data["items"])), shape=shape)
    model = CMF(method="als", use_float=True, nthreads=1, verbose=False, random_state=1, **settings)
    return timed(lambda: model.fit(matrix)), model.predict


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    system, path, text = sys.argv[1:]
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    sizes = [int(max(arrays[side].max(), arrays[f"test_{side}"].max())) + 1 for side in ("users", "items")]
    spent, predictor = {"surprise": surprise, "cmfrec": cmfrec}[system](arrays, tuple(sizes), **json.loads(text))
    found = np.clip(predictor(arrays["test_users"], arrays["test_items"]), *np.percentile(arrays["ratings"], (0, 100)))
    error = float(np.sqrt(np.mean((arrays["test_ratings"] - found) ** 2)))
    print(json.dumps({"seconds": spent, "rmse": error}))
