"""Whether what was read from somewhere can be the content of a cut: nothing that is to come of it is taken on trust."""

from dataclasses import fields
from typing import Any

from mfpar.engine.beginning import Standing
from mfpar.errors import FormatError


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

    copies: Any = content.get("copies")
    course: Any = content.get("course")
    require(content["step"] < size, f"is after step {content['step']} of {size}")
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
    require(isinstance(rates, list) and len(rates) == 3 and all(map(_is_number, rates)), "has no rates")
    used, kept = (history.get(name) for name in ("used", "kept")) if isinstance(history, dict) else (None, None)
    require(isinstance(kept, dict) and all(type(epoch) is int for epoch in kept.values()), "has no history")
    require(isinstance(used, list) and all(map(_is_use, used)), "has no rates of the epochs before")


def _is_position(value: Any, size: int) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], list) and _is_number(value[1])):
        return False
    return all(type(place) is int for place in value[0]) and sorted(value[0]) == list(range(size))


def _is_use(value: Any) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and type(value[0]) is int and isinstance(value[1], list)):
        return False
    return len(value[1]) == 2 and all(map(_is_number, value[1]))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)
