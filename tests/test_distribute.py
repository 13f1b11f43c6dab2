import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from bertbin_tf.distribute import is_chief, strategy
from bertbin_tf.recipe import Recipe, load_run, preparing


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


# What follows runs in processes of their own: a CPU cannot be split once TensorFlow has started.
SPLIT_CPU = """
import json, sys
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * {num_devices}
)
"""

COMPARE_STEPS = textwrap.dedent(
    """
    sys.path.insert(0, sys.argv[1])
    from conftest import build_tiny_backbone
    from bertbin_tf.callbacks import LayerwiseLearningRateController, LayerwiseLearningRateScheduler
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
            decay = layerwise_decay(model, 0.5)
            optimizer = LayerwiseAdamW(
                1e-2, decay, global_clipnorm=0.1, max_relative_step={"transformer_layer_0": 1e-3}, measure_every=2
            )
            model.compile(optimizer, "binary_crossentropy", metrics=[LogitStatistics()])
        data = tf.data.Dataset.from_tensor_slices((batch, labels)).batch(8)
        schedule = LayerwiseLearningRateScheduler(lambda epoch, multipliers: {"logit": 1.0 + epoch})
        controller = LayerwiseLearningRateController(band=(1e-4, 1e-2), head_band=(1e-4, 1.0), every=2)
        history = model.fit(data, epochs=5, callbacks=[schedule, controller], verbose=0).history
        history["multipliers"] = list(optimizer.multipliers.values())
        history["norms"] = [list(layer) for layer in optimizer.statistics.values()]
        history["lines"] = list(map(str, controller.interventions))
        history["steps"] = int(optimizer.iterations.numpy())
        return model.get_weights(), history, strategy(name).num_replicas_in_sync

    one, history, _ = train("one_device")
    two, mirrored, replicas = train("mirrored")
    print(json.dumps({
        "replicas": replicas,
        "steps": mirrored["steps"],
        "distance": max(float(np.abs(a - b).max()) for a, b in zip(one, two)),
        "moved": max(float(np.abs(a - b).max()) for a, b in zip(one, build_tiny_backbone().get_weights())),
        "loss": [history["loss"][-1], mirrored["loss"][-1]],
        "rate": [history["learning_rate/logit"], mirrored["learning_rate/logit"]],
        "multipliers": [history["multipliers"], mirrored["multipliers"]],
        "norms": [history["norms"], mirrored["norms"]],
        "lines": [history["lines"], mirrored["lines"]],
        "logit_mean": [history["logit_mean"][-1], mirrored["logit_mean"][-1]],
    }))
    """
)


TRAIN_MIRRORED = """
from bertbin_tf.recipe import Recipe, load_run, train
import dataclasses

recipe = Recipe.from_json(sys.argv[1])
try:
    train(dataclasses.replace(recipe, batch_size=5), strategy="mirrored")
except ValueError as error:
    assert "multiple of the number of devices, 2" in str(error)
history = train(recipe, sys.argv[2], strategy="mirrored", verbose=0)
print(json.dumps({
    "replicas": history.model.distribute_strategy.num_replicas_in_sync,
    "steps": int(history.model.optimizer.iterations.numpy()),
    "loss": history.history["loss"],
    "saturation": history.history["saturation/pooled_dense"],
    "probabilities": load_run(sys.argv[2]).predict(["a great film", "a bad film"]).tolist(),
}))
"""

# `train` in one of two workers, of which the second is killed after so many batches.
TRAIN_AS_WORKER = """
import os, signal, sys
from bertbin_tf.recipe import Preempted, Recipe, TrainingBackup, train

num_batches, on_batch_end = int(sys.argv[3]), TrainingBackup.on_train_batch_end

def kill(self, batch, logs=None):
    on_batch_end(self, batch, logs)
    if batch + 1 == num_batches:
        os.kill(os.getpid(), signal.SIGKILL)

if '"index": 1' in os.environ["TF_CONFIG"] and num_batches:
    TrainingBackup.on_train_batch_end = kill
try:
    train(Recipe.from_json(sys.argv[1]), sys.argv[2], resume="auto", backup_every=1e-9, verbose=0)
except Preempted as error:
    print(error, file=sys.stderr)
    raise
"""


def run_on_two_workers(code, *arguments):
    """Returns the exit codes, and what the first one wrote to standard error."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": json.dumps(config)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], errors[0]


REFUSE = """
import keras
from bertbin_tf.callbacks import LayerwiseLearningRateController
from bertbin_tf.distribute import strategy
from bertbin_tf.optimizers import LayerwiseAdamW

def error_of(optimizer=None, **compiled):
    with strategy("mirrored").scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, activation="sigmoid")])
        model.compile(LayerwiseAdamW(1e-3, **optimizer or {}), "binary_crossentropy", **compiled)
    data = tf.data.Dataset.from_tensor_slices((np.ones((8, 4)), np.arange(8) % 2)).batch(4)
    try:
        model.fit(data, callbacks=[LayerwiseLearningRateController()], verbose=0)
    except ValueError as error:
        return str(error)

