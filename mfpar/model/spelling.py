"""How ids are written: strings as bytes and back, and the integers that some strings stand for."""

import numpy as np

from mfpar.errors import FormatError


def integers(asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64[count] and bool[count]: the numbers that are written in `asked`, and where there is one."""
    if asked.dtype.kind == "S":
        asked = np.char.decode(asked, "utf-8", "replace")
    try:
        numbers = asked.astype(np.int64)
    except (ValueError, OverflowError):
        numbers = np.fromiter((_integer(text) for text in asked.tolist()), np.int64, len(asked))
    return numbers, numbers.astype(np.str_) == asked  # "012" and "1_2" read as numbers too, but are other ids


def _integer(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        return 0
    return number if abs(number) < 2**63 else 0


def encoded(texts: np.ndarray) -> np.ndarray:
    """bytes (UTF-8) [count] of str[count]."""
    try:
        return texts.astype(np.bytes_)  # ASCII, at the speed of C
    except UnicodeEncodeError:
        return np.char.encode(texts, "utf-8", "surrogatepass")


def decoded(ids: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """str[count], of that dtype, of bytes (UTF-8) [count].

    Raises
    ------
    FormatError
        They are not UTF-8, which ids of a sound model are.
    """
    try:
        return ids.astype(dtype)  # ASCII, at the speed of C
    except UnicodeDecodeError:
        pass
    try:
        return np.char.decode(ids, "utf-8").astype(dtype)
    except UnicodeDecodeError as error:
        raise FormatError("the ids of the model are damaged: some are not UTF-8; train it again") from error
