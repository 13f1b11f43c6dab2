"""Files of nested values and arrays, of which each is whole or passed over."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from bertbin_tf.assets import sha256_of
from bertbin_tf.callbacks.snapshot import storable

KEPT = 2  # where the newest is damaged there is another


def write_backup(folder: Path, name: str, state: dict) -> None:
    """Writes a backup whole or not at all, and removes all but the newest.

    Args:
        folder: `pathlib.Path`, made if it does not exist.
        name: String, for whoever looks into the folder; a running number comes in front of it.
        state: Dict of what JSON can hold, tuples and arrays.

    Raises:
        OSError: If it cannot be written; those before are whole.
    """
    arrays = []
    structure = json.dumps(_pack(state, arrays))
    partial = folder / ".partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            np.savez(file, np.frombuffer(structure.encode(), "uint8"), *arrays)
            file.flush()
            os.fsync(file.fileno())
        number = max(map(_number_of, _newest_first(folder)), default=0) + 1
        os.replace(partial, folder / f"{number:06d}-{name}-{sha256_of(partial)}.npz")
    except OSError as error:
        raise OSError(
            error.errno, f"A backup cannot be written ({error.strerror}); those before are whole. Folder", str(folder)
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    for path in _newest_first(folder)[KEPT:]:
        path.unlink(missing_ok=True)


def read_newest_backup(folder: Path) -> tuple[dict, Path] | None:
    """Returns the newest whole backup and its file, or `None` if there is none; warns of damaged ones."""
    for path in _newest_first(folder):
        try:
            if sha256_of(path) != path.stem.split("-")[-1]:
                raise ValueError("its content is not what was written")
            with np.load(path, allow_pickle=False) as file:
                structure, *arrays = file.values()
            return _unpack(json.loads(structure.tobytes()), arrays), path
        except Exception as error:  # of numpy, zipfile and json, each has several for what is damaged
            warnings.warn(f"The backup '{path}' is damaged and passed over: {error}.", stacklevel=3)
    return None


def has_backup(folder: Path) -> bool:
    """Returns whether a folder has a backup, damaged ones included."""
    return bool(_newest_first(folder))


def _newest_first(folder):
    return sorted(folder.glob("[0-9]*-*.npz"), key=_number_of, reverse=True) if folder.is_dir() else []


def _number_of(path):
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _pack(value: Any, arrays: list) -> Any:
    """Returns what JSON can hold of a nested value; its arrays go into a list."""
    if isinstance(value, np.ndarray):
        arrays.append(storable(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {"dict": {key: _pack(item, arrays) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_pack(item, arrays) for item in value]}
    return value


def _unpack(value: Any, arrays: list) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _unpack(item, arrays) for key, item in content.items()}
    items = [_unpack(item, arrays) for item in content]
    return tuple(items) if kind == "tuple" else items
