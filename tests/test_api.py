"""The functions of `import mfpar`: one result, however it is asked for."""

import gc
import json
import math
import os
import tempfile

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from planted import Planted, plant

import mfpar
from mfpar.errors import ConfigError, FormatError, LaunchError, OutputExistsError, RatingsError, StorageError

SMALL = {"factors": 8, "epochs": 2, "seed": 5}
EVENT = {
    *("epoch", "seconds", "seconds_evaluate", "train_loss", "train_rmse", "test", "test_rmse", "test_mae"),
    *("validation", "updates_per_second", "lr", "seconds_waiting", "seconds_working", "bytes_sent", "step_balance"),
    "peak_memory",
    "seconds_exchange",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Planted:
    return plant(tmp_path_factory.mktemp("data") / "ratings.h5")


@pytest.fixture
def triples():
    """Users, items and ratings, as arrays."""
    rng = np.random.default_rng(1)
    users, items = np.divmod(rng.permutation(900)[:500], 30)
    return users, items, rng.integers(1, 6, 500).astype(np.float32)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [(2, {"threads": 2}), (4, {"biases": False, "optimizer": "adagrad", "lr": 0.1, "reg": 0.0, "lift": 0.0})],
)
def test_ranks_started_for_it_give_the_same_model(data, tmp_path, ranks, settings):
    alone = mfpar.factorize(data.path, **SMALL | settings | {"threads": 1})
    reports = []
    log = tmp_path / "run.jsonl"
    model = mfpar.factorize(
        data.path, output=tmp_path / "model.h5", ranks=ranks, callback=reports.append, log=log, **SMALL | settings
    )
    model.verify()
    assert model.fingerprint == alone.fingerprint
    assert [(r.epoch, r.train_rmse, r.test_rmse) for r in reports] == [
        (e["epoch"], e["train_rmse"], e["test_rmse"]) for e in alone.curve
    ]
    assert {report.bytes_sent for report in reports} == {0}  # on one node blocks stay where they are
    assert all(isinstance(report, mfpar.EpochReport) for report in reports)
    assert len(list((tmp_path / "model.shards").iterdir())) == ranks
    run, *epochs, saved = map(json.loads, log.read_text().splitlines())
    assert saved == {"kind": "saved", "path": str(tmp_path / "model.h5"), "fingerprint": model.fingerprint}
    assert (run["kind"], run["ranks"], run["model"]["factors"]) == ("run", ranks, 8)
    assert [{key for key in event if key != "kind"} for event in epochs] == [EVENT] * 2
    assert [r.as_dict() | {"kind": "epoch"} for r in reports] == epochs


