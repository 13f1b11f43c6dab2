"""Whether the schedule ends when training does."""

import warnings

import keras
import numpy as np

from bertbin_tf.optimizers import sample_schedule, schedule_of, schedule_step, unwrapped

MIN_STEPS = 10  # of fewer, the last one of a schedule that fits may have its highest rate


class LearningRateScheduleCheck(keras.callbacks.Callback):
    """Warns when a learning-rate schedule does not fit the training that really runs.

    A schedule that reaches 0 before the end is the optimizer defect reported most often: the loss simply stops falling.
    One that is made for a longer training never comes down. The check is made twice: against what `fit` was asked for,
    before the first step, and against the steps that the first epoch took. `self.warnings` has the messages.

    Example:
    >>> schedule = keras.optimizers.schedules.PolynomialDecay(1e-4, 2, 0.0)  # 2 steps, where 8 are to come
    >>> model.compile(LayerwiseAdamW(schedule), "binary_crossentropy")
    >>> check = LearningRateScheduleCheck()
    >>> history = model.fit(batches, epochs=2, callbacks=[check], verbose=0)
    >>> "reaches 0 after 2 of 8 steps" in check.warnings[0]
    True
    """

    def on_train_begin(self, logs=None):
        self.warnings = []
        self._optimizer = unwrapped(self.model.optimizer)
        self._schedule = schedule_of(self._optimizer)
        self._start = self._steps()
        self._first_epoch = None

    def on_epoch_begin(self, epoch, logs=None):
        self._num_batches, self._steps_before = 0, self._steps()
        if self._first_epoch is None:
            self._first_epoch = epoch  # not always 0: `initial_epoch`
            if self._schedule and self.params.get("steps"):
                self._check(self.params["steps"] * (self.params["epochs"] - epoch))

    def on_train_batch_end(self, batch, logs=None):
        self._num_batches = batch + 1

    def on_epoch_end(self, epoch, logs=None):
        if epoch != self._first_epoch or self.model.stop_training:
            return
        batches, planned = self._num_batches, self.params.get("steps")
        # Fewer are nothing to warn of: some are accumulated still, or were skipped because float16 overflowed.
        taken = self._steps() - self._steps_before
        # Of `steps_per_execution` batches at a time Keras counts those that the last call had room for.
        if planned is not None and planned < batches < planned + self.model.steps_per_execution:
            batches = planned
        steps = max(batches, taken)
        if planned is None:
            if self._schedule:
                self._check(steps * (self.params["epochs"] - epoch))
        elif steps > planned:
            self._warn(
                f"The first epoch took {steps} optimizer steps where {planned} were planned. A dataset that does not "
                "know its cardinality ends each epoch with a step without data: end it with "
                "`.apply(tf.data.experimental.assert_cardinality(n))`."
            )
        elif batches < planned:
            self._warn(
                f"The first epoch had {batches} batches where {planned} were planned: the data ended. Give `fit` the "
                "`steps_per_epoch` that they have, or `repeat()` them."
            )

    def _steps(self):
        return schedule_step(self._optimizer)

    def _check(self, num_steps):
        sampled = sample_schedule(self._schedule, self._start, num_steps)
        # Without the end, which is one step after the last.
        at, rates = (np.array(list(values))[:-1] for values in (sampled.keys(), sampled.values()))
        peak = rates.max()
        moving = np.flatnonzero(rates > 1e-3 * peak)
        if not peak > 0:
            return self._warn(f"The learning rate is 0 at each of the {num_steps} steps.")
        last = int(at[moving[-1] + 1]) if moving[-1] + 1 < len(at) else num_steps
        if last < 0.95 * num_steps:
            return self._warn(
                f"The learning rate reaches 0 after {last} of {num_steps} steps; the rest changes nothing. "
                "`optimizers.warmup_cosine(learning_rate, batches, epochs)` counts the steps itself."
            )
        after = float(self._schedule(self._start + 10 * num_steps))
        if num_steps >= MIN_STEPS and rates[-1] > 0.5 * peak and after < 0.1 * peak:
            return self._warn(
                f"The learning rate ends at {rates[-1] / peak:.0%} of its highest value: the schedule was made for "
                f"more than these {num_steps}. `optimizers.warmup_cosine(learning_rate, batches, epochs)` counts them."
            )
        return None

    def _warn(self, message):
        self.warnings.append(message)
        warnings.warn(message, stacklevel=2)
