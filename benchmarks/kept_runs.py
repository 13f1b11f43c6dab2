"""Runs that are made once: each result is a line of a JSON Lines file, and several processes can share the work."""

import gc
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np


def has_failed(labels: np.ndarray, probabilities: np.ndarray) -> bool:
    """Whether a training came to nothing: within two points of always saying the larger class, or one answer for all.

    Args:
        labels: Int array of 0 and 1, of shape `(rows,)`.
        probabilities: Float array of the same shape.
    """
    accuracy = ((probabilities >= 0.5) == labels).mean()
    larger = max(labels.mean(), 1 - labels.mean())
    return bool(accuracy <= larger + 0.02 or probabilities.std() < 0.02)


class KeptRuns:
    """A file of finished runs, and the share of the others that this process makes.

    Args:
        path: Of the JSON Lines file.
        keys: Tuple of the names that tell runs apart.
        share: String, "K/N": only every Nth run is made, from the Kth.
    """

    def __init__(self, path: Path, keys: tuple[str, ...], share: str = "1/1"):
        self._path, self._keys = path, keys
        self._share, self._num_shares = map(int, share.split("/"))
        self._number = itertools.count()
        self._done = {self._identity(line): line for line in self.load()}

    def load(self) -> list[dict]:
        """Returns the finished runs."""
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]

    def find(self, **run) -> dict | None:
        """Returns a run that was finished when this process began, or `None`."""
        return self._done.get(self._identity(run))

    def keep(self, run: dict, measure: Callable[[dict], dict], shown: tuple[str, ...]) -> None:
        """Makes a run unless it was made or is another process's, and writes what `measure(run)` returns."""
        if next(self._number) % self._num_shares != self._share - 1 or self._identity(run) in self._done:
            return
        keras.backend.clear_session()
        gc.collect()
        result = run | measure(run)
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print({name: result[name] for name in shown if name in result}, flush=True)

    def _identity(self, run):
        return tuple(str(run.get(name)) for name in self._keys)
