"""Published diagnosers of training, for `faults.py` to compare the doctor with: pure functions of a recorded run.

These are re-implementations from the published rules and thresholds, not the authors' programs, which predate Keras 3.
Each is granted what its program would want and a trace cannot give, and spared rules that any BERT would break; the
docstrings say which. All three look at the end of an epoch. Fine-tuning has few, so an epoch is here what lies between
two checks of the trace: about five, each with the mean loss and accuracy of its steps and the validation at its end.
"""

import dataclasses
import itertools

import numpy as np

# AUTOTRAINER (ICSE 2021; TDSC 2024), repository shiningrain/AUTOTRAINER: those with a Greek name are `default_param`
# in AutoTrainer/utils/utils.py at 48f8fd6, the others are in AutoTrainer/utils/monitor.py at 5175f6c.
VANISHING_RATIO, VANISHING_NORM = 1e-3, 1e-4  # beta_1: gradient norm of first layer over last; beta_2: of first layer
EXPLODING_RATIO = 70.0  # beta_3
ZERO_SHARE = 0.7  # gamma: gradients that are zero
SWING, SWING_SHARE = 0.03, 0.2  # zeta: fall of accuracy from peak to trough; eta: such falls by epoch
SLOW_GAIN = 0.01  # delta: largest gain of accuracy in an epoch
SATISFYING_ACCURACY = 0.7  # Theta
LARGEST_OUTPUT = 1.1  # omega_2, and the margin of `layer_issue`: sum of the absolute outputs for one example
LARGEST_LOSS = 1e3  # `check_large_loss`
FIRST_JUDGEMENT = 0.5  # share of the epochs: `LossHistory.on_epoch_end` in utils.py

# UMLAUT (CHI 2021): umlaut/heuristics.py of BerkeleyHCI/umlaut at e9d9998.
HIGHEST_RATE, LOWEST_RATE = 1e-2, 1e-7  # `check_learning_rate_range`
HIGHEST_DROPOUT = 0.5  # `check_dropout_p_less_than_half`
HIGHEST_ACCURACY, HIGHEST_LEAD, FIRST_EPOCH = 0.95, 0.05, 3  # `check_high_validation_acc`; epochs count from 0
LARGEST_INPUT = 1.0  # `check_input_normalization`; also `LossAnalysis` of DeepDiagnosis

# DeepDiagnosis (ICSE 2022): callback/callbacks.py of DeepDiagnosis/ICSE2022 at 500b017.
GOOD_RATE, RATE_FACTOR = 1e-3, 100  # `LearnRate_threshold`, and its factor in `LossAnalysis`: 1e-5 to 1e-1 is good
SATURATED_LOGIT, SATURATED_SHARE = 5.0, 0.5  # `max_thresholds_sigmoid`, `threshold_layer`
VANISHED_GRADIENT = 1e-7  # `threshold_VG`
WIDE_OUTPUT = 10.0  # `identifyRange`: range of linear outputs over that of the labels


@dataclasses.dataclass
class Epoch:
    """The steps between two checks, and the later check. What was no finite number is NaN."""

    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    check: dict

    def by_layer(self, key: str) -> np.ndarray:
        """Values from input to output, but for embeddings (AUTOTRAINER drops sparse gradients) and layers without use.

        No gradient reaches such a layer (a pooler under a head on the tokens) though one reaches layers before it.
        """
        names = [name for name in self.check["layers"] if not name.endswith("embedding")]
        norms = numbers(self.check["gradient_norms"][name] for name in names)
        is_used = (norms != 0) | (np.cumsum(norms != 0) == 0)
        return numbers(self.check[key][name] for name in names)[is_used]


def numbers(values) -> np.ndarray:
    """Array of `values`, with NaN for what is not a finite number: a null, or the string `inf`."""
    return np.array([v if isinstance(v, int | float) and np.isfinite(v) else np.nan for v in values], float)


