"""Everything that rules conclude from: measured once each, when the first rule asks for it."""

import functools
import math
from collections.abc import Callable

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict

from bertbin_tf.doctor.answers import Answers, cross_validated_auc
from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.patient import Patient
from bertbin_tf.doctor.response import Response
from bertbin_tf.doctor.scores import Scores
from bertbin_tf.doctor.steps import HEALTHY_STEP, TOO_FAST, TOO_SLOW, Steps
from bertbin_tf.doctor.train_step import TrainStep
from bertbin_tf.metrics import label_entropy

# In logits a step: that of the default head on MiniLM's features, 0.4 in the mean of 384, at 1e-4.
HEALTHY_PACE = 0.015
# In logits a step, too, but of the whole model, and of rows that it is trained on again and again. Healthy models on
# MiniLM have 0.006 to 0.9 (`benchmarks/faults.py`), adapters at the rate of whole layers 0.001.
SLOW_PACE = 0.002
# So slow a head takes 20,000 steps from even odds to a probability of 0.73.
TOO_SLOW_PACE = 5e-5
# What the head gets from an encoder is near 1; a column of its own, such as a date in seconds, is near 1e9.
UNSCALED = 100.0
# Rows by which a column may have slipped against another: a header, a few rows that were dropped from one of them.
SHIFTS = range(-5, 6)


