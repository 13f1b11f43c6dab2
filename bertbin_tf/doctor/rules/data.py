"""What can be wrong with rows and labels."""

import math

import numpy as np

from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.doctor.rules.registry import Proof, rule

# Film reviews against other film reviews have 0.5, against tweets 0.98.
DIFFERENT_ORIGIN = 0.9


@rule
def data_exhausted(evidence: Evidence) -> Proof | None:
    """The data come to an end before training does, or give nothing the second time: later epochs train on nothing."""
    train = evidence.train
    if train.problem or not train.is_whole:
        return None
    if not train.batches:
        return Proof(
            "the training data have no batch at all", "print(next(iter(train_data)))  # what was filtered away?"
        )
    if train.gives_nothing_again:
        return Proof(
            f"the training data gave {len(train.labels_by_batch)} batches when read first, and none when read again: a "
            "generator was made once and is used up",
            "tf.data.Dataset.from_generator(lambda: read_rows(), ...)  # make the generator inside the function",
        )
    return None


@rule
def labels_out_of_range(evidence: Evidence) -> Proof | None:
    """Binary cross-entropy takes labels 0 and 1. With others its minimum lies at infinity, or nowhere."""
    labels = evidence.train.given_labels
    if not len(labels) or (np.isfinite(labels) & (labels >= 0) & (labels <= 1)).all():
        return None
    if evidence.response.takes_signs:
        return None
    values, counts = np.unique(labels, return_counts=True)
    shown = ", ".join(f"{value:g} ({count:,})" for value, count in zip(values[:5], counts[:5], strict=True))
    low, high = values[0], values[-1]
    if not np.isfinite(values).all():
        remedy = "dataset = dataset.unbatch().filter(lambda x, y: tf.math.is_finite(y)).batch(32)"
    elif len(values) > 2:
        remedy = f"dataset = dataset.map(lambda x, y: (x, tf.cast(y == {high:g}, tf.float32)))  # or two of them"
    else:
        remedy = f"dataset = dataset.map(lambda x, y: (x, tf.cast(y > {low:g}, tf.float32)))  # {high:g} becomes 1"
    return Proof(f"the labels are {shown}; they must be 0 and 1", remedy)


@rule
def one_class(evidence: Evidence) -> Proof | None:
    """Only one label counts, so the best answer is a constant, and the model learns it."""
    labels, weights = evidence.train.labels, evidence.train.sample_weights
    if weights is not None and len(set(labels)) == 2:
        totals = {value: float(weights[labels[: len(weights)] == value].sum()) for value in sorted(set(labels))}
        ignored = [value for value, total in totals.items() if total == 0]
        if len(ignored) == 1 and any(labels[: len(weights)] == ignored[0]):
            return Proof(
                f"the sample weight of all rows with label {ignored[0]:g} is 0",
                "weight = num_rows / (2 * num_rows_of_class)  # `//` makes 0 of what is below 1",
            )
    if not evidence.train.is_whole or len(labels) < 2 or len(set(labels)) > 1:
        return None
    return Proof(
        f"all {len(labels):,} training labels are {evidence.train.given_labels[0]:g}",
        "print(np.unique(labels, return_counts=True))  # a filter, a slice of sorted rows, a label that was misread?",
    )


@rule
def labels_not_shuffled(evidence: Evidence) -> Proof | None:
    """Rows come sorted by label, so each step unlearns what the one before it learned, and the last class wins."""
    train = evidence.train
    batches = [labels for labels in train.labels_by_batch if len(labels) > 1]
    if train.is_shuffled_by_fit or len(batches) < 4 or len(set(train.labels)) > 2:
        return None
    means = np.array([labels.mean() for labels in batches])
    num_pure = int(((means == 0) | (means == 1)).sum())
    rate = evidence.base_rate
    expected = np.mean([rate ** len(labels) + (1 - rate) ** len(labels) for labels in batches]) * len(batches)
    sizes = np.array([len(labels) for labels in batches])
    # The squared deviation of a batch's mean from the base rate is that of independent draws where rows are mixed.
    excess = float(np.mean((means - rate) ** 2 * sizes) / max(rate * (1 - rate), 1e-9)) if 0 < rate < 1 else 0.0
    is_sorted_out_of_sight = 0 < len(set(train.labels)) < 2 and not train.is_whole and len(train.labels) >= 256
    if excess < 4 and not is_sorted_out_of_sight:
        return None
    return Proof(
        f"{num_pure} of {len(batches)} batches hold one class only, where {expected:.1f} would if rows were mixed; the "
        f"share of positives varies between batches {excess:.0f} times as much as it should",
        "order = np.random.permutation(num_rows)  # of the rows, in __init__ and on_epoch_end: fit mixes batches only"
        if train.is_py_dataset
        else "dataset = dataset.unbatch().shuffle(num_rows, seed=0).batch(32)  # num_rows: all; fit does not shuffle",
    )


