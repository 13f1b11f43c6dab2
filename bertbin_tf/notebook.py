"""What objects look like as the last line of a notebook's cell."""

import html
from collections.abc import Iterable, Sequence


def html_table(header: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Returns an HTML table in which every cell is escaped; the first cell of a row is its heading.

    Args:
        header: Strings, one for each column.
        rows: Sequences of what `str` takes, each as long as the header.

    Example:
    >>> html_table(["field", "value"], [["text", "<b>"]])
    '<table><tr><th>field</th><th>value</th></tr><tr><th>text</th><td>&lt;b&gt;</td></tr></table>'
    """

    def line(first, *rest, tag="td"):
        cells = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in rest)
        return f"<tr><th>{html.escape(str(first))}</th>{cells}</tr>"

    return f"<table>{line(*header, tag='th')}{''.join(line(*row) for row in rows)}</table>"
