"""The command line: `bertbin-tf train`, `evaluate`, `predict`, `report`, `doctor` ... all of them are in `parser`.

Only the standard library is imported here, so that `--help` answers at once.
"""

import os
import re
import sys
import traceback

from bertbin_tf.cli.parser import build_parser

FLAGS = re.compile(r"`?\b(text|label|positive|on_bad_rows|resume)=(?:[\"'](\w+)[\"'])?`?")


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the user's mistake in one line, 1 our fault, 75 preempted.

    Args:
        argv: List of strings. Defaults to `None`: those that the process was started with.
    """
    arguments = vars(build_parser().parse_args(argv))
    run, show_traceback, needs_keras = (arguments.pop(name) for name in ("run", "traceback", "needs_keras"))
    from bertbin_tf.cli import console
    from bertbin_tf.memory import keep_freed_memory

    keep_freed_memory()
    try:
        console.import_tensorflow(needs_keras)
        run(**arguments)
    except (ValueError, OSError) as error:
        if show_traceback:
            traceback.print_exc()
        if isinstance(error, BrokenPipeError):  # such as `predict ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"bertbin-tf: error: {_as_typed(str(error))}", file=sys.stderr)
        return 2
    except SystemExit as error:
        if error.code != 75:  # that of `recipe.Preempted`; a user's own code may end the process, too
            raise
        print(f"bertbin-tf: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("bertbin-tf: interrupted", file=sys.stderr)
        return 130
    return 0


def _as_typed(message):
    """Returns a message in one line, with flags where the Python interface has arguments."""

    def flag(match):
        name, value = match.groups()
        return f"--{name.replace('_', '-')}" + (f" {value}" if value else "")

    return FLAGS.sub(flag, " ".join(message.split()))
