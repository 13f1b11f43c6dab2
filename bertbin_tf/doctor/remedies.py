"""What a program can do about a finding: one function for each such code, which changes a `Regimen`."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf.doctor.evidence import HEALTHY_PACE, TOO_SLOW_PACE, UNSCALED
from bertbin_tf.doctor.regimen import Regimen

HEALTHY_DROPOUT = 0.1  # Devlin et al., 2019, appendix A.2
FIRST_SIZE = 0.5  # of the first logits, at most; Keras' own head has 0.1 to 0.6 on MiniLM's features


class Untreatable(Exception):
    """Says why a remedy cannot be applied here."""


def set_rate(regimen: Regimen) -> None:
    """The rate that suits the encoder and the length of the training, with warm-up and decay."""
    regimen.take_rate(regimen.evidence.steps.rate_for(regimen.epochs))


def use_adamw(regimen: Regimen) -> None:
    """AdamW at the rate that suits the encoder, clipped at a global norm of 1, with an epsilon below the gradients."""
    regimen.take_adamw()
    if regimen.evidence.steps.held_by_epsilon:
        regimen.optimizer_config |= {"epsilon": 1e-10}
        regimen.changes.append("optimizer: epsilon=1e-10")
    set_rate(regimen)


def set_rates_by_layer(regimen: Regimen) -> None:
    """A rate for each layer of the encoder that needs its own; a head's kernel as large as its features are small."""
    evidence = regimen.evidence
    if evidence.layer_multipliers:
        regimen.take_multipliers(evidence.layer_multipliers)
    if evidence.head_pace < TOO_SLOW_PACE:
        kernel, factor = evidence.patient.logit_layer.kernel, HEALTHY_PACE / evidence.head_pace
        if not np.any(kernel):
            raise Untreatable("the features must be normalised before they reach the last dense layer")
        kernel.assign(factor * kernel)
        regimen.changes.append(f"{evidence.patient.logit_layer.name}: kernel times {factor:.2g}")
    set_rate(regimen)


def unclip(regimen: Regimen) -> None:
    """The same optimizer, clipped at a global norm of 1."""
    regimen.optimizer_config |= {"clipnorm": None, "clipvalue": None, "global_clipnorm": 1.0}
    regimen.changes.append("optimizer: global_clipnorm=1.0")


def decay_less(regimen: Regimen) -> None:
    """The usual weight decay, and no penalties on weights in the loss."""
    if regimen.evidence.train_step.follows_penalty:
        raise Untreatable("the penalty on the weights must be taken out of the model's own `train_step` by hand")
    if regimen.optimizer_config.get("weight_decay"):
        regimen.optimizer_config["weight_decay"] = 0.01
        regimen.changes.append("optimizer: weight_decay=0.01")
    for weight in regimen.model.trainable_variables:
        if getattr(weight, "regularizer", None) is not None:
            regimen.set(weight, "regularizer", None)


def let_train(regimen: Regimen) -> None:
    """A step after each batch, where none came in an epoch; kernels that are not 0; all layers trained."""
    if regimen.evidence.response.is_deaf:
        raise Untreatable("what is behind the last dense layer must be taken out by hand")
    if regimen.evidence.steps.is_own_step_idle:
        raise Untreatable("the model's own `train_step` must be mended by hand")
    if regimen.evidence.steps.moves_only_a_bias:
        zeros = regimen.evidence.patient.zero_layers
        if not zeros:
            raise Untreatable("what makes the features 0 of every text must be taken out by hand")
        for layer in zeros:
            _draw_kernel(regimen, layer)
    elif regimen.evidence.steps.has_no_step:
        regimen.optimizer_config["gradient_accumulation_steps"] = None
        regimen.changes.append("optimizer: gradient_accumulation_steps=None")
    else:
        unfreeze(regimen)


def unfreeze(regimen: Regimen) -> None:
    """All layers trained, at a rate that suits the encoder."""
    if regimen.evidence.patient.untracked:
        raise Untreatable("the encoder must be taken out of its Lambda layer by hand")
    if regimen.evidence.steps.is_encoder_cut_off:
        raise Untreatable("what lets no gradient through to the encoder must be taken out by hand")
    layers = (regimen.model, *regimen.evidence.patient.all_layers)
    frozen = [layer for layer in layers if layer.weights and not layer.trainable]
    if frozen:
        # Each of them: Keras passes over `model.trainable = True` where that is so already, whatever its layers are.
        for layer in frozen:
            layer.trainable = True
        regimen.bound = None
        shown = next((layer for layer in frozen if isinstance(layer, keras.Model)), frozen[0])
        regimen.record(f"{shown.name}.trainable = True")
    set_rate(regimen)


