"""What lies where in the folder of a run, and how it gets there."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

VALIDATION_ROWS = "validation.parquet"


def curves_folder(path: str | os.PathLike) -> Path:
    """Returns the folder of a run's TensorBoard logs."""
    return Path(path) / "tensorboard"


def layers_folder(path: str | os.PathLike) -> Path:
    """Returns the one of them that the controller writes: layer by layer, and of the answers."""
    return curves_folder(path) / "layers"


def require_files(path: str | os.PathLike, names: Iterable[str]) -> None:
    """Raises a `ValueError` that names them if some files are not in the folder of what should be a finished run."""
    if missing := [name for name in names if not (Path(path) / name).is_file()]:
        raise ValueError(
            f"'{path}' is not the folder of a finished run: it has no {', '.join(missing)}. Give the `output_dir` of a "
            "training that ended."
        )


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file whole or not at all: under another name first, which then takes the place of `path`.

    Args:
        path: Of the file.
        write: Function that writes the file of a path.
    """
    partial = path.with_name(f".partial-{path.name}")
    write(partial)
    os.replace(partial, path)