class Evidence:
    """A model and its data, as measured.

    Args:
        patient: The model.
        train: The training data.
        validation: The validation data, or `None`. Defaults to `None`.

    Attributes:
        auc_by_seed: Function that trains shortly from several seeds and returns what became of it, as ROC AUC of rows
            that were not trained on. Whoever can train sets it; until then it returns an empty list.
        is_explained: Bool, whether some rule applied already. Whoever asks the rules sets it.
    """

    def __init__(self, patient: Patient, train: Batches, validation: Batches | None = None):
        self.patient, self.train, self.validation = patient, train, validation
        self.auc_by_seed: Callable[[], list[float]] = list
        self.is_explained = False

    @property
    def data(self) -> dict[str, Batches]:
        """Training and validation data by name."""
        return {"training": self.train} | ({} if self.validation is None else {"validation": self.validation})

    @functools.cached_property
    def answers(self) -> Answers:
        """Forward passes."""
        return Answers(self.patient, self.train)

    @functools.cached_property
    def response(self) -> Response:
        """Loss and gradient at known logits."""
        return Response(self.patient, self.train, self.answers, self.train_step)

    @functools.cached_property
    def scores(self) -> Scores:
        """What the metrics make of right and of wrong answers."""
        return Scores(self.patient.model, self.response)

    @functools.cached_property
    def validation_answers(self) -> Answers:
        """Forward passes on the validation data."""
        return Answers(self.patient, self.validation)  # type: ignore[arg-type]  # asked for only where there are some

    @functools.cached_property
    def steps(self) -> Steps:
        """Gradients, rates, first steps."""
        return Steps(self.patient, self.train, self.train_step)

    @functools.cached_property
    def train_step(self) -> TrainStep:
        """Steps of the model as `fit` makes them."""
        return TrainStep(self.patient, self.train)

    @functools.cached_property
    def pace(self) -> float:
        """How far, in logits a step at the highest rate, the answers to a few rows move, which are trained on alone."""
        return self.train_step.pace(self.steps.highest_rate)

    @functools.cached_property
    def head_pace(self) -> float:
        """How far, in logits, the last dense layer alone moves its answers in a step at the highest rate.

        Adam moves each weight by the rate, so this is the rate times the sum of absolute features, in the mean over
        texts; NaN if the features cannot be had.
        """
        features = self.answers.first_features
        if features is None:
            return math.nan
        move = self.steps.moves[self.patient.logit_name]
        return move.update_norm / move.size**0.5 * float(np.abs(features).sum(axis=1).mean())

    @property
    def has_layers_apart(self) -> bool:
        """Whether at the user's rate some layer of the encoder is too fast while another that moves is too slow."""
        moved = [move.relative_step for move in self.steps.encoder_moves.values() if move.relative_step > 0]
        return bool(moved) and max(moved) > TOO_FAST and min(moved) < TOO_SLOW

    @functools.cached_property
    def layer_multipliers(self) -> dict[str, float]:
        """By layer of the encoder, the factor on the rate that is healthy for most which makes it healthy for this one.

        Layers that need none are left out. Empty without `has_layers_apart`: then one rate can fit.
        """
        if not self.has_layers_apart:
            return {}
        scale = self.steps.healthy_rate / self.steps.highest_rate
        relative = {layer: move.relative_step * scale for layer, move in self.steps.encoder_moves.items()}
        return {
            layer: HEALTHY_STEP / step for layer, step in relative.items() if step > TOO_FAST or 0 < step < TOO_SLOW
        }

    @functools.cached_property
    def base_rate(self) -> float:
        """The share of positive labels."""
        return float(self.train.labels.mean()) if len(self.train.labels) else math.nan

    def binary(self, labels: np.ndarray) -> np.ndarray:
        """Returns which labels are positive, also where they are not 0 and 1: those above the middle."""
        finite = self.train.labels[np.isfinite(self.train.labels)]
        return labels > (finite.min() + finite.max()) / 2

    @functools.cached_property
    def entropy(self) -> float:
        """The cross-entropy of the best constant answer, in nats."""
        return label_entropy(self.base_rate)

    @functools.cached_property
    def bag_of_tokens_auc(self) -> float:
        """ROC AUC of a logistic regression on which tokens a text has, five-fold; NaN without tokens or two classes."""
        tokens = self.train.tokens
        if tokens is None:
            return math.nan
        rows = _first_rows(tokens)
        return cross_validated_auc(_bags(tokens)[rows], self.train.labels[rows])

    @functools.cached_property
    def auc_by_shift(self) -> dict[int, float]:
        """ROC AUC of a ridge regression on which tokens a text has, by how many rows later its label is taken from.

        Of all shifts at once, where `bag_of_tokens_auc` is of none; empty without tokens or two classes.
        """
        tokens = self.train.tokens
        labels = self.train.labels[: 0 if tokens is None else len(tokens.ids)]
        if set(labels) != {0, 1}:
            return {}
        rows = _first_rows(tokens)
        shifted = np.stack([np.roll(labels, -shift)[rows] for shift in SHIFTS], axis=1)
        if len(rows) < 100 or not np.all(np.ptp(shifted, axis=0)):
            return {}
        folds = KFold(5, shuffle=True, random_state=0)
        answers = cross_val_predict(Ridge(10.0), _bags(tokens)[rows], shifted, cv=folds)
        return {shift: float(roc_auc_score(*both)) for shift, *both in zip(SHIFTS, shifted.T, answers.T, strict=True)}

    @functools.cached_property
    def origin_auc(self) -> float:
        """ROC AUC of the same on whether a text is one of validation: 0.5 where the two are of one kind."""
        if self._bags_of_both is None:
            return math.nan
        origins = np.repeat([0.0, 1.0], [bags.shape[0] for bags in self._bags_of_both])
        return cross_validated_auc(scipy.sparse.vstack(self._bags_of_both, format="csr"), origins)

    @functools.cached_property
    def transferred_auc(self) -> float:
        """ROC AUC of the same on the labels, learned from the training texts, on the validation texts."""
        if self._bags_of_both is None:
            return math.nan
        known, asked = self._bags_of_both
        labels = [some.labels[_first_rows(some.tokens)] for some in (self.train, self.validation)]  # type: ignore
        if any(set(some) != {0, 1} for some in labels):
            return math.nan
        regression = LogisticRegression(max_iter=300).fit(known, labels[0])
        return float(roc_auc_score(labels[1], regression.decision_function(asked)))

    @functools.cached_property
    def _bags_of_both(self):
        """Of training and validation texts which tokens they have, or `None` if either has none."""
        both = [None if some is None else some.tokens for some in (self.train, self.validation)]
        if any(tokens is None for tokens in both):
            return None
        width = 1 + max(int(tokens.ids.max()) for tokens in both)
        return [_bags(tokens, width)[_first_rows(tokens)] for tokens in both]


def _first_rows(tokens):
    """Returns the first row with each text: of data that repeat themselves none may be learned from and asked."""
    rows: dict[bytes, int] = {}
    for row, key in enumerate(tokens.keys):
        rows.setdefault(key, row)
    return np.array(list(rows.values()))


def _bags(tokens, width=None):
    """Returns which tokens each text has, as a sparse matrix of 0 and 1."""
    rows, columns = np.nonzero(~tokens.is_padding)
    shape = (len(tokens.ids), width or int(tokens.ids.max()) + 1)
    return scipy.sparse.csr_matrix((np.ones(len(rows), "float32"), (rows, tokens.ids[rows, columns])), shape).minimum(1)
