"""The formulas of `scaling.py`: a step's operations, its all-reduce, and what a training takes. Sources beside them."""

import math
from typing import NamedTuple

import numpy as np

REPLICAS = (1, 2, 4, 8, 16, 32, 64)
REPLICAS_PER_HOST = 8  # a v3-8, a v5e slice of 2 x 4 chips (Cloud TPU documentation), a DGX A100
ROWS, LENGTH = 32, 128  # of each replica, in each step
REVIEWS, EPOCHS = 100_000, 3
# Of the chips' peak: 21 % (GPT-3, V100), 30 % (MT-NLG, A100), 33 % (Gopher, TPU v3) and 46 % (PaLM, TPU v4) were
# reported of large models (Chowdhery et al., 2022, https://arxiv.org/abs/2204.02311, section 4.1, table 3).
SHARES = (0.2, 0.5)


class Bert(NamedTuple):
    """The numbers that decide a BERT's weights and products. Devlin et al., 2019, section 3; MiniLM's config.json."""

    num_layers: int
    dim: int
    intermediate_dim: int
    vocabulary_size: int = 30522
    max_length: int = 512
    num_segments: int = 2
    num_heads: int = 12

    def arguments(self) -> dict[str, int]:
        """Returns the arguments of keras-nlp's `BertBackbone` for this shape."""
        renamed = {"dim": "hidden_dim", "max_length": "max_sequence_length"}
        return {renamed.get(name, name): value for name, value in self._asdict().items()}


class Chip(NamedTuple):
    """One replica's peak in FLOP/s, and bytes/s of a ring in one direction, within a host and between hosts."""

    name: str
    peak: float
    link: float
    link_between_hosts: float


MINILM, BERT_BASE = Bert(6, 384, 1536), Bert(12, 768, 3072)
# TPU: the peak in bfloat16, in which float32 is multiplied there too (cloud.google.com/tpu/docs/bfloat16); a link is
# the "all-reduce bandwidth per Pod" by its chips and the 4 links of each in a 2D torus. cloud.google.com/tpu/docs/v3:
# 123 TFLOP/s for the two cores of a chip, 340 TB/s, 1,024 chips; .../v5e: 197 TFLOP/s, 51.2 TB/s, 256 chips.
# A100: 156 TFLOP/s in TF32 without sparsity, which TensorFlow takes for float32 there (its function
# `enable_tensor_float_32_execution`), and 600 GB/s of NVLink in both directions together (NVIDIA A100 datasheet);
# between hosts one of eight network cards of 200 Gbit/s (DGX A100 System User Guide, DU-09821-001, section 1.1.1).
CHIPS = (
    Chip("TPU v3 core", 123e12 / 2, 340e12 / 1024 / 4, 340e12 / 1024 / 4),
    Chip("TPU v5e", 197e12, 51.2e12 / 256 / 4, 51.2e12 / 256 / 4),
    Chip("A100", 156e12, 600e9 / 2, 200e9 / 8),
)
# Model, rows, length of the steps that are measured; from the first the others are predicted.
STEPS = ((MINILM, 32, 64), (MINILM, 32, 32), (MINILM, 32, 128), (BERT_BASE, 4, 128))


def forward_flops(bert: Bert, rows: int, length: int) -> int:
    """Returns the floating-point operations of the matrix products of a forward pass; the rest is a few per cent.

    A product of (m, k) and (k, n) is 2 m k n. For a token and a layer: four projections of attention, two dense layers,
    scores and their weighted sum over all `length` positions; for a row the pooler and the logit. Narayanan et al.,
    2021, https://arxiv.org/abs/2104.04473, appendix "Floating-point operations".
    """
    dense = 2 * (4 * bert.dim**2 + 2 * bert.dim * bert.intermediate_dim)
    attention = 2 * 2 * bert.dim * length
    return rows * (length * bert.num_layers * (dense + attention) + 2 * bert.dim**2 + 2 * bert.dim)


