"""What can be wrong with the rate, its schedule, and the optimizer."""

import keras
import numpy as np

from bertbin_tf.doctor.evidence import HEALTHY_PACE, SLOW_PACE, TOO_SLOW_PACE, Evidence
from bertbin_tf.doctor.rules.registry import Proof, rule
from bertbin_tf.doctor.steps import TOO_FAST, TOO_SLOW

ADAPTIVE = ("Adam", "AdamW", "Nadam", "Adamax", "Lamb", "Adafactor", "Lion", "LayerwiseAdamW", "RMSprop")

# Of an epoch's steps, what they are worth at the highest rate: half of them with a cosine or a line to 0, a third with
# a square.
FEW_FULL_STEPS = 0.25
# `fit` ends with the mean, too, and how many epochs it will have nobody can tell.
MANY_EPOCHS = 10
LEAST_KEPT = 0.1  # with Keras' own momentum of 0.99, every 100 steps, it is 0.37


@rule
def batch_too_small(evidence: Evidence) -> Proof | None:
    """One or two rows a step: each step follows the labels of the last ones."""
    sizes = evidence.train.sizes
    if len(sizes) < 8 or np.median(sizes) > 2 or evidence.steps.num_accumulated > 1:
        return None
    said = f"batches have {int(np.median(sizes))} row{'s' if np.median(sizes) > 1 else ''}"
    layers = [layer for layer in evidence.patient.all_layers if isinstance(layer, keras.layers.BatchNormalization)]
    if layers:  # which would see no more rows
        return Proof(
            f"{said}, and {layers[0].name} takes their mean off them, of one row all there is",
            "dataset = dataset.unbatch().batch(32)  # or LayerNormalization for BatchNormalization",
        )
    return Proof(said, "dataset = dataset.unbatch().batch(32)  # or gradient_accumulation_steps=16 in the optimizer")


@rule
def optimizer_unsuited(evidence: Evidence) -> Proof | None:
    """Steps that are undone, or in proportion to gradients, which differ a thousandfold between a BERT's layers."""
    name, steps, is_adaptive = type(evidence.patient.optimizer).__name__, evidence.steps, _is_adaptive(evidence)
    if evidence.patient.optimizer_config.get("use_ema"):
        momentum = evidence.patient.optimizer_config["ema_momentum"]
        frequency = evidence.patient.optimizer_config.get("ema_overwrite_frequency")
        window = frequency or MANY_EPOCHS * steps.num_steps
        kept = _kept_by_mean(momentum, window)
        if kept < LEAST_KEPT:
            return Proof(
                f"the weights are put back on their running mean {'every' if frequency else 'after'} {window:,} "
                f"step(s): with ema_momentum={momentum:g} {kept:.1%} of what they have moved remains",
                "optimizer = keras.optimizers.AdamW(5e-5)  # or use_ema=True alone, and "
                f"ema_momentum={max(0, 1 - 10 / steps.num_steps):.3g} or less",
            )
    held, whole = steps.held_by_epsilon, steps.whole_encoder_moves
    if is_adaptive and held and len(held) >= 0.5 * len(whole):
        sizes = [whole[layer].gradient_norm / whole[layer].size ** 0.5 for layer in held]
        return Proof(
            f"epsilon={evidence.patient.optimizer.epsilon:.0e} is above the gradients of {len(held)} of {len(whole)} "
            f"encoder layers, {min(sizes):.0e} to {max(sizes):.0e}: {name} steps in proportion to them, like SGD",
            "optimizer = keras.optimizers.AdamW(5e-5, epsilon=1e-10)",
        )
    if is_adaptive or not steps.encoder_moves or not steps.highest_rate > 0:
        return None
    relative = [move.relative_step for move in steps.encoder_moves.values()]
    if min(relative) > TOO_SLOW and max(relative) < TOO_FAST:
        return None
    return Proof(
        f"{name} at {steps.highest_rate:.0e} moves the encoder's layers by {min(relative):.1e} to {max(relative):.1e} "
        "of their weights in the first step; near 2e-3 is healthy",
        "optimizer = keras.optimizers.AdamW(5e-5)",
    )


