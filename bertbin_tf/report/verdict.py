"""What a run came to, in a word and a sentence."""

from typing import NamedTuple

import scipy.stats

from bertbin_tf.report.reading import RunRecord

# Probabilities within a point of each other are one answer; a BERT that collapsed has a spread of 0.001 (see README).
COLLAPSED_SPREAD = 0.01


class Verdict(NamedTuple):
    """What a run came to.

    Args:
        word: `"trained"`, `"barely trained"`, `"collapsed"` or `"learned nothing that shows"`.
        sentence: String, the figures behind it, and what to do where it did not train.
    """

    word: str
    sentence: str


def verdict(record: RunRecord) -> Verdict:
    """Returns what a run came to, judged by its validation texts alone.

    `"trained"` takes a ROC AUC whose 95 % interval lies above 0.5, which is what a coin gets, and, since the bootstrap
    of a perfect ranking has no width, a Mann-Whitney test that says so at 2.5 %.
    """
    measured = record.evaluation
    ask = f"`bertbin-tf doctor {record.path / 'recipe.json'}` looks for the cause."
    spread = record.probabilities.std()
    low, high = measured.intervals["roc_auc"] or (0.0, 1.0)
    if spread < COLLAPSED_SPREAD and low <= 0.5:
        return Verdict("collapsed", f"All texts get nearly one answer: the probabilities spread by {spread:.4f}. {ask}")
    if measured.roc_auc is None:
        return Verdict(
            "learned nothing that shows", "The validation texts are all of one class, so nothing can be told apart."
        )
    ranked = f"ROC AUC {measured.roc_auc:.3f} ({low:.3f} to {high:.3f}) on {measured.rows:,} validation texts"
    if low <= 0.5:
        return Verdict("learned nothing that shows", f"{ranked}; 0.5 is chance. {ask}")
    chance = _chance(record)
    if chance >= 0.025:
        return Verdict(
            "learned nothing that shows",
            f"{ranked}; chance ranks so few as well in {100 * chance:.0f} % of cases. Validate on more texts.",
        )
    if spread < COLLAPSED_SPREAD:
        return Verdict(
            "barely trained",
            f"{ranked}, but the probabilities spread by {spread:.4f} only: there were too few steps. Train longer.",
        )
    majority = max(measured.base_rate, 1 - measured.base_rate)
    return Verdict(
        "trained",
        f"{ranked}. {100 * measured.accuracy:.1f} % of the decisions are right; always saying the commoner class would "
        f"be right in {100 * majority:.1f} %.",
    )


def _chance(record):
    """Returns how probable so good a ranking is if the probabilities say nothing."""
    positive, negative = (record.probabilities[record.labels == label] for label in (1, 0))
    return scipy.stats.mannwhitneyu(positive, negative, alternative="greater").pvalue
