"""A finished run: the trained model with all that belongs to it, in memory and in its folder."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.special
import tensorflow as tf

import bertbin_tf
from bertbin_tf import data, evaluation
from bertbin_tf.models import load_preprocessor, save_preprocessor
from bertbin_tf.recipe.backup_files import has_backup
from bertbin_tf.recipe.fields import Recipe
from bertbin_tf.recipe.folder import VALIDATION_ROWS, require_files, write_whole
from bertbin_tf.texts import as_bytes, order_by_length

PACKAGES = ("keras", "keras-nlp", "keras-hub", "tensorflow", "tensorflow-text", "numpy", "scikit-learn", "pyarrow")


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model and what is needed to use it as it was meant.

    Args:
        recipe: The `Recipe`.
        model: `keras.Model` from tokens to a probability.
        preprocessor: The keras-nlp preprocessor that turns texts into those tokens.
        temperature: Float > 0, what logits are divided by. Defaults to `1.0`.
        threshold: Float in (0, 1), from which calibrated probability on a text is called positive. Defaults to `0.5`.
        base_rate: Float in (0, 1), the share of positive labels in the training data. Defaults to `0.5`.
        validation: The `Evaluation` of the calibrated probabilities on the validation texts. Defaults to `None`.
    """

    recipe: Recipe
    model: keras.Model
    preprocessor: Any
    temperature: float = 1.0
    threshold: float = 0.5
    base_rate: float = 0.5
    validation: evaluation.Evaluation | None = None

    def predict(self, texts: Sequence[str | bytes], *, batch_size: int = 32, verbose: str | int = 0) -> np.ndarray:
        """Returns calibrated probabilities, float64 of shape `(n,)`, in the order of the texts.

        Args:
            texts: Strings, or bytes in UTF-8. What is not valid UTF-8 becomes `[UNK]`.
            batch_size: Int, texts per batch. Defaults to `32`.
            verbose: As for `keras.Model.predict`. Defaults to `0`.

        Raises:
            ValueError: If it is one text and not a sequence, or one of them is no text.
        """
        rows = as_bytes(texts)
        if not len(rows):
            return np.zeros(0)
        order = order_by_length(rows)
        encode = data.compiled_encoder(self.preprocessor)
        starts = range(0, len(rows), batch_size)
        progress = keras.utils.Progbar(len(starts), verbose=1 if verbose == "auto" else verbose)
        logits = []
        # Not `Model.predict` on a dataset that tokenizes: beside its threads two cores take a sixth more, or twice.
        for number, start in enumerate(starts, 1):
            batch = rows[order[start : start + batch_size]]
            # Under a strategy each replica answers the batch, one behind the other.
            logits.append(self._logit_model.predict_on_batch(encode(tf.constant(batch)))[: len(batch), 0])
            progress.update(number)
        probabilities = np.empty(len(texts))
        probabilities[order] = scipy.special.expit(np.concatenate(logits, dtype="float64") / self.temperature)
        return probabilities

    @functools.cached_property
    def _logit_model(self):
        # A float32 probability of 1 keeps nothing that a temperature could act on.
        return keras.Model(self.model.input, self.model.get_layer("logit").output)


def load_run(path: str | os.PathLike) -> Run:
    """Reads the run in a folder that `train` wrote.

    Raises:
        ValueError: If the folder is not that of a finished run.
    """
    path = Path(path)
    require_files(path, ("recipe.json", "metrics.json", "model.keras"))
    recipe = Recipe.from_json(path / "recipe.json")
    try:
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        model = keras.models.load_model(path / "model.keras", compile=False)
        return Run(
            recipe,
            model,
            load_preprocessor(str(path / "preprocessor"), recipe.sequence_length),
            temperature=metrics["temperature"],
            threshold=metrics["threshold"],
            base_rate=metrics["train_base_rate"],
            validation=evaluation.Evaluation(**metrics["validation"]),
        )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"The run in '{path}' is damaged and cannot be loaded: {error}") from error


def save_run(
    run: Run, path: str | os.PathLike, *, backbone: keras.Model, metrics: dict, history: dict, facts: dict
) -> None:
    """Writes a run into a folder, the model last: a folder with a model is complete.

    Args:
        run: The `Run`.
        path: The folder; it must exist.
        backbone: The model's keras-nlp backbone.
        metrics: Dict of numbers to put into metrics.json, beside those of the run.
        history: Dict from a metric's name to its values by epoch, the `history` of Keras' `History`.
        facts: Dict to put into provenance.json, beside versions and devices. See `data_facts`.
    """
    path = Path(path)
    metrics = metrics | {
        "temperature": run.temperature,
        "threshold": run.threshold,
        "validation": run.validation.to_dict(),
    }
    provenance = {
        "bertbin_tf": bertbin_tf.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "devices": [device.name for device in tf.config.list_logical_devices()],
        # Beside the processor it decides about the matrix products, and so about the last bits.
        "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        **facts,
    }
    save_preprocessor(run.preprocessor, backbone, path / "preprocessor")
    for name, content in (("metrics", metrics), ("history", history), ("provenance", provenance)):
        _write_json(path / f"{name}.json", content)
    # Not the compiled model: the optimizer's moments, twice the weights, belong to the last step and not to the best.
    model = keras.Model(run.model.input, run.model.output, name=run.model.name)
    write_whole(path / "model.keras", model.save)


