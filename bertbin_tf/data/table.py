"""What every source is turned into before anything is checked."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Table:
    """Named columns of Python values, and where each row lies in its source.

    Args:
        name: String, what an error message calls the source.
        columns: List of the columns' names.
        rows: Function from columns' names to an iterator over the rows, each a tuple of their values. A call reads the
            source once, a row or some at a time.
        lines: Sequence with the line of each row, as an editor counts, if the source is a text file. It is known of
            the rows that were read last.
        empty_is_missing: Whether the source cannot tell an empty string from a missing value.
    """

    name: str
    columns: list[str]
    rows: Callable[..., Iterator[tuple]]
    lines: Sequence[int] | None = None
    empty_is_missing: bool = False

    def load(self, *names: str) -> list[list]:
        """Returns all values of some columns, a list for each."""
        columns: list[list] = [[] for _ in names]
        for row in self.rows(*names):
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        return columns

    def name_rows(self, rows: Sequence[int]) -> str:
        """Returns `"lines 3, 7, 12"` or `"rows 0, 4 (counted from 0)"`, at most ten of them."""
        numbers = rows if self.lines is None else [self.lines[row] for row in rows]
        listed = ", ".join(str(number) for number in numbers[:10])
        listed += f" and {len(rows) - 10} more" if len(rows) > 10 else ""
        plural = "s" if len(rows) > 1 else ""
        return f"row{plural} {listed} (counted from 0)" if self.lines is None else f"line{plural} {listed}"

    @classmethod
    def from_columns(cls, name: str, columns: dict, **kwargs) -> "Table":
        """Returns a table of sequences or arrays, which must have the same length."""
        for key, values in columns.items():
            if isinstance(values, str | bytes) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) != 1:
                raise ValueError(
                    f"Column '{key}' of {name} must be a sequence with one value per row. Received: {describe(values)}"
                )
        sizes = {key: len(values) for key, values in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"All columns of {name} must have the same number of rows. Received: {sizes}")

        def rows(*names):
            return zip(*(_to_list(columns[name]) for name in names), strict=True)

        return cls(name, list(columns), rows, **kwargs)

    @classmethod
    def from_dicts(cls, name: str, rows: list[dict], **kwargs) -> "Table":
        """Returns a table of rows that need not all have the same keys; what is not there is None."""
        keys = dict.fromkeys(key for row in rows for key in row)
        return cls.from_columns(name, {key: [row.get(key) for row in rows] for key in keys}, **kwargs)


def describe(value) -> str:
    """Returns the type and the beginning of a value, for an error message."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:80] + '...'}"


def _to_list(values):
    if hasattr(values, "notna"):
        # Missing values of pandas come in four kinds, one of which (`pandas.NA`) cannot even be compared.
        values = values.astype(object).where(values.notna(), None)
    return values.tolist() if hasattr(values, "tolist") else list(values)
