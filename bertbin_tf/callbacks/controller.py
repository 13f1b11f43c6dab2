"""The rate of each layer by what is measured while training runs."""

import numbers
import warnings

import keras
import numpy as np

from bertbin_tf.callbacks.bounds import MultiplierBounds
from bertbin_tf.callbacks.journal import Intervention, Journal, name_some, span
from bertbin_tf.callbacks.scheduler import layerwise_optimizer
from bertbin_tf.callbacks.snapshot import Snapshot
from bertbin_tf.callbacks.window import LogitWindow
from bertbin_tf.optimizers import keeping_schedule

# As RMS(step) / RMS(weights) at the highest rate. Measured on MiniLM, 150 steps, one seed, all layers alike: accuracy
# on film reviews and tweets 0.821 and 0.945 at 1e-3, 0.837 and 0.950 at 2e-3, 0.792 and 0.920 at 5e-3, 0.702 and 0.917
# at 1e-2 (orders of rows differed, which is worth up to 1.4 points). Narrow, for who asks for less gets the lower edge.
BAND = (2.1e-3, 2.2e-3)
# A head starts at zero and has to grow: it is measured against weights of size 0.02 and takes steps of about 2e-3. With
# the encoder at 1.15e-4, ROC AUC after 150 steps on film reviews (2,121 rows, one seed): 0.906 at 4e-4, 0.911 at 2e-3,
# 0.906 at 5e-3. A pooler that is new does so too: ROC AUC 0.913 at the encoder's rate and 0.916 at the head's, and
# 0.916 and 0.922 in the 242 steps of the demo.
HEAD_BAND = (0.11, 0.12)
# Adam's direction is 1 in the first step and seldom below 0.1 later; a layer at a hundredth does not move.
IDLE_DIRECTION = 0.01
COLLAPSED_SPREAD = 0.1  # of the largest spread seen
FLAT_SPREAD = 0.02  # in logits, probabilities within half a point: nothing that could collapse yet
MAX_RESTORES = 4
# What the controller carries from step to step, beside interventions, bounds, window and the last good state.
STATE = ("best_spread", "num_restores", "num_before_epoch", "checked", "last_look", "saved")


