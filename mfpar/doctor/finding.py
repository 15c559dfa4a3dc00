"""The outcome of one test."""

from dataclasses import dataclass

OK, WARNING, FAILED = "ok", "warning", "failed"


@dataclass(frozen=True)
class Finding:
    """What one test says: its `state`, what was seen, and what to do about it."""

    name: str
    state: str  # OK, WARNING or FAILED
    message: str
    advice: str = ""


def judged(name: str, good: bool, message: str, advice: str, otherwise: str = WARNING) -> Finding:
    """A finding that is OK, or `otherwise` and followed by advice."""
    return Finding(name, OK if good else otherwise, message, "" if good else advice)
