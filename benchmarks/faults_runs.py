"""One run of `faults.py`: an examination, a plain training, or a training after treatment."""

import dataclasses
import math
import os
import platform

import keras
import numpy as np
import scipy.special
import tensorflow as tf
from encoders import lower_layers
from faults_setup import NUM_TEST, Setup, some_rows
from kept_runs import has_failed

from bertbin_tf import evaluation
from bertbin_tf.doctor import Finding, diagnose
from bertbin_tf.doctor.patient import Patient
from bertbin_tf.optimizers import highest_rate

# The data are mended on the way to training; at the test they come as the treated model wants them.
MENDED_TOKENS = {"padding-mask-wrong", "input-order-wrong"}
NUM_CHECKS = 5


def examine(case):
    """Returns what the doctor says of a case, and in how many seconds."""
    model, train, validation = case.setup().build()
    diagnosis = diagnose(model, train, validation)
    findings = [dataclasses.asdict(finding) for finding in diagnosis.findings]
    return {
        "cause": diagnosis.cause,
        "findings": findings,
        "symptoms": diagnosis.symptoms,
        "unread": diagnosis.unread,
        "seconds": diagnosis.seconds,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }


def train_plainly(case):
    """Returns how good the model becomes as the user trains it, and a trace of that for the baselines."""
    setup = case.setup()
    model, train, validation = setup.build()
    recorder = Recorder(train, validation, setup)
    try:
        _fit(model, train, setup, [recorder])
    except Exception as error:  # what the user would see
        return {"raised": f"{type(error).__name__}: {error}"[:300], "failed": True, "trace": recorder.trace}
    recorder.check()
    return measure(model, setup) | {"reported": _reported(model, validation), "trace": recorder.trace}


def train_treated(case, findings):
    """Returns how good the model becomes after treatment of the findings that a full examination came to."""
    setup = case.setup()
    model, train, validation = setup.build()
    untouched = lower_layers(setup.num_layers, setup.dtype) if case.codes[0] == "weights-not-loaded" else None
    diagnosis = diagnose(model, train, validation, budget=1e-3, pretrained=untouched)
    diagnosis = dataclasses.replace(diagnosis, findings=tuple(Finding(**finding) for finding in findings))
    treated = diagnosis.treat(setup.epochs)
    line = {"changes": treated.changes, "left": treated.left}
    try:
        _fit(model, treated.train_data, setup)
    except Exception as error:
        return line | {"raised": f"{type(error).__name__}: {error}"[:300], "failed": True}
    if MENDED_TOKENS & {finding["code"] for finding in findings}:
        setup.tokens = Setup().tokens
    return line | measure(model, setup)


def _reported(model, validation):
    """Returns what the user's own metric says of the validation rows, or `None`."""
    try:
        results = model.evaluate(validation, return_dict=True, verbose=0)
    except Exception:  # labels of another shape than those of training
        return None
    return next((value for name, value in results.items() if name != "loss"), None)


def measure(model, setup):
    """Returns accuracy at even odds, ROC AUC and spread on test rows, given in the user's way."""
    texts, labels = some_rows(setup.dataset, "test", NUM_TEST)
    starts = range(0, len(texts), 64)
    p = np.concatenate(
        [probabilities(model, setup.encode(texts[start : start + 64]), setup.logits) for start in starts]
    )
    if not np.isfinite(p).all():
        return {"accuracy": float((labels == 0).mean()), "roc_auc": 0.5, "spread": 0.0, "failed": True}
    result = evaluation.evaluate(labels, p, threshold=0.5, num_bootstrap=0)
    return {
        "accuracy": result.accuracy,
        "roc_auc": result.roc_auc,
        "spread": float(p.std()),
        "failed": has_failed(labels, p),
    }


def probabilities(model, tokens, are_logits):
    """Returns the probability of the positive class, of one or two outputs."""
    outputs = np.asarray(tf.cast(model.predict_on_batch(tokens), tf.float64))
    if outputs.shape[1] == 2:
        return scipy.special.softmax(outputs, axis=1)[:, 1] if are_logits else outputs[:, 1]
    return scipy.special.expit(outputs[:, 0]) if are_logits else outputs[:, 0]


def _fit(model, train, setup, callbacks=()):
    """Trains a model as the user's script does: `fit` shuffles arrays, and data without an end need a length."""
    arguments = dict(epochs=setup.epochs, callbacks=list(callbacks), verbose=0)
    if isinstance(train, tuple):
        model.fit(*train, setup.batch_size, **arguments)
        return
    is_endless = isinstance(train, tf.data.Dataset) and int(train.cardinality()) == tf.data.INFINITE_CARDINALITY
    steps = math.ceil(setup.num_rows / setup.batch_size) if is_endless else None
    model.fit(train, steps_per_epoch=steps, **arguments)


