"""What can be wrong with the weights, and with which of them are trained."""

import keras
import numpy as np

from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.doctor.patient import MAX_DROPOUT
from bertbin_tf.doctor.rules.head import HEAD, single_unit_softmax
from bertbin_tf.doctor.rules.rates import batch_too_small
from bertbin_tf.doctor.rules.registry import Proof, rule

# A head that moves less than this in an epoch stays where it began: the kernel that a logistic regression finds on
# MiniLM's features has an RMS of 0.4, Keras' random one of 0.07.
MIN_HEAD_TRAVEL = 0.05
# Half of Adam's default rate, at which a head of its own learns if there are epochs enough.
GOOD_HEAD_STEP = 5e-4


@rule
def non_finite(evidence: Evidence) -> Proof | None:
    """Weights, answers or loss are NaN or infinite, and what is computed from them never becomes a number again."""
    bad = [weight.path for weight in evidence.patient.model.weights if not _is_finite(weight.value)]
    if bad:
        return Proof(
            f"{len(bad)} of {len(evidence.patient.model.weights)} weights hold NaN or infinity, {bad[0]} among them",
            "model = build()  # weights once NaN stay so: begin anew, at a lower rate, with TerminateOnNaN()",
        )
    for name, num_rows in evidence.train.num_nan.items():
        if num_rows:
            return Proof(
                f"{num_rows:,} of {evidence.train.num_rows:,} rows have NaN in their {name}: the first batch with one "
                "of them makes all weights NaN",
                "frame = frame.dropna()  # or fillna(0), before the dataset is made of it",
            )
    # Too large for half precision is a code of its own.
    if (
        evidence.patient.is_float16
        or np.isfinite(evidence.answers.outputs).all()
        and np.isfinite(evidence.answers.loss)
    ):
        return None
    return Proof(
        f"the weights are finite, but the first loss is {evidence.answers.loss}",
        "tf.debugging.enable_check_numerics()  # stops at the operation that makes the first NaN",
    )


@rule
def half_precision_overflow(evidence: Evidence) -> Proof | None:
    """Numbers beyond 65,504 are infinite in float16, and gradients below 6e-8 are 0: it needs loss scaling."""
    if not evidence.patient.is_float16:
        return None
    is_scaled = isinstance(evidence.patient.model.optimizer, keras.optimizers.LossScaleOptimizer)
    is_finite = np.isfinite(evidence.answers.outputs).all() and np.isfinite(evidence.steps.gradient_norm)
    if is_finite and is_scaled:
        return None
    return Proof(
        f"computed in float16 {'with' if is_scaled else 'without'} loss scaling; answers and gradients are "
        f"{'finite' if is_finite else 'not finite'}",
        "keras.mixed_precision.set_global_policy('mixed_bfloat16')  # the range of float32, no scaling needed",
    )


@rule
def weights_not_loaded(evidence: Evidence) -> Proof | None:
    """The encoder holds random weights: pre-training is what makes a BERT learn from few texts."""
    weights = evidence.patient.backbone_weights
    if not evidence.patient.has_real_size:
        return None
    scales = [np.asarray(weight) for weight in weights if weight.path.endswith("gamma")]
    shifts = [np.asarray(weight) for weight in weights if weight.path.endswith("beta")]
    if not scales or not all((scale == 1).all() for scale in scales) or not all((s == 0).all() for s in shifts):
        return None
    return Proof(
        f"all {len(scales)} layer norms of the encoder have a scale of exactly 1 and a shift of exactly 0, as before "
        "any training",
        "backbone = keras_nlp.models.BertBackbone.from_preset(preset)  # and not BertBackbone(...), which is random",
    )


@rule
def stale_compile(evidence: Evidence) -> Proof | None:
    """`trainable` was changed after the model was compiled and trained: the optimizer has the weights of before."""
    model, bound = evidence.patient.model, evidence.patient.bound_weights
    if bound is None:
        return None
    now = {id(weight): weight for weight in model.trainable_variables}
    if bound == set(now):
        return None
    new = [weight.path for key, weight in now.items() if key not in bound]
    return Proof(
        f"the optimizer was built for {len(bound)} weights, and {len(now)} are trainable now"
        + (f"; {new[0]} is one that it does not know" if new else ""),
        "model.compile(keras.optimizers.AdamW(2e-5), loss, metrics=metrics)  # a new optimizer, after `trainable`",
    )