@rule
def class_imbalance(evidence: Evidence) -> Proof | None:
    """One class is rare and the head starts at even odds: the first epochs go into learning the base rate."""
    rate = evidence.base_rate
    if labels_out_of_range(evidence) or not 0 < min(rate, 1 - rate) < 0.1 or not evidence.answers.are_probabilities:
        return None
    if evidence.train.first[2] is not None:  # with weights the right start is another, and may be even odds
        return None
    loss = evidence.answers.mean_loss  # in one batch of a rare class are too few of it, or too many
    if loss < 1.5 * evidence.entropy + 0.05:
        return None
    return Proof(
        f"{rate:.1%} of the labels are positive, and the loss begins at {loss:.2f}, where the base rate alone gives "
        f"{evidence.entropy:.2f}",
        f"keras.layers.Dense(1, 'sigmoid', bias_initializer=LogOdds({rate:.3g}))",
    )


@rule
def leak_between_splits(evidence: Evidence) -> Proof | None:
    """Validation texts were trained on, so the validation figures say nothing."""
    if evidence.validation is None or evidence.validation.tokens is None or evidence.train.tokens is None:
        return None
    seen = set(evidence.train.tokens.keys)
    keys = [key for key in evidence.validation.tokens.keys if len(key) > 5 * 8]
    num_leaked = sum(key in seen for key in keys)
    if num_leaked <= 0.1 * len(keys) or num_leaked < 5:
        return None
    return Proof(
        f"{num_leaked:,} of {len(keys):,} validation texts are among the {len(seen):,} training texts read",
        "train, validation = data.split(rows, 0.1)  # by text, so that no text is on both sides",
    )


@rule
def train_validation_mismatch(evidence: Evidence) -> Proof | None:
    """Training and validation data are not of one kind: what is learned from the one does not hold for the other."""
    train, validation = evidence.train, evidence.validation
    if validation is None or len(validation.labels) < 50 or len(train.labels) < 50:
        return None
    rates = float(train.labels.mean()), float(validation.labels.mean())
    if abs(rates[0] - rates[1]) > 0.25 and not labels_out_of_range(evidence):
        return Proof(
            f"{rates[0]:.0%} of the training labels are positive and {rates[1]:.0%} of the validation labels",
            "train, validation = data.split(rows, 0.1)  # stratified by label",
        )
    if evidence.origin_auc > DIFFERENT_ORIGIN:
        lengths = [float(some.tokens.lengths.mean()) for some in (validation, train)]
        return Proof(
            f"a logistic regression on the words tells validation texts from training texts with a ROC AUC of "
            f"{evidence.origin_auc:.2f}, where 0.5 is expected of one kind of texts; they have {lengths[0]:.0f} and "
            f"{lengths[1]:.0f} tokens in the mean",
            "validation = preprocess(validation)  # the same preprocessing for both",
        )
    known, transferred = evidence.bag_of_tokens_auc, evidence.transferred_auc
    if not (known - transferred > 4 * _auc_error(validation.labels) and transferred - 0.5 < 0.25 * (known - 0.5)):
        return None
    return Proof(
        f"a logistic regression on the words of the training texts guesses the labels of others of them with a ROC AUC "
        f"of {known:.2f}, and those of the validation texts with {transferred:.2f}: they are of other texts, or mean "
        "something else",
        "labels = [classes.index(name) for name in names]  # by one list of classes, for training and validation",
    )


@rule
def labels_unrelated(evidence: Evidence) -> Proof | None:
    """Nothing in the texts tells the labels beside them: a join that slipped, a shuffle of one column, other labels."""
    by_shift = evidence.auc_by_shift
    shift = max(by_shift, key=by_shift.__getitem__, default=0)
    if shift and by_shift[shift] - by_shift[0] > 4 * _auc_error(evidence.train.labels[: evidence.train.num_rows]):
        slices = f"texts[:-{shift}], labels[{shift}:]" if shift > 0 else f"texts[{-shift}:], labels[:{shift}]"
        return Proof(
            f"a ridge regression on the words of {evidence.train.num_rows:,} texts guesses the labels beside them with "
            f"a ROC AUC of {by_shift[0]:.2f}, and those that stand {abs(shift)} {'row' if abs(shift) == 1 else 'rows'} "
            f"{'below' if shift > 0 else 'above'} with {by_shift[shift]:.2f}",
            f"texts, labels = {slices}  # and see where the one column lost its rows",
        )
    if evidence.train.num_rows < 500 or not evidence.bag_of_tokens_auc < 0.53 or not evidence.answers.probe_auc < 0.56:
        return None
    return Proof(
        f"a logistic regression on the words of {evidence.train.num_rows:,} texts guesses the labels with a ROC AUC of "
        f"{evidence.bag_of_tokens_auc:.2f}, and on the features with {evidence.answers.probe_auc:.2f}; chance "
        "is 0.5",
        "for text, label in rows[:20]: print(label, text)  # do they belong together? or shuffled apart?",
    )


def _auc_error(labels):
    """Returns the standard error of an AUC by chance (Mann & Whitney, 1947)."""
    num_pairs = labels.sum() * (len(labels) - labels.sum())
    return math.sqrt((len(labels) + 1) / (12 * max(num_pairs, 1)))
