"""Rows from CSV, TSV, JSON Lines and Parquet files."""

import array
import codecs
import contextlib
import csv
import functools
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from bertbin_tf.data.table import Table, describe

_QUOTED = re.compile('"(?:[^"]|"")*"')


def load_file(path: Path) -> Table:
    """Returns the table in a `.csv`, `.tsv`, `.jsonl` or `.parquet` file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its ending is another one, or it cannot be read.
    """
    loaders = {".csv": _load_delimited, ".tsv": _load_delimited, ".jsonl": _load_jsonl, ".parquet": _load_parquet}
    loader = loaders.get(path.suffix.lower())
    if loader is None:
        raise ValueError(
            f"Unknown kind of file. Expected one that ends in {', '.join(loaders)}, or in .txt for texts without "
            f"labels. Received: {path}"
        )
    return loader(path)


def lines_of(path: Path) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, with or without a byte-order mark, without their ends.

    A line ends where a line feed is, and nowhere else: JSON allows the other ends of `str.splitlines` inside a string.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, empty, or not UTF-8.
    """
    rest = ""
    for text in _decode(path):
        first, *others = text.split("\n")
        rest += first
        for line in others:
            yield rest
            rest = line
    if rest:
        yield rest


def _decode(path):
    """Yields the text of a UTF-8 file, a piece at a time."""
    _check_is_file(path)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    num_bytes, num_lines, is_blank, piece = 0, 0, True, None
    with path.open("rb") as file:
        while piece != b"":
            piece = file.read(1 << 20)
            try:
                text = decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                # What the decoder had kept of the piece before is no whole character, and so holds no end of a line.
                start = num_bytes + len(piece) - len(error.object) + error.start
                line = num_lines + error.object.count(b"\n", 0, error.start) + 1
                if num_bytes == 0 and piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise ValueError(f"{path} is UTF-16. Save it as UTF-8 and try again.") from None
                raise ValueError(
                    f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} in line {line} (byte {start} of the "
                    "file). Save it as UTF-8 and try again."
                ) from None
            num_bytes, num_lines = num_bytes + len(piece), num_lines + piece.count(b"\n")
            is_blank = is_blank and not text.strip()
            yield text
    if is_blank:
        raise ValueError(f"{path} is empty.")


def _check_is_file(path):
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Name a file in it.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path} (looked for {path.absolute()}).")


def _load_delimited(path):
    """Reads CSV or TSV with the standard library, the only reader that knows the line of each row; row by row, so that
    only the columns that are asked for are ever in memory."""
    for _ in _decode(path):  # for what is wrong with the file to be known before a row of it is
        pass
    read_rows = functools.partial(_quoted_rows, path, ",")
    if path.suffix.lower() == ".tsv":
        read_rows = functools.partial(_plain_rows, path)
        if _needs_quotes(path):
            read_rows = functools.partial(_quoted_rows, path, "\t")
    with contextlib.closing(read_rows()) as header:
        names, _ = next(header)
    names = [name.strip() for name in names]
    if len(names) == 1 and (found := [mark for mark in ";\t,|" if mark in names[0]]):
        raise ValueError(
            f"{path} has one column, {names[0]!r}: its cells seem to be divided by {found[0]!r}. Save it with commas "
            "as .csv, or with tabs as .tsv."
        )
    _check_names(path, names)
    lines = array.array("q")

    def rows(*wanted):
        del lines[:]
        indices = [names.index(name) for name in wanted]
        for row, line in itertools.islice(read_rows(), 1, None):
            if len(row) != len(names):
                raise ValueError(
                    f"{path} has {len(row)} cells in line {line}, and {len(names)} in its header ({', '.join(names)}). "
                    "Quote the cells that hold the delimiter."
                )
            lines.append(line)
            yield tuple(row[index] for index in indices)

    return Table(str(path), names, rows, lines=lines, empty_is_missing=True)


def _check_names(path, names):
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has two columns of the same name: {', '.join(names)}.")


def _needs_quotes(path):
    """Returns whether a TSV has cells of several lines, or with tabs in them, which only quotes hold together.

    Then its lines are of other numbers of cells, or, of one column, as many lines open a quote as others close one.
    """
    lengths, opened, closed = set(), 0, 0
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for line in file:
            if line := line.removesuffix("\n").removesuffix("\r"):
                lengths.add(line.count("\t"))
                if line.count('"') % 2:
                    opened += line.startswith('"')
                    closed += line.endswith('"')
    return len(lengths) > 1 or lengths == {0} and 0 < opened == closed


def _quoted_rows(path, delimiter):
    """Yields each row, and the line that it begins in."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader, line = csv.reader(file, delimiter=delimiter, strict=True), 1
        limit = csv.field_size_limit(2**31 - 1)  # the default refuses a long text
        try:
            for row in reader:
                if row:  # not a blank line
                    yield row, line
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{path} cannot be read as {path.suffix[1:].upper()}: {error}, in the row that begins at line {line}. "
                'A cell that holds quotes must be quoted itself, with each quote doubled: "a ""great"" film".'
            ) from None
        finally:
            csv.field_size_limit(limit)


def _plain_rows(path):
    """Takes each line for a row and a quote for a character: GLUE's files quote nothing, and between two stray quotes a
    CSV reader would swallow rows. A cell that is quoted all the same, as pandas does, is unquoted."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line := line.removesuffix("\n").removesuffix("\r"):
                cells = line.split("\t")
                yield [cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell for cell in cells], number


def _load_jsonl(path):
    """Reads JSON Lines with the standard library: pyarrow takes a text such as "2020-01-01" for a time."""
    names: dict[str, None] = {}
    for row, _ in _objects(path):  # they need not all have the same keys
        names.update(dict.fromkeys(row))
    lines = array.array("q")

    def rows(*wanted):
        del lines[:]
        for row, line in _objects(path):
            lines.append(line)
            yield tuple(row.get(name) for name in wanted)

    return Table(str(path), list(names), rows, lines=lines)


def _objects(path):
    """Yields each object of a JSON Lines file, and its line."""
    for line, content in enumerate(lines_of(path), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} has broken JSON in line {line}: {error.msg} at character {error.pos + 1}. Each line must be "
                "one object."
            ) from None
        except (RecursionError, ValueError) as error:  # nested a thousand deep; a number of thousands of digits
            raise ValueError(f"{path} has broken JSON in line {line}: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path} has no JSON object in line {line}. Received: {describe(row)}")
        yield row, line


def _load_parquet(path):
    import pyarrow
    import pyarrow.parquet

    _check_is_file(path)

    def read(function):
        try:
            return function()
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as Parquet: {error}") from None

    file = read(lambda: pyarrow.parquet.ParquetFile(path))
    _check_names(path, file.schema_arrow.names)

    def rows(*names):
        batches = read(lambda: file.iter_batches(columns=list(names)))
        while (batch := read(lambda: next(batches, None))) is not None:
            yield from zip(*[read(batch.column(name).to_pylist) for name in names], strict=True)

    return Table(str(path), file.schema_arrow.names, rows)
