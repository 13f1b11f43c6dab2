"""From a recipe to a compiled model and the callbacks that go with it."""

import os
from typing import Any

import keras
import tensorflow as tf

from bertbin_tf.callbacks import LayerwiseLearningRateController, LearningRateScheduleCheck, SaturationMonitor
from bertbin_tf.callbacks.controller import BAND, HEAD_BAND
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier
from bertbin_tf.optimizers import LayerwiseAdamW, distance_from_head, head_layers, layerwise_decay, warmup_cosine
from bertbin_tf.recipe.fields import Recipe
from bertbin_tf.recipe.folder import curves_folder, layers_folder

CLIP_NORM = 1.0  # Mosbach et al., 2021, https://arxiv.org/abs/2006.04884, section 6
STOPPING_PATIENCE = 2
PLATEAU_PATIENCE = 1  # below the other, or training would stop at the moment when the rate falls
# Adam moves a weight by about the rate at each step, and the head's kernel begins at zero: at 20 times 1e-4 it has the
# size of a Glorot kernel (0.07 for 384 features) after some 35 steps. See `callbacks.controller.HEAD_BAND`.
HEAD_MULTIPLIER = 20.0


def prior_of(recipe: Recipe, base_rate: float) -> float:
    """Returns the base rate of the labels as the loss weighs them: 0.5 with balanced class weights."""
    return 0.5 if recipe.imbalance == "class_weight" else base_rate


def class_weight_of(recipe: Recipe, base_rate: float) -> dict[int, float] | None:
    """Returns `class_weight` for `fit`: as scikit-learn's "balanced", so that the mean weight is 1."""
    if recipe.imbalance != "class_weight":
        return None
    return {0: 0.5 / (1 - base_rate), 1: 0.5 / base_rate}


def build_model(recipe: Recipe, backbone: keras.Model, base_rate: float, num_steps: int) -> keras.Model:
    """Returns the recipe's model, compiled; call it in the scope of the strategy.

    Args:
        recipe: The `Recipe`.
        backbone: A keras-nlp backbone.
        base_rate: Float in (0, 1), of the training labels.
        num_steps: Int, the optimizer steps of the whole training, over which the schedule runs.
    """
    if recipe.head_init == "keras":
        head: dict[str, Any] = {"kernel_initializer": "glorot_uniform"}
    else:
        head = {"base_rate": prior_of(recipe, base_rate)}
    model = binary_classifier(backbone, hidden_dim=recipe.hidden_dim, pooling=recipe.pooling, **head)
    focal, plain = keras.losses.BinaryFocalCrossentropy(), keras.losses.BinaryCrossentropy()
    model.compile(
        _build_optimizer(recipe, model, num_steps),
        focal if recipe.imbalance == "focal" else plain,
        metrics=[
            keras.metrics.BinaryAccuracy("accuracy"),
            keras.metrics.AUC(name="auc"),
        ],
        weighted_metrics=[LogitStatistics()],
    )
    return model


def build_callbacks(
    recipe: Recipe, backbone: keras.Model, batch: dict[str, tf.Tensor], output_dir: str | os.PathLike | None
) -> list[keras.callbacks.Callback]:
    """Returns the recipe's callbacks: saturation, control, plateau, TensorBoard, early stopping.

    Args:
        recipe: The `Recipe`.
        backbone: The model's keras-nlp backbone.
        batch: Tokens on which the saturation of the pooler is measured after every epoch.
        output_dir: Folder of the run, for TensorBoard's logs, or `None`.
    """
    callbacks = []
    if recipe.pooling == "pooled" and any(layer.name == "pooled_dense" for layer in backbone.layers):
        callbacks.append(SaturationMonitor(batch))
    if recipe.optimizer == "controlled":
        callbacks.append(
            LayerwiseLearningRateController(log_dir=None if output_dir is None else layers_folder(output_dir))
        )
    else:
        callbacks.append(keras.callbacks.TerminateOnNaN())  # the controller restores instead
    if recipe.schedule == "cosine":
        callbacks.append(LearningRateScheduleCheck())
    if recipe.schedule == "plateau":
        callbacks.append(keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=PLATEAU_PATIENCE))
    if output_dir is not None:
        callbacks.append(keras.callbacks.TensorBoard(curves_folder(output_dir), write_graph=False))
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=STOPPING_PATIENCE, restore_best_weights=True)
    return [*callbacks, stopping]


def _build_optimizer(recipe, model, num_steps):
    rate = float(recipe.learning_rate)
    if recipe.schedule == "cosine":
        rate = warmup_cosine(rate, num_steps)
    if recipe.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    multipliers = layerwise_decay(model, recipe.layer_decay) if recipe.layer_decay < 1 else {}
    if recipe.head_init != "keras":
        multipliers |= dict.fromkeys(head_layers(model), HEAD_MULTIPLIER)
    bounds = None
    if recipe.optimizer == "controlled":
        bounds = dict.fromkeys(distance_from_head(model), BAND[1]) | dict.fromkeys(head_layers(model), HEAD_BAND[1])
    return LayerwiseAdamW(rate, multipliers, global_clipnorm=CLIP_NORM, max_relative_step=bounds)
