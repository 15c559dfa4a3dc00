"""`mfpar info` and `mfpar evaluate`: what a file holds, and how well a model fits."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from mfpar.parallel import launch
from mfpar.settings import size


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    info = verbs.add_parser("info", help="show what a blocked file, a model or a checkpoint holds")
    info.add_argument(
        "file", metavar="FILE", help="a blocked file, a model, a checkpoint, or a folder of these, of which the newest"
    )
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=run_info)
    evaluate = verbs.add_parser("evaluate", help="measure a model on held-out ratings", description=_TEXT)
    evaluate.add_argument("model", metavar="MODEL", help="made by mfpar train")
    evaluate.add_argument(
        "file", metavar="FILE", nargs="?",
        help="a blocked file (its held-out part) or any ratings (default: the file that the model was trained on)",
    )  # fmt: skip
    evaluate.add_argument("--columns", metavar="USER,ITEM,RATING", type=lambda text: text.split(","))
    evaluate.add_argument(
        "--metrics", metavar="NAME,…",
        help="of rmse, mae, log_loss, accuracy, deviance, auc, row_auc, mpr, recall@N, ndcg@N (default: by the loss)",
    )  # fmt: skip
    evaluate.add_argument(
        "--relevant", type=float, metavar="RATING",
        help="the least rating that recall and ndcg look for (default: any above 0)",
    )  # fmt: skip
    evaluate.add_argument("--loss", metavar="MODULE:NAME", help="the model's, where it is one of your own")
    evaluate.add_argument(
        "--memory", type=size, metavar="SIZE",
        help="bound of each rank where ids or a source are large (512M, 2G; default: half of all)",
    )  # fmt: skip
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=run_evaluate, collective=True)


_TEXT = """Measures how well a model predicts ratings that it was not trained on, or ranks the items that they are of.
Run it as it is, or under mpirun or srun: the figures are the same, bit for bit, on any number of ranks."""


def run_info(args: argparse.Namespace) -> None:
    """Run `mfpar info`."""
    facts = describe(Path(args.file))
    if args.json:
        print(json.dumps(facts))
    else:
        _print_facts(facts)


def run_evaluate(args: argparse.Namespace) -> None:
    """Run `mfpar evaluate`. Collective under a launcher."""
    from mfpar.metrics import label
    from mfpar.model.opening import open_model

    comm = launch.world()
    with comm.guard():
        model = open_model(args.model, args.loss)
        asked = {"metrics": args.metrics, "relevant": args.relevant, "memory": args.memory}
        scores = model.evaluate(args.file, args.columns, **asked, comm=comm)
    if comm.rank > 0:
        return
    if args.json:
        measures = {name: value if math.isfinite(value) else None for name, value in scores.measures.items()}
        print(json.dumps({**measures, "count": scores.count, "unknown": scores.unknown}))
    else:
        shown = "  ".join(f"{label(name)} {value:.4f}" for name, value in scores.measures.items())
        print(f"{shown}  on {scores.count:,} ratings", end="")
        print(f", {scores.unknown:,} of them with an unknown user or item" if scores.unknown else "")


def describe(path: Path) -> dict[str, Any]:
    """What a file or a checkpoint holds, as plain JSON values."""
    from mfpar.blockfile import BlockedFile
    from mfpar.formats import format_of
    from mfpar.model.opening import FORMAT

    if path.is_dir():
        return _describe_checkpoint(path)
    if format_of(path) == FORMAT:
        return _describe_model(path)
    with BlockedFile(path) as file:
        header, counts = file.header, file.counts()
        sides = {"blocks": counts, "row_blocks": counts.sum(axis=1), "col_blocks": counts.sum(axis=0)}
        return {
            "kind": "blocked ratings",
            "path": str(path),
            "shape": [header.rows, header.cols],
            "nnz": header.ratings,
            "test_nnz": header.test_ratings,
            "test_unknown": header.test_unknown,
            "duplicates": header.duplicates,
            "grid": file.grid.size,
            "balance": {name: float(side.max() / side.mean()) for name, side in sides.items()},
            "mean": header.mean,
            "deviation": header.deviation,
            "minimum": header.minimum,
            "maximum": header.maximum,
            "implicit": header.implicit,
            "weighted": header.weighted,
            "seed": header.seed,
            "checksum": file.checksum,
        }


def _describe_model(path: Path) -> dict[str, Any]:
    from mfpar.model.opening import open_model

    model = open_model(path)
    return {
        "kind": "model",
        "path": str(path),
        "shape": list(model.shape),
        "nnz": model.ratings,
        "grid": model.grid.size,
        "factors": model.factors,
        "biases": model.biases,
        "loss": model.loss,
        "link": model.link,
        "clip": model.clip,
        "base": model.base,
        "mean": model.mean,
        "minimum": model.minimum,
        "maximum": model.maximum,
        "fingerprint": model.fingerprint,
        "data": str(model.data_path),
        "data_checksum": model.data_checksum,
        "config": model.config,
        "versions": model.versions,
        "curve": model.curve,
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, or the newest of a folder."""
    from mfpar.errors import FormatError
    from mfpar.recovery.manifest import checkpoints_in, is_checkpoint, read_manifest

    found = [path] if is_checkpoint(path) else checkpoints_in(path)
    if not found:
        raise FormatError(f"{path}: is a folder without a checkpoint")
    manifest = read_manifest(found[0])
    return {
        "kind": "checkpoint",
        "path": str(found[0]),
        "epoch": manifest.cut["epoch"],
        "step": manifest.cut["step"],
        "blocks": len(manifest.blocks),
        "files": len(manifest.files),
        "bytes": sum(manifest.files.values()),
        "data_checksum": manifest.identity["data_checksum"],
        "config": {part: manifest.identity[part] for part in ("model", "train")},
    }


def _print_facts(facts: dict[str, Any]) -> None:
    """A line per fact; of the curve the first, best and last epoch."""
    for name, value in facts.items():
        if name == "curve":
            continue
        if isinstance(value, dict):
            flat = {k: v for part in value.values() for k, v in part.items()} if name == "config" else value
            value = ", ".join(f"{k} {_plain(v)}" for k, v in flat.items())
        elif name == "shape":
            value = f"{value[0]:,} × {value[1]:,}"
        print(f"{name + ':':<15} {_plain(value)}")
    _print_curve(facts.get("curve", []))


def _print_curve(curve: list[dict[str, Any]]) -> None:
    """The first, best and last epoch, by the measure that decides."""
    from mfpar.metrics import label, more_is_better

    tests = {i: next(iter(epoch["test"].items())) for i, epoch in enumerate(curve) if epoch.get("test")}
    merits = {i: value if more_is_better(name) else -value for i, (name, value) in tests.items()}
    best = max((i for i in merits if math.isfinite(merits[i])), key=lambda i: merits[i], default=0)
    for i in sorted({0, best, len(curve) - 1}) if curve else []:
        epoch = curve[i]
        squared = epoch.get("train_rmse") is not None
        train = f"train RMSE {epoch['train_rmse']:.4f}" if squared else f"train loss {epoch['train_loss']:.4f}"
        test = f", test {label(tests[i][0])} {tests[i][1]:.4f}" + " (best)" * (i == best) if i in tests else ""
        print(f"{'epoch ' + str(epoch['epoch']) + ':':<15} {train}{test}")


def _plain(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else str(round(value, 5) if isinstance(value, float) else value)
    )