def epochs_of(trace: dict) -> list[Epoch]:
    """One `Epoch` for every check but that of step 0. Without validation the training stands for it."""
    checks, epochs = trace.get("checks", []), []
    for index, (before, check) in enumerate(itertools.pairwise(checks), start=1 - len(checks)):
        steps = slice(before["step"], check["step"])
        means = [numbers(trace[key][steps] or [None]).mean() for key in ("losses", "accuracies")]
        validation = [trace["validation_losses"], trace["validation_accuracies"]]
        last = [v[index] if len(v) >= -index else mean for v, mean in zip(validation, means, strict=True)]
        epochs.append(Epoch(*means, *numbers(last), check))
    return epochs


def autotrainer(trace: dict) -> list[str]:
    """Symptoms for which AUTOTRAINER would stop the run: those of the first epoch that shows any.

    Its last public monitor, which knows more symptoms than the first and raises fewer alarms (`not_converge` asks for
    slow and bad). Left out: `abnormal_data`, as a layer's mean output above 10 holds for any token ids, and the
    overfitting that its authors commented out. A layer's gradient stands for its kernel's; the share of zeros is a mean
    over layers, not weights. Where the program would keep only the gravest of several symptoms, all are returned.
    """
    epochs = epochs_of(trace)
    for count, epoch in enumerate(epochs, start=1):
        losses = np.array([[seen.loss, seen.validation_loss] for seen in epochs[:count]])
        diverged = not (losses < LARGEST_LOSS).all()
        if diverged and (np.isnan(epoch.by_layer("gradient_norms")).any() or not epoch.check["weights_finite"]):
            return ["explode"]
        if count > FIRST_JUDGEMENT * len(epochs):
            bad_loss, bad_activation = _misfits(trace, epoch.check)
            bad_loss = (bad_loss and not bad_activation) or bool((losses < 0).any())
            symptoms = [] if diverged else _learning_symptoms(epochs[:count], bad_activation)
            if symptoms := symptoms + ["loss_issue"] * bad_loss:
                return symptoms
    return []


def _misfits(trace, check):
    """Whether the loss misfits the number of outputs, and whether the outputs misfit the loss: `loss_function_issue`.

    As in the program, a loss is read if it was given by name; the outputs of any other may still be too large.
    """
    large = bool((np.abs(numbers(check["answers"])) > LARGEST_OUTPUT).any())
    kind, activation = ("binary", "sigmoid") if trace["units"] == 1 else ("categorical", "softmax")
    if trace["loss"] == "custom" or not trace["loss"].isidentifier():
        return False, large
    return kind not in trace["loss"], large or (kind in trace["loss"] and trace["last_activation"] != activation)


def _learning_symptoms(epochs, bad_activation):
    """What `judge_issue` makes of accuracies and gradients."""
    accuracies = np.array([[epoch.accuracy, epoch.validation_accuracy] for epoch in epochs])
    bad = (accuracies.max(axis=0) < SATISFYING_ACCURACY).all()
    slow = (np.diff(accuracies, axis=0).max(axis=0, initial=0.0) < SLOW_GAIN).all()
    found, symptoms = set().union(*map(_gradient_symptoms, epochs)), []
    if bad or slow:
        ranked = {"activation_issue": bad_activation} | {name: name in found for name in ("relu", "explode", "vanish")}
        symptoms = [name for name, holds in (ranked | {"not_converge": bad and slow}).items() if holds][:1]
    if _oscillates(accuracies[:, 0]):
        symptoms.append("activation_issue" if bad_activation else "unstable")
    return list(dict.fromkeys(symptoms))


def _gradient_symptoms(epoch):
    norms, shares = epoch.by_layer("gradient_norms"), epoch.by_layer("gradient_zero_share")
    if not len(norms) or np.isnan(norms).any():
        return set()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = norms[0] / norms[-1]
    vanishes = ratio < VANISHING_RATIO and norms[0] < VANISHING_NORM
    holds = {"relu": shares.mean() >= ZERO_SHARE, "explode": ratio > EXPLODING_RATIO, "vanish": vanishes}
    return {name for name, held in holds.items() if held}


def _oscillates(accuracies):
    triples = list(zip(accuracies, accuracies[1:], accuracies[2:], strict=False))
    peaks = [middle for left, middle, right in triples if middle >= max(left, right)]
    troughs = [middle for left, middle, right in triples if middle <= min(left, right)]
    swings = sum(peak - trough >= SWING for peak, trough in zip(peaks, troughs, strict=False))
    return swings >= SWING_SHARE * len(accuracies)


