"""Delimited text: what its first lines say of it, how DuckDB is to read it, and where in it an error is."""

import csv
import glob
import gzip
import io
import re
from dataclasses import dataclass
from pathlib import Path

from mfpar.errors import RatingsError
from mfpar.ratings.columns import IDS, Wanted, choose_columns, known
from mfpar.ratings.database import literal

# In order of preference; a quoted field may hold the delimiter only with those that are used like commas.
DELIMITERS = {"::": False, "\t": True, ", ": False, ",": True, ";": True, "|": True, " ": False}
LONGEST_LINE = 2 << 20  # bytes
BUFFER = 8 << 20  # bytes that DuckDB reads at a time and thread
SAMPLE = 100  # lines


@dataclass(frozen=True)
class Text:
    """How a text file is laid out.

    Attributes
    ----------
    columns : dict[str, int]
        Positions (from 0) of the wanted columns by role.
    """

    path: Path
    gzipped: bool
    delimiter: str
    header: bool
    fields: int
    columns: dict[str, int]

    @property
    def quoted(self) -> bool:
        """A field in double quotes may hold the delimiter and line breaks."""
        return DELIMITERS[self.delimiter]

    @property
    def relation(self) -> str:
        """SQL that reads the file: every column, named c0, c1, …, as text; nothing is left to DuckDB's guesses."""
        quote = literal('"' if self.quoted else "")
        columns = ", ".join(f"'c{position}': 'VARCHAR'" for position in range(self.fields))
        return (
            f"read_csv({literal(glob.escape(str(self.path)))}, auto_detect = false, strict_mode = true, "
            f"header = {self.header}, delim = {literal(self.delimiter)}, quote = {quote}, escape = {quote}, "
            f"compression = '{'gzip' if self.gzipped else 'none'}', max_line_size = {LONGEST_LINE}, "
            f"buffer_size = {BUFFER}, columns = {{{columns}}})"
        )

    def place(self, record: int) -> str:
        """File and line (from 1) where a record (from 0, the header not counted) begins."""
        opener = gzip.open if self.gzipped else open
        line = 0
        usual = csv.field_size_limit(LONGEST_LINE)
        try:
            with opener(self.path, "rt", encoding="utf-8-sig", errors="replace", newline=None) as stream:
                if self.quoted:
                    reader = csv.reader(stream, delimiter=self.delimiter)
                else:  # then fields do not matter, only lines
                    reader = csv.reader(stream, quoting=csv.QUOTE_NONE)
                left = record + self.header
                for fields in reader:
                    if fields and left == 0:
                        return f"{self.path}, line {line + 1}"
                    left -= bool(fields)
                    line = reader.line_num
        except (OSError, csv.Error):
            pass
        finally:
            csv.field_size_limit(usual)
        return f"{self.path}, record {record + 1}"

    def explain(self, message: str) -> str:
        """Turn DuckDB's message about this file into one sentence."""
        line = re.search(r"Error on Line: (\d+)", message)
        where = f"{self.path}, line {line[1]}" if line else str(self.path)
        if counts := re.search(r"Expected Number of Columns: (\d+) Found: (\d+)", message):
            few = "few" if int(counts[2]) < int(counts[1]) else "many"
            return f"{where}: has too {few} fields: {counts[2]} where {counts[1]} are expected"
        if "quote" in message.partition("Possible")[0]:
            return f"{where}: a quoted field does not end; balance the double quotes, or double those that are meant"
        if "unicode" in message:
            return f"{where}: is not UTF-8; convert the file first, for example with iconv -f latin1 -t utf-8"
        if "Maximum line size" in message:
            return f"{where}: is longer than {LONGEST_LINE >> 20} MB; is this a text file of ratings?"
        if "GZIP" in message or "zlib" in message:
            return f"{self.path}: is a truncated or damaged gzip file; get it again"
        if "invalid state" in message:
            return f"{self.path}: its quotes or line ends are mixed up, so that it can't be read as lines of fields"
        return f"{where}: can't be read: {message.splitlines()[0]}"


def inspect(path: Path, gzipped: bool, head: bytes, wanted: Wanted) -> Text:
    """Find out how a text file is laid out.

    Parameters
    ----------
    head : the first bytes of the file, decompressed
    wanted : Wanted

    Raises
    ------
    RatingsError
        The file is empty or binary, or its columns can't be told.
    """
    if b"\0" in head:
        raise RatingsError(f"{path}: is a binary file of no kind that can be read; give text, Parquet, .mtx or .npz")
    lines = [line for line in _lines(head) if line][:SAMPLE]
    if not lines:
        raise RatingsError(f"{path}: is empty; lines of {', '.join(wanted.roles)} are needed")
    needed = max([len(wanted.roles), *(int(column) for column in wanted.asked if column.isdecimal())])
    delimiter = _delimiter(lines, needed)
    first, *rest = (_split(line, delimiter) for line in lines)
    if len(first) < 2:
        raise RatingsError(
            f"{path}: its first line {lines[0][:60]!r} has no delimiter: neither ::, tab, comma, semicolon, | nor space"
        )
    header = _is_header(first, rest, wanted)
    sample = (rest if header else [first])[:1]
    numeric = any(len(fields) > 2 and _number(fields[2]) for fields in sample) or not sample
    positions = choose_columns(first if header else None, len(first), numeric, wanted, str(path))
    return Text(path, gzipped, delimiter, header, len(first), positions)


def _lines(head: bytes) -> list[str]:
    """Lines of the beginning of a file, without the last one if it may be cut off."""
    lines = io.StringIO(head.decode("utf-8-sig", "replace"), newline=None).read().split("\n")
    return lines[:-1] if any(lines[:-1]) else lines


def _split(line: str, delimiter: str) -> list[str]:
    if not DELIMITERS[delimiter]:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter), [""])
    except csv.Error:
        return line.split(delimiter)


def _delimiter(lines: list[str], needed: int) -> str:
    """The delimiter that gives enough fields, and equally many in most lines."""

    def merit(delimiter: str) -> tuple[bool, bool, float]:
        counts = [len(_split(line, delimiter)) for line in lines]
        return counts[0] >= needed, counts[0] > 1, sum(count == counts[0] for count in counts) / len(counts)

    return max(DELIMITERS, key=merit)  # the first of equals


def _is_header(first: list[str], rest: list[list[str]], wanted: Wanted) -> bool:
    """A header names every column, and none by a number."""
    if not all(column.isdecimal() for column in wanted.asked):
        return True
    if any(_number(field) or not field.strip() for field in first):
        return False
    if len(wanted.roles) > len(IDS) or set(IDS) <= {known(field) for field in first}:
        return True
    # Pairs of strings: a header shows only by numbers under it.
    return bool(rest) and any(_number(field) for field in rest[0][:2])


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
