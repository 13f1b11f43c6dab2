"""The doctor in a user's own `fit`: watches, speaks once, and stops or treats if asked to."""

import math
from typing import Any

import keras
import numpy as np

from bertbin_tf.callbacks.snapshot import Snapshot
from bertbin_tf.doctor.answers import Answers
from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.examination import diagnose
from bertbin_tf.doctor.finding import Diagnosis, Treated
from bertbin_tf.doctor.patient import Patient
from bertbin_tf.doctor.remedies import ON_THE_WAY

# The standard deviation of probabilities over texts. MiniLM at Adam 1e-3: 0.0009 after 60 steps; at 5e-5: 0.33.
SAME_ANSWER = 0.01
# One batch is asked at steps that become rarer: 5, 10, 20, 40, 80, 160, 260 ...
FIRST_LOOK, LAST_GAP = 5, 100
# Warm-up, a head that begins at zero and small rates all look like a collapse at first.
PATIENCE = 20
# A loss that has not fallen by one percent in so many steps is worth an examination.
LONG_PATIENCE = 100


class DoctorCallback(keras.callbacks.Callback):
    """Watches a `fit`, and says why the model does not train as soon as that shows.

    It asks the model the same batch again and again, at steps that become rarer, and sees the loss of each step. Its
    signs are a loss that is not finite, answers that stay the same for all texts, and a loss that does not fall in a
    hundred steps: then the weights of the start are put in place, the model is examined as `diagnose` does, and what
    was found is printed, once. Training goes on from where it was, unless it is to be stopped or treated.

    The weights of the start are kept on disk, in a temporary folder that is removed when training ends.

    Args:
        train_data: What `fit` was given. Data that can be read only once cannot be examined.
        validation_data: The same. Defaults to `None`.
        action: `"tell"`: training goes on as it was. `"stop"`: it ends, with the weights of the start. `"treat"`: it
            goes on from the weights of the start with the remedies that can be applied on the way (rates, optimizer,
            loss, head); where the data must be mended it stops. Defaults to `"tell"`.
        budget: Float > 0, as in `diagnose`. Defaults to `60.0`.
        verbose: 0 prints nothing. Defaults to `1`.

    Attributes:
        diagnosis: The `Diagnosis`, or `None` as long as nothing was seen.
        treated: The `Treated`, or `None`.

    Raises:
        ValueError: If `action` is unknown or `budget` is not positive; when training starts, if the model is to be
            treated and runs on several replicas.

    Example:
    >>> doctor = DoctorCallback(batches, action="stop", verbose=0)
    >>> history = model.fit(batches, callbacks=[doctor], verbose=0)
    >>> doctor.diagnosis is None  # nothing was seen
    True
    """

    def __init__(
        self,
        train_data: Any,
        validation_data: Any = None,
        *,
        action: str = "tell",
        budget: float = 60.0,
        verbose: int = 1,
    ):
        super().__init__()
        if action not in ("tell", "stop", "treat"):
            raise ValueError(f"`action` must be 'tell', 'stop' or 'treat'. Received: action={action!r}")
        if not budget > 0:
            raise ValueError(f"`budget` must be a positive number of seconds. Received: budget={budget}")
        self._train_data, self._validation_data = train_data, validation_data
        self.action, self.budget, self.verbose = action, budget, verbose
        self.diagnosis: Diagnosis | None = None
        self.treated: Treated | None = None

    def on_train_begin(self, logs=None):
        if self.action == "treat" and self.model.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                "`action='treat'` compiles the model anew, which several replicas do not allow within `fit`. Use "
                "action='stop', then `diagnosis.treat()` within the strategy's scope."
            )
        self.diagnosis = self.treated = None
        self._patient = Patient(self.model)
        self._rows = Batches(self._train_data, self._patient.preprocess, num_rows=1, seconds=0.0)  # the first batch
        self._losses, self._flat_since, self._next_look = [], None, FIRST_LOOK
        optimizer = self.model.optimizer
        state = [*self.model.weights, *(optimizer.variables if optimizer.built else ())]
        self._start, self._now = Snapshot(state), Snapshot(state)
        self._start.take()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._num_batches, self._sum = epoch, 0, 0.0

    def on_train_batch_end(self, batch, logs=None):
        if self.diagnosis is not None:
            return
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            self._speak(f"the loss is {loss} at step {len(self._losses) + 1}")
            return
        # Keras says the mean of the epoch so far; and with `steps_per_execution` there are several steps to a call.
        num_new, total = batch + 1 - self._num_batches, loss * (batch + 1)
        self._losses += [(total - self._sum) / num_new] * num_new
        self._num_batches, self._sum = batch + 1, total
        if len(self._losses) >= self._next_look:
            self._look(len(self._losses))

    def on_train_end(self, logs=None):
        self._start.close()
        self._now.close()

    def _look(self, step):
        self._next_look = step + min(step, LAST_GAP)
        spread = self._spread()
        # Of no spread at all, NaN, the loss has to tell.
        self._flat_since = (self._flat_since or step) if spread < SAME_ANSWER else None
        if step >= PATIENCE and self._flat_since is not None and self._flat_since < step:
            self._speak(
                f"the answers to {self._rows.sizes[0]} texts have had a spread below {SAME_ANSWER} since step "
                f"{self._flat_since}, and {spread:.1e} at step {step}"
            )
        elif step >= LONG_PATIENCE:
            first, last = np.mean(self._losses[:PATIENCE]), np.mean(self._losses[-2 * PATIENCE :])
            if last > 0.99 * first:
                self._speak(
                    f"the loss was {first:.3f} over the first {PATIENCE} steps and is {last:.3f} at step {step}"
                )

    def _spread(self):
        """Returns the standard deviation of the probabilities of the first batch, NaN if they cannot be had."""
        if not self._rows.batches:
            return math.nan
        return Answers(self._patient, self._rows).spread

    def _speak(self, seen):
        self._now.take()
        self._start.put_back()
        self.diagnosis = diagnose(self.model, self._train_data, self._validation_data, budget=self.budget)
        if self.verbose:
            print(f"\n{seen[0].upper()}{seen[1:]}. Examined from the weights of the start:\n\n{self.diagnosis}\n")
        if self.action == "tell" or not self.diagnosis.findings:
            self._now.put_back()
        elif self.action == "stop" or not self._treat():
            self.model.stop_training = True

    def _treat(self):
        """Treats, unless something was found that cannot be treated while training runs; returns whether it did."""
        codes = {finding.code for finding in self.diagnosis.findings if finding.stands}
        if not codes or codes - ON_THE_WAY:
            return False
        self.treated = self.diagnosis.treat(self.params["epochs"] - self._epoch)
        self.model.make_train_function(force=True)
        if self.verbose:
            print(f"{self.treated}\n")
        return True
