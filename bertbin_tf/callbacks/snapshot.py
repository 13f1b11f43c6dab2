"""The last good state of a training, to go back to."""

import os
import tempfile
from collections.abc import Sequence

import keras
import numpy as np


def values_of(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Returns the values of variables, as `storable` arrays."""
    return [storable(keras.ops.convert_to_numpy(variable)) for variable in variables]


def storable(array: np.ndarray) -> np.ndarray:
    """Returns an array in a dtype that NumPy's files can hold: one of bfloat16 as float32."""
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


class Snapshot:
    """Keeps the values of variables on disk, and not in memory.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables: Sequence[keras.Variable]):
        self._variables = variables
        self._folder = tempfile.TemporaryDirectory(prefix="bertbin_tf-")

    def take(self) -> None:
        """Writes the values of now, in the place of those before."""
        self.set_values(values_of(self._variables))

    def put_back(self) -> None:
        """Gives the variables the values that were written."""
        for variable, value in zip(self._variables, self.get_values(), strict=True):
            variable.assign(value)

    def get_values(self) -> list[np.ndarray]:
        """Returns what was written, in the order of the variables; nothing once it is closed."""
        if not os.path.exists(self._path):
            return []
        with np.load(self._path, allow_pickle=False) as file:
            return list(file.values())

    def set_values(self, values: Sequence[np.ndarray]) -> None:
        """Writes these values instead of those of the variables."""
        with open(self._path, "wb") as file:
            np.savez(file, *values)

    def close(self) -> None:
        """Removes what was written."""
        self._folder.cleanup()

    @property
    def _path(self):
        return os.path.join(self._folder.name, "snapshot.npz")