print(json.dumps([
    error_of(),
    error_of({"gradient_accumulation_steps": 2}),
    error_of({"use_ema": True, "ema_overwrite_frequency": 2}),
    error_of(jit_compile=True),
    error_of(steps_per_execution=2),
]))
"""


def run_on_devices(code, *arguments, num_devices=2):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SPLIT_CPU.format(num_devices=num_devices) + code, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [2, 4])
def test_several_devices_train_as_one_does(num_devices, request):
    result = run_on_devices(COMPARE_STEPS, str(request.path.parent), num_devices=num_devices)
    assert result["replicas"] == num_devices
    assert result["steps"] == 20
    assert result["moved"] > 1e-2
    assert result["distance"] < 1e-5
    np.testing.assert_allclose(result["rate"][0], result["rate"][1], rtol=1e-6)
    np.testing.assert_allclose(*result["multipliers"], rtol=1e-5)
    np.testing.assert_allclose(*result["norms"], rtol=1e-3, atol=1e-6)
    assert result["lines"][0] == result["lines"][1] != []
    assert result["loss"][0] == pytest.approx(result["loss"][1], abs=1e-5)
    assert result["logit_mean"][0] == pytest.approx(result["logit_mean"][1], abs=1e-5)


@pytest.mark.slow
def test_what_keras_fails_at_on_several_replicas_is_refused_with_what_to_do():
    fine, *refused = run_on_devices(REFUSE)
    assert fine is None
    named = ("gradient_accumulation_steps=2", "ema_overwrite_frequency=2", "jit_compile=True", "steps_per_execution=2")
    for message, setting in zip(refused, named, strict=True):
        assert f"Received: {setting}, on 2 replicas" in message


@pytest.mark.slow
def test_a_whole_recipe_trains_on_two_devices_and_on_two_workers_of_which_one_is_killed(
    tiny_preset, reviews_csv, tmp_path
):
    # 12 rows of validation data, fewer than a batch, and an odd number of rows of each length.
    recipe = Recipe(str(reviews_csv), preset=tiny_preset, sequence_length=16, batch_size=16, epochs=1, pooling="pooled")
    devices, workers = tmp_path / "devices", tmp_path / "workers"
    result = run_on_devices(TRAIN_MIRRORED, recipe.to_json(), str(devices))
    assert result["replicas"] == 2
    assert result["steps"] > 4
    assert np.isfinite(result["loss"] + result["saturation"]).all()
    # One device reads what two have trained.
    run = load_run(devices)
    np.testing.assert_allclose(run.predict(["a great film", "a bad film"]), result["probabilities"], atol=1e-6)

    codes, errors = run_on_two_workers(TRAIN_AS_WORKER, recipe.to_json(), str(workers), "3")
    assert codes == [75, -signal.SIGKILL], errors
    assert "another worker was lost; what was done is in" in errors
    assert any((workers / "backup").glob("*-00000-00000003-*.npz"))
    codes, errors = run_on_two_workers(TRAIN_AS_WORKER, recipe.to_json(), str(workers), "0")
    assert codes == [0, 0], errors
    # They share each batch as the two devices did, no row lost or seen twice: the weights are the same, bit for bit.
    for ours, expected in zip(load_run(workers).model.get_weights(), run.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)
    ours, expected = [json.loads((folder / "history.json").read_text()) for folder in (workers, devices)]
    assert ours.keys() == expected.keys()
    for name, values in expected.items():  # the sums of an epoch are not added up in the same order after a restart
        np.testing.assert_allclose(ours[name], values, rtol=1e-6, err_msg=name)
    assert not (workers / "backup").exists()


@pytest.mark.parametrize(
    ("cluster", "task", "expected"),
    [
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 0}, True),
        ({"worker": ["a:1", "b:1"]}, {"type": "worker", "index": 1}, False),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "chief", "index": 0}, True),
        ({"chief": ["a:1"], "worker": ["b:1"]}, {"type": "worker", "index": 0}, False),
        ({"worker": ["a:1"]}, {"type": "worker", "index": 0}, True),
    ],
)
def test_one_process_of_a_cluster_writes(cluster, task, expected, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert is_chief() is expected
    assert is_chief("one_device")


def test_process_without_a_cluster_writes(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert is_chief("multi_worker")  # which `strategy` then refuses, with the reason


def operations_of(graph):
    yield from graph.get_operations()
    for function in graph._functions.values() if hasattr(graph, "_functions") else ():
        yield from getattr(function, "graph", tf.Graph()).get_operations()


@pytest.mark.slow
def test_training_step_is_one_that_a_tpu_can_run(tiny_preset, reviews_csv, monkeypatch):
    """There is no TPU here: XLA compiles the step on the CPU, and what a TPU has not is looked for in the graph."""
    monkeypatch.setattr(preparing, "_needs_static_shapes", lambda devices: True)
    recipe = Recipe(str(reviews_csv), preset=tiny_preset, sequence_length=16, batch_size=16, epochs=1)
    made = preparing.prepare(recipe, "one_device")
    for batches in (made.batches, made.batches_from(0), made.validation_batches):
        spec = batches.element_spec
        assert all(tensor.shape.is_fully_defined() for tensor in tf.nest.flatten(spec))
    assert made.batches.element_spec[0]["token_ids"].shape == (16, 16)
    made.model.evaluate(made.validation_batches, verbose=0)  # builds the metrics
    made.model.optimizer.build(made.model.trainable_variables)
    step = tf.function(lambda *batch: made.model.train_step(batch), jit_compile=True)
    operations = list(operations_of(step.get_concrete_function(*made.batches.element_spec).graph))
    assert len(operations) > 100
    on_the_host = {"PyFunc", "EagerPyFunc", "PyFuncStateless", "Print", "PrintV2", "WriteScalarSummary", "Where"}
    assert not {operation.type for operation in operations} & on_the_host
    outputs = [tensor for operation in operations for tensor in operation.outputs]
    assert not [tensor for tensor in outputs if tensor.dtype == tf.string]
    # Shapes themselves are computed while compiling.
    assert not [tensor for tensor in outputs if tensor.dtype.is_floating and not tensor.shape.is_fully_defined()]
    assert "ENTRY" in step.experimental_get_compiler_ir(*next(iter(made.batches)))(stage="hlo")