def umlaut(trace: dict) -> list[str]:
    """Rules that UMLAUT would report at any epoch, by their ids in umserver/errors.py.

    Left out: the type of the inputs, which a trace does not hold, the shape of images, and missing activations, as a
    trace does not tell the user's layers from the projections in the backbone, where the program does not look. The
    dropout it is shown may be there. For `no_softmax` a last layer with a softmax counts as the layer that it wants.
    """
    if not trace:
        return []
    epochs, activation, (low, high) = epochs_of(trace), trace["last_activation"], trace.get("input_range", (0, 0))
    late, pairs = epochs[FIRST_EPOCH:], list(itertools.pairwise(epochs))
    leads = [epoch.validation_accuracy - epoch.accuracy for epoch in late]
    holds = {
        "no_softmax": activation != "softmax" and "from_logits=True" not in trace["loss"],
        "activation_final_layer": activation != "linear",
        "high_dropout_rate": trace["dropout"] > HIGHEST_DROPOUT,
        "input_normalization": low < -LARGEST_INPUT or high > LARGEST_INPUT,
        "nan_input": trace.get("num_nan_inputs", 0) > 0 and any(np.isnan(epoch.loss) for epoch in epochs),
        "lr_high": trace["learning_rate"] > HIGHEST_RATE,
        "lr_low": trace["learning_rate"] < LOWEST_RATE,
        "overfitting": any(b.validation_loss > a.validation_loss and b.loss <= a.loss for a, b in pairs),
        "overconfident_val": any(epoch.validation_accuracy > HIGHEST_ACCURACY for epoch in late)
        or any(lead > HIGHEST_LEAD for lead in leads),
    }
    return [rule for rule, held in holds.items() if held]


def deepdiagnosis(trace: dict) -> list[str]:
    """The symptom for which DeepDiagnosis would stop the run, then its advice; or nothing.

    Left out: dead nodes and hidden outputs, which a trace does not hold, and poor weights, a variance that the program
    takes of one number. It bounds the share of the weights that a step moves; with no weights to divide by, the rate
    is held to the same bounds. A norm below the threshold of the mean gradient is taken for vanished, and unchanged
    logits for unchanged weights. What it does at each fifth or twentieth epoch is done at the last.
    """
    epochs = epochs_of(trace)
    for count in range(1, len(epochs) + 1):
        signs = _output_signs(trace, epochs[:count]) | _training_signs(epochs[:count])
        unchanged = all(check["logits"] == trace["checks"][0]["logits"] for check in trace["checks"])
        at_the_end = {"saturated activation", "loss not decreasing", "accuracy not increasing"}
        signs["unchanged weights"] = unchanged and count == len(epochs)
        for symptom, held in signs.items():
            if held and (count == len(epochs) > 1 or symptom not in at_the_end):
                return [symptom, *_advice(trace, symptom)]
    return []


def _output_signs(trace, epochs):
    answers, logits = (numbers(epochs[-1].check[key]) for key in ("answers", "logits"))
    (low, high), activation = numbers(trace["label_range"]), trace["last_activation"]
    misused = trace["loss"] in ("categorical_crossentropy", "sparse_categorical_crossentropy")
    wide = activation == "linear" and (misused or np.ptp(answers) > WIDE_OUTPUT * (high - low))
    saturated = np.mean(np.abs(logits) >= SATURATED_LOGIT) > SATURATED_SHARE
    return {
        "out of range": len(epochs) == 1 and (wide or (activation == "sigmoid" and (low < 0 or high > 1))),
        "numerical error": np.isnan(answers).any() or answers.mean() == 0,
        "saturated activation": saturated and activation == "sigmoid",
    }


