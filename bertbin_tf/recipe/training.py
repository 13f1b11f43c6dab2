"""From a recipe to a trained, calibrated, saved classifier."""

import contextlib
import dataclasses
import math
import os
import tempfile
import time
import warnings
from pathlib import Path

import keras
import numpy as np

from bertbin_tf import data, distribute, evaluation
from bertbin_tf.callbacks import LearningRateScheduleCheck
from bertbin_tf.metrics import label_entropy
from bertbin_tf.models import fit_head
from bertbin_tf.recipe.backup import Position, TrainingBackup
from bertbin_tf.recipe.building import build_callbacks, class_weight_of, prior_of
from bertbin_tf.recipe.curves import begin_curves, end_curves
from bertbin_tf.recipe.fields import Recipe
from bertbin_tf.recipe.folder import curves_folder
from bertbin_tf.recipe.preparing import prepare
from bertbin_tf.recipe.runs import (
    Run,
    backup_folder,
    data_facts,
    load_history,
    output_folder,
    save_run,
    save_validation_rows,
)

# With fewer rows, or a temperature beyond these, it is noise or a model without signal that is fitted.
MIN_CALIBRATION_ROWS = 100
TEMPERATURES = (0.2, 5.0)


def train(
    recipe: Recipe,
    output_dir: str | os.PathLike | None = None,
    *,
    strategy: str = "auto",
    resume: str = "never",
    backup_every: float = 600.0,
    verbose: str | int = "auto",
) -> keras.callbacks.History:
    """Trains what the recipe describes and returns Keras' `History`, whose `model` has the best weights.

    After training with balanced class weights the prior that they took out of the probabilities is put back into the
    head's bias. With an `output_dir` the temperature and the decision threshold are fitted on the validation texts, and
    all that belongs to the run is written there, which `load_run` reads: recipe.json, model.keras, preprocessor/,
    metrics.json, history.json, provenance.json (versions, devices, oneDNN, SHA-256 of the data), validation.parquet
    (texts, labels and calibrated probabilities), and TensorBoard's logs. `report.render` makes a page of it.

    To give the same weights, bit for bit, every time under the same `TF_ENABLE_ONEDNN_OPTS`, this sets the global
    seeds, switches TensorFlow to deterministic operations and its graph optimizer's constant folding off. The process
    keeps the memory that it frees, see `memory.keep_freed_memory`.

    Args:
        recipe: A `Recipe`.
        output_dir: Folder to write, which must not exist or be empty. Defaults to `None`: nothing is written.
        strategy: String, see `distribute.strategy`. Defaults to `"auto"`. On a cluster every worker calls this with the
            same arguments, `output_dir` is a folder that all can read, and the first one writes it.
        resume: `"auto"` takes an `output_dir` in which the same recipe was begun: if it was finished, that is
            returned; if it was cut off, it goes on from the last backup, to the same weights as if it had not been,
            bit for bit. Defaults to `"never"`.
        backup_every: Float > 0, the seconds from one backup in `output_dir` to the next. A backup is as large as the
            weights six times over, and two are kept until the training ends. Defaults to `600.0`.
        verbose: As for `keras.Model.fit`. Defaults to `"auto"`.

    Raises:
        ValueError: If the data, the preset, the strategy or the folder cannot be used, or the loss is not finite.
        Preempted: On SIGTERM, or if another worker of the cluster is lost. What was done so far is in a backup, if
            there is an `output_dir`; on a cluster start all workers again.

    Example:
    >>> history = train(Recipe("reviews.csv", epochs=1), "runs/reviews", verbose=0)
    >>> probabilities = load_run("runs/reviews").predict(["a great film", "a dull one"])
    """
    started = time.perf_counter()
    if resume not in ("never", "auto"):
        raise ValueError(f"`resume` must be 'never' or 'auto'. Received: resume={resume!r}")
    if resume == "auto" and (history := load_history(output_dir, recipe)):
        warnings.warn(
            f"'{output_dir}' has a finished run of this recipe: nothing was trained, and its data were not read again.",
            stacklevel=2,
        )
        return history
    with contextlib.ExitStack() as stack:
        backups = None if output_dir is None else backup_folder(output_dir)
        is_chief = distribute.is_chief(strategy)
        if not is_chief:  # it does all that the chief does, with what it writes in a folder that it throws away
            output_dir = output_dir and Path(stack.enter_context(tempfile.TemporaryDirectory()), "run")
        stack.enter_context(output_folder(output_dir, recipe, resume))
        made = prepare(recipe, strategy)
        # A bar where Keras shows bars; a line for each of these passes would say too much.
        bar = verbose if verbose in ("auto", 1) else 0
        tokens = next(iter(made.validation_batches))[0]
        callbacks = [*build_callbacks(recipe, made.backbone, tokens, output_dir), keras.callbacks.History()]
        first_step = FirstStep(started)
        callbacks.append(first_step)
        backup = None
        if output_dir is not None and backups is not None:  # both or none
            facts = {"train": data_facts(made.train_data), "validation": data_facts(made.validation_data)}
            backup = TrainingBackup(backups, callbacks, every=backup_every, facts=facts, is_chief=is_chief)
            stack.enter_context(backup.listening())
            begin_curves(curves_folder(output_dir), recipe)
        log_loss = _log_loss_of(made, bar)
        first_loss = _begin(made, recipe, backup, log_loss)
        history = _fit(made, recipe, callbacks, backup, verbose)
        if not np.isfinite(history.history["loss"][-1]):
            raise ValueError(
                "The loss stopped being a finite number, so there is no model to keep. Lower the learning rate. "
                f"Received: learning_rate={recipe.learning_rate}"
            )
        last_loss = log_loss()
        _restore_prior(made, recipe)
        if output_dir is not None:
            run, texts, labels, p = _calibrate(Run(recipe, made.model, made.preprocessor), made.validation_data, bar)
            steps = int(keras.ops.convert_to_numpy(made.model.optimizer.iterations))
            metrics = {
                "train_rows": int(made.train_data.cardinality()),
                "train_base_rate": made.base_rate,
                # Both without class weights and focusing. Before training the head answers the prior to every text.
                "first_loss": first_loss,
                "label_entropy": label_entropy(prior_of(recipe, made.base_rate)),
                "last_loss": last_loss,
                "steps": steps,
                # Data, weights, loss before training, and the compilation of the step; of the last process.
                "seconds_to_first_step": first_step.seconds,
                "fit_seconds": backup.fit_seconds,
                # What `LayerwiseLearningRateController` saw and did, a line each.
                "interventions": [
                    str(line) for callback in callbacks for line in getattr(callback, "interventions", [])
                ],
                "seconds": backup.seconds_before + time.perf_counter() - started,
            }
            provenance = {"strategy": strategy, "replicas": made.devices.num_replicas_in_sync, "data": facts}
            end_curves(curves_folder(output_dir), steps, run.validation, labels, p)
            save_validation_rows(output_dir, texts, labels, p)
            save_run(
                run, output_dir, backbone=made.backbone, metrics=metrics, history=history.history, facts=provenance
            )
            backup.remove()
    return history


