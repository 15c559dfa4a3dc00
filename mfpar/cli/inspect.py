"""`mfpar info` and `mfpar evaluate`: what a file holds, and how well a model fits."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    info = verbs.add_parser("info", help="show what a blocked file or a model holds")
    info.add_argument("file", metavar="FILE", help="a blocked file or a model")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=run_info)
    evaluate = verbs.add_parser("evaluate", help="measure a model's error on held-out ratings")
    evaluate.add_argument("model", metavar="MODEL", help="made by mfpar train")
    evaluate.add_argument(
        "file", metavar="FILE", nargs="?",
        help="a blocked file (its held-out part) or any ratings (default: the file that the model was trained on)",
    )  # fmt: skip
    evaluate.add_argument("--columns", metavar="USER,ITEM,RATING", type=lambda text: text.split(","))
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=run_evaluate)


def run_info(args: argparse.Namespace) -> None:
    """Run `mfpar info`."""
    facts = describe(Path(args.file))
    if args.json:
        print(json.dumps(facts))
    else:
        _print_facts(facts)


def run_evaluate(args: argparse.Namespace) -> None:
    """Run `mfpar evaluate`."""
    from mfpar.model.opening import open_model

    scores = open_model(args.model).evaluate(args.file, args.columns)
    if args.json:
        print(json.dumps({"rmse": scores.rmse, "mae": scores.mae, "count": scores.count, "unknown": scores.unknown}))
    else:
        print(f"RMSE {scores.rmse:.4f}  MAE {scores.mae:.4f}  on {scores.count:,} ratings", end="")
        print(f", {scores.unknown:,} of them with an unknown user or item" if scores.unknown else "")


def describe(path: Path) -> dict[str, Any]:
    """What a file of either kind holds, as plain JSON values."""
    from mfpar.blockfile import BlockedFile, format_of
    from mfpar.model.opening import FORMAT

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
    measured = [epoch for epoch in facts.get("curve", []) if epoch["test_rmse"] is not None]
    best = min(measured, key=lambda epoch: epoch["test_rmse"], default=None)
    for epoch in {
        id(e): e for e in (*facts.get("curve", [])[:1], *([best] * bool(best)), *facts.get("curve", [])[-1:])
    }.values():
        test = (
            "" if epoch["test_rmse"] is None else f", test RMSE {epoch['test_rmse']:.4f}" + " (best)" * (epoch is best)
        )
        print(f"{'epoch ' + str(epoch['epoch']) + ':':<15} train RMSE {epoch['train_rmse']:.4f}{test}")


def _plain(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else str(round(value, 5) if isinstance(value, float) else value)
    )
