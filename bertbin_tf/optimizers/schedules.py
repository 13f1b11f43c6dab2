"""A schedule that knows how long training takes, because it asked the data."""

import contextlib
import math
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

# Mosbach et al., 2021, https://arxiv.org/abs/2006.04884, section 6
WARMUP_FRACTION = 0.1
# MiniLM on film reviews, 60 steps, AdamW, accuracy with two seeds: 0.770 and 0.778 at 1e-4, which is 2e-3 of the
# weights, 0.780 and 0.786 at twice that, 0.784 and 0.802 at three times. Its lower half on tweets, one seed: 0.686,
# which is the larger class, at 1.3e-4, and 0.859 at 3e-4. In 150 steps 2e-3 is best: `callbacks.controller`, whose
# rates by layer gain nothing by it: 0.770 in 60 steps at 2e-3 of the weights, 0.753 at 5e-3, one seed.
MANY_STEPS, MOST_TIMES = 150, 2.5
FAR_AHEAD = 10_000_000  # steps; BERT was pre-trained for 1,000,000


def warmup_cosine(
    learning_rate: float,
    batches: tf.data.Dataset | int,
    epochs: int = 1,
    *,
    warmup_fraction: float = WARMUP_FRACTION,
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns a schedule that rises from 0 for a tenth of the training and then falls along a cosine to 0.

    The number of steps comes from the data, as `fit` will count them, and not from a number typed by hand: a schedule
    that ends too early leaves the rest of the training at a rate of 0, and one that ends too late never comes down.
    With gradient accumulation it is right too, since Keras asks it by batches.
    `callbacks.LearningRateScheduleCheck` compares it with what really runs.

    Args:
        learning_rate: Float > 0, the highest rate.
        batches: `tf.data.Dataset` of batches of known cardinality, as given to `fit`, or the number of batches.
        epochs: Int >= 1, as given to `fit`. Defaults to `1`.
        warmup_fraction: Float in [0, 1), the share of the steps that the rate rises for. Defaults to `0.1`.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`.

    Raises:
        ValueError: If an argument is out of range, or the dataset does not know its number of batches or has none.

    Example:
    >>> schedule = warmup_cosine(1e-4, 100, epochs=2)
    >>> round(float(schedule(20)), 6), round(float(schedule(200)), 6)
    (0.0001, 0.0)

    Reference: [Mosbach et al., 2021](https://arxiv.org/abs/2006.04884), section 6, for the warm-up.
    """
    if isinstance(batches, tf.data.Dataset):
        num_batches = int(batches.cardinality())
        if num_batches < 0:
            raise ValueError(
                "`batches` does not know how many batches it has, so no schedule can end with it. End the pipeline "
                "with `.apply(tf.data.experimental.assert_cardinality(n))`, or give the number of batches per epoch. "
                f"Received: a dataset of {'infinite' if num_batches == tf.data.INFINITE_CARDINALITY else 'unknown'} "
                "cardinality"
            )
    else:
        num_batches = batches
    for name, value in (("batches", num_batches), ("epochs", epochs)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1. Received: {name}={value}")
    if not 0 < learning_rate < math.inf or not 0 <= warmup_fraction < 1:
        raise ValueError(
            "`learning_rate` must be finite and greater than 0, `warmup_fraction` at least 0 and less than 1. "
            f"Received: learning_rate={learning_rate}, warmup_fraction={warmup_fraction}"
        )
    num_steps = num_batches * epochs
    warmup_steps = math.ceil(warmup_fraction * num_steps)
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(float(learning_rate), num_steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, num_steps - warmup_steps), warmup_target=float(learning_rate), warmup_steps=warmup_steps
    )


def few_steps_factor(num_steps: int) -> float:
    """Returns how much larger a step may be in a training of few steps, which else comes to its end too early.

    From 150 steps on it is 1, below in inverse proportion to their number, so that the weights get as far, and at most
    2.5, above which an encoder suffers in any number of steps.

    Args:
        num_steps: Int >= 1, optimizer steps of the whole training.

    Raises:
        ValueError: If `num_steps` is less than 1.

    Example:
    >>> few_steps_factor(75)
    2.0
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1. Received: num_steps={num_steps}")
    return min(max(1.0, MANY_STEPS / num_steps), MOST_TIMES)


def schedule_of(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.schedules.LearningRateSchedule | None:
    """Returns an optimizer's schedule, or `None` if its rate is a number that others may set."""
    rate = optimizer._learning_rate  # Keras has no public way; `tests/test_optimizers.py` guards it
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def unwrapped(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Returns the optimizer that steps: under `mixed_float16` Keras wraps it, to scale the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def schedule_step(optimizer: keras.optimizers.Optimizer) -> int:
    """Returns the step that an optimizer asks its schedule for next, counted in batches where it adds gradients up."""
    return _value_of(optimizer._iterations) + _value_of(getattr(optimizer, "_num_undone", 0))


@contextlib.contextmanager
def keeping_schedule(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Returns a context in which weights, moments and `iterations` of an earlier step may be put back.

    The schedule goes on from where it was: the steps that were undone were made, and training ends when it was to.

    Args:
        optimizer: A `LayerwiseAdamW`, built.
    """
    asked = schedule_step(optimizer)
    yield
    optimizer._num_undone.assign(asked - _value_of(optimizer._iterations))


def _value_of(counter):
    return int(keras.ops.convert_to_numpy(counter))  # of a variable on several replicas, too


def highest_rate(optimizer: keras.optimizers.Optimizer, num_steps: int | None) -> float:
    """Returns the highest learning rate from the first step on; without a schedule, the rate now.

    Args:
        optimizer: A Keras optimizer.
        num_steps: Int >= 1, how far to look ahead, in batches. A schedule is asked at some 200 of these steps and of
            those before. `None` where nobody knows when training ends: then as far as a schedule may be made for.
    """
    if (schedule := schedule_of(optimizer)) is None:
        return float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    if num_steps is None:
        return max(float(schedule(step)) for step in np.unique(np.geomspace(1, FAR_AHEAD, 400).astype(int)).tolist())
    # Those before too: training may go on at the end of its schedule, where the rate is 0.
    return max(sample_schedule(schedule, 0, schedule_step(optimizer) + num_steps).values())


def sample_schedule(
    schedule: keras.optimizers.schedules.LearningRateSchedule, start: int, num_steps: int
) -> dict[int, float]:
    """Returns the rate at some 200 of the next steps, the first and the end included, by the number of steps ahead."""
    ahead = np.unique(np.linspace(0, num_steps, 201).astype(int)).tolist()
    return {step: float(schedule(start + step)) for step in ahead}
