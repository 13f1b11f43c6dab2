"""What the folder of a finished run says."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertbin_tf.evaluation import Evaluation
from bertbin_tf.recipe import Recipe
from bertbin_tf.recipe.folder import VALIDATION_ROWS, layers_folder, require_files

FILES = ("recipe.json", "metrics.json", "history.json", "provenance.json", VALIDATION_ROWS)
MAX_POINTS = 500  # of a curve: TensorBoard keeps so many, drawn evenly from all of them


@dataclasses.dataclass(frozen=True)
class Curve:
    """A series that was written while training ran.

    Args:
        steps: Int array of shape `(n,)`, rising.
        values: Float array of shape `(n,)`.
    """

    steps: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A finished run as its folder tells of it, without the model.

    Args:
        path: The folder.
        recipe: The `Recipe`.
        metrics: Dict, metrics.json.
        history: Dict from a metric's name to its values by epoch.
        provenance: Dict, provenance.json: versions, devices, SHA-256 of the data.
        evaluation: The `Evaluation` of the validation texts.
        texts: List of strings, the validation texts.
        labels: Int array of shape `(n,)`, their labels.
        probabilities: Float array of shape `(n,)`, their calibrated probabilities.
        curves: Dict from a name, such as `"learning_rate/logit"`, to its `Curve` over the steps; empty of a run whose
            rates nobody controlled.
    """

    path: Path
    recipe: Recipe
    metrics: dict
    history: dict
    provenance: dict
    evaluation: Evaluation
    texts: list[str]
    labels: np.ndarray
    probabilities: np.ndarray
    curves: dict[str, Curve]

    @property
    def name(self) -> str:
        """What the run is called: the name of its folder."""
        return self.path.resolve().name

    @property
    def data_sha256(self) -> str:
        """SHA-256 of the validation texts and labels: what is equal here was measured on the same rows."""
        return self.provenance["data"]["validation"]["sha256"]

    def by_layer(self, measure: str) -> dict[str, Curve]:
        """Returns the curves of one measure, such as `"learning_rate"`, by layer, from the embeddings upwards."""
        return {
            name.partition("/")[2]: curve for name, curve in self.curves.items() if name.partition("/")[0] == measure
        }


def read_record(path: str | os.PathLike) -> RunRecord:
    """Reads the folder that `train` wrote.

    Raises:
        ValueError: If it is not the folder of a finished run, or a file in it cannot be read.
    """
    path = Path(path)
    require_files(path, FILES)
    try:
        metrics, history, provenance = (json.loads((path / name).read_text(encoding="utf-8")) for name in FILES[1:4])
        rows = pq.read_table(path / VALIDATION_ROWS)
        missing = {"strategy", "packages", "machine", "data"} - set(provenance)
        if missing:
            raise KeyError(*missing)
        record = RunRecord(
            path,
            Recipe.from_json(path / "recipe.json"),
            metrics,
            history,
            provenance,
            Evaluation(**metrics["validation"]),
            rows["text"].to_pylist(),
            rows["label"].to_numpy().astype("int64"),
            rows["probability"].to_numpy().astype("float64"),
            _read_curves(layers_folder(path)),
        )
        return record
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"The run in '{path}' is damaged and cannot be reported: {error!r}") from error


def _read_curves(folder):
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), size_guidance={"tensors": MAX_POINTS})
    events.Reload()
    curves = {}
    for name in events.Tags()["tensors"]:
        # The last of each step: a training that was killed and goes on takes the steps since its backup again.
        points = {event.step: event.tensor_proto for event in events.Tensors(name) if not event.tensor_proto.string_val}
        steps = sorted(points)
        curves[name] = Curve(np.array(steps), np.array([_number(points[step]) for step in steps]))
    return curves


def _number(proto):
    # `tf.summary.scalar` writes one float32; reading it needs no TensorFlow.
    return proto.float_val[0] if proto.float_val else float(np.frombuffer(proto.tensor_content, "float32")[0])