class FirstStep(keras.callbacks.Callback):
    """Notes the seconds from `started` to the end of the first step, or `None` where there was none."""

    def __init__(self, started):
        super().__init__()
        self._started = started
        self.seconds = None

    def on_train_batch_end(self, batch, logs=None):
        self.seconds = self.seconds or time.perf_counter() - self._started


def _begin(made, recipe, backup, log_loss):
    """Brings the model to where the training is to go on; returns the loss before the first step."""
    if backup is not None and backup.restore(made.model):
        return backup.carried["first_loss"]
    if recipe.head_init == "probe":
        fit_head(made.model, made.batches_from(0), class_weight=class_weight_of(recipe, made.base_rate))
    first_loss = log_loss()
    if backup is not None:
        backup.carried["first_loss"] = first_loss
    return first_loss


def _fit(made, recipe, callbacks, backup, verbose):
    """Fits to the end, from where the backup says. The rest of an epoch that was cut off is a `fit` of its own."""
    position = Position(0, 0)
    if backup is not None:
        position, callbacks = backup.position, [*callbacks, backup]
    if position.is_begun:  # that check is of a whole training
        callbacks = [callback for callback in callbacks if not isinstance(callback, LearningRateScheduleCheck)]
    while True:
        epoch, batch, is_last = position
        if batch:  # Keras builds the metrics, which are to be restored, with the first batch
            made.model.evaluate(made.validation_batches.take(1), verbose=0)
        epochs = epoch if is_last else epoch + 1 if batch else recipe.epochs
        history = made.model.fit(
            made.batches_from(epoch, batch),
            validation_data=made.validation_batches,
            initial_epoch=epoch,
            epochs=epochs,  # of none at all, callbacks begin and end: that brings the best weights back
            steps_per_epoch=len(made.batches) - batch,
            callbacks=callbacks,
            class_weight=class_weight_of(recipe, made.base_rate),
            shuffle=False,  # the batches are, and Keras warns that it does not shuffle a dataset
            verbose=verbose,
        )
        if not batch:
            return history
        position = backup.restore(made.model)


def _log_loss_of(made, verbose):
    """Returns a function to the plain cross-entropy on some training rows, whatever loss the model is trained with."""
    with made.devices.scope():
        model = distribute.model_class()(made.model.input, made.model.output)
        model.compile(loss="binary_crossentropy")
    batches = made.batches_from(0).take(16)
    return lambda: model.evaluate(batches, verbose=verbose, return_dict=True)["loss"]


def _restore_prior(made, recipe):
    """Moves the log-odds from those of the weighted labels to those of the labels: King & Zeng, 2001, section 4.1."""
    prior = prior_of(recipe, made.base_rate)
    shift = math.log(made.base_rate / (1 - made.base_rate)) - math.log(prior / (1 - prior))
    made.model.get_layer("logit").bias.assign_add([shift])


def _calibrate(run, validation_data, verbose):
    """Returns the run with temperature and threshold, and the validation texts, labels and calibrated probabilities."""
    texts, labels = data.collect(validation_data)
    probabilities = run.predict(texts, verbose=verbose)
    temperature = 1.0
    if len(labels) >= MIN_CALIBRATION_ROWS:
        fitted = evaluation.fit_temperature(labels, probabilities)
        temperature = fitted if TEMPERATURES[0] <= fitted <= TEMPERATURES[1] else 1.0
    calibrated = evaluation.apply_temperature(probabilities, temperature)
    threshold = evaluation.tune_threshold(labels, calibrated, metric=run.recipe.threshold_metric)
    validation = evaluation.evaluate(labels, calibrated, threshold=threshold)
    run = dataclasses.replace(run, temperature=temperature, threshold=threshold, validation=validation)
    return run, texts, labels, calibrated
