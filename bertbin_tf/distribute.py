"""The `tf.distribute` strategy that fits this machine."""

import json
import os

import tensorflow as tf

STRATEGIES = ("auto", "one_device", "mirrored", "tpu", "multi_worker")


def strategy(name: str = "auto") -> tf.distribute.Strategy:
    """Returns the strategy in whose scope model, optimizer and metrics are to be built.

    Args:
        name: `"auto"` takes a TPU where there is one, else the cluster in `TF_CONFIG`, else all GPUs where there are
            several, else one device. Or one of `"tpu"`, `"multi_worker"`, `"mirrored"` and `"one_device"`. Defaults
            to `"auto"`.

    Raises:
        ValueError: If the name is unknown or the machine does not have what it asks for; the message says what was
            found.

    Example:
    >>> with strategy().scope():
    ...     model = binary_classifier(load_backbone("minilm"))
    """
    if name not in STRATEGIES:
        raise ValueError(f"`name` must be one of {', '.join(STRATEGIES)}. Received: name='{name}'")
    if name == "auto":
        name = _detect()
    if name == "tpu":
        return _tpu_strategy()
    if name == "multi_worker":
        if not _cluster():
            raise ValueError(
                "strategy='multi_worker' needs a cluster of several workers in the environment variable TF_CONFIG. "
                f"Received: TF_CONFIG={os.environ.get('TF_CONFIG', '(not set)')}"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored":
        devices = _mirrored_devices()
        if len(devices) < 2:
            raise ValueError(
                "strategy='mirrored' needs at least two GPUs, or two logical CPUs. "
                f"Found: {', '.join(device.name for device in tf.config.list_logical_devices())}. Use 'one_device'."
            )
        return tf.distribute.MirroredStrategy(devices)
    # TensorFlow's default strategy: the first GPU, else the CPU, and nothing that Keras handles specially.
    return tf.distribute.get_strategy()


def _detect():
    # Colab and Cloud TPU VMs announce their TPU in the environment; asking a resolver without one takes minutes.
    if any(key in os.environ for key in ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID")):
        return "tpu"
    if _cluster():
        return "multi_worker"
    return "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "one_device"


def _cluster():
    try:
        workers = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {}).get("worker", [])
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"TF_CONFIG is not a JSON object. Received: TF_CONFIG={os.environ['TF_CONFIG']}. Correct or unset it."
        ) from error
    return len(workers) > 1


def _mirrored_devices():
    return [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]


def _tpu_strategy():
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(tpu=os.environ.get("TPU_NAME", "local"))
    except Exception as error:  # the resolver raises a different class for each way of having no TPU
        raise ValueError(
            "strategy='tpu' found no TPU. "
            f"Found: {', '.join(device.name for device in tf.config.list_logical_devices())}. Choose a TPU runtime, "
            f"install the package tensorflow-tpu, or use strategy='auto'. TensorFlow said: {error}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)
