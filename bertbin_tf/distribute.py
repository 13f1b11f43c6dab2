"""The `tf.distribute` strategy that fits this machine, and what several workers have to agree on."""

import json
import os
from collections.abc import Sequence

import keras
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


def model_class() -> type[keras.Model]:
    """Returns the class that a model needs in the scope of the current strategy, for `fit` to train it."""
    return WorkersModel if _is_multi_worker(tf.distribute.get_strategy()) else keras.Model


def is_chief(name: str = "auto") -> bool:
    """Returns whether this process writes files: of the workers of a cluster only one does.

    Args:
        name: As for `strategy`. Defaults to `"auto"`.

    Example:
    >>> is_chief()
    True
    """
    if (_detect() if name == "auto" else name) != "multi_worker" or not _cluster():
        return True
    config = json.loads(os.environ["TF_CONFIG"])
    task = config.get("task", {})
    return task.get("type") == "chief" or ("chief" not in config["cluster"] and int(task.get("index", 0)) == 0)


def any_worker(devices: tf.distribute.Strategy, flags: Sequence[bool]) -> list[bool]:
    """Returns which flags are true in one worker or more. On a cluster all workers have to call it, at the same step.

    Args:
        devices: The strategy.
        flags: Bools of this process.

    Example:
    >>> any_worker(strategy(), [False, True])
    [False, True]
    """
    if not _is_multi_worker(devices):
        return list(flags)
    ours = devices.experimental_distribute_values_from_function(lambda _: tf.constant([flags], tf.float32))
    return [bool(value > 0) for value in devices.reduce("SUM", ours, axis=0)]


def check_replicas(compiled: object, *names: str) -> None:
    """Checks that Keras can train on the replicas of the current strategy with some settings of a model or optimizer.

    What Keras 3.15 fails at on several GPUs or workers, with any optimizer and a message from deep inside, is refused
    with one that says what to take instead.

    Args:
        compiled: The model or the optimizer.
        names: Of its attributes: of an optimizer `"gradient_accumulation_steps"` and `"ema_overwrite_frequency"`, of a
            model `"jit_compile"` and `"steps_per_execution"`.

    Raises:
        ValueError: If one of them is set.

    Example:
    >>> with strategy().scope():
    ...     check_replicas(model, "jit_compile", "steps_per_execution")
    """
    devices = tf.distribute.get_strategy()
    is_mirrored = isinstance(devices, tf.distribute.MirroredStrategy) or _is_multi_worker(devices)
    for name in names:
        value = getattr(compiled, name)
        is_set = value is True or (value or 1) > 1
        if is_set and is_mirrored and devices.num_replicas_in_sync > 1:
            raise ValueError(
                f"Keras 3.15 does not train on several replicas with `{name}`. Received: {name}={value}, on "
                f"{devices.num_replicas_in_sync} replicas. {_INSTEAD[name]}"
            )


_INSTEAD = {
    "gradient_accumulation_steps": "Leave it out: each replica takes a part of the batch, which is an accumulation.",
    "ema_overwrite_frequency": "Leave it out: `use_ema=True` alone puts the averages in place when `fit` ends.",
    "jit_compile": "Compile with jit_compile=False or 'auto'.",
    "steps_per_execution": "Compile with steps_per_execution=1.",
}


@keras.saving.register_keras_serializable("bertbin_tf")
class WorkersModel(keras.Model):
    """A functional `keras.Model` that `fit` and `evaluate` run on a cluster of several workers.

    Those of Keras 3.15 fail there, while they build the model on a symbolic batch, and again where they average
    scalars over workers (keras-team/keras#20329, #20585). On anything else it is a `keras.Model`.

    Example:
    >>> with strategy().scope():
    ...     model = WorkersModel(backbone.input, backbone.output["pooled_output"])
    """

    def _maybe_symbolic_build(self, *args, **kwargs):
        if not _is_multi_worker(self.distribute_strategy):
            super()._maybe_symbolic_build(*args, **kwargs)

    def train_step(self, data):
        return self._average_over_workers(super().train_step(data))

    def test_step(self, data):
        return self._average_over_workers(super().test_step(data))

    def _average_over_workers(self, logs):
        if not _is_multi_worker(self.distribute_strategy):
            return logs
        return tf.nest.map_structure(lambda value: tf.reshape(value, (1,)), logs)  # Keras averages them along an axis


def _detect():
    # Colab and Cloud TPU VMs announce their TPU in the environment; asking a resolver without one takes minutes.
    if any(key in os.environ for key in ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_WORKER_ID")):
        return "tpu"
    if _cluster():
        return "multi_worker"
    return "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "one_device"


def _is_multi_worker(devices):
    return isinstance(devices, tf.distribute.MultiWorkerMirroredStrategy)


def _cluster():
    try:
        cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster", {})
        return len(cluster.get("chief", [])) + len(cluster.get("worker", [])) > 1
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"TF_CONFIG is not a JSON object. Received: TF_CONFIG={os.environ['TF_CONFIG']}. Correct or unset it."
        ) from error


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
