"""A training run from start to end: described by a `Recipe`, done by `train`, found again by `load_run`."""

from bertbin_tf.recipe.fields import Recipe

__all__ = ["Recipe", "Run", "load_run", "plan", "prepare", "train"]


def __getattr__(name):
    # `Recipe` must be there in milliseconds, for the command line builds its flags from it; TensorFlow takes seconds.
    if name == "train":
        from bertbin_tf.recipe.training import train as value
    elif name == "plan":
        from bertbin_tf.recipe.training import plan as value
    elif name == "prepare":
        from bertbin_tf.recipe.training import prepare as value
    elif name == "Run":
        from bertbin_tf.recipe.runs import Run as value
    elif name == "load_run":
        from bertbin_tf.recipe.runs import load_run as value
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return value
