"""The multipliers at which each layer's step, relative to its weights, lies in a band."""

import keras
import numpy as np

from bertbin_tf.callbacks.journal import name_some, span
from bertbin_tf.optimizers import LayerwiseAdamW, head_layers, highest_rate, schedule_of

STATE = ("heads", "peak", "ratios", "ceilings", "known")


class MultiplierBounds:
    """Moves the multipliers of an optimizer into the band of their layers, and knows which it has moved already.

    Args:
        model: The `keras.Model`.
        optimizer: Its `LayerwiseAdamW`, built.
        band: Pair of floats, the relative steps that the encoder's layers may take at the highest rate.
        head_band: The same for layers that pre-training did not fill.
        num_steps: Int >= 1, how far to look ahead for the highest rate, or `None`: see `highest_rate`.

    Attributes:
        heads: List of strings, the layers that pre-training did not fill.
        peak: Float, the highest rate.
        ratios: Dict from layer to float > 0, the share of the band's edges that it is given.
        ceilings: Dict from layer to the largest multiplier that it may have.
        known: Dict from layer to the multiplier that was set here.

    Raises:
        ValueError: If the rate is 0 at every step.
    """

    def __init__(
        self, model: keras.Model, optimizer: LayerwiseAdamW, band: tuple, head_band: tuple, num_steps: int | None
    ):
        self.optimizer = optimizer
        self._band, self._head_band = band, head_band
        try:
            self.heads = head_layers(model)
        except ValueError:  # no transformer in it: all layers are measured alike
            self.heads = []
        self.peak = highest_rate(optimizer, num_steps)
        if not self.peak > 0:
            raise ValueError(
                "The learning rate is 0 at every step, and no multiplier changes that. Compile with a rate above 0. "
                f"Received: learning_rate={optimizer.get_config()['learning_rate']}"
            )
        self.ratios = self._ratios()
        self.ceilings: dict[str, float] = {}
        self.known: dict[str, float] = {}

    def get_state(self) -> dict:
        """Returns all attributes."""
        return {name: getattr(self, name) for name in STATE}

    def set_state(self, state: dict) -> None:
        """Takes what `get_state` returned."""
        for name in STATE:
            setattr(self, name, state[name])

    def band_of(self, layer: str) -> tuple:
        """The relative steps that a layer may take at the highest rate, lowest and highest."""
        return self._head_band if layer in self.heads else self._band

    def set(self, multipliers: dict[str, float]) -> None:
        """Sets multipliers, which are then known."""
        self.optimizer.set_multipliers(multipliers, self.peak)
        self.known = self.optimizer.multipliers

    @property
    def rate(self) -> float | None:
        """The rate now, if there is no schedule, so that other callbacks may set it; else `None`."""
        if schedule_of(self.optimizer) is not None:
            return None
        return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))

    def apply(self, others: bool = False) -> tuple[str, str] | None:
        """Moves all multipliers if the rate is higher than it ever was.

        Args:
            others: Whether to move those that someone else has set, too. Defaults to `False`.

        Returns:
            What was seen and what was done, or `None` if there was nothing to do.
        """
        multipliers = self.optimizer.multipliers
        # What another `fit` set, and what its interventions made of it; but not what would go beyond the band.
        is_continued = not self.known and self.optimizer.made_for == np.float32(self.peak)
        if is_continued:
            self.known = multipliers
        new = {layer for layer, value in multipliers.items() if others and value != self.known.get(layer)}
        if (rate := self.rate) is not None and rate > 1.001 * self.peak:
            self.peak, new = rate, set(multipliers)
        if not new and self.ceilings:
            return None
        rms, bounded = self.optimizer.weight_rms(), {}
        for layer, multiplier in multipliers.items():
            low, high = (self.ratios[layer] * edge * rms[layer] / self.peak for edge in self.band_of(layer))
            self.ceilings[layer] = high if multiplier > 0 else 0.0
            if multiplier > 0 and (layer in new or is_continued and multiplier > 1.05 * high):
                bounded[layer] = float(np.clip(multiplier, low, high))
        changed = [layer for layer, value in bounded.items() if abs(value - multipliers[layer]) > 1e-6 * value]
        self.set({layer: bounded[layer] for layer in changed})
        if not changed:
            return None
        return (
            f"a rate of {self.peak:.1e} would move {name_some(changed)} by "
            f"{span([self.peak * multipliers[layer] / rms[layer] for layer in changed])} of their weights at a step",
            f"scaled their rates by {span([bounded[layer] / multipliers[layer] for layer in changed])}",
        )

    def _ratios(self):
        made_with = self.optimizer.multipliers
        if int(keras.ops.convert_to_numpy(self.optimizer.iterations)) > 0:  # by now they may have been moved
            made_with = self.optimizer.initial_multipliers
        encoder = [value for layer, value in made_with.items() if layer not in self.heads and value > 0]
        largest = max(encoder, default=1.0)
        return {
            layer: 1.0 if layer in self.heads or not value > 0 else value / largest
            for layer, value in made_with.items()
        }
