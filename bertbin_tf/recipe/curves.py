"""What TensorBoard shows beside scalars: a layout that opens on what matters, hyperparameters, the PR curve."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.pr_curve import summary as pr_curve

from bertbin_tf.evaluation import Evaluation
from bertbin_tf.recipe.fields import Recipe

# Charts by category, each a pattern for the names of series: those of `callbacks.journal` and of Keras' own callback.
LAYOUT = {
    "Does it train?": {
        "loss, and the entropy of the labels": ["loss/cross_entropy", "loss/label_entropy"],
        "spread of the logits: 0 is one answer for all texts": ["logits/spread"],
        "loss by epoch": ["epoch_loss"],
        "share of saturated logits": ["logits/saturation"],
    },
    "Layer by layer": {
        "relative step: what a step changes of the weights": ["relative_step/.*"],
        "learning rate": ["learning_rate/.*"],
        "multiplier": ["multiplier/.*"],
        "gradient norm": ["gradient_norm/.*"],
    },
}
MEASURES = ("accuracy", "roc_auc", "pr_auc", "log_loss", "brier", "mcc")


def begin_curves(log_dir: Path, recipe: Recipe) -> None:
    """Writes the layout, and the recipe as TensorBoard's hyperparameters.

    Args:
        log_dir: Folder of the run's logs, see `folder.curves_folder`.
        recipe: The `Recipe`.
    """
    categories = [
        layout_pb2.Category(
            title=title,
            chart=[
                layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=tags))
                for name, tags in charts.items()
            ],
        )
        for title, charts in LAYOUT.items()
    ]
    layout = custom_scalar.pb(layout_pb2.Layout(category=categories))
    values = {name: "none" if value is None else value for name, value in dataclasses.asdict(recipe).items()}
    with _writing(log_dir):
        tf.summary.experimental.write_raw_pb(layout.SerializeToString(), step=0)
        # The folder's name, so that a run which goes on stays one trial.
        hparams.hparams(values, trial_id=str(log_dir.parent.absolute()))


def end_curves(log_dir: Path, step: int, evaluation: Evaluation, labels: np.ndarray, probabilities: np.ndarray) -> None:
    """Writes how good the finished run is on its validation texts.

    Args:
        log_dir: As for `begin_curves`.
        step: Int, the last step of the training.
        evaluation: The `Evaluation`.
        labels: Int array of shape `(n,)`.
        probabilities: Float array of shape `(n,)`.
    """
    curve = pr_curve.pb("validation", labels.astype(bool), probabilities, num_thresholds=201)
    with _writing(log_dir):
        tf.summary.experimental.write_raw_pb(curve.SerializeToString(), step=step)
        for name in MEASURES:
            if (value := getattr(evaluation, name)) is not None:
                tf.summary.scalar(f"evaluation/{name}", value, step=step)


@contextlib.contextmanager
def _writing(log_dir: Path) -> Iterator[None]:
    writer = tf.summary.create_file_writer(str(log_dir / "evaluation"))
    with writer.as_default():
        yield
    writer.close()
