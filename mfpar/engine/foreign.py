"""Whether what was read from somewhere can be the content of a cut: nothing that is to come of it is taken on trust."""

from dataclasses import fields
from typing import Any

from mfpar.engine.beginning import Standing
from mfpar.engine.copies import ROLES
from mfpar.engine.tally import Totals
from mfpar.errors import FormatError
from mfpar.kernels import SUMS


def require_cut(content: dict[str, Any], size: int) -> None:
    """Make sure that what was read from somewhere is the content of a cut, in epochs of so many steps. Local.

    Raises
    ------
    FormatError
        It says what is not as it should be.
    """

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise FormatError(f"the cut {what}")

    epoch: int = content["epoch"]
    copies: Any = content.get("copies")
    course: Any = content.get("course")
    require(content["step"] < size, f"is after step {content['step']} of {size}")
    totals = _is_totals(content.get("totals"), size) if content["step"] else content.get("totals") is None
    require(totals, "does not say what the steps of its epoch amount to")
    require(isinstance(copies, dict) and copies.keys() <= {"best", "last"}, "does not say which copies it has")
    for name, position in {"now": content.get("now"), **copies}.items():
        require(_is_position(position, size), f"has no order of the column-blocks {name}")
    parts = {"standing", "rates", "history"}
    require(isinstance(course, dict) and course.keys() == parts, "does not say how far the run was")
    standing, rates, history = (course[part] for part in ("standing", "rates", "history"))
    names = {field.name for field in fields(Standing)}
    require(isinstance(standing, dict) and standing.keys() == names, "does not say where the run stood")
    numbers = [value for name, value in standing.items() if name != "best" or value is not None]
    require(all(map(_is_number, numbers)), "has something else than numbers for where the run stood")
    stood = standing["epoch"]
    require(type(stood) is int and stood == epoch, f"is of epoch {epoch}, but the run stood in epoch {stood}")
    require(isinstance(rates, list) and len(rates) == 3 and all(map(_is_number, rates)), "has no rates")
    used: Any = history.get("used") if isinstance(history, dict) else None
    kept: Any = history.get("kept") if isinstance(history, dict) else None
    require(isinstance(kept, dict) and kept.keys() <= set(ROLES), "has no history")
    require(all(type(after) is int and 0 <= after < epoch for after in kept.values()), "has no history")
    require(copies.keys() <= kept.keys(), "has a copy of which its history knows nothing")
    require(isinstance(used, list) and all(map(_is_use, used)), "has no rates of the epochs before")
    require({use[0] for use in used} >= set(range(1, epoch)), "has no rates of the epochs before")


def _is_position(value: Any, size: int) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) and _is_number(value[1])):
        return False
    return all(type(place) is int for place in value[0]) and sorted(value[0]) == list(range(size))


def _is_totals(value: Any, size: int) -> bool:
    if not (isinstance(value, dict) and value.keys() == {field.name for field in fields(Totals)}):
        return False
    sums, *others = (value[field.name] for field in fields(Totals))
    rows = sums if isinstance(sums, list) and len(sums) == size else [None]
    return all(map(_is_number, others)) and all(
        isinstance(row, list) and len(row) == SUMS and all(map(_is_number, row)) for row in rows
    )


def _is_use(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and type(value[0]) is int and isinstance(value[1], list)):
        return False
    return len(value[1]) == 2 and all(map(_is_number, value[1]))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
