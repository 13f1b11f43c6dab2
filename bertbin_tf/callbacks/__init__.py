"""Callbacks that watch what happens to each layer while `fit()` runs, and set its rate."""

from bertbin_tf.callbacks.controller import LayerwiseLearningRateController
from bertbin_tf.callbacks.journal import Intervention
from bertbin_tf.callbacks.saturation import SaturationMonitor
from bertbin_tf.callbacks.schedule_check import LearningRateScheduleCheck
from bertbin_tf.callbacks.scheduler import LayerwiseLearningRateScheduler, gradual_unfreezing

__all__ = [
    "Intervention",
    "LayerwiseLearningRateController",
    "LayerwiseLearningRateScheduler",
    "LearningRateScheduleCheck",
    "SaturationMonitor",
    "gradual_unfreezing",
]