def save_validation_rows(
    path: str | os.PathLike, texts: Sequence, labels: np.ndarray, probabilities: np.ndarray
) -> None:
    """Writes the validation texts into a run's folder, each with its label and calibrated probability.

    Args:
        path: The folder; it must exist.
        texts: Strings, or bytes in UTF-8.
        labels: Int array of shape `(n,)`.
        probabilities: Float array of shape `(n,)`.
    """
    texts = [text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text for text in texts]
    table = pa.table({"text": texts, "label": np.asarray(labels, "int8"), "probability": probabilities})
    write_whole(Path(path) / VALIDATION_ROWS, lambda file: pq.write_table(table, file))


def load_history(path: str | os.PathLike | None, recipe: Recipe) -> keras.callbacks.History | None:
    """Returns the `History` of a finished run of this recipe, with its model, or `None` if there is none."""
    if path is None or not (Path(path) / "model.keras").is_file() or _changed_fields(Path(path), recipe) != []:
        return None
    history = keras.callbacks.History()
    history.history = json.loads((Path(path) / "history.json").read_text(encoding="utf-8"))
    history.set_model(load_run(path).model)
    return history


def check_output_folder(path: str | os.PathLike, recipe: Recipe, resume: str) -> None:
    """Checks that a run may be written to a folder.

    Args:
        path: The folder, which need not exist.
        recipe: The `Recipe` of the run.
        resume: `"auto"` to take a folder in which this recipe was begun and cut off.

    Raises:
        ValueError: If the folder is in use.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    changed = _changed_fields(path, recipe)
    if resume == "auto" and changed:
        raise ValueError(
            f"`output_dir` has a run of another recipe. Received: '{path}', which differs in {', '.join(changed)}. "
            "Take that recipe again, or another folder."
        )
    if resume != "auto" or changed is None:
        raise ValueError(
            f"`output_dir` exists and is not an empty folder. Received: '{path}'. Give the run a folder of its "
            "own, remove the old one, or, if it was the same recipe that was cut off, take resume='auto'."
        )


@contextlib.contextmanager
def output_folder(path: str | os.PathLike | None, recipe: Recipe, resume: str) -> Iterator[None]:
    """Makes the folder of a run, and takes it away again if what follows raises and there is nothing to go on from.

    Args:
        path: The folder, or `None` for none.
        recipe: The `Recipe`, which is written there first.
        resume: `"auto"` to take a folder in which this recipe was begun and cut off; without a backup in it it is
            emptied.

    Raises:
        ValueError: If the folder is in use or cannot be made.
    """
    if path is None:
        yield
        return
    check_output_folder(path, recipe, resume)
    path = Path(path)
    goes_on = has_backup(backup_folder(path))
    if path.exists() and any(path.iterdir()) and not goes_on:
        shutil.rmtree(path)
    existed = path.exists()
    parents = [parent for parent in path.parents if not parent.exists()]
    try:
        path.mkdir(parents=True, exist_ok=existed)
        _write_json(path / "recipe.json", dataclasses.asdict(recipe))
    except OSError as error:
        raise ValueError(f"`output_dir` cannot be written. Received: '{path}' ({error.strerror}).") from error
    try:
        yield
    except BaseException as error:
        # What cannot be done from the recipe and the data would not be another time; all else, an hour's work included,
        # can go on.
        if goes_on or (has_backup(backup_folder(path)) and not isinstance(error, ValueError)):
            raise
        shutil.rmtree(path, ignore_errors=True)
        if existed:
            path.mkdir()
        with contextlib.suppress(OSError):  # another run may be in one of them by now
            for parent in parents:
                parent.rmdir()
        raise


def backup_folder(path: str | os.PathLike) -> Path:
    """Returns the folder of the backups of a run that is under way."""
    return Path(path) / "backup"


def data_facts(dataset: tf.data.Dataset) -> dict:
    """Returns what identifies a dataset: rows, base rate and the SHA-256 of texts and labels in their order."""
    return {
        "rows": int(dataset.cardinality()),
        "base_rate": data.base_rate(dataset),
        "sha256": data.fingerprint(dataset),
    }


def _changed_fields(path, recipe):
    """Returns the fields, with both values, in which the recipe of a run's folder differs, or `None` if it has none."""
    try:
        before = dataclasses.asdict(Recipe.from_json(path / "recipe.json"))
    except (ValueError, OSError):
        return None
    now = dataclasses.asdict(recipe)
    return [f"{name} ({before[name]!r}, not {now[name]!r})" for name in now if now[name] != before[name]]


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # such as tensorflow, where it is tensorflow-cpu
        return None


def _write_json(path, content):
    text = json.dumps(content, indent=2, default=float) + "\n"
    write_whole(path, lambda file: file.write_text(text, encoding="utf-8"))