@rule
def gradient_clipped_to_nothing(evidence: Evidence) -> Proof | None:
    """The clip is so far below the gradient that steps vanish, or all of them are one size whatever the data say."""
    optimizer, steps = evidence.patient.optimizer, evidence.steps
    limits = {name: getattr(optimizer, name, None) for name in ("clipvalue", "clipnorm", "global_clipnorm")}
    limits = {name: value for name, value in limits.items() if value}
    if not limits or not steps.gradient_norm > 0:
        return None
    unclipped = steps.unclipped_moves
    shrunk = [
        move.relative_step / unclipped[layer].relative_step
        for layer, move in steps.moves.items()
        if unclipped[layer].relative_step > 0
    ]
    if not shrunk or np.median(shrunk) > 0.1:
        return None
    name, value = next(iter(limits.items()))
    return Proof(
        f"{name}={value:g} where the gradient has a norm of {steps.gradient_norm:.2g}: steps are "
        f"{np.median(shrunk):.1g} times as large as without it",
        "optimizer = keras.optimizers.AdamW(5e-5, global_clipnorm=1.0)",
    )


@rule
def schedule_ends_early(evidence: Evidence) -> Proof | None:
    """The schedule was made for another number of steps: the rate is 0 for much of the training, or never rises."""
    steps = evidence.steps
    if len(steps.rates) < 2 or not steps.highest_rate > 0 or evidence.train.num_batches is None:
        return None
    rates = np.array(list(steps.rates.values()))
    num_dead = int((rates[::-1].cumsum() <= 1e-3 * rates.max()).sum())
    share = num_dead / len(rates)
    peak = steps.peak_of_schedule
    if share > 0.3:
        last = list(steps.rates)[len(rates) - num_dead - 1]
        return Proof(
            f"the rate is all but 0 from step {last} on, of {steps.num_steps} in one epoch",
            _scheduled(evidence, rates.max()),
        )
    if rates.mean() < FEW_FULL_STEPS * rates.max() and rates[-1] < 0.02 * rates.max():
        return Proof(
            f"the rate falls to {rates[-1] / rates.max():.1%} of its peak within one epoch, whose {steps.num_steps} "
            f"steps together are worth {rates.mean() / rates.max() * steps.num_steps:.0f} at the peak",
            _scheduled(evidence, rates.max()),
        )
    if rates.max() < 0.2 * peak and rates.argmax() >= 0.9 * (len(rates) - 1):
        return Proof(
            f"the rate still rises when the epoch ends after {steps.num_steps} steps: it gets to {rates.max():.1e} of "
            f"{peak:.1e}",
            _scheduled(evidence, peak),
        )
    return None


@rule
def learning_rate_too_high(evidence: Evidence) -> Proof | None:
    """Steps so large that pre-training is overwritten within some twenty of them: all texts get one answer."""
    steps = evidence.steps
    moves = steps.whole_encoder_moves
    if not moves or not _is_adaptive(evidence):
        return None
    fast = {layer: move for layer, move in moves.items() if move.relative_step > TOO_FAST}
    if len(fast) < 0.5 * len(moves):
        return None
    worst = max(move.relative_step for move in fast.values())
    return Proof(
        f"{_first_step(steps)} moves {len(fast)} of {len(moves)} encoder layers by more than {TOO_FAST:.0e} of their "
        f"weights, {worst:.1e} at most; near 2e-3 is healthy",
        _scheduled(evidence, steps.rate_for(epochs=1)),
    )


@rule
def learning_rate_too_low(evidence: Evidence) -> Proof | None:
    """Steps so small that nothing is learned in the time there is."""
    steps = evidence.steps
    if not steps.moves or not steps.highest_rate > 0 or not _is_adaptive(evidence):
        return None
    if optimizer_unsuited(evidence) or evidence.response.is_deaf:
        return None
    if steps.encoder_moves and not any(move.gradient_norm for move in steps.encoder_moves.values()):
        return None
    is_slow = evidence.patient.trains_adapters_only and steps.highest_rate < steps.healthy_rate
    if is_slow and evidence.pace < SLOW_PACE:
        return Proof(
            "of the encoder low-rank adapters alone are trained, which begin at zero and need ten times the rate of "
            f"its weights: at {steps.highest_rate:.1e} steps on the same rows move the answers by {evidence.pace:.1g} "
            "logits each",
            _scheduled(evidence, steps.rate_for(epochs=1)),
        )
    fastest = max(move.relative_step for move in steps.moves.values())
    if not 0 < fastest < TOO_SLOW:  # where nothing moves the rate is not to blame
        return None
    return Proof(
        f"at {steps.highest_rate:.1e} no layer moves by more than {fastest:.1e} of its weights in the first step; near "
        "2e-3 is healthy",
        _scheduled(evidence, steps.rate_for(epochs=1)),
    )