class Recorder(keras.callbacks.Callback):
    """Writes the trace of a training that the baselines read: see `faults_baselines`.

    Args:
        train: Training data.
        validation: Validation data.
        setup: The user's script.
    """

    def __init__(self, train, validation, setup):
        super().__init__()
        self._train, self._validation, self._setup = train, validation, setup
        self.trace = {}

    def on_train_begin(self, logs=None):
        self._batch = self._first_batch()
        steps = self.params.get("steps") or 60
        self._check_at = {math.ceil(i * steps * self.params["epochs"] / NUM_CHECKS) for i in range(1, NUM_CHECKS)}
        self._step = 0
        self.trace |= self._describe() | {
            name: [] for name in ("losses", "accuracies", "validation_losses", "validation_accuracies", "checks")
        }
        self.check()

    def on_epoch_begin(self, epoch, logs=None):
        self._sums = np.zeros(2)

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        # Keras reports the mean of the epoch so far.
        sums = np.array([logs["loss"], self._accuracy_in(logs)], "float64") * (batch + 1)
        loss, accuracy = sums - self._sums
        self._sums = sums
        self.trace["losses"].append(_number(loss))
        self.trace["accuracies"].append(_number(accuracy))
        if self._step in self._check_at:
            self.check()

    def check(self):
        """Looks at gradients, weights and answers, and asks the validation rows."""
        if self._batch is None:
            return
        x, y, _ = self._batch
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            outputs = self.model(x, training=False)
            loss = self.model.compute_loss(x, y, outputs, None)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        layers = {}
        for variable, gradient in zip(variables, gradients, strict=True):
            value = np.zeros(variable.shape) if gradient is None else np.asarray(tf.convert_to_tensor(gradient))
            layers.setdefault(variable.path.rsplit("/", 1)[0], []).append(value.ravel())
        layers = {name: np.concatenate(values).astype("float64") for name, values in layers.items()}
        answers = np.asarray(tf.cast(outputs, tf.float64))[:, -1]
        clipped = np.clip(answers, 1e-12, 1 - 1e-12)
        self.trace["checks"].append(
            {
                "step": self._step,
                "layers": list(layers),
                "gradient_norms": {name: _number(np.linalg.norm(values)) for name, values in layers.items()},
                "gradient_zero_share": {name: float((values == 0).mean()) for name, values in layers.items()},
                "weights_finite": all(np.isfinite(np.asarray(w.value, "float32")).all() for w in variables),
                "answers": list(map(_number, answers)),
                "logits": list(map(_number, answers if self._setup.logits else scipy.special.logit(clipped))),
            }
        )
        self._validate()

    def _validate(self):
        try:
            losses, right = [], []
            for x, y in self._validation.take(4):
                outputs = self.model(x, training=False)
                losses.append(float(self.model.compute_loss(x, y, outputs, None)))
                p = np.asarray(tf.cast(outputs, tf.float64))[:, -1]
                right.append(((p > (0.0 if self._setup.logits else 0.5)) == (np.asarray(y) > 0.5)).mean())
        except Exception:  # labels of another shape
            return
        self.trace["validation_losses"].append(_number(np.mean(losses)))
        self.trace["validation_accuracies"].append(_number(np.mean(right)))

    def _first_batch(self):
        if isinstance(self._train, tuple):
            return (*keras.tree.map_structure(lambda array: tf.constant(array[:16]), self._train), None)[:3]
        if self._setup.batches is not None and self._setup.epochs > 1:
            return None  # a generator that can be read only once
        for batch in self._train.take(1):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
            return keras.tree.map_structure(lambda array: array[:16], (x, y)) + (weight,)
        return None

    def _describe(self):
        optimizer = Patient(self.model).optimizer
        layers = list(self.model._flatten_layers(include_self=False))
        active = [layer for layer in layers if hasattr(layer, "activation")]
        activations = [str(keras.activations.serialize(layer.activation)) for layer in active]
        dense = [layer for layer in layers if isinstance(layer, keras.layers.Dense)]
        described = {
            "optimizer": type(optimizer).__name__,
            "learning_rate": highest_rate(optimizer, 200),
            "loss": self._setup.loss if isinstance(self._setup.loss, str) else self._setup.loss.name,
            "last_activation": activations[-1],
            "units": dense[-1].units,
            "dropout": max((layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)), default=0.0),
            "hidden_activations": sorted(set(activations[:-1])),
        }
        if self._setup.model is not keras.Model:
            described["loss"] = "custom"
        elif getattr(self._setup.loss, "from_logits", False):
            described["loss"] += "(from_logits=True)"
        if self._batch is not None:
            x, y, _ = self._batch
            values = np.concatenate([np.ravel(array) for array in keras.tree.flatten(x)])
            described["input_range"] = [float(values.min()), float(values.max())]
            described["label_range"] = [_number(np.min(y)), _number(np.max(y))]
            described["num_nan_inputs"] = int(np.isnan(values).sum())
        return described

    @staticmethod
    def _accuracy_in(logs):
        return next((value for name, value in logs.items() if "accuracy" in name), math.nan)


def _number(value):
    value = float(value)
    return value if math.isfinite(value) else None
