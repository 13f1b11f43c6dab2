"""A training run from start to end: described by a `Recipe`, done by `train`, found again by `load_run`."""

import importlib

from bertbin_tf.recipe.fields import Recipe

__all__ = ["Preempted", "Recipe", "Run", "TrainingBackup", "load_run", "plan", "prepare", "train"]

_LATER = {
    "backup": ("Preempted", "TrainingBackup"),
    "planning": ("plan",),
    "preparing": ("prepare",),
    "runs": ("Run", "load_run"),
    "training": ("train",),
}


def __getattr__(name):
    # `Recipe` must be there in milliseconds, for the command line builds its flags from it; TensorFlow takes seconds.
    for module, names in _LATER.items():
        if name in names:
            return getattr(importlib.import_module(f"bertbin_tf.recipe.{module}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