@rule
def one_rate_cannot_fit(evidence: Evidence) -> Proof | None:
    """No one rate suits encoder and head: where the one learns, the other stands still or is destroyed."""
    steps = evidence.steps
    if not _is_adaptive(evidence) or not steps.highest_rate > 0:
        return None
    relative = {layer: move.relative_step for layer, move in steps.encoder_moves.items() if move.relative_step > 0}
    if not relative or any(
        rule(evidence) for rule in (optimizer_unsuited, learning_rate_too_high, learning_rate_too_low)
    ):
        return None
    fastest, slowest = max(relative, key=relative.__getitem__), min(relative, key=relative.__getitem__)
    if evidence.has_layers_apart:
        multipliers = ", ".join(f"{layer!r}: {value:.2g}" for layer, value in evidence.layer_multipliers.items())
        schedule = f"warmup_cosine({steps.rate_for(epochs=1):.0e}, batches, epochs)"
        return Proof(
            f"{_first_step(steps)} moves {fastest} by {relative[fastest]:.1e} of its weights and "
            f"{slowest} by {relative[slowest]:.1e}; near 2e-3 is healthy",
            f"optimizer = LayerwiseAdamW({schedule}, {{{multipliers}}})",
        )
    # The features of a small random encoder are small, and grow.
    if not evidence.patient.has_real_size or not 0 < evidence.head_pace < TOO_SLOW_PACE:
        return None
    if evidence.pace > SLOW_PACE:  # the encoder alone moves them
        return None
    return Proof(
        f"at {steps.highest_rate:.1e} the encoder moves by up to {relative[fastest]:.1e} of its weights in a step, "
        f"which is healthy, and the head moves its logits by {evidence.head_pace:.0e}; near {HEALTHY_PACE} is healthy",
        "features = keras.layers.LayerNormalization()(features)  # before the last dense layer",
    )


@rule
def weight_decay_too_strong(evidence: Evidence) -> Proof | None:
    """Weights shrink faster than they learn: decay, or a penalty on the weights that outweighs the loss."""
    optimizer, steps, answers = evidence.patient.optimizer, evidence.steps, evidence.answers
    decay = float(getattr(optimizer, "weight_decay", None) or 0.0)
    shrink = decay * float(np.mean(list(steps.rates.values()))) * steps.num_steps
    if shrink > 0.2:
        return Proof(
            f"weight_decay={decay:g} takes {1 - np.exp(-shrink):.0%} off every weight in {steps.num_steps} steps",
            "optimizer = keras.optimizers.AdamW(5e-5, weight_decay=0.01)",
        )
    if evidence.train_step.follows_penalty:
        return Proof(
            f"the gradient of the model's own `train_step` points along the weights (cosine "
            f"{evidence.train_step.cosine_with_weights:.2f}): it follows a penalty on them, and not the labels",
            "loss = self.compute_loss(x=x, y=y, y_pred=y_pred)  # and nothing added; weight_decay=0.01 in AdamW",
        )
    is_penalised = any(getattr(weight, "regularizer", None) for weight in evidence.patient.model.trainable_variables)
    if is_penalised and answers.penalty > 10 * max(answers.loss, 0.1):
        return Proof(
            f"penalties on the weights add {answers.penalty:.1f} to a loss of {answers.loss:.2f}",
            "for weight in model.trainable_variables: weight.regularizer = None  # weight_decay=0.01 in AdamW instead",
        )
    return None


def _first_step(steps):
    if len(steps.rates) > 1:
        return f"at {steps.highest_rate:.1e}, the highest rate of the schedule, a first step"
    return f"at {steps.highest_rate:.1e} the first step"


def _kept_by_mean(momentum, num_steps):
    """Returns how much of a steady movement the running mean of the weights has made after so many steps."""
    if momentum >= 1:
        return 0.0
    return 1 - momentum / (1 - momentum) * (1 - momentum**num_steps) / num_steps


def _is_adaptive(evidence):
    """Whether the optimizer is, or is made from, one whose step does not depend on the size of the gradient."""
    return any(cls.__name__ in ADAPTIVE for cls in type(evidence.patient.optimizer).__mro__)


def _scheduled(evidence, rate):
    """Returns the line that gives the user's optimizer a schedule, and lets it keep all else."""
    name = type(evidence.patient.optimizer).__name__
    schedule = f"warmup_cosine({rate:.0e}, batches, epochs)"
    if getattr(keras.optimizers, name, None) is not type(evidence.patient.optimizer):
        return f"optimizer = {name}({schedule})"
    kept = "".join(f", {name}={value!r}" for name, value in evidence.patient.own_arguments.items())
    return f"optimizer = keras.optimizers.{name}({schedule}{kept})"
