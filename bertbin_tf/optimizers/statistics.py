"""What the optimizer measures of a layer."""

from typing import NamedTuple

# The size of new weights in BERT, a truncated normal of standard deviation 0.02 (Devlin et al., 2019, and its code's
# `initializer_range`). A layer whose weights are smaller, such as a head that starts at zero, is measured against this.
MIN_WEIGHT_RMS = 0.02


class LayerStatistics(NamedTuple):
    """What `LayerwiseAdamW` measured of one layer in one step: Euclidean norms over all weights of the layer.

    Args:
        gradient_norm: Float, of the gradient after accumulation, the sum over replicas and clipping.
        weight_norm: Float, of the weights before the step.
        update_norm: Float, of what Adam subtracted from the weights, decay not included.
        learning_rate: Float, the rate in force: the optimizer's, times the multiplier, within the bound.
        size: Int, the number of weights.
    """

    gradient_norm: float
    weight_norm: float
    update_norm: float
    learning_rate: float
    size: int

    @property
    def weight_rms(self) -> float:
        """The root mean square of the weights, not below that of new ones, 0.02."""
        return max(self.weight_norm / self.size**0.5, MIN_WEIGHT_RMS)

    @property
    def relative_step(self) -> float:
        """The size of the step relative to that of the weights: `update_norm / weight_norm`, floored as above."""
        return self.update_norm / (self.weight_rms * self.size**0.5)
