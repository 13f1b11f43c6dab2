import keras
import numpy as np
import pytest
from scipy.special import expit

from bertbin_tf.metrics import LogitStatistics, saturation_logit


def results(metric):
    return {name: float(value) for name, value in metric.result().items()}


def test_mean_and_spread_match_numpy():
    logits = np.random.default_rng(0).normal(1.5, 2.0, 1000)
    metric = LogitStatistics()
    metric.update_state(np.zeros(1000), expit(logits)[:, None])
    np.testing.assert_allclose(results(metric)["logit_mean"], logits.mean(), rtol=1e-4)
    np.testing.assert_allclose(results(metric)["logit_spread"], logits.std(ddof=1), rtol=1e-4)


def test_spread_is_pooled_within_batches():
    metric = LogitStatistics(from_logits=True)
    for level in (-5.0, 5.0):  # the level moves; inside a batch all answers are nearly one
        metric.update_state(np.zeros(4), level + np.array([-1, -1, 1, 1]) * 1e-3)
    assert results(metric)["logit_mean"] == 0
    np.testing.assert_allclose(results(metric)["logit_spread"], np.sqrt(8e-6 / 6), rtol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_saturation_logit_is_where_the_sigmoid_rounds_to_one(dtype):
    at, below = (
        keras.ops.cast(keras.ops.cast(expit(saturation_logit(dtype) + step), "float64"), dtype) for step in (0.1, -0.1)
    )
    assert float(at) == 1.0 and float(below) < 1.0


def test_saturated_share_counts_both_sides_and_weights():
    probabilities = np.array([0.0, 1.0, 0.5, 0.9], "float32")
    metric = LogitStatistics()
    metric.update_state(np.zeros(4), probabilities)
    assert results(metric)["logit_saturation"] == 0.5
    assert np.isfinite(results(metric)["logit_mean"])
    metric.reset_state()
    metric.update_state(np.zeros(4), probabilities, sample_weight=[1, 0, 1, 0])
    assert results(metric)["logit_saturation"] == 0.5
    metric.reset_state()
    metric.update_state(np.zeros(4), probabilities, sample_weight=[0, 0, 1, 1])
    assert results(metric)["logit_saturation"] == 0


def test_threshold_is_ours_to_set():
    metric = LogitStatistics(threshold=2.0, from_logits=True)
    metric.update_state(np.zeros(4), np.array([-3.0, 0.0, 1.9, 2.1]))
    assert results(metric)["logit_saturation"] == 0.5


def test_config_round_trips():
    metric = LogitStatistics(threshold=3.0, from_logits=True, name="logits")
    clone = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert clone.get_config() == metric.get_config()


@pytest.mark.parametrize("jit_compile", [True, False])
def test_fit_logs_three_floats(jit_compile):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, "sigmoid")])
    model.compile("sgd", "binary_crossentropy", metrics=[LogitStatistics()], jit_compile=jit_compile)
    history = model.fit(np.eye(2), np.eye(2)[:, :1], verbose=0).history
    assert {"logit_mean", "logit_spread", "logit_saturation"} <= set(history)


@pytest.mark.parametrize("threshold", [0, -1.0])
def test_bad_threshold_is_refused(threshold):
    with pytest.raises(ValueError, match=f"threshold={threshold}"):
        LogitStatistics(threshold=threshold)
    with pytest.raises(ValueError, match="int8"):
        saturation_logit("int8")


@pytest.mark.parametrize("weight", [1 / 16, 0.5, 10.0])
def test_spread_does_not_depend_on_the_scale_of_the_weights(weight):
    logits = np.random.default_rng(0).normal(size=16)
    metric = LogitStatistics(from_logits=True)
    metric.update_state(np.zeros(16), logits, sample_weight=np.full(16, weight))
    np.testing.assert_allclose(results(metric)["logit_spread"], logits.std(ddof=1), rtol=1e-4)


def test_outputs_with_metrics_of_their_own_names_are_told_apart():
    inputs = keras.Input((3,))
    model = keras.Model(
        inputs, {name: keras.layers.Dense(1, "sigmoid", name=name)(inputs) for name in ("toxic", "spam")}
    )
    model.compile(
        loss="binary_crossentropy", metrics={name: [LogitStatistics(name=name)] for name in ("toxic", "spam")}
    )
    logs = model.evaluate(np.ones((4, 3)), {name: np.zeros((4, 1)) for name in ("toxic", "spam")}, 0, return_dict=True)
    assert {"toxic_logit_mean", "spam_logit_mean", "toxic_logit_spread"} <= set(logs)


def test_several_answers_to_a_text_are_refused():
    with pytest.raises(ValueError, match=r"y_pred of shape \(4, 3\)"):
        LogitStatistics().update_state(np.zeros(4), np.full((4, 3), 0.5))