def rebind(regimen: Regimen) -> None:
    """The optimizer made anew, for the weights that are trainable now."""
    regimen.bound = None
    regimen.record("compiled anew: the optimizer knows all trainable weights")


def drop_less(regimen: Regimen) -> None:
    """BERT's own dropout, wherever more than half is dropped."""
    if not regimen.evidence.patient.strong_dropouts:
        raise Untreatable("the dropout in the model's own code must be lowered by hand")
    for layer in regimen.evidence.patient.strong_dropouts:
        regimen.set(layer, "rate", HEALTHY_DROPOUT)


def use_sigmoid(regimen: Regimen) -> None:
    """One sigmoid on the last dense layer, under binary cross-entropy."""
    patient = regimen.evidence.patient
    if patient.logit_layer.units != 1:
        raise Untreatable("a softmax over several units must be turned to the last axis by hand")
    if patient.layers_behind_logits:
        names = ", ".join(layer.name for layer in patient.layers_behind_logits)
        raise Untreatable(f"the layers {names} behind the last dense layer must be taken out by hand")
    regimen.set(patient.logit_layer, "activation", keras.activations.sigmoid, "sigmoid")
    regimen.take_loss(keras.losses.BinaryCrossentropy(), "BinaryCrossentropy()")


def use_one_sigmoid(regimen: Regimen) -> None:
    """The first of two sigmoids taken away, or the one that hides in the loss."""
    highest = max(reply.answer for reply in regimen.evidence.response.replies.values())
    if highest < 0.99:  # sigmoid(1) = 0.73: the model has them both
        regimen.set(regimen.evidence.patient.logit_layer, "activation", keras.activations.linear, "linear")
    regimen.take_loss(keras.losses.BinaryCrossentropy(), "BinaryCrossentropy()")


def match_loss(regimen: Regimen) -> None:
    """Binary cross-entropy, of logits where the model answers logits."""
    evidence = regimen.evidence
    if evidence.patient.has_own_step:
        raise Untreatable("the loss in the model's own `train_step` must be mended by hand")
    if evidence.patient.logit_layer is not None and evidence.patient.logit_layer.units != 1:
        raise Untreatable("which loss fits two outputs depends on the shape of the labels")
    if evidence.response.is_cross_entropy:
        raise Untreatable("the loss is cross-entropy already; the activation before it must be changed by hand")
    from_logits = not evidence.answers.are_probabilities
    regimen.take_loss(
        keras.losses.BinaryCrossentropy(from_logits=from_logits), f"BinaryCrossentropy(from_logits={from_logits})"
    )


def begin_at_base_rate(regimen: Regimen) -> None:
    """The head's first answers near the base rate: its bias at the log-odds (Lin et al., 2017, section 3.3)."""
    layer, rate = regimen.evidence.patient.logit_layer, regimen.evidence.base_rate
    if layer is None or layer.units != 1 or layer.bias is None or not 0 < rate < 1:
        raise Untreatable("the head has no unit with a bias that could begin at the base rate")
    if regimen.evidence.answers.largest_feature > UNSCALED:
        raise Untreatable("what the head gets beside the text must be scaled by hand")
    log_odds = float(np.log(rate / (1 - rate)))
    features = regimen.evidence.answers.first_features
    # A kernel of zeros lets no gradient through at first, and Adam's epsilon may hold the encoder there.
    if features is None or np.sqrt(((features @ np.asarray(layer.kernel)) ** 2).mean()) > FIRST_SIZE:
        _draw_kernel(regimen, layer)
    mean = 0.0 if features is None else float((features @ np.asarray(layer.kernel)).mean())
    layer.bias.assign([log_odds - mean])
    regimen.changes.append(f"{layer.name}: bias {log_odds - mean:.2f}, for answers near the base rate {rate:.3g}")


def shuffle(regimen: Regimen) -> None:
    """Rows in random order."""
    regimen.is_shuffled = True
    regimen.changes.append("training rows are shuffled")


def map_labels(regimen: Regimen) -> None:
    """The lower of two labels becomes 0, the higher one 1."""
    values = np.unique(regimen.evidence.train.given_labels)
    if len(values) != 2 or not np.isfinite(values).all():
        raise Untreatable(f"which of {len(values)} labels are positive is not for a program to say")
    middle = float(values.mean())
    regimen.row_map.append(lambda x, y, weight: (x, tf.cast(tf.cast(y, tf.float32) > middle, tf.float32), weight))
    regimen.changes.append(f"label {values[0]:g} becomes 0 and {values[1]:g} becomes 1")


