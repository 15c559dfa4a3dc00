"""Opens a saved model: checks every file that it is made of, and maps them without reading the factors."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpar.errors import ConfigError, FormatError, StorageError
from mfpar.formats import reading, require_format
from mfpar.grid import Grid
from mfpar.losses import Loss, find
from mfpar.model.links import TRANSFORMS, apply_link
from mfpar.model.model import Model
from mfpar.model.table import Ids, Table

FORMAT = "mfpar model"
VERSION = 2
TABLES = ("P", "Q", "row_bias", "col_bias", "row_ids", "col_ids")
OWN = ("cuts", "checksums", "id_checksums")  # of each side, in the master itself


def checksum_of(file: h5py.File) -> str:
    """SHA-256 (hex) over a master's attributes, but for this one, and every table that is its own."""
    attributes = {
        name: value.item() if isinstance(value, np.generic) else str(value)
        for name, value in file.attrs.items()
        if name != "checksum"
    }
    sha = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    for side in ("row", "col"):
        for name in OWN:
            sha.update(np.ascontiguousarray(file[f"{side}_{name}"][()]).view(np.uint8))
    return sha.hexdigest()


@dataclass(frozen=True)
class _Part:
    """Rows first … last − 1 of a table: rows start … of a dataset of a file."""

    first: int
    last: int
    path: Path
    dataset: str
    start: int


def open_model(path: str | Path, loss: str | Loss | None = None) -> Model:
    """Map a model. Local: each rank opens its own.

    Parameters
    ----------
    path : path of the model's file; its shards, if it has any, lie where they were saved beside it
    loss : name or Loss, optional
        Of a model with a loss of its own, whose link is Python code and so no part of the file. Predictions need it.

    Raises
    ------
    StorageError
        The file is missing or may not be read.
    FormatError
        It is no model, of another version, truncated or damaged, or one of its shards is.
    """
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"{path}: no such file")
    _require_hdf5(path)
    with reading(path, "header"), h5py.File(path, "r") as file:
        attributes = file.attrs
        require_format(file, path, FORMAT, VERSION, "a model", "mfpar train")
        if "checksum" in attributes and checksum_of(file) != attributes["checksum"]:  # models of earlier days have none
            raise FormatError(
                f"{path}: is damaged: attributes, cuts and tables of checksums do not match their checksum; train again"
            )
        arguments: dict[str, Any] = {
            "path": path,
            "grid": Grid(file["row_cuts"][()], file["col_cuts"][()]),
            "row_checksums": file["row_checksums"][()],
            "col_checksums": file["col_checksums"][()],
            **{name: bool(attributes[name]) for name in ("biases", "clip")},
            "data_path": Path(attributes["data_path"]),
            **{name: int(attributes[name]) for name in ("factors", "ratings")},
            **{name: float(attributes[name]) for name in ("base", "mean", "minimum", "maximum")},
            **{name: json.loads(attributes[name]) for name in ("config", "curve", "versions")},
            **{name: str(attributes[name]) for name in ("loss", "link", "fingerprint", "data_checksum")},
        }
        rows, cols = int(arguments["grid"].row_cuts[-1]), int(arguments["grid"].col_cuts[-1])
        factors = arguments["factors"]
        shapes = ((rows, factors), (cols, factors), (rows,), (cols,), (rows,), (cols,))
        for name, shape in zip(TABLES, shapes, strict=True):
            _require_table(path, file[name], name, shape)
        empty = {name: np.empty((0, *file[name].shape[1:]), file[name].dtype) for name in TABLES}
        parts = {name: list(_parts(path, file[name])) for name in TABLES}
    for name, pieces in _map(parts, empty).items():
        table = Table(pieces or [empty[name]])
        arguments[name] = Ids(table) if name.endswith("ids") else table
    return Model(**arguments, transform=_transform(path, arguments["loss"], arguments["link"], loss))


