"""What is not as it should be, whatever the cause."""

import re
import textwrap

import numpy as np

from bertbin_tf.doctor.batches import to_tensors
from bertbin_tf.doctor.evidence import SLOW_PACE, Evidence

# As standard deviations over texts: of probabilities, where they can no longer be told apart, and of features, relative
# to their size. MiniLM's pooled features have 0.5; after Adam at 1e-3 it is below 1e-3.
SAME_ANSWER, SAME_FEATURES = 0.005, 0.01


def symptoms_of(evidence: Evidence) -> tuple[str, ...]:
    """Returns why `fit` cannot take the data, or what a model shows that was trained and has not learned."""
    if failure := failure_of(evidence):
        return (failure,)
    optimizer, answers = evidence.patient.optimizer, evidence.answers
    num_steps = int(optimizer.iterations.numpy())
    if not num_steps:
        return ()
    try:
        logits = answers.logits
        features = answers.features
    except Exception:  # a model that cannot be asked has been reported by the rules
        return ()
    symptoms = []
    if answers.spread < SAME_ANSWER and len(logits) > 1:
        symptoms.append(
            f"after {num_steps} steps the answers to {len(logits)} texts differ by a standard deviation of "
            f"{answers.spread:.1e}"
        )
    if features is not None:
        relative = float(features[0].std(axis=0).mean() / max(np.abs(features[0]).mean(), 1e-12))
        if relative < SAME_FEATURES:
            symptoms.append(
                f"what the head sees differs between texts by {relative:.1e} of its size: the encoder has collapsed, "
                "and no rate brings it back. Load the pre-trained weights again"
            )
    return tuple(symptoms)


def slowness_of(evidence: Evidence) -> str:
    """Returns how slowly a model overfits a few rows, or an empty string if it does, or was not to be asked."""
    # The features of a small random encoder are small, and grow; the head of a frozen one may take its time; and what
    # is answered well already need not change.
    is_encoder_trained = any(weight.trainable for weight in evidence.patient.backbone_weights)
    if not evidence.patient.has_real_size or not is_encoder_trained:
        return ""
    if not evidence.answers.loss > 0.5 * evidence.entropy or not evidence.pace < SLOW_PACE:
        return ""
    return (
        f"steps on a few rows of one batch, which a model that trains overfits, move its logits by {evidence.pace:.1g} "
        "each; 0.006 to 0.9 is healthy"
    )


def failure_of(evidence: Evidence) -> str:
    """Returns what the first batch ends in on its way to the loss, or an empty string."""
    if not evidence.train.batches:
        return "nothing of the training data could be read"
    model = evidence.patient.model
    if evidence.patient.has_own_step:
        return ""
    x, y, sample_weight = to_tensors(evidence.train.batches[0])
    try:
        model.compute_loss(x=x, y=y, y_pred=model(x, training=False), sample_weight=sample_weight)
    except Exception as error:
        return f"`fit` cannot take the first batch: {in_one_line(error)}"
    return ""


def in_one_line(error: Exception) -> str:
    """Returns the kind of an error and what it says, which may be pages."""
    # TensorFlow begins with where in its graph it was.
    said = re.sub(r"\{\{.*?\}\}", "", f"{type(error).__name__}: {error}")
    return textwrap.shorten(said, 300, placeholder=" ...")