def _training_signs(epochs):
    norms, loss, accuracy = epochs[-1].by_layer("gradient_norms"), epochs[-1].loss, epochs[-1].accuracy
    return {
        "invalid loss": np.isnan(loss),
        "loss not decreasing": all(epoch.loss == loss for epoch in epochs),
        "invalid accuracy": accuracy == 0,
        "accuracy not increasing": all(epoch.accuracy == accuracy for epoch in epochs),
        "numerical error in gradients": np.isnan(norms).any() or (norms == 0).any(),
        "vanishing gradient": (norms < VANISHED_GRADIENT).any(),
        "numerical error in weights": not epochs[-1].check["weights_finite"],
    }


def _advice(trace, symptom):
    """What the program's `...Analysis` functions write. As token ids cannot be normalized, they go on after that."""
    linear, activation = trace["last_activation"] == "linear", "change the activation function"
    if symptom == "out of range" or (symptom.startswith("invalid") and linear):
        return [activation]
    if symptom == "numerical error in gradients":
        return ["change the loss function", activation]
    if not GOOD_RATE / RATE_FACTOR <= trace["learning_rate"] <= GOOD_RATE * RATE_FACTOR:
        last = "change the learning rate"
    elif symptom.startswith("numerical"):
        last = activation
    else:
        others = {"vanishing gradient": "change the layers", "saturated activation": "add dropout"}
        last = others.get(symptom, "change the optimizer")
    asks_inputs = symptom.startswith(("numerical", "saturated", "loss not", "accuracy not"))
    return ["normalize the data"] * (asks_inputs and max(map(abs, trace["input_range"])) > LARGEST_INPUT) + [last]


def blame_the_rate(trace: dict) -> list[str]:
    """The answer of most threads on a BERT that does not train, whatever the trace."""
    return ["learning rate"]


BASELINES = {
    "AUTOTRAINER": autotrainer,
    "UMLAUT": umlaut,
    "DeepDiagnosis": deepdiagnosis,
    "blame the rate": blame_the_rate,
}

# Another optimizer comes with default arguments: no clipping, no weight decay, no schedule.
NEW_OPTIMIZER = ("optimizer-unsuited", "gradient-clipped-to-nothing", "weight-decay-too-strong", "schedule-ends-early")
RATE = ("learning-rate-too-high", "learning-rate-too-low")
ACTIVATION = ("single-unit-softmax", "sigmoid-twice", "logits-taken-for-probabilities")
NOT_FINITE = ("explode", "nan_input", "invalid loss", "numerical error", "numerical error in gradients")
NOT_FINITE += ("numerical error in weights",)
UNNAMED = ("vanish", "relu", "input_normalization", "invalid accuracy", "loss not decreasing", "vanishing gradient")
UNNAMED += ("accuracy not increasing", "normalize the data", "change the layers", "add dropout")

# From each symptom, rule or advice to the codes of ours that it counts as having named: generously, all that the
# repairs in AUTOTRAINER's repair.py, UMLAUT's errors.py and DeepDiagnosis' callbacks.py would mend.
NAMES = {
    **dict.fromkeys(UNNAMED, ()),
    **dict.fromkeys(NOT_FINITE, ("non-finite",)),
    "unstable": ("learning-rate-too-high", "batch-too-small", *NEW_OPTIMIZER),
    "not_converge": ("learning-rate-too-low", *NEW_OPTIMIZER),
    "activation_issue": ACTIVATION,
    "loss_issue": ("loss-unsuited",),
    "no_softmax": ("logits-taken-for-probabilities",),
    "activation_final_layer": ("sigmoid-twice", "single-unit-softmax"),
    "high_dropout_rate": ("dropout-too-strong",),
    "lr_high": ("learning-rate-too-high",),
    "lr_low": ("learning-rate-too-low", "nothing-trains"),  # a rate of 0
    "overfitting": ("overfitting",),
    "overconfident_val": ("leak-between-splits", "train-validation-mismatch", "labels-unrelated", "one-class"),
    "out of range": ("labels-out-of-range",),
    "saturated activation": ("head-saturated",),
    "unchanged weights": ("nothing-trains", "stale-compile"),
    "change the learning rate": RATE,
    "change the optimizer": NEW_OPTIMIZER,
    "change the activation function": ACTIVATION,
    "change the loss function": ("loss-unsuited", "logits-taken-for-probabilities"),
    "learning rate": RATE,
}
