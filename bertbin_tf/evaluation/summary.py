"""Everything worth knowing about a classifier's probabilities, in one call."""

import dataclasses
import warnings
from typing import Any

import numpy as np
from sklearn import metrics

from bertbin_tf.evaluation.bootstrap import TWO_CLASS_MEASURES, bootstrap_intervals
from bertbin_tf.evaluation.calibration import clip_probabilities, expected_calibration_error
from bertbin_tf.evaluation.checks import check_labels_and_probabilities
from bertbin_tf.notebook import html_table


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `str()` is a table for a terminal, `to_dict()` is ready for JSON.

    Args:
        accuracy: Float, the share of right decisions.
        balanced_accuracy: Float, the mean of the shares of right decisions in the two classes.
        f1: Float, the F1 score of label 1.
        mcc: Float, Matthews' correlation coefficient, in [-1, 1].
        roc_auc: Float, the chance that a positive text is ranked above a negative one.
        pr_auc: Float, average precision.
        brier: Float, the mean squared difference between probability and label.
        log_loss: Float, mean cross-entropy in nats, of probabilities kept 1.2e-7 away from 0 and 1.
        ece: Float, see `expected_calibration_error`.
        confusion: Dict with the counts `tn`, `fp`, `fn`, `tp`.
        threshold: Float; a text is called positive where `probability >= threshold`.
        rows: Integer, the number of texts.
        base_rate: Float, the share of label 1.
        intervals: Dict from a measure's name to the ends of its 95 % interval; empty if no resamples were drawn.

    With labels of one class only the measures that compare classes (`balanced_accuracy`, `f1`, `mcc`, `roc_auc`,
    `pr_auc`) are `None`, and so are their intervals.
    """

    accuracy: float
    balanced_accuracy: float | None
    f1: float | None
    mcc: float | None
    roc_auc: float | None
    pr_auc: float | None
    brier: float
    log_loss: float
    ece: float
    confusion: dict[str, int]
    threshold: float
    rows: int
    base_rate: float
    intervals: dict[str, tuple[float, float] | None]

    def to_dict(self) -> dict:
        """Returns the fields as a dict of plain Python values that JSON gives back unchanged."""
        fields = dataclasses.asdict(self)
        return fields | {"intervals": {name: ends and list(ends) for name, ends in self.intervals.items()}}

    @property
    def table(self) -> list[tuple[str, str, str]]:
        """Each measure with its value and its interval, for reading."""
        lines = []
        for name in _MEASURES:
            value, ends = getattr(self, name), self.intervals.get(name)
            interval = f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
            lines.append((name, "-" if value is None else f"{value:.3f}", interval))
        return lines

    @property
    def _title(self):
        return f"{self.rows:,} rows, base rate {self.base_rate:.3f}, threshold {self.threshold:.3f}"

    def _repr_html_(self):
        return f"<p>{self._title}</p>" + html_table(("measure", "value", "95 % interval"), self.table)

    def __str__(self):
        lines = [self._title, "", f"{'':18}{'value':>7}" + ("   95 % interval" if self.intervals else "")]
        lines += [f"{name:18}{value:>7}   {interval}".rstrip() for name, value, interval in self.table]
        tn, fp, fn, tp = (f"{self.confusion[cell]:,}" for cell in ("tn", "fp", "fn", "tp"))
        lines += ["", f"{'':11}{'said 0':>10}{'said 1':>10}", f"{'label is 0':11}{tn:>10}{fp:>10}"]
        return "\n".join([*lines, f"{'label is 1':11}{fn:>10}{tp:>10}"])


_MEASURES = [field.name for field in dataclasses.fields(Evaluation)][:9]


def evaluate(y_true, probabilities, *, threshold: float = 0.5, num_bootstrap: int = 1000, seed: int = 0) -> Evaluation:
    """Measures decisions, ranking and calibration of probabilities against labels.

    Args:
        y_true: Labels 0 or 1 of shape `(n,)` or `(n, 1)`: a list, an array or a tensor.
        probabilities: Probabilities of label 1, of the same shapes, as `model.predict` returns them.
        threshold: Float in [0, 1]; a text is called positive where `probability >= threshold`. Defaults to `0.5`.
        num_bootstrap: Integer, the number of resamples behind the intervals; 0 leaves them out. Rows are resampled, not
            stratified by class; resamples without one of the classes are left out where both are needed. Under a
            second for 1,000 resamples of 2,000 rows. Defaults to `1000`.
        seed: Integer, of the resampling. Defaults to `0`.

    Returns:
        `Evaluation`. If all labels are the same, a `UserWarning` is given and what compares classes is `None`.

    Raises:
        ValueError: If a label is not 0 or 1, a probability is NaN or outside [0, 1], lengths differ or are 0, or the
            threshold or the number of resamples is out of range.

    Example:
    >>> evaluation = evaluate([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    >>> evaluation.accuracy, evaluation.roc_auc
    (0.5, 0.75)
    """
    labels, probabilities = check_labels_and_probabilities(y_true, probabilities)
    if not 0 <= threshold <= 1:
        raise ValueError(f"`threshold` must lie in [0, 1]. Received: threshold={threshold}.")
    if num_bootstrap < 0:
        raise ValueError(f"`num_bootstrap` must be 0 (no intervals) or more. Received: num_bootstrap={num_bootstrap}.")
    decisions = (probabilities >= threshold).astype("int64")
    tn, fp, fn, tp = metrics.confusion_matrix(labels, decisions, labels=[0, 1]).ravel().tolist()
    measures = {
        "accuracy": metrics.accuracy_score(labels, decisions),
        "brier": metrics.brier_score_loss(labels, probabilities, pos_label=1),
        "log_loss": metrics.log_loss(labels, clip_probabilities(probabilities), labels=[0, 1]),
        "ece": expected_calibration_error(labels, probabilities),
    }
    if labels.min() != labels.max():
        measures |= {
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, decisions),
            "f1": metrics.f1_score(labels, decisions, zero_division=0.0),
            "mcc": metrics.matthews_corrcoef(labels, decisions),
            "roc_auc": metrics.roc_auc_score(labels, probabilities),
            "pr_auc": metrics.average_precision_score(labels, probabilities),
        }
    else:
        warnings.warn(
            f"All {len(labels)} labels are {labels[0]}: {', '.join(TWO_CLASS_MEASURES)} need both and are None. "
            "Evaluate on data that holds positives and negatives.",
            stacklevel=2,
        )
    intervals = {}
    if num_bootstrap:
        intervals = bootstrap_intervals(
            labels, probabilities, threshold=threshold, num_resamples=num_bootstrap, seed=seed
        )
    all_measures: dict[str, Any] = {name: float(measures[name]) if name in measures else None for name in _MEASURES}
    return Evaluation(
        **all_measures,
        confusion={"tn": tn, "fp": fp, "fn": fn, "tp": tp},
        threshold=float(threshold),
        rows=len(labels),
        base_rate=float(np.mean(labels)),
        intervals={name: intervals[name] for name in _MEASURES if name in intervals},
    )