@rule
def nothing_trains(evidence: Evidence) -> Proof | None:
    """No weight changes: nothing is trainable, the rate is 0, no gradient arrives, or no step comes."""
    model = evidence.patient.model
    if not model.trainable_variables:
        return Proof(
            f"none of the {len(model.weights)} weights is trainable",
            "model.trainable = True  # then compile",
        )
    if not evidence.steps.highest_rate > 0:
        return Proof(
            "the learning rate is 0 at every step of the epoch",
            "optimizer = keras.optimizers.AdamW(warmup_cosine(1e-4, batches, epochs))",
        )
    if evidence.steps.has_no_step:
        return Proof(
            f"gradients of {evidence.steps.num_accumulated:,} batches are added up for one step, and an epoch has "
            f"{evidence.train.num_batches:,}",
            "optimizer = keras.optimizers.AdamW(5e-5)  # without gradient_accumulation_steps, or with 2 to 8",
        )
    if evidence.steps.is_own_step_idle:
        return Proof(
            f"{evidence.train_step.num_tried} steps of the model's own `train_step`, compiled as `fit` compiles it, "
            "change no weight: what Python counts or decides in it happens once, when it is compiled",
            "optimizer = keras.optimizers.AdamW(5e-5, gradient_accumulation_steps=4)  # instead of a `train_step`",
        )
    if evidence.steps.moves_only_a_bias and not batch_too_small(evidence):
        zeros = ", ".join(layer.name for layer in evidence.patient.zero_layers)
        return Proof(
            f"no gradient reaches any weight but the bias of {evidence.patient.logit_layer.name}, for what that gets "
            f"is 0 of every text; kernels of zeros: {zeros or 'none'}",
            "keras.layers.Dense(units, activation)  # a hidden layer begins with Keras' own kernel, and not with zeros",
        )
    if evidence.response.is_deaf and not single_unit_softmax(evidence):
        behind = ", ".join(layer.name for layer in evidence.patient.layers_behind_logits) or "its activation"
        return Proof(
            f"the answer is {evidence.response.answer_at_zero:.2f} at logits from -20 to 20, and no gradient "
            f"arrives: what is behind the last dense layer ({behind}) lets nothing through",
            f"{HEAD}  # and nothing behind it",
        )
    return None


@rule
def backbone_frozen(evidence: Evidence) -> Proof | None:
    """The encoder is frozen and the head moves too slowly to make anything of its features."""
    patient = evidence.patient
    for name, layer in patient.untracked.items():
        return Proof(
            f"the Lambda layer {name} calls {layer.name}, whose {len(layer.weights)} weights are therefore none of the "
            "model's: they are neither trained nor saved",
            f"outputs = {layer.name}(inputs)  # a layer called in the functional API, and not inside of a Lambda",
        )
    if not patient.backbone_weights or not patient.model.trainable_variables:
        return None
    is_frozen, steps = not any(weight.trainable for weight in patient.backbone_weights), evidence.steps
    if not (is_frozen or steps.is_encoder_cut_off):
        return None
    if steps.head_travel > MIN_HEAD_TRAVEL or steps.head_step >= GOOD_HEAD_STEP:
        return None
    slow_head = f"and at its rates the head moves by at most {steps.head_travel:.2g} in an epoch"
    if not is_frozen:
        return Proof(
            f"no gradient reaches the encoder, though its weights are trainable, {slow_head}",
            "features = backbone(inputs)['pooled_output']  # to the head, no stop_gradient, argmax or NumPy between",
        )
    return Proof(
        f"none of the encoder's {len(patient.backbone_weights)} weights is trainable, {slow_head}",
        "backbone.trainable = True  # then compile anew; or keep it frozen and train the head at a rate of 1e-3",
    )


@rule
def dropout_too_strong(evidence: Evidence) -> Proof | None:
    """So much is dropped that each step sees another model, and the signal drowns."""
    strong = evidence.patient.strong_dropouts
    if not strong:
        share = evidence.answers.dropped_by_own_code
        if share <= MAX_DROPOUT:
            return None
        return Proof(
            f"the model's own code drops {share:.0%} of something in training",
            "features = tf.nn.dropout(features, rate=0.1)  # the share that is dropped, not the one that is kept",
        )
    strongest = max(strong, key=lambda layer: layer.rate)
    is_inside = strongest not in evidence.patient.model.layers
    return Proof(
        f"{len(strong)} layer{'s drop' if len(strong) > 1 else ' drops'} more than half of the inputs, "
        f"{strongest.name} {strongest.rate:.0%}",
        "backbone = keras_nlp.models.Backbone.from_preset(preset, dropout=0.1)"
        if is_inside
        else f"keras.layers.Dropout(0.1, name={strongest.name!r})",
    )


def _is_finite(value):
    array = np.asarray(value)
    return array.dtype.kind not in "fV" or bool(np.isfinite(array.astype("float32")).all())
