"""What the model answers before it is trained any further, and what its head gets to see."""

import functools
import inspect
import math

import keras
import numpy as np
import scipy.special
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from bertbin_tf.doctor.batches import Batches, find_tokens, to_tensors
from bertbin_tf.doctor.dropped import dropped_shares
from bertbin_tf.doctor.patient import Patient

NUM_FEATURE_ROWS = 512


class Answers:
    """Forward passes, not in training.

    Args:
        patient: The model.
        data: Batches to ask it; at least one.
    """

    def __init__(self, patient: Patient, data: Batches):
        self._patient, self._data = patient, data

    @functools.cached_property
    def outputs(self) -> np.ndarray:
        """The first output for the first batch, float64 of shape `(rows, units)`."""
        return flat(self.raw)

    @functools.cached_property
    def raw(self):
        """What the model returns for the first batch, as it returns it."""
        return self._patient.model(self._data.first[0], training=False)

    @functools.cached_property
    def alone(self) -> np.ndarray:
        """The first output for the first text asked alone, float64 of shape `(1, units)`."""
        x = keras.tree.map_structure(lambda array: array[:1], self._data.first[0])
        return flat(self._patient.model(x, training=False))

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """`outputs` before sigmoid or softmax, one per row, as far as the outputs alone can tell."""
        return self.to_logits(self.outputs)

    @property
    def spread(self) -> float:
        """The standard deviation of the probabilities of the first batch."""
        return float(scipy.special.expit(self.logits).std())

    def to_logits(self, outputs: np.ndarray) -> np.ndarray:
        """Returns outputs of the model before sigmoid or softmax, float64 of shape `(rows,)`.

        Args:
            outputs: Float64 array of shape `(rows, units)`.
        """
        if outputs.shape[1] == 2:
            is_softmax = np.allclose(outputs.sum(axis=1), 1, atol=1e-2) and (outputs >= 0).all()
            outputs = np.log(np.clip(outputs, 1e-30, None)) if is_softmax else outputs
            return outputs[:, 1] - outputs[:, 0]
        outputs = outputs[:, 0]
        if not self.are_probabilities:
            return outputs
        outputs = np.clip(outputs, 1e-30, 1 - 1e-16)
        return np.log(outputs) - np.log1p(-outputs)

    @property
    def are_probabilities(self) -> bool:
        """Whether all outputs lie in [0, 1], and not by chance, as those of a last linear layer may at first."""
        if self._patient.answers_logits:
            return False
        return bool(((self.outputs >= 0) & (self.outputs <= 1)).all())

    @functools.cached_property
    def loss(self) -> float:
        """The compiled loss of the first batch, without penalties on weights."""
        x, y, sample_weight = self._data.first
        return float(self._patient.model.compute_loss(x, y, self.raw, sample_weight)) - self.penalty

    @functools.cached_property
    def mean_loss(self) -> float:
        """The compiled loss of up to 512 rows, without penalties on weights."""
        losses, sizes = [], []
        for batch, size in zip(self._data.batches, self._data.sizes, strict=True):
            x, y, _ = to_tensors(batch)
            losses.append(float(self._patient.model.compute_loss(x, y, self._patient.model(x, training=False), None)))
            sizes.append(size)
            if sum(sizes) >= NUM_FEATURE_ROWS:
                break
        return float(np.average(losses, weights=sizes)) - self.penalty

    @functools.cached_property
    def penalty(self) -> float:
        """What regularisers add to the loss."""
        return float(sum(float(loss) for loss in self._patient.model.losses))

    @functools.cached_property
    def heeded_mask(self) -> np.ndarray | None:
        """The padding mask that reaches the first transformer block, for the first batch.

        `None` if none is seen, or different ones, as of an encoder that is called with two texts.
        """
        blocks = [b for b in self._patient.backbone if "padding_mask" in inspect.signature(b.call).parameters]
        if not blocks:
            return None
        block, seen, call = blocks[0], [], blocks[0].call

        def watch(*args, padding_mask=None, **kwargs):
            seen.append(padding_mask)
            return call(*args, padding_mask=padding_mask, **kwargs)

        block.call = watch
        try:
            self._patient.model(self._data.first[0], training=False)
        finally:
            block.call = call
        masks = [np.asarray(mask) for mask in seen if mask is not None]
        if not masks or len(masks) < len(seen) or not all(np.array_equal(mask, masks[0]) for mask in masks):
            return None
        return masks[0]

    @functools.cached_property
    def dropped_by_own_code(self) -> float:
        """The largest share that is dropped in training, where a class that is not Keras' may do so; else 0."""
        if not self._patient.has_own_code:
            return 0.0
        return max(dropped_shares(self._patient.model, self._data.first[0]), default=0.0)

    @functools.cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray] | None:
        """What the last dense layer gets for up to 512 rows, and their labels; `None` if it cannot be asked."""
        if self._encode is None:
            return None
        features, labels = [], []
        for (x, _, _), batch_labels in zip(self._data.batches, self._data.labels_by_batch, strict=False):
            features.append(self._encode(x))
            labels.append(batch_labels)
            if sum(map(len, labels)) >= NUM_FEATURE_ROWS:
                break
        return (np.concatenate(features), np.concatenate(labels)) if labels else None

    @functools.cached_property
    def first_features(self) -> np.ndarray | None:
        """What the last dense layer gets for the first batch, or `None` if it cannot be asked."""
        return None if self._encode is None else self._encode(self._data.first[0])

    @property
    def largest_feature(self) -> float:
        """The largest absolute value in `first_features`; NaN if they cannot be had."""
        return math.nan if self.first_features is None else float(np.abs(self.first_features).max())

    @functools.cached_property
    def probe_auc(self) -> float:
        """`cross_validated_auc` of `features`; NaN if they cannot be had or are not finite."""
        if self.features is None or not np.isfinite(self.features[0]).all():
            return math.nan
        return cross_validated_auc(*self.features)

    @functools.cached_property
    def read_padding(self) -> float:
        """How far other ids in the place of padding move the first rows' features, relative to their spread; NaN if
        unknown."""
        x = self._data.first[0]
        tokens = find_tokens(keras.tree.map_structure(np.asarray, x))
        if self._encode is None or tokens is None or tokens.mask is None or self._data.tokens is None:
            return math.nan
        tokens.padding = self._data.tokens.padding

        def with_other_padding(tensor):
            array = np.asarray(tensor)
            if not np.array_equal(array, tokens.ids):
                return array
            return np.where(tokens.is_padding, tokens.ids.max(), array).astype(array.dtype)

        before, after = self._encode(x), self._encode(keras.tree.map_structure(with_other_padding, x))
        return float(np.abs(after - before).mean() / max(before.std(axis=0).mean(), 1e-12))

    @functools.cached_property
    def _encode(self):
        layer, model = self._patient.logit_layer, self._patient.model
        try:
            encoder = keras.Model(model.input, layer.input)
        except (AttributeError, ValueError, TypeError):  # subclassed, or with a layer that is used twice
            return None
        return lambda x: np.asarray(encoder(x, training=False), dtype="float32").reshape(_num_rows(x), -1)


def cross_validated_auc(features, labels: np.ndarray) -> float:
    """Returns the five-fold ROC AUC of a logistic regression; NaN if there are too few rows of a class."""
    if set(labels) != {0, 1} or min(np.bincount(labels.astype(int))) < 5:
        return math.nan
    answers = cross_val_predict(LogisticRegression(max_iter=300), features, labels, cv=5, method="decision_function")
    return float(roc_auc_score(labels, answers))


def flat(outputs) -> np.ndarray:
    """Returns a model's first output as float64 of shape `(rows, units)`."""
    first = np.asarray(tf.cast(keras.tree.flatten(outputs)[0], tf.float64))
    return first.reshape(len(first), -1)


def _num_rows(x):
    return len(keras.tree.flatten(x)[0])
