import json
import subprocess
import sys
import textwrap

import pytest
import tensorflow as tf

from bertbin_tf.distribute import strategy


def test_one_device_is_tensorflows_default(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert strategy("auto") is tf.distribute.get_strategy()
    assert strategy("one_device").num_replicas_in_sync == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "one of auto, one_device, mirrored, tpu, multi_worker. Received: name='gpu'"),
        ("mirrored", "at least two GPUs.*CPU:0"),
        ("multi_worker", r"needs a cluster.*TF_CONFIG=\(not set\)"),
        ("tpu", "found no TPU.*CPU:0"),
    ],
)
def test_what_is_not_there_is_named(name, message, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=message):
        strategy(name)


def test_broken_cluster_description_is_an_error(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "[1")
    with pytest.raises(ValueError, match="TF_CONFIG is not a JSON object"):
        strategy("auto")


# In a process of its own: a CPU cannot be split once TensorFlow has started.
TWO_DEVICES = textwrap.dedent(
    """
    import json, sys
    import numpy as np
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    sys.path.insert(0, sys.argv[1])
    from conftest import build_tiny_backbone
    from bertbin_tf.distribute import strategy
    from bertbin_tf.metrics import LogitStatistics
    from bertbin_tf.models import binary_classifier
    from bertbin_tf.optimizers import LayerwiseAdamW, layerwise_decay

    ids = np.random.default_rng(0).integers(1, 20, (32, 6)).astype("int32")
    batch = {"token_ids": ids, "segment_ids": ids * 0, "padding_mask": np.ones_like(ids)}
    labels = (ids[:, :1] > 9).astype("int32")

    def train(name):
        with strategy(name).scope():
            model = binary_classifier(build_tiny_backbone(dropout=0.0), dropout=0.0)
            optimizer = LayerwiseAdamW(1e-2, layerwise_decay(model, 0.5), global_clipnorm=0.1)
            model.compile(optimizer, "binary_crossentropy", metrics=[LogitStatistics()])
        data = tf.data.Dataset.from_tensor_slices((batch, labels)).batch(8)
        history = model.fit(data, epochs=2, verbose=0).history
        return model.get_weights(), history, strategy(name).num_replicas_in_sync

    one, history, _ = train("one_device")
    two, mirrored, replicas = train("mirrored")
    print(json.dumps({
        "replicas": replicas,
        "distance": max(float(np.abs(a - b).max()) for a, b in zip(one, two)),
        "moved": max(float(np.abs(a - b).max()) for a, b in zip(one, build_tiny_backbone().get_weights())),
        "loss": [history["loss"][-1], mirrored["loss"][-1]],
        "logit_mean": [history["logit_mean"][-1], mirrored["logit_mean"][-1]],
    }))
    """
)


@pytest.mark.slow
def test_two_devices_train_as_one_does(request):
    command = [sys.executable, "-c", TWO_DEVICES, str(request.path.parent)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    result = json.loads(process.stdout.splitlines()[-1])
    assert result["replicas"] == 2
    assert result["moved"] > 1e-2
    assert result["distance"] < 1e-5
    assert result["loss"][0] == pytest.approx(result["loss"][1], abs=1e-5)
    assert result["logit_mean"][0] == pytest.approx(result["logit_mean"][1], abs=1e-5)
