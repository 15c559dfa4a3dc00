"""Opens a saved model: checks every file that it is made of, and maps them without reading the factors."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mfpar.errors import ConfigError, FormatError, StorageError
from mfpar.formats import reading, require_ascent, require_dataset, require_format, require_hdf5
from mfpar.grid import Grid
from mfpar.losses import Loss, find
from mfpar.model.links import TRANSFORMS, apply_link
from mfpar.model.model import Model
from mfpar.model.table import Ids, Table

FORMAT = "mfpar model"
VERSION = 3
TABLES = ("P", "Q", "row_bias", "col_bias", "row_ids", "col_ids")
CUTS = ("row_cuts", "col_cuts")
CHECKSUMS = ("row_checksums", "col_checksums", "row_id_checksums", "col_id_checksums")
HEADER = (
    *("base", "biases", "clip", "config", "curve", "data_checksum", "data_path", "factors", "fingerprint", "link"),
    *("loss", "maximum", "mean", "minimum", "ratings", "versions"),
)


@dataclass(frozen=True)
class _Part:
    """Rows first … last − 1 of a table: rows start … of a dataset of a file."""

    first: int
    last: int
    path: Path
    dataset: str
    start: int


def checksum_of(header: Mapping[str, Any], arrays: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the header and every small array that vouches for the rest of a model.

    Parameters
    ----------
    header : attributes by the names in HEADER, plain or as h5py reads them
    arrays : by the names in CUTS and CHECKSUMS, arrays or datasets
    """
    plain = {name: value.item() if isinstance(value := header[name], np.generic) else value for name in HEADER}
    sha = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in CUTS + CHECKSUMS:
        sha.update(np.ascontiguousarray(arrays[name][()]).view(np.uint8))
    return sha.hexdigest()


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
    require_hdf5(path, "mfpar train")
    with reading(path, "header"), h5py.File(path, "r") as file:
        attributes = file.attrs
        require_format(file, path, FORMAT, VERSION, "a model", "mfpar train")
        _require_small(file, path)
        if checksum_of(attributes, file) != attributes["checksum"]:
            raise FormatError(f"{path}: is damaged: header and cuts do not match their checksum; train again")
        arguments: dict[str, Any] = {
            "path": path,
            "grid": Grid(*(file[name][()] for name in CUTS)),
            **{name: file[name][()] for name in CHECKSUMS},
            **{name: bool(attributes[name]) for name in ("biases", "clip")},
            "data_path": Path(attributes["data_path"]),
            **{name: int(attributes[name]) for name in ("factors", "ratings")},
            **{name: float(attributes[name]) for name in ("base", "mean", "minimum", "maximum")},
            **{name: json.loads(attributes[name]) for name in ("config", "curve", "versions")},
            **{name: str(attributes[name]) for name in ("loss", "link", "fingerprint", "data_checksum")},
        }
        for name, cuts in zip(CUTS, (arguments["grid"].row_cuts, arguments["grid"].col_cuts), strict=True):
            require_ascent(path, name, cuts, None, 0)
        rows, cols = int(arguments["grid"].row_cuts[-1]), int(arguments["grid"].col_cuts[-1])
        factors = arguments["factors"]
        shapes = ((rows, factors), (cols, factors), (rows,), (cols,), (rows,), (cols,))
        for name, shape in zip(TABLES, shapes, strict=True):
            _require_table(path, file.get(name), name, shape)
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


def _require_small(file: h5py.File, path: Path) -> None:
    """Raise FormatError unless cuts and checksums, which are read whole, have the types and shapes of a model's."""
    most = path.stat().st_size
    grid = len(require_dataset(file, path, "row_cuts", ("int64",), (None,), most)) - 1
    require_dataset(file, path, "col_cuts", ("int64",), (grid + 1,), most)
    for name in CHECKSUMS:
        require_dataset(file, path, name, ("uint8",), (grid, 32), most)


def _require_table(path: Path, dataset: Any, name: str, shape: tuple[int, ...]) -> None:
    if not isinstance(dataset, h5py.Dataset):
        raise FormatError(f"{path}: is damaged: it has no dataset {name}; train again")
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
        require_hdf5(path, "mfpar train")
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
