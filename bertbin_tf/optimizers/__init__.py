"""AdamW that steps every layer at its own rate, the usual ways to choose those rates, and their schedule."""

from bertbin_tf.optimizers.adamw import LayerwiseAdamW
from bertbin_tf.optimizers.layers import distance_from_head, head_layers, layers_of, layerwise_decay
from bertbin_tf.optimizers.schedules import (
    few_steps_factor,
    highest_rate,
    keeping_schedule,
    sample_schedule,
    schedule_of,
    schedule_step,
    unwrapped,
    warmup_cosine,
)
from bertbin_tf.optimizers.statistics import LayerStatistics
from bertbin_tf.optimizers.table import LayerTable, layer_table

__all__ = [
    "LayerStatistics",
    "LayerTable",
    "LayerwiseAdamW",
    "distance_from_head",
    "few_steps_factor",
    "head_layers",
    "highest_rate",
    "keeping_schedule",
    "layer_table",
    "layers_of",
    "layerwise_decay",
    "sample_schedule",
    "schedule_of",
    "schedule_step",
    "unwrapped",
    "warmup_cosine",
]