@pytest.mark.parallel(nprocs=3)
def test_the_ranks_of_a_communicator_give_the_same_model(tmp_path):
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    folder = type(tmp_path)(comm.bcast(str(tmp_path)))
    if comm.rank == 0:
        plant(folder / "ratings.h5")
    comm.barrier()
    # Law 2, by MPI: all kinds of runs, with the serial run of the same process; on one node, on two, on three.
    for biases, optimizer, threads, hosts in (
        (True, "sgd", 2, "aaa"),
        (True, "adagrad", 1, "aab"),
        (False, "sgd", 1, "abc"),
        (False, "adagrad", 2, "abb"),
    ):
        settings = SMALL | {"biases": biases, "optimizer": optimizer}
        alone = mfpar.factorize(folder / "ratings.h5", **settings)
        reports = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mfpar.parallel.mpi.socket.gethostname", lambda hosts=hosts: hosts[comm.rank])
            together = mfpar.factorize(
                folder / "ratings.h5", comm=comm, threads=threads, callback=reports.append, **settings
            )
        assert {report.bytes_sent > 0 for report in reports} <= {hosts != "aaa"}
        assert together.fingerprint == alone.fingerprint
        assert together.curve[-1]["test_rmse"] == alone.curve[-1]["test_rmse"]
        assert len(set(comm.allgather(str(together.path)))) == 1
        together.verify()
        comm.barrier()
        where = together.path.parent
        del together
        gc.collect()
        comm.barrier()
        assert not where.exists()
    # Reports and log belong to the first rank, the model to all.
    reports = []
    settings = {"output": folder / "model.h5", "log": folder / "log.jsonl", "callback": reports.append} | SMALL
    model = mfpar.factorize(folder / "ratings.h5", comm=comm, **settings)
    assert len(reports) == (2 if comm.rank == 0 else 0)
    assert len((folder / "log.jsonl").read_text().splitlines()) == 4
    assert model.evaluate().rmse == pytest.approx(model.curve[-1]["test_rmse"], abs=1e-6)
    # Other ratings than a blocked file are converted by one rank.
    users, items = np.divmod(np.arange(600), 30)
    given = (users, items, users % 3 + items % 2.0)
    assert mfpar.factorize(given, comm=comm, **SMALL).fingerprint == mfpar.factorize(given, **SMALL).fingerprint
    # An error of one is an error of all.
    with pytest.raises(OutputExistsError, match=r"model\.h5: exists already"):
        mfpar.factorize(folder / "ratings.h5", comm=comm, output=folder / "model.h5", **SMALL)
    with pytest.raises(RatingsError, match="the rating"):
        mfpar.factorize((users, items, users * np.nan), comm=comm, **SMALL)
    with pytest.raises(RatingsError, match=r"missing\.csv: no such file"):
        mfpar.factorize(folder / "missing.csv", comm=comm, **SMALL)
    comm.barrier()
    assert sorted(p.name for p in folder.iterdir()) == ["log.jsonl", "model.h5", "model.shards", "ratings.h5"]
    # A communicator of some of the ranks will do.
    half = comm.Split(comm.rank % 2)
    assert mfpar.factorize(folder / "ratings.h5", comm=half, **SMALL).fingerprint == model.fingerprint


def test_every_kind_of_ratings_gives_the_same_model(triples, tmp_path):
    users, items, values = triples
    frame = pd.DataFrame({"user": users, "item": items, "rating": values})
    frame.to_csv(tmp_path / "ratings.csv", index=False)
    header = mfpar.convert(triples, tmp_path / "ratings.h5")
    assert (header.rows, header.cols, header.ratings) == (30, 30, 500)
    kinds = [tmp_path / "ratings.h5", str(tmp_path / "ratings.csv"), triples, frame]
    kinds.append(scipy.sparse.coo_array((values, (users, items)), shape=(30, 30)))
    assert len({mfpar.factorize(ratings, **SMALL).fingerprint for ratings in kinds}) == 1


def test_temporary_files_go_with_the_model(triples, temporary):
    model = mfpar.factorize(triples, **SMALL)
    assert model.path.is_relative_to(temporary)
    again = mfpar.load(model.path)
    del model
    gc.collect()
    assert list(temporary.iterdir()) == []
    assert np.isfinite(again.predict(0, 0)).all()  # what is mapped stays readable


def test_temporary_files_go_with_an_error(triples, temporary, tmp_path):
    def fail(report):
        raise ZeroDivisionError("from the callback")

    for output in (None, tmp_path / "model.h5"):
        with pytest.raises(ZeroDivisionError, match="from the callback"):
            mfpar.factorize(triples, callback=fail, output=output, **SMALL)
    with pytest.raises(ConfigError, match=r"^3 ranks for a grid of 2: "):
        mfpar.factorize(([1, 2], [1, 2], [3, 4]), ranks=3, **SMALL)
    assert list(temporary.iterdir()) == []
    assert list(tmp_path.iterdir()) == [temporary]


def test_a_callback_that_fails_ends_the_ranks(data, tmp_path):
    def fail(report):
        raise ZeroDivisionError("from the callback")

    with pytest.raises(ZeroDivisionError, match="from the callback"):
        mfpar.factorize(data.path, ranks=2, callback=fail, output=tmp_path / "model.h5", factors=8, epochs=10_000)
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_kept_or_replaced(data, tmp_path):
    first = mfpar.factorize(data.path, output=tmp_path / "model.h5", **SMALL)
    with pytest.raises(OutputExistsError):
        mfpar.factorize(data.path, output=tmp_path / "model.h5", **SMALL)
    second = mfpar.factorize(data.path, output=tmp_path / "model.h5", force=True, **SMALL | {"seed": 6})
    assert first.fingerprint != second.fingerprint == mfpar.load(tmp_path / "model.h5").fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]


