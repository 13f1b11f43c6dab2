import keras
import numpy as np
import pytest

from bertbin_tf.initializers import LogOdds


@pytest.mark.parametrize("probability", [0.02, 0.5, 0.9])
def test_sigmoid_of_the_bias_is_the_probability(probability):
    bias = LogOdds(probability)(shape=(3,), dtype="float32")
    np.testing.assert_allclose(keras.ops.sigmoid(bias), probability, rtol=1e-6)


def test_config_shows_the_probability():
    config = keras.initializers.serialize(LogOdds(0.08))
    assert config["config"] == {"probability": 0.08}
    assert keras.initializers.deserialize(config).probability == 0.08


@pytest.mark.parametrize("probability", [0, 1, -0.1, 1.5, float("nan"), "0.3"])
def test_probability_out_of_range_is_refused(probability):
    with pytest.raises(ValueError, match=f"probability={probability!r}"):
        LogOdds(probability)
