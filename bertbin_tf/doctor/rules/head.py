"""What can be wrong between the last dense layer and the loss: shown at known logits, whatever their names."""

import numpy as np

from bertbin_tf.doctor.evidence import UNSCALED, Evidence
from bertbin_tf.doctor.rules.registry import Proof, rule

HEAD = "outputs = keras.layers.Dense(1, activation='sigmoid', dtype='float32')(features)"
CERTAIN = 4  # a probability of 0.98
COMPILE = "model.compile(optimizer, keras.losses.BinaryCrossentropy())"


@rule
def label_shape_broadcast(evidence: Evidence) -> Proof | None:
    """Labels of shape `(rows,)` meet answers of shape `(rows, 1)`: each answer is compared with every label."""
    if not evidence.response.is_blind_to_order:
        return None
    return Proof(
        "what the model's own training step does to the head stays the same when labels change places"
        if evidence.patient.has_own_step
        else "the loss of answers 0.3 and 0.9 stays the same when their labels change places",
        "dataset = dataset.map(lambda x, y: (x, tf.reshape(y, (-1, 1))))  # or a Keras loss, which matches the shapes",
    )


@rule
def single_unit_softmax(evidence: Evidence) -> Proof | None:
    """A softmax over one unit, or over a batch and not its units, is 1 for a text alone, whatever it says."""
    answers = evidence.answers
    if len(answers.outputs) > 1 and np.allclose(answers.alone, 1, atol=1e-6) and answers.outputs[0].min() < 0.99:
        return Proof(
            f"the first text's answer is {answers.outputs[0].min():.2f} in its batch and 1 when asked alone: the "
            "softmax runs over the texts of a batch",
            "outputs = keras.layers.Softmax(axis=-1)(logits)  # over the units of each text",
        )
    replies = evidence.response.replies
    if replies is None or evidence.patient.logit_layer.units != 1:
        return None
    if any(abs(reply.answer - 1) > 1e-6 for reply in replies.values()):
        return None
    return Proof("the answer is 1 at logits from -20 to 20, and no gradient arrives", f"{HEAD}\n{COMPILE}")


@rule
def sigmoid_twice(evidence: Evidence) -> Proof | None:
    """A sigmoid of a sigmoid lies between 0.5 and 0.73, so the loss cannot fall to 0 and gradients are small."""
    replies = evidence.response.replies
    if replies is None or evidence.patient.logit_layer.units != 1:
        return None
    low, high = (replies[logit, 1].answer for logit in (-20.0, 20.0))
    is_in_model = np.allclose((low, high), (0.5, 0.731), atol=0.01)
    # Where there is none, a right answer costs nothing; a second one leaves 0.31, and of a focal loss 0.02.
    has_floor = replies[20.0, 1].loss > 1e-3
    is_in_loss = np.allclose((low, high), (0, 1), atol=0.01) and has_floor and evidence.response.takes_logits
    if not (is_in_model or is_in_loss):
        return None
    said = "goes on to another sigmoid" if is_in_model else "is a probability, and the loss takes it for a logit"
    return Proof(
        f"at logits from -20 to 20 the answer goes from {low:.2f} to {high:.2f}: what the sigmoid says {said}. At 20 "
        f"and a label of 1 the loss is {replies[20.0, 1].loss:.2f} and not 0",
        f"{HEAD}  # one sigmoid\n{COMPILE}  # from_logits=False",
    )


@rule
def logits_taken_for_probabilities(evidence: Evidence) -> Proof | None:
    """The model returns logits and the loss takes them for probabilities: it clips them, and cuts the gradient off."""
    replies = evidence.response.replies
    # A logit is as it comes; what an activation cuts off below, such as a ReLU, is none: see `loss_unsuited`.
    if replies is None or not replies[-20.0, 1].answer < -1.01:
        return None
    lost = [key for key in ((-20.0, 1), (20.0, 0), (-3.0, 1)) if abs(replies[key].gradient) < 0.1]
    if not lost:
        return None
    logit, label = lost[0]
    layer = evidence.patient.logit_layer
    kind = "BinaryCrossentropy" if layer is None or layer.units == 1 else "SparseCategoricalCrossentropy"
    return Proof(
        f"the model's answers go from {min(r.answer for r in replies.values()):.0f} to "
        f"{max(r.answer for r in replies.values()):.0f}; at a logit of {logit:.0f} and a label of {label} the gradient "
        f"is {replies[lost[0]].gradient:.2g}, and not {1 - 2 * label}",
        f"model.compile(optimizer, keras.losses.{kind}(from_logits=True))",
    )


@rule
def loss_unsuited(evidence: Evidence) -> Proof | None:
    """The loss does not push wrong answers towards the label: its gradient is not that of a cross-entropy."""
    replies = evidence.response.replies
    if replies is None or any(rule(evidence) for rule in (single_unit_softmax, sigmoid_twice, label_shape_broadcast)):
        return None
    if logits_taken_for_probabilities(evidence) or evidence.response.is_deaf:
        return None
    # By cross-entropy and focal loss an answer of 3 that is wrong is pushed harder than one of 0, whatever weights the
    # loss has. A squared error behind a sigmoid has a third left there, and an absolute one less.
    wrong = {key: abs(replies[key].gradient) for key in ((3.0, 0), (-3.0, 1), (0.0, 0), (0.0, 1))}
    if replies[3.0, 0].gradient > 0.6 * wrong[0.0, 0] and -replies[-3.0, 1].gradient > 0.6 * wrong[0.0, 1]:
        return None
    weakest = min(wrong, key=wrong.__getitem__)
    if evidence.response.is_cross_entropy:
        low, middle, high = (replies[logit, 0].answer for logit in (-3.0, 0.0, 3.0))
        return Proof(
            f"the answer is {low:.2f} at a logit of -3, {middle:.2f} at 0 and {high:.2f} at 3, where a sigmoid gives "
            f"0.05, 0.50 and 0.95, so that at {weakest[0]:.0f} hardly a gradient arrives. The loss is cross-entropy "
            f"already: it is the activation of {evidence.patient.logit_layer.name}, or what is behind it",
            HEAD,
        )
    return Proof(
        f"at a logit of {weakest[0]:.0f} and a label of {weakest[1]} the gradient is {replies[weakest].gradient:.2g}, "
        f"where cross-entropy gives {1 / (1 + np.exp(-weakest[0])) - weakest[1]:.2f}",
        f"{HEAD}\n{COMPILE}",
    )


@rule
def head_saturated(evidence: Evidence) -> Proof | None:
    """The first answers are all but certain, and wrong: a head that starts too large, or features that do."""
    logits = evidence.answers.logits
    if not len(logits) or not np.isfinite(logits).all():
        return None
    share = float((np.abs(logits) > CERTAIN).mean())
    if share < 0.5 or evidence.answers.loss < 2 * max(evidence.entropy, 0.1):
        return None
    largest = evidence.answers.largest_feature
    if largest > UNSCALED:
        return Proof(
            f"{share:.0%} of the first logits lie beyond {CERTAIN}, for of what the head gets the largest is "
            f"{largest:.1e}, where an encoder's features are near 1",
            "features = keras.layers.LayerNormalization()(features)  # Normalization() for columns that are no text",
        )
    return Proof(
        f"{share:.0%} of the first logits lie beyond {CERTAIN}, and the first loss is {evidence.answers.loss:.1f}, "
        f"where the base rate alone gives {evidence.entropy:.2f}",
        "keras.layers.Dense(1, 'sigmoid', bias_initializer=LogOdds(base_rate))  # and Keras' own kernel_initializer",
    )
