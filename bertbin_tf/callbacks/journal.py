"""What the controller saw and did: kept, printed, written to TensorBoard."""

import os
from collections.abc import Collection, Iterable
from typing import NamedTuple

import tensorflow as tf

from bertbin_tf.callbacks.window import Answers
from bertbin_tf.optimizers import LayerStatistics


class Intervention(NamedTuple):
    """One thing that the controller did.

    Args:
        step: Int, the optimizer's step at that moment.
        seen: String, what was measured.
        done: String, what was done about it.
    """

    step: int
    seen: str
    done: str

    def __str__(self):
        return f"step {self.step}: {self.seen}; {self.done}"


class Journal:
    """Keeps the interventions of one training and passes them on.

    Args:
        log_dir: Folder for TensorBoard, or `None`. Defaults to `None`.
        verbose: 1 prints each intervention. Defaults to `0`.
    """

    def __init__(self, log_dir: str | os.PathLike | None = None, verbose: int = 0):
        self.interventions = []
        self._verbose = verbose
        self._writer = tf.summary.create_file_writer(os.fspath(log_dir)) if log_dir else None

    def tell(self, intervention: Intervention) -> None:
        """Keeps, prints and writes an intervention."""
        self.interventions.append(intervention)
        if self._verbose:
            print(f"\n{intervention}", flush=True)
        if self._writer:
            with self._writer.as_default(step=intervention.step):
                tf.summary.text("interventions", str(intervention))

    def write(
        self,
        step: int,
        multipliers: dict[str, float],
        statistics: dict[str, LayerStatistics],
        answers: Answers | None,
    ) -> None:
        """Writes what was measured, layer by layer, and of the answers."""
        if not self._writer:
            return
        with self._writer.as_default(step=step):
            for layer, measured in statistics.items():
                tf.summary.scalar(f"multiplier/{layer}", multipliers[layer])
                tf.summary.scalar(f"learning_rate/{layer}", measured.learning_rate)
                tf.summary.scalar(f"relative_step/{layer}", measured.relative_step)
                tf.summary.scalar(f"gradient_norm/{layer}", measured.gradient_norm)
            if answers is not None:
                tf.summary.scalar("loss/cross_entropy", answers.loss)
                tf.summary.scalar("loss/label_entropy", answers.entropy)
                tf.summary.scalar("logits/spread", answers.spread)
                tf.summary.scalar("logits/saturation", answers.saturation)

    def close(self) -> None:
        """Flushes what TensorBoard is to read."""
        if self._writer:
            self._writer.close()


def name_some(layers: Iterable[str]) -> str:
    """Names a few layers, counts many."""
    layers = sorted(layers)
    return ", ".join(layers) if len(layers) <= 3 else f"{len(layers)} layers ({layers[0]} ... {layers[-1]})"


def span(values: Collection[float]) -> str:
    """Returns the lowest and the highest of some numbers, or one of them where they hardly differ."""
    low, high = min(values), max(values)
    return f"{low:.2g}" if high <= 1.01 * low else f"{low:.2g} to {high:.2g}"
