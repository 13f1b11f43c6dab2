"""Rows from CSV, TSV, JSON Lines and Parquet files."""

import csv
import io
import json
import re
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


def read_file(path: Path) -> str:
    """Returns the text of a UTF-8 file, with or without a byte-order mark.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a folder, empty, or not UTF-8.
    """
    _check_is_file(path)
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} in line {line} (byte {error.start} of the file). "
            "Save it as UTF-8 and try again."
        ) from None
    if not text.strip():
        raise ValueError(f"{path} is empty.")
    return text


def _check_is_file(path):
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Name a file in it.")
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path} (looked for {path.absolute()}).")


def _load_delimited(path):
    """Reads CSV or TSV with the standard library, the only reader that knows the line of each row."""
    text = read_file(path)
    rows, lines = _parse_plain_tsv(text) if path.suffix.lower() == ".tsv" else _parse_quoted(path, text, ",")
    if len({len(row) for row in rows}) > 1 and path.suffix.lower() == ".tsv":
        # Cells of several lines, or with tabs in them: only quotes hold those together.
        rows, lines = _parse_quoted(path, text, "\t")
    names, rows, lines = rows[0], rows[1:], lines[1:]
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has two columns of the same name: {', '.join(names)}.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(names):
            raise ValueError(
                f"{path} has {len(row)} cells in line {line}, and {len(names)} in its header ({', '.join(names)}). "
                "Quote the cells that hold the delimiter."
            )
    columns = {name: [row[index] for row in rows] for index, name in enumerate(names)}
    return Table.from_columns(str(path), columns, lines=lines, empty_is_missing=True)


def _parse_quoted(path, text, delimiter):
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, lines, line = [], [], 1
    limit = csv.field_size_limit(2**31 - 1)  # the default refuses a long text
    try:
        for row in reader:
            if row:  # not a blank line
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path} cannot be read as {path.suffix[1:].upper()}: {error}, in the row that begins at line {line}. "
            'A cell that holds quotes must be quoted itself, with each quote doubled: "a ""great"" film".'
        ) from None
    finally:
        csv.field_size_limit(limit)
    return rows, lines


def _parse_plain_tsv(text):
    """Takes each line for a row and a quote for a character: GLUE's files quote nothing, and between two stray quotes a
    CSV reader would swallow rows. A cell that is quoted all the same, as pandas does, is unquoted."""
    lines = [(number, line) for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1) if line]
    rows = [
        [cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell for cell in line.split("\t")]
        for _, line in lines
    ]
    return rows, [number for number, _ in lines]


def _load_jsonl(path):
    """Reads JSON Lines with the standard library: pyarrow takes a text such as "2020-01-01" for a time."""
    rows, lines = [], []
    # Not `splitlines`, which also splits at characters that JSON allows inside a string.
    for line, content in enumerate(read_file(path).split("\n"), start=1):
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
        rows.append(row)
        lines.append(line)
    return Table.from_dicts(str(path), rows, lines=lines)


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

    def load(*names):
        table = read(lambda: file.read(columns=list(names)))
        return [read(table.column(name).to_pylist) for name in names]

    return Table(str(path), file.schema_arrow.names, load)