def test_the_log_of_a_run(data, tmp_path):
    reports = []
    mfpar.factorize(data.path, log=tmp_path / "run.jsonl", callback=reports.append, **SMALL)
    run, *epochs, _ = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert run["kind"] == "run"
    known = {"factors": 8, "loss": "squared", "biases": True, "mean": True, "reg": 0.05, "reg_q": 0.05, "lift": 3.0}
    assert known.items() <= run["model"].items()
    assert (run["train"]["seed"], run["train"]["epochs"], run["train"]["lr"]) == (5, 2, 0.02)
    assert (run["rows"], run["cols"], run["ratings"], run["test_ratings"], run["grid"]) == (61, 43, 1500, 162, 8)
    assert len(run["data_checksum"]) == 64
    assert {"mfpar", "numpy", "numba", "h5py", "python", "mpi"} <= set(run["versions"])
    for number, (event, report) in enumerate(zip(epochs, reports, strict=True), 1):
        assert event == {"kind": "epoch"} | report.as_dict()
        assert set(event) == EVENT | {"kind"}
        assert (event["epoch"], event["lr"]) == (number, 0.02 * 0.95 ** (number - 1))
        assert event["seconds"] > 0 < event["seconds_evaluate"]
        assert event["updates_per_second"] == pytest.approx(1500 / event["seconds"])
        assert event["train_loss"] == pytest.approx(event["train_rmse"] ** 2 / 2)
        assert math.isfinite(event["test_rmse"])
        assert event["bytes_sent"] == 0
    with pytest.raises(StorageError, match="log"):
        mfpar.factorize(data.path, log=tmp_path / "missing" / "log.jsonl", **SMALL)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"factor": 8}, "unknown setting 'factor'; the settings are factors, loss, "),
        ({"factors": 0}, "factors=0: expected an integer from 1 to 4096"),
        ({"factors": 8.0}, r"factors=8\.0: expected an integer"),
        ({"epochs": 0}, "epochs=0: expected"),
        ({"seed": -1}, "seed=-1: expected"),
        ({"optimizer": "adam"}, "optimizer='adam': expected one of sgd, adagrad"),
        ({"lr": 0}, "lr=0: expected a number > 0"),
        ({"lr_decay": 1.5}, r"lr_decay=1\.5: expected"),
        ({"reg": float("nan")}, "reg=nan: expected"),
        ({"biases": 1}, "biases=1: expected true or false"),
        ({"threads": True}, "threads=True: expected"),
        ({"ranks": 0}, "ranks=0: expected an integer ≥ 1"),
        ({"ranks": 2, "comm": object()}, "comm and ranks exclude each other"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_can_not_be(data, tmp_path, settings, sentence):
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        mfpar.factorize(data.path, output=tmp_path / "model.h5", **settings)
    assert list(tmp_path.iterdir()) == []


def test_ranks_can_not_be_started_from_inside_a_rank(data, monkeypatch):
    monkeypatch.setitem(os.environ, "PMI_SIZE", "2")
    with pytest.raises(LaunchError, match="leave out --ranks"):
        mfpar.factorize(data.path, ranks=2)


def test_a_file_that_is_no_blocked_file(data, tmp_path):
    model = mfpar.factorize(data.path, output=tmp_path / "model.h5", **SMALL)
    with pytest.raises(FormatError, match="not a blocked ratings file"):
        mfpar.factorize(model.path, **SMALL)


def test_names_of_the_package():
    assert set(mfpar.__all__) <= set(dir(mfpar))
    assert all(getattr(mfpar, name) for name in mfpar.__all__)
    assert mfpar.__version__
    with pytest.raises(AttributeError, match="no attribute 'factorise'"):
        mfpar.factorise  # noqa: B018
