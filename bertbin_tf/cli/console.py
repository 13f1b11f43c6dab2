"""What a person sees: tables, progress, warnings; and plain lines where nobody looks."""

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence

import rich.console
import rich.markup
import rich.table


def is_terminal() -> bool:
    """Whether results are read by a person, who wants tables and progress bars."""
    return sys.stdout.isatty()


def keras_verbosity(as_json: bool) -> int:
    """Returns Keras' `verbose`: a progress bar on a terminal, else a line per epoch, nothing beside JSON."""
    return 0 if as_json else 1 if is_terminal() else 2


def status(message: str) -> contextlib.AbstractContextManager:
    """Returns a context that shows a message on standard error, with a spinner on a terminal, while it lasts."""
    return rich.console.Console(stderr=True).status(message)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    """Prints a table on standard output: boxed on a terminal, else as plain aligned lines."""
    rows = [[str(cell) for cell in row] for row in rows]
    print(title)
    if is_terminal():
        table = rich.table.Table(*header, show_header=any(header))
        for row in rows:
            table.add_row(*(rich.markup.escape(cell) for cell in row))
        rich.console.Console().print(table)
        return
    lines = [list(header), *rows] if any(header) else rows
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_json(content: dict) -> None:
    """Prints a dict as JSON on standard output."""
    print(json.dumps(content, indent=2, default=str))


def import_tensorflow(with_keras: bool = True) -> None:
    """Imports TensorFlow without its greetings and shows warnings as single lines.

    TensorFlow writes half a dozen lines about CPUs and missing GPUs to standard error before anyone can set its log
    level. They are held back, and shown only if the import fails. It is told to use oneDNN's matrix products on CPUs
    without AVX-512, too, where it leaves them out, unless the environment says otherwise: `benchmarks/speed.py`
    measures them.

    Args:
        with_keras: Whether to import keras-nlp too. Defaults to `True`.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    warnings.showwarning = _show_warning
    with tempfile.TemporaryFile() as greetings, open(os.dup(2), "w", encoding="utf-8") as real_stderr:
        console = rich.console.Console(file=real_stderr)
        with console.status("Loading TensorFlow ..."):
            os.dup2(greetings.fileno(), 2)
            try:
                import tensorflow as tf
                import tensorflow_text  # noqa: F401

                if with_keras:
                    import keras_nlp  # noqa: F401

                tf.get_logger().setLevel("ERROR")  # its warnings are about retracing, which is ours to mend
            except BaseException:
                greetings.seek(0)
                real_stderr.write(greetings.read().decode(errors="replace"))
                raise
            finally:
                os.dup2(real_stderr.fileno(), 2)


def _show_warning(message, category, filename, lineno, file=None, line=None):
    # Deprecations inside other people's libraries are nothing that a user of this command can mend.
    if issubclass(category, UserWarning):
        print(f"bertbin-tf: warning: {' '.join(str(message).split())}", file=sys.stderr)