def mask_padding(regimen: Regimen) -> None:
    """The mask computed from the tokens."""
    ids, mask = _keys(regimen)
    tokens = regimen.evidence.train.tokens
    padding = tokens.padding
    if set(np.unique(tokens.mask)) <= {0, 1} and np.mean((tokens.mask == 0) == tokens.is_padding) > 0.99:
        raise Untreatable("the data's mask is right: what the model makes of it must be mended by hand")

    def masked(x, y, weight):
        return x | {mask: tf.cast(tf.not_equal(x[ids], padding), x[mask].dtype)}, y, weight

    regimen.row_map.append(masked)
    regimen.changes.append(f"{mask} = {ids} != {padding}")


def swap_inputs(regimen: Regimen) -> None:
    """Token ids change places with what has their values, the padding mask or the segments."""
    ids, _ = _keys(regimen)
    first = regimen.evidence.train.batches[0][0]
    alike = {name: np.max(array) for name, array in first.items() if array.shape == first[ids].shape and name != ids}
    other = max(alike, key=alike.__getitem__, default=ids)
    if alike.get(other, 0) <= 1:
        raise Untreatable("what the model itself makes of its inputs must be mended by hand")
    regimen.row_map.append(
        lambda x, y, weight: (
            x | {ids: tf.cast(x[other], x[ids].dtype), other: tf.cast(x[ids], x[other].dtype)},
            y,
            weight,
        )
    )
    regimen.changes.append(f"{ids} and {other} change places")


def restore(regimen: Regimen) -> None:
    """The pre-trained weights, where the caller gave an untouched encoder."""
    if not regimen.restore():
        raise Untreatable("pre-trained weights are needed: give `pretrained`, an encoder of the same layers")


def _draw_kernel(regimen, layer):
    """Gives a dense layer a kernel as Keras draws it."""
    layer.kernel.assign(keras.initializers.GlorotUniform(seed=0)(layer.kernel.shape))
    regimen.changes.append(f"{layer.name}: kernel drawn anew")


def _keys(regimen):
    """Returns the names of token ids and padding mask among the inputs."""
    x = regimen.evidence.train.batches[0][0]
    if isinstance(x, dict):
        mask = next((name for name in x if "mask" in name or "attention" in name), None)
        ids = next((name for name in x if name != mask and "ids" in name and "segment" not in name), None)
        if mask is not None and ids is not None:
            return ids, mask
    raise Untreatable("token ids and padding mask are not told by name: give the inputs as a dict")


REMEDIES = {
    "labels-out-of-range": map_labels,
    "labels-not-shuffled": shuffle,
    "input-order-wrong": swap_inputs,
    "padding-mask-wrong": mask_padding,
    "class-imbalance": begin_at_base_rate,
    "weights-not-loaded": restore,
    "stale-compile": rebind,
    "nothing-trains": let_train,
    "backbone-frozen": unfreeze,
    "dropout-too-strong": drop_less,
    "label-shape-broadcast": match_loss,
    "single-unit-softmax": use_sigmoid,
    "sigmoid-twice": use_one_sigmoid,
    "logits-taken-for-probabilities": match_loss,
    "loss-unsuited": match_loss,
    "head-saturated": begin_at_base_rate,
    "optimizer-unsuited": use_adamw,
    "gradient-clipped-to-nothing": unclip,
    "schedule-ends-early": set_rate,
    "learning-rate-too-high": set_rate,
    "learning-rate-too-low": set_rate,
    "one-rate-cannot-fit": set_rates_by_layer,
    "weight-decay-too-strong": decay_less,
}
# A few steps on a few short rows in random order cannot show these.
UNTRIED = (
    "labels-not-shuffled",
    "padding-mask-wrong",
    "class-imbalance",
    "weights-not-loaded",
    "dropout-too-strong",
    "weight-decay-too-strong",
)
# Faults of single rows, which validation data may share.
OF_ROWS = {"labels-out-of-range", "input-order-wrong", "padding-mask-wrong"}
# What does not change the data can be done while training runs.
ON_THE_WAY = set(REMEDIES) - OF_ROWS - {"labels-not-shuffled"}


def apply_remedies(regimen: Regimen, codes: Sequence[str]) -> dict[str, str]:
    """Changes a regimen, and returns by code why a remedy could not be applied.

    Args:
        regimen: To be changed.
        codes: Keys of `REMEDIES`.
    """
    untreated = {}
    for code in codes:
        try:
            REMEDIES[code](regimen)
        except Untreatable as error:
            untreated[code] = str(error)
    return untreated
