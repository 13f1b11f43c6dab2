"""The formulas of `benchmarks/scaling.py` against TensorFlow's count, real models, and what was measured."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from conftest import build_tiny_backbone

from bertbin_tf.models import binary_classifier
from bertbin_tf.optimizers import LayerwiseAdamW

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


formulas = load("scaling_formulas")
SMALL = formulas.Bert(num_layers=2, dim=128, intermediate_dim=512, vocabulary_size=50, max_length=64, num_heads=4)
INPUTS = {"tokenize": [1000.0], "batches": [5000.0]}
FACTOR = 1.5


@pytest.fixture(scope="module")
def inputs():
    return json.loads((BENCHMARKS / "results" / "scaling.json").read_text(encoding="utf-8"))["inputs"]


def build_model(bert):
    return binary_classifier(keras_nlp.models.BertBackbone(**bert.arguments()))


def graph_of(function, rows, length):
    names = ("token_ids", "segment_ids", "padding_mask")
    specs = {name: tf.TensorSpec((rows, length), "int32", name=name) for name in names}
    return tf.function(function).get_concrete_function(specs).graph


def profile(graph):
    """Returns what TensorFlow's profiler counts, by kind of operation."""
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = builder(builder.float_operation()).with_empty_output().build()
    node, counts = tf.compat.v1.profiler.profile(graph, cmd="op", options=options), {}
    while node.children:
        (node,) = node.children
        counts[node.name] = node.float_ops
    return counts


def count_products(graph):
    """Returns 2 m k n of all products; the profiler has a wrong k where the first factor of a batch is transposed."""
    flops = 0
    for operation in graph.get_operations():
        if operation.type in ("MatMul", "BatchMatMulV2"):
            transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
            flops += 2 * math.prod(operation.outputs[0].shape) * operation.inputs[0].shape[-2 if transposed else -1]
    return flops


@pytest.mark.parametrize("shape", [(3, 32), (2, 64)])
def test_forward_products_are_what_tensorflow_counts(shape):
    model = build_model(SMALL)
    counts = profile(graph_of(lambda tokens: model(tokens, training=False), *shape))
    products = counts["MatMul"] + counts["BatchMatMulV2"]
    assert products == formulas.forward_flops(SMALL, *shape)
    # What is left out, normalizing, activations, softmax, is 3 % at a width of 128 and less beyond.
    assert products < sum(counts.values()) < 1.04 * products


def test_training_takes_three_times_the_products_of_a_forward_pass():
    model = build_model(SMALL)

    def gradients(tokens):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(tokens, training=True))
        return tape.gradient(loss, model.trainable_variables)

    assert count_products(graph_of(gradients, 3, 32)) == formulas.training_flops(SMALL, 3, 32)


@pytest.mark.parametrize("bert", [SMALL, formulas.MINILM, formulas.BERT_BASE])
def test_all_reduce_has_the_weights_of_the_real_model(bert):
    with tf.Graph().as_default():  # of which no weight is ever drawn
        model = build_model(bert)
    assert formulas.num_weights(bert) == model.count_params()
    assert model.count_params() == sum(math.prod(weight.shape) for weight in model.trainable_weights)
    # On two replicas a ring sends each gradient once, in float32.
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    assert formulas.all_reduce_bytes(bert, 2) == 4 * model.count_params()


def test_bert_base_is_as_published():
    assert formulas.num_weights(formulas.BERT_BASE) == pytest.approx(110e6, rel=0.01)  # Devlin et al., 2019, section 3


@pytest.mark.parametrize("layerwise", [True, False])
def test_whole_embeddings_are_reduced_with_our_optimizer_only(layerwise, eager):
    reduced = []

    class Watched(LayerwiseAdamW if layerwise else keras.optimizers.AdamW):
        def _all_reduce_sum_gradients(self, grads_and_vars):
            grads_and_vars = list(grads_and_vars)
            reduced.extend(gradient for gradient, _ in grads_and_vars)
            return super()._all_reduce_sum_gradients(grads_and_vars)

    model = binary_classifier(build_tiny_backbone())
    model.compile(Watched(1e-4), "binary_crossentropy")
    ids = np.ones((2, 5), "int32")
    model.train_on_batch({"token_ids": ids, "segment_ids": ids * 0, "padding_mask": ids}, np.array([0, 1]))
    num_sparse = sum(isinstance(gradient, tf.IndexedSlices) for gradient in reduced)
    assert num_sparse == (0 if layerwise else 2)  # tokens and segments
    if layerwise:
        assert sum(math.prod(gradient.shape) for gradient in reduced) == model.count_params()


@pytest.mark.parametrize("chip", formulas.CHIPS, ids=lambda chip: chip.name)
@pytest.mark.parametrize("share", formulas.SHARES)
def test_more_replicas_are_never_more_efficient(chip, share):
    one, *others = [formulas.estimate(chip, replicas, share, INPUTS) for replicas in formulas.REPLICAS]
    assert formulas.all_reduce_bytes(formulas.BERT_BASE, 1) == one["all_reduce_share"] == 0
    assert one["efficiency"] == 1
    efficiencies = [one["efficiency"], *(values["efficiency"] for values in others)]
    assert efficiencies == sorted(efficiencies, reverse=True) and efficiencies[-1] > 0
    # Rows/s that are both trained and fed, counted from the seconds of the training.
    for replicas, values in zip(formulas.REPLICAS[1:], others, strict=True):
        fed = min(values["rows_per_second"], INPUTS["batches"][0])
        assert values["efficiency"] == pytest.approx(fed / replicas / one["rows_per_second"])
        assert values["with_input"] > values["alone"] < one["alone"]


def test_a_step_by_hand():
    """10 replicas of 2 hosts: 2.1 TFLOP a step at 100 TFLOP/s, and 0.79 GB over a link of 1 GB/s."""
    chip = formulas.Chip("hand", 200e12, 300e9, 1e9)
    values = formulas.estimate(chip, 10, 0.5, INPUTS)
    per_token = 12 * (8 * 768**2 + 4 * 768 * 3072 + 4 * 768 * 128)
    compute = 3 * 32 * (128 * per_token + 2 * 768**2 + 2 * 768) / 100e12
    communication = 1.8 * 4 * 109_483_009 / 1e9
    assert values["step"] == pytest.approx(compute + communication)
    assert values["all_reduce_share"] == pytest.approx(communication / (compute + communication))
    assert values["alone"] == pytest.approx(3 * 313 * (compute + communication))
    assert values["with_input"] == pytest.approx(100 + values["alone"])


def test_measured_steps_are_predicted_within_a_factor(inputs):
    """The share of the peak at 32 x 64 tokens of MiniLM foretells other lengths, and a BERT-base."""
    reference, *others = formulas.predict_steps(inputs)
    assert len(others) == 3 and 0.1 < reference["share"] < 1
    for step in others:
        assert 1 / FACTOR < step["predicted"] / step["seconds"] < FACTOR


def test_readme_has_the_lines_that_the_script_prints():
    command = [sys.executable, str(BENCHMARKS / "scaling.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    readme = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    section = readme.split("## On more devices, on paper")[1].split("\n## ")[0]
    quoted = [line[4:] for line in section.splitlines() if line.startswith("    ")]
    assert len(quoted) > 6 and set(quoted) <= set(printed)