class LayerwiseLearningRateController(keras.callbacks.Callback):
    """Sets each layer's learning-rate multiplier by what the layer does, so that any rate asked for trains.

    The right rate of a layer is a matter of its own weights: what counts is the step relative to them. Before the first
    step this is known, since Adam's first step is the rate itself: a multiplier whose relative step would lie outside
    `band` is moved to the nearest edge, and one inside is left alone. Schedules keep their shape; their highest rate
    is what is compared. Multipliers that the optimizer was made with stay ratios between the layers of the encoder, and
    the band is that of the layer with the largest. So it is again in a later `fit` at another rate, when another
    callback raises the rate above what it was, and with multipliers that another callback sets when an epoch begins, as
    `gradual_unfreezing` does.

    Then, every few steps, from what `LayerwiseAdamW` measured inside the step and what `LogitStatistics` saw:

    * a layer whose step is larger than the band allows is lowered, one whose gradients cancel out is raised to the
      band's upper edge;
    * a head whose logits are saturated while the loss is above the entropy of the labels is halved; so is a pooler of
      which more than half is saturated, where a `SaturationMonitor` listed before says so;
    * when all texts get one answer after their answers had differed, or when the loss is not finite, the last good
      weights and optimizer state are restored and the layers that moved fastest lowered.

    A healthy run is left alone. Each intervention is one line in `interventions`; their number is `"interventions"` in
    `logs`, and the lines are printed and written to TensorBoard if asked for. Without a `LogitStatistics()` among the
    metrics that the model was compiled with, rates are set all the same, but a collapse is not seen. With class or
    sample weights it belongs into `weighted_metrics`, for the loss is compared with the entropy of the labels.

    The last good state is kept on disk, weights and moments, three times the size of the weights, in a temporary folder
    that is removed when training ends. It is written at most every `5 * every` steps, and less often as training goes
    on: what a restore takes back is a fifth of the training at most, or those steps. A training that is
    cut off can go on with `get_state` and `set_state`, as `recipe.TrainingBackup` does.

    Args:
        band: Pair of floats, 0 < low <= high: the relative steps that the encoder's layers may take at the highest
            rate. Defaults to `(2.1e-3, 2.2e-3)`.
        head_band: The same for layers that pre-training did not fill. Defaults to `(0.11, 0.12)`.
        every: Int >= 1, the steps between two looks. Defaults to `10`.
        log_dir: Folder for TensorBoard: rates, relative steps and gradient norms by layer, the logits, and what was
            done as text. Defaults to `None`: not written.
        verbose: 1 prints each intervention. Defaults to `0`.

    Raises:
        ValueError: If an argument is out of range; when training starts, if the optimizer is not a `LayerwiseAdamW` or
            its rate is 0.

    Example:
    >>> model.compile(LayerwiseAdamW(1e-2), "binary_crossentropy", metrics=[LogitStatistics()])
    >>> controller = LayerwiseLearningRateController()
    >>> history = model.fit(batches, callbacks=[controller], verbose=0)
    >>> controller.interventions[0].step  # the rate was too high, which was known before the first step
    0

    Reference: [Shazeer & Stern, 2018](https://arxiv.org/abs/1804.04235), section 8, for steps relative to the weights;
        [You et al., 2020](https://arxiv.org/abs/1904.00962), section 3, for the same by layer.
    """

    def __init__(self, band=BAND, *, head_band=HEAD_BAND, every=10, log_dir=None, verbose=0):
        super().__init__()
        for name, pair in {"band": band, "head_band": head_band}.items():
            if not (np.shape(pair) == (2,) and 0 < pair[0] <= pair[1] < float("inf")):
                raise ValueError(f"`{name}` must be two numbers, 0 < low <= high. Received: {name}={pair}")
        if not isinstance(every, numbers.Integral) or every < 1:
            raise ValueError(f"`every` must be an integer >= 1. Received: every={every!r}")
        self.band = tuple(band)
        self.head_band = tuple(head_band)
        self.every = every
        self.log_dir = log_dir
        self.verbose = verbose
        self._journal = Journal()

    @property
    def interventions(self) -> list[Intervention]:
        """What was done in the last `fit`, in order."""
        return self._journal.interventions

    def get_state(self) -> dict:
        """Returns what it knows of a running `fit`, for `set_state`: numbers, strings, arrays, and what holds them."""
        return {name: getattr(self, f"_{name}") for name in STATE} | {
            "bounds": self._bounds.get_state(),
            "interventions": list(self.interventions),
            "window": self._window.before,
            "good": self._good.get_values(),
        }

    def set_state(self, state: dict) -> None:
        """Goes on from what `get_state` returned in another process; to be called when `fit` has begun."""
        for name in STATE:
            setattr(self, f"_{name}", state[name])
        self._bounds.set_state(state["bounds"])
        self._journal.interventions[:] = [Intervention(*intervention) for intervention in state["interventions"]]
        self._window.before = state["window"]
        if state["good"]:  # nothing, if it was asked after its `fit`
            self._good.set_values(state["good"])

    def on_train_begin(self, logs=None):
        self._journal = Journal(self.log_dir, self.verbose)
        self._optimizer = layerwise_optimizer(self.model)
        params = self.params or {}
        num_steps = params["steps"] * (params.get("epochs") or 1) if params.get("steps") else None
        self._bounds = MultiplierBounds(self.model, self._optimizer, self.band, self.head_band, num_steps)
        self._window = LogitWindow(self.model)
        self._best_spread, self._num_restores, self._num_before_epoch, self._checked = 0.0, 0, 0, None
        self._last_look, self._has_warned = self._step(), False
        self._good = Snapshot([*self.model.weights, *self._optimizer.variables])
        self._save()

    def on_epoch_begin(self, epoch, logs=None):
        self._num_before_epoch = 0 if epoch == 0 else len(self.interventions)

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:  # after all that other callbacks do when training or an epoch begins
            self._bound(others=True)

    def on_train_batch_end(self, batch, logs=None):
        # Not counted by batches: `steps_per_execution` and gradient accumulation have several to a call or a step.
        if self._step() >= self._last_look + self.every:
            self._bound()
            self._look((logs or {}).get("loss", np.nan))
            self._last_look = self._step()

    def on_epoch_end(self, epoch, logs=None):
        pooler_saturation = logs.get("saturation/pooled_dense", 0.0)
        if pooler_saturation > 0.5 and self._optimizer.multipliers.get("pooled_dense", 0.0) > 0:
            self._scale(
                {"pooled_dense": 0.5}, f"{pooler_saturation:.0%} of the pooler's units are saturated", "halved its rate"
            )
        logs["interventions"] = len(self.interventions) - self._num_before_epoch
        self._window.reset()  # Keras begins its sums anew

    def on_train_end(self, logs=None):
        self._good.close()
        self._journal.close()

    def _step(self):
        return int(keras.ops.convert_to_numpy(self._optimizer.iterations))

    def _bound(self, others=False):
        if told := self._bounds.apply(others):
            self._tell(*told)

    def _look(self, loss):
        statistics = self._optimizer.statistics
        seen = self._window.read()
        if seen is not None and np.isnan(seen.loss) and np.isfinite(loss):
            seen = None
            self._warn_of_logits()
        self._journal.write(self._step(), self._optimizer.multipliers, statistics, seen)
        if seen is not None and (sick := self._collapse(seen)):
            return self._restore(sick, statistics)
        num_before = len(self.interventions)
        if statistics != self._checked:  # where one looks more often than the optimizer measures, once is enough
            self._check_layers(statistics)
            self._checked = statistics
        if seen is None:
            return None
        if seen.saturation > 0.5 and seen.loss > seen.entropy:
            self._scale(
                dict.fromkeys(self._bounds.heads, 0.5),
                f"{seen.saturation:.0%} of the logits are saturated, and the loss {seen.loss:.2f} is above the entropy "
                f"of the labels, {seen.entropy:.2f}",
                "halved the head's rate",
            )
        is_good = seen.loss <= seen.entropy and seen.spread >= 0.5 * self._best_spread
        self._best_spread = max(self._best_spread, seen.spread)
        # Seldom, and ever more so: weights and moments go to disk, three times the size of the weights.
        is_old = self._step() >= self._saved + max(5 * self.every, self._saved // 4)
        if is_good and is_old and len(self.interventions) == num_before:
            self._save()
        return None

    def _collapse(self, seen):
        """Returns what is wrong with the answers, or an empty string."""
        if not np.isfinite(seen.loss) or not np.isfinite(seen.spread):
            return "the loss is not finite"
        if seen.loss < 0.98 * seen.entropy:
            return ""
        if seen.spread < COLLAPSED_SPREAD * self._best_spread and self._best_spread > FLAT_SPREAD:
            return f"the spread of the logits fell from {self._best_spread:.3f} to {seen.spread:.4f}"
        return ""

    def _restore(self, seen, statistics):
        step = self._step()
        self._num_restores += 1
        if self._num_restores > MAX_RESTORES:
            if self._num_restores == MAX_RESTORES + 1:
                self._tell(seen, f"gave up after {MAX_RESTORES} restores, for lower rates did not help")
            return
        multipliers = self._optimizer.multipliers
        speeds = {
            layer: layer_statistics.relative_step / self._bounds.band_of(layer)[1]
            for layer, layer_statistics in statistics.items()
            if multipliers[layer] > 0
        }
        finite = [speed for speed in speeds.values() if np.isfinite(speed)]
        fastest = max(finite, default=0.0)
        guilty = [layer for layer, speed in speeds.items() if not speed < 0.5 * fastest]
        rate = self._bounds.rate
        with keeping_schedule(self._optimizer):
            self._good.put_back()
        self._bounds.set(multipliers)
        if rate is not None:
            self._optimizer.learning_rate = rate  # which another callback may have set since
        self.model.reset_metrics()  # a sum that is not finite stays so
        self._window.reset()
        self._best_spread = 0.0
        self._scale(
            dict.fromkeys(guilty, 0.5),
            seen,
            f"restored the weights and the optimizer of step {self._saved} and halved the rates of {name_some(guilty)}",
            step,
        )

    def _check_layers(self, statistics):
        multipliers = self._optimizer.multipliers
        too_fast, idle = {}, {}
        for layer, measured in statistics.items():
            limit = self._bounds.band_of(layer)[1]
            if not multipliers[layer] > 0 or not np.isfinite(measured.update_norm):
                continue
            reach = measured.learning_rate * measured.size**0.5
            is_idle = 0 < measured.update_norm < IDLE_DIRECTION * reach
            if measured.relative_step > 1.05 * limit:
                too_fast[layer] = max(0.5, limit / measured.relative_step)
            elif is_idle and multipliers[layer] < 0.9 * self._bounds.ceilings[layer]:
                idle[layer] = min(2.0, self._bounds.ceilings[layer] / multipliers[layer])
        for factors, moved in ((too_fast, "moved by"), (idle, "moved by only")):
            if factors:
                steps = [statistics[layer].relative_step for layer in factors]
                self._scale(
                    factors,
                    f"{name_some(factors)} {moved} {span(steps)} of their weights in a step",
                    f"scaled their rates by {span(factors.values())}",
                )

    def _scale(self, factors, seen, done, step=None):
        multipliers = self._optimizer.multipliers
        self._bounds.set({layer: multipliers[layer] * factor for layer, factor in factors.items()})
        self._tell(seen, done, step)

    def _tell(self, seen, done, step=None):
        self._journal.tell(Intervention(self._step() if step is None else step, seen, done))

    def _warn_of_logits(self):
        if not self._has_warned:
            warnings.warn(
                "`LogitStatistics` cannot read the model's answers, though its loss is finite: they are not in [0, 1]. "
                "For a model that answers logits give it `from_logits=True`. Until then no collapse is seen.",
                stacklevel=2,
            )
        self._has_warned = True

    def _save(self):
        self._good.take()
        self._saved = self._step()