def _transform(path: Path, name: str, link: str, given: str | Loss | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes predictions of scores: a named link, or that of the loss that is given; None without either."""
    if link in TRANSFORMS:
        return TRANSFORMS[link]
    if given is None:
        return None
    loss = find(given)
    if isinstance(given, str) and given != name:
        raise ConfigError(f"{path}: was trained with loss {name}, not with {given}")
    return lambda scores: apply_link(loss, scores)


def _require_hdf5(path: Path) -> None:
    if not os.access(path, os.R_OK):
        raise StorageError(f"{path}: no permission to read it")
    if not h5py.is_hdf5(path):
        raise FormatError(f"{path}: is not an HDF5 file; models are made with mfpar train")


def _require_table(path: Path, dataset: h5py.Dataset, name: str, shape: tuple[int, ...]) -> None:
    if name.endswith("ids"):
        sound = dataset.dtype == np.int64 or dataset.dtype.kind == "S"
    else:
        sound = dataset.dtype == np.float32
    if not sound or dataset.shape != shape:
        raise FormatError(
            f"{path}: is damaged: {name} is {dataset.dtype} {dataset.shape}, expected {shape}; train again"
        )


def _parts(path: Path, dataset: h5py.Dataset) -> Iterator[_Part]:
    """Where a table's rows lie, in order.

    Raises
    ------
    FormatError
        Rows that no shard holds, or two.
    """
    name, count = dataset.name.lstrip("/"), len(dataset)
    if not dataset.is_virtual:
        yield _Part(0, count, path, name, 0)
        return
    folder = path.resolve().parent  # HDF5 too follows a link to the master before it looks for shards
    sources = sorted(dataset.virtual_sources(), key=lambda source: _rows(source.vspace, count)[0])
    end = 0
    for source in sources:
        first, last = _rows(source.vspace, count)
        if first != end:
            raise FormatError(f"{path}: is damaged: shards leave a gap or overlap at row {end} of {name}; train again")
        start, _ = _rows(source.src_space, last - first)
        # "." is HDF5's name for the master itself.
        shard = path if source.file_name == "." else folder / source.file_name
        yield _Part(first, last, shard, source.dset_name, start)
        end = last
    if end != count:
        raise FormatError(f"{path}: is damaged: its shards hold {end} of the {count} rows of {name}; train again")


def _rows(space: h5py.h5s.SpaceID, count: int) -> tuple[int, int]:
    """First and one past the last row of a selection of whole rows; `count` of them if it is of all."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return 0, count
    low, high = space.get_select_bounds()
    return int(low[0]), int(high[0]) + 1


def _map(parts: dict[str, list[_Part]], empty: dict[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Map every part; each file is opened once, one at a time."""
    pieces: dict[str, list[np.ndarray]] = {name: [empty[name]] * len(several) for name, several in parts.items()}
    files: dict[Path, list[tuple[str, int, _Part]]] = {}
    for name, several in parts.items():
        for index, part in enumerate(several):
            files.setdefault(part.path, []).append((name, index, part))
    for path, wanted in files.items():
        if not path.is_file():
            raise FormatError(
                f"{path}: this shard of the model is missing; copy a model together with its .shards folder"
            )
        _require_hdf5(path)
        with reading(path, "factors"), h5py.File(path, "r") as file:
            for name, index, part in wanted:
                pieces[name][index] = _mapped(path, file[part.dataset], part, empty[name])
    return pieces


def _mapped(path: Path, dataset: h5py.Dataset, part: _Part, like: np.ndarray) -> np.ndarray:
    """Map the rows of one part."""
    count = part.last - part.first
    if dataset.dtype != like.dtype or dataset.shape[1:] != like.shape[1:] or len(dataset) < part.start + count:
        raise FormatError(
            f"{path}: is damaged or of another model: {part.dataset} is {dataset.dtype} {dataset.shape}, "
            f"which does not hold {count} rows of {like.dtype} from row {part.start}; train the model again"
        )
    if not count:
        return like
    offset = dataset.id.get_offset()
    if offset is None:
        raise FormatError(f"{path}: {part.dataset} was never written, or not in one piece; train the model again")
    return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)[part.start : part.start + count]
