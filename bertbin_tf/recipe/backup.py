"""All that a training consists of, written to disk while it runs, so that it can be cut off at any moment."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf.callbacks.snapshot import values_of
from bertbin_tf.distribute import any_worker
from bertbin_tf.recipe.backup_files import read_newest_backup, write_backup

# How long a validation may go on after SIGTERM. Machines that are taken away grant some 30 s in all.
GRACE = 8.0
EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again


class Preempted(SystemExit):
    """The process, whose exit code is 75, was asked to end, by SIGTERM, or lost another worker."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self):
        return self.message


class Position(NamedTuple):
    """How far a training is.

    Args:
        epoch: Int >= 0, the epoch that comes next or is running.
        batch: Int >= 0, the batches of that epoch that were trained on.
        is_last: Bool, whether a callback has ended the training. Defaults to `False`.
    """

    epoch: int
    batch: int
    is_last: bool = False

    @property
    def is_begun(self) -> bool:
        """Whether a batch was trained on."""
        return self.epoch > 0 or self.batch > 0


class TrainingBackup(keras.callbacks.Callback):
    """Writes the whole state of a training, and puts it back into another process that goes on with it, bit for bit.

    The state is every variable of model, optimizer and metrics, those of dropout included, which no Keras format saves;
    and what the other callbacks know: numbers, strings and arrays in their attributes, or what their own `get_state()`
    returns, which their `set_state(state)` takes back. The order of the data is the caller's: see
    `data.batch_by_length(epochs=...)`.

    Each backup is a new file that bears its SHA-256 in its name and takes its place only when it is complete. The two
    newest are kept; one that is damaged is passed over with a warning.

    Args:
        folder: Of the backups. It is made with the first one.
        callbacks: The other callbacks of the training, which must come before this one in `fit`.
        every: Float > 0, the seconds between two backups. Defaults to `600.0`.
        facts: Dict, ready for JSON, that must be the same when the training goes on, such as the SHA-256 of the data.
            Defaults to `None`.
        is_chief: Bool, whether this process writes. Of the workers of a cluster one does, and all read what it wrote;
            when to write, and when to end, they decide together. Defaults to `True`.

    Example:
    >>> backup = TrainingBackup("backup", callbacks=[], every=60.0)
    >>> history = model.fit(batches, callbacks=[backup], verbose=0)
    >>> backup.write()
    >>> TrainingBackup("backup", callbacks=[]).restore(model)
    Position(epoch=1, batch=0, is_last=False)
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        callbacks: Sequence[keras.callbacks.Callback],
        *,
        every: float = 600.0,
        facts: dict | None = None,
        is_chief: bool = True,
    ):
        super().__init__()
        if not every > 0:
            raise ValueError(f"`every` must be a number of seconds > 0. Received: every={every}")
        self.folder = Path(folder)
        self.every = every
        self.facts = facts or {}
        self.is_chief = is_chief
        self.carried = {}  # what the caller wants to find again, ready for JSON
        self._callbacks = list(callbacks)
        self._position = Position(0, 0)
        self._asked_to_end = self._began_fit = None  # the moments
        self._seconds, self.seconds_before = 0.0, 0.0
        self._restored = None

    @property
    def position(self) -> Position:
        """How far the training is."""
        return self._position

    @property
    def fit_seconds(self) -> float:
        """The seconds spent in `fit` so far, those before a restart included."""
        return self._seconds + (time.monotonic() - self._began_fit if self._began_fit else 0.0)

    def restore(self, model: keras.Model) -> Position | None:
        """Puts the newest whole backup into a compiled model; the callbacks follow when `fit` begins.

        Metrics follow with the epoch, if it is to go on in the middle. Keras builds them with the first batch that the
        model sees: let it `evaluate` one before `fit`.

        Args:
            model: The compiled model, built by the same code as the one that was backed up.

        Returns:
            The `Position` to go on from, or `None` if there is no backup.

        Raises:
            ValueError: If the backup is of another training: other `facts`, callbacks or variables.
        """
        if (found := read_newest_backup(self.folder)) is None:
            return None
        state, path = found
        if changed := [name for name, value in self.facts.items() if state["facts"].get(name) != value]:
            raise ValueError(
                f"The training in '{self.folder.parent}' cannot go on: since it was cut off, what it depends on has "
                f"changed ({', '.join(changed)}). Restore that, or begin again in another folder."
            )
        if (num := len(state["callbacks"])) != len(self._callbacks):
            raise ValueError(f"The backup '{path}' is of {num} callbacks. Received: {len(self._callbacks)} callbacks")
        self.set_model(model)
        with model.distribute_strategy.scope():
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
        _assign(self._variables(), state["variables"], path)
        self._position = Position(*state["position"])
        self.carried = state["carried"]
        if not self._seconds:  # in a new process
            self._seconds = self.seconds_before = state["fit_seconds"]
        self._restored = state
        return self._position

    def write(self) -> None:
        """Writes a backup now.

        Raises:
            OSError: If it cannot be written; those before are whole.
        """
        state = {
            "facts": self.facts,
            "position": list(self._position),
            "carried": self.carried,
            "fit_seconds": self.fit_seconds,
            "variables": values_of(self._variables()),
            "metrics": values_of(self.model.metrics_variables),
            "callbacks": [_state_of(callback) for callback in self._callbacks],
        }
        if self.is_chief:
            write_backup(self.folder, "{:05d}-{:08d}".format(*self._position[:2]), state)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Removes the backups."""
        if self.is_chief:
            shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within it, SIGTERM ends the training with `Preempted`, after a backup if a batch was under way.

        So does another worker of the cluster that is lost, which is too late for a backup.
        """
        with self._listening_to_signals():
            try:
                yield
            except tf.errors.UnavailableError as error:
                raise Preempted(self._preempted_message("another worker was lost")) from error

    @contextlib.contextmanager
    def _listening_to_signals(self):
        if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
            yield
            return

        def end(*_):
            self._asked_to_end = time.monotonic()
            if not self._began_fit:
                self._end_if_asked()

        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_train_begin(self, logs=None):
        self._began_fit = self._written = time.monotonic()
        if not self._restored:  # a `fit` that was interrupted is not gone on with
            self._position = Position(0, 0)
        self._first_batch = self._position.batch
        if self._restored:
            for callback, state in zip(self._callbacks, self._restored["callbacks"], strict=True):
                _give_back(callback, state)

    def on_epoch_begin(self, epoch, logs=None):
        if self._restored and self._position.batch:
            _assign(self.model.metrics_variables, self._restored["metrics"], self.folder)  # Keras has just reset them
        self._restored = None
        if epoch != self._position.epoch:
            self._position = Position(epoch, 0)

    def on_train_batch_end(self, batch, logs=None):
        self._position = Position(self._position.epoch, self._first_batch + batch + 1)
        if batch + 1 == self.params["steps"]:
            return  # the epoch is not over: it is validated first
        self._write_if_due()

    def on_test_batch_end(self, batch, logs=None):
        if self._asked_to_end and time.monotonic() - self._asked_to_end > GRACE:
            self._end_if_asked()

    def on_epoch_end(self, epoch, logs=None):
        # Where a `fit` ends callbacks may change the weights, and another one may come, or what is done after training.
        is_stopped = bool(self.model.stop_training)
        is_end = is_stopped or epoch + 1 == self.params["epochs"]
        self._position, self._first_batch = Position(epoch + 1, 0, is_stopped), 0
        self._write_if_due(is_end)

    def on_train_end(self, logs=None):
        self._seconds, self._began_fit = self.fit_seconds, None

    def _write_if_due(self, is_end=False):
        is_late = time.monotonic() - self._written >= self.every
        asked, is_due = any_worker(self.model.distribute_strategy, [self._asked_to_end is not None, is_late])
        if asked and not self._asked_to_end:
            self._asked_to_end = time.monotonic()
        if asked or is_due or is_end:
            self.write()
        self._end_if_asked()

    def _end_if_asked(self):
        if self._asked_to_end:
            raise Preempted(self._preempted_message("asked to end"))

    def _preempted_message(self, reason):
        if not self.folder.is_dir():
            return f"{reason} before there was anything to keep"
        return f"{reason}; what was done is in '{self.folder.parent}' and goes on from there with resume='auto'"

    def _variables(self):
        metrics = {id(variable) for variable in self.model.metrics_variables}
        variables = [*self.model.variables, *self.model.optimizer.variables]
        return list({id(variable): variable for variable in variables if id(variable) not in metrics}.values())


def _assign(variables, values, path):
    if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
        raise ValueError(
            f"The backup '{path}' is of another model: it has {len(values)} variables, this one {len(variables)}, or "
            "their shapes differ. Begin again in another folder."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _state_of(callback):
    if hasattr(callback, "get_state"):
        return callback.get_state()
    # Folders belong to the process; those of another worker of a cluster are other ones.
    return {
        name: value
        for name, value in vars(callback).items()
        if name != "params" and not name.endswith("dir") and _is_plain(value)
    }


def _give_back(callback, state):
    if hasattr(callback, "set_state"):
        callback.set_state(state)
    else:
        vars(callback).update(state)


def _is_plain(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | np.generic | np.ndarray)