def training_flops(bert: Bert, rows: int, length: int) -> int:
    """Returns those of a training step: each product has two backwards, of both factors (ibid.)."""
    return 3 * forward_flops(bert, rows, length)


def num_weights(bert: Bert) -> int:
    """Returns the number of weights of backbone and head, all of which are trained. Devlin et al., 2019, section 3."""
    embeddings = (bert.vocabulary_size + bert.max_length + bert.num_segments + 2) * bert.dim
    attention = 4 * (bert.dim**2 + bert.dim)
    feed_forward = 2 * bert.dim * bert.intermediate_dim + bert.intermediate_dim + bert.dim
    layer_norms = 2 * 2 * bert.dim
    pooler_and_logit = bert.dim**2 + bert.dim + bert.dim + 1
    return embeddings + bert.num_layers * (attention + feed_forward + layer_norms) + pooler_and_logit


def all_reduce_bytes(bert: Bert, replicas: int) -> float:
    """Returns the bytes that each replica sends in a step: 2 (N - 1) / N times the gradients, in float32.

    All weights count, the whole vocabulary too, for `LayerwiseAdamW.apply` makes the gradients of embeddings dense
    before the all-reduce. Stock optimizers leave them `IndexedSlices`: MirroredStrategy then gathers the rows of all
    replicas (`cross_device_ops.py`, "Efficient allreduce is not supported"), TPUStrategy makes them dense
    (`tpu_strategy.py`, `cross_replica_sum`). Ring: Patarasuk & Yuan, 2009, https://doi.org/10.1016/j.jpdc.2008.09.002.
    """
    return 2 * (replicas - 1) / replicas * 4 * num_weights(bert)


def estimate(chip: Chip, replicas: int, share: float, inputs: dict, bert: Bert = BERT_BASE) -> dict[str, float]:
    """Returns what training takes on so many replicas at this share of the peak.

    `step`, the seconds of computing and then communicating, without overlap, and `all_reduce_share` of them;
    `rows_per_second` of all replicas, and `asked`, that by the rows/s that one process batched here: of a dataset that
    is not read from files each host makes all rows and throws away those of the others
    (tf.data.experimental.AutoShardPolicy, DATA). `efficiency`: rows/s that are fed and trained by those of so many
    single replicas. Seconds for all reviews and epochs, `alone` if no replica ever waits for rows, and `with_input`,
    tokenizing all reviews once included, as `data.tokenize` does.
    """
    compute = training_flops(bert, ROWS, LENGTH) / (share * chip.peak)
    link = chip.link if replicas <= REPLICAS_PER_HOST else chip.link_between_hosts
    communication = all_reduce_bytes(bert, replicas) / link
    step, rows = compute + communication, ROWS * replicas
    tokenized, batched = (float(np.median(inputs[name])) for name in ("tokenize", "batches"))
    fed_step = max(step, rows / batched)
    num_steps = math.ceil(REVIEWS / rows) * EPOCHS
    return {
        "step": step,
        "all_reduce_share": communication / step,
        "rows_per_second": rows / step,
        "asked": rows / step / batched,
        "efficiency": compute / fed_step,
        "alone": num_steps * step,
        "with_input": REVIEWS / tokenized + num_steps * fed_step,
    }


def predict_steps(inputs: dict) -> list[dict]:
    """Returns of each measured step its seconds, share of the peak, and the seconds by the share of the first one."""
    peak = float(np.median(inputs["peak"]))
    rows = []
    for step in STEPS:
        seconds = float(np.median(inputs[step_name(*step)]))
        rows.append({"name": step_name(*step), "seconds": seconds, "share": training_flops(*step) / peak / seconds})
        rows[-1]["predicted"] = training_flops(*step) / (peak * rows[0]["share"])
    return rows


def step_name(bert: Bert, rows: int, length: int) -> str:
    return f"{'BERT-base' if bert == BERT_BASE else 'MiniLM'}, {rows} x {length}"
