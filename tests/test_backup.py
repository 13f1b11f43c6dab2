"""A training that is cut off at any moment goes on to the weights that it would have had."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from conftest import build_tiny_backbone

from bertbin_tf.callbacks import LayerwiseLearningRateController
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier
from bertbin_tf.optimizers import LayerwiseAdamW
from bertbin_tf.recipe import Preempted, Recipe, TrainingBackup, train
from bertbin_tf.recipe import training as training_module
from bertbin_tf.recipe.backup import Position

STEPS = 4  # an epoch: 108 texts of one length, 27 in a batch


class Killed(BaseException):
    """As if by SIGKILL: nothing of ours runs behind it."""


@pytest.fixture
def recipe(tiny_preset, reviews_csv):
    # A rate at which the controller has much to do.
    return Recipe(str(reviews_csv), preset=tiny_preset, sequence_length=16, epochs=2, batch_size=27, learning_rate=1e-2)


@pytest.fixture
def interrupt(monkeypatch):
    """Returns a function that trains until so many batches are done, counted over all epochs, and something happens."""

    def train_until(num_batches, happens, *arguments, **kwargs):
        seen = []

        class Interrupted(TrainingBackup):
            def on_train_batch_end(self, batch, logs=None):
                super().on_train_batch_end(batch, logs)
                seen.append(batch)
                if len(seen) == num_batches:
                    happens()

        with monkeypatch.context() as context:
            context.setattr(training_module, "TrainingBackup", Interrupted)
            train(*arguments, verbose=0, **kwargs)

    return train_until


@pytest.fixture
def train_and_kill(interrupt):
    """Returns a function that trains, with a backup after each batch, and is killed after so many."""

    def train_until(num_batches, *arguments, **kwargs):
        with pytest.raises(Killed):
            interrupt(num_batches, _kill, *arguments, backup_every=1e-9, **kwargs)

    return train_until


def _kill():
    raise Killed


def what_is_left(run, history):
    """All of a run but the times."""
    metrics = json.loads((run / "metrics.json").read_text())
    return (
        history.model.get_weights(),
        history.history,
        {name: value for name, value in metrics.items() if "seconds" not in name},
    )


def assert_same(left, right):
    for a, b in zip(left[0], right[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert json.dumps(left[1], sort_keys=True) == json.dumps(right[1], sort_keys=True)
    assert left[2] == right[2]


@pytest.fixture
def undisturbed(recipe, tmp_path, eager):
    if not _UNDISTURBED:  # the same for each test
        history = train(recipe, tmp_path / "undisturbed", verbose=0)
        _UNDISTURBED.append(what_is_left(tmp_path / "undisturbed", history))
    return _UNDISTURBED[0]


_UNDISTURBED = []


def test_killed_anywhere_it_ends_with_the_same_weights(recipe, undisturbed, train_and_kill, tmp_path):
    run = tmp_path / "run"
    for num_batches in (1, STEPS - 1, 3):  # of those that are left: the first, the last of an epoch, within the next
        train_and_kill(num_batches, recipe, run, resume="auto")
    assert_same(undisturbed, what_is_left(run, train(recipe, run, resume="auto", backup_every=1e-9, verbose=0)))
    assert not (run / "backup").exists()


def test_killed_after_the_fit_it_does_not_train_again(recipe, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(training_module, "_calibrate", lambda *_: _kill())
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", verbose=0)
    monkeypatch.undo()
    steps = []
    monkeypatch.setattr(TrainingBackup, "on_train_batch_end", lambda *_: steps.append(1))
    assert_same(undisturbed, what_is_left(tmp_path / "run", train(recipe, tmp_path / "run", resume="auto", verbose=0)))
    assert not steps


def test_early_stopping_is_not_forgotten(recipe, train_and_kill, tmp_path, eager):
    # At this rate no weight changes: the validation loss stays what it is, for two epochs after the first.
    recipe = dataclasses.replace(recipe, optimizer="adamw", learning_rate=1e-30, batch_size=54, epochs=5)
    whole = what_is_left(tmp_path / "whole", train(recipe, tmp_path / "whole", verbose=0))
    assert len(whole[1]["loss"]) == 3
    run = tmp_path / "run"
    train_and_kill(5, recipe, run)
    assert_same(whole, what_is_left(run, train(recipe, run, resume="auto", backup_every=1e-9, verbose=0)))


def test_sigterm_keeps_what_was_done_and_says_so(recipe, undisturbed, interrupt, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="resume='auto'") as error:
        interrupt(2, lambda: os.kill(os.getpid(), signal.SIGTERM), recipe, tmp_path / "run")
    assert error.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(list((tmp_path / "run" / "backup").glob("*-00000-00000003-*.npz"))) == 1
    assert_same(undisturbed, what_is_left(tmp_path / "run", train(recipe, tmp_path / "run", resume="auto", verbose=0)))


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if how == "torn" else content[:-9] + b"damaged" + content[-2:])


@pytest.mark.parametrize("how", ["torn", "changed"])
def test_damaged_backup_is_passed_over(recipe, undisturbed, train_and_kill, how, tmp_path):
    run = tmp_path / "run"
    train_and_kill(3, recipe, run)
    older, newest = sorted((run / "backup").iterdir())
    damage(newest, how)
    with pytest.warns(UserWarning, match="damaged and passed over"):
        assert_same(undisturbed, what_is_left(run, train(recipe, run, resume="auto", verbose=0)))


def test_other_data_or_another_recipe_does_not_go_on(recipe, reviews_csv, train_and_kill, tmp_path, eager):
    run, own_csv = tmp_path / "run", tmp_path / "own.csv"
    own_csv.write_text(reviews_csv.read_text())
    recipe = dataclasses.replace(recipe, train_data=str(own_csv))
    train_and_kill(2, recipe, run)
    kept = sorted((run / "backup").iterdir())
    with pytest.raises(ValueError, match=r"another recipe.*differs in seed \(0, not 1\)"):
        train(dataclasses.replace(recipe, seed=1), run, resume="auto", verbose=0)
    own_csv.write_text(own_csv.read_text() + "a fine film,1\n")
    with pytest.raises(ValueError, match=r"what it depends on has changed \(train"):
        train(recipe, run, resume="auto", verbose=0)
    assert sorted((run / "backup").iterdir()) == kept


def test_full_disk_leaves_the_last_backup_whole(recipe, undisturbed, tmp_path, monkeypatch):
    run, written, real = tmp_path / "run", [], os.fsync

    def fsync(file):
        written.append(file)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="A backup cannot be written .No space left"):
        train(recipe, run, backup_every=1e-9, verbose=0)
    monkeypatch.undo()
    assert len(list((run / "backup").iterdir())) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Even though the `tf.config")
        assert_same(undisturbed, what_is_left(run, train(recipe, run, resume="auto", verbose=0)))


def test_mistakes_leave_nothing(recipe, tmp_path, eager):
    with pytest.raises(ValueError, match="`every` must be"):
        train(recipe, tmp_path / "run", backup_every=0.0, verbose=0)
    assert not (tmp_path / "run").exists()


def test_callback_works_in_anyones_fit(tiny_backbone, tmp_path, eager):
    """Between two epochs, where no data have to be skipped; with one callback of Keras' and one of ours."""
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(1, 20, (16, 8)).astype("int32") for name in tiny_backbone.input}
    batch["segment_ids"][:], batch["padding_mask"][:] = 0, 1
    labels = np.arange(16) % 2

    def make():
        keras.utils.set_random_seed(0)
        model = binary_classifier(tiny_backbone.__class__.from_config(tiny_backbone.get_config()))
        model.compile(LayerwiseAdamW(1e-2), "binary_crossentropy")
        callbacks = [LayerwiseLearningRateController(every=1), keras.callbacks.EarlyStopping("loss", patience=9)]
        return model, [*callbacks, TrainingBackup(tmp_path / "backup", callbacks, every=1e-9)]

    def fit(model, callbacks, first, last):
        model.fit(batch, labels, 4, shuffle=False, initial_epoch=first, epochs=last, callbacks=callbacks, verbose=0)

    whole, callbacks = make()
    fit(whole, callbacks, 0, 4)
    for path in (tmp_path / "backup").iterdir():
        path.unlink()
    half, callbacks = make()
    fit(half, callbacks, 0, 2)
    other, callbacks = make()
    assert callbacks[-1].restore(other) == Position(2, 0)
    fit(other, callbacks, 2, 4)
    for a, b in zip(whole.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [line.step for line in callbacks[0].interventions][:1] == [0]
    with pytest.raises(ValueError, match="is of another model"):
        small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        small.compile("sgd", "mse")
        TrainingBackup(tmp_path / "backup", callbacks[:2]).restore(small)
    with pytest.raises(ValueError, match="is of 2 callbacks. Received: 0"):
        TrainingBackup(tmp_path / "backup", []).restore(other)
    assert TrainingBackup(tmp_path / "nothing", []).restore(other) is None


@pytest.mark.slow
def test_processes_killed_at_random_moments_end_with_the_same_weights(recipe, tmp_path):
    """Through the command line, in graph mode. `benchmarks/survival.py` does it twenty times on the real checkpoint."""
    (tmp_path / "recipe.json").write_text(recipe.to_json())

    def command(run):
        flags = ["--recipe", str(tmp_path / "recipe.json"), "--output-dir", str(run), "--resume", "auto", "--json"]
        return [sys.executable, "-c", "import sys; from bertbin_tf.cli import main; sys.exit(main())", "train", *flags]

    whole = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [*command(tmp_path / "run"), "--backup-every", "0.01"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while not list((tmp_path / "run" / "backup").glob("*-00001-*")) and process.poll() is None:
        pass
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    again = subprocess.run(command(tmp_path / "run"), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    left, right = json.loads(whole.stdout), json.loads(again.stdout)
    different = {name for name in left if left[name] != right[name]}
    assert different <= {"run", "seconds", "fit_seconds", "seconds_to_first_step"}
    weights = [keras.models.load_model(tmp_path / run / "model.keras").get_weights() for run in ("whole", "run")]
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def few(tiny_preprocessor, tiny_reviews):
    texts, labels = tiny_reviews
    return tiny_preprocessor(texts[:20]), np.array(labels[:20])


def compiled(dtype=None):
    model = binary_classifier(build_tiny_backbone(dtype=dtype))
    model.compile(LayerwiseAdamW(1e-3), "binary_crossentropy", metrics=[LogitStatistics()], run_eagerly=True)
    return model


def test_newest_backup_is_the_one_written_last(few, tmp_path):
    model, backup = compiled(), TrainingBackup(tmp_path / "backup", [])
    for epochs in (3, 1):  # the second `fit` gets less far than the first
        model.fit(*few, 4, epochs=epochs, callbacks=[backup], verbose=0)
    assert TrainingBackup(tmp_path / "backup", []).restore(compiled()) == Position(1, 0)
    model.optimizer.iterations.assign(77)
    backup.write()
    other = compiled()
    TrainingBackup(tmp_path / "backup", []).restore(other)
    assert int(other.optimizer.iterations) == 77


def test_backup_can_be_written_after_a_controlled_fit(few, tmp_path):
    controller = LayerwiseLearningRateController()
    model, backup = compiled(), TrainingBackup(tmp_path / "backup", [controller])
    model.fit(*few, 4, callbacks=[controller, backup], verbose=0)
    backup.write()
    other, controller = compiled(), LayerwiseLearningRateController()
    backup = TrainingBackup(tmp_path / "backup", [controller])
    backup.restore(other)
    other.fit(*few, 4, initial_epoch=1, epochs=2, callbacks=[controller, backup], verbose=0)
    assert int(other.optimizer.iterations) == 10


def test_fit_after_an_interrupted_one_counts_from_the_start(few, tmp_path):
    positions = []

    def interrupt(batch, logs):
        positions.append(backup.position)
        if len(positions) == 3:
            raise KeyboardInterrupt

    model, backup = compiled(), TrainingBackup(tmp_path / "backup", [])
    callbacks = [backup, keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)]
    with pytest.raises(KeyboardInterrupt):
        model.fit(*few, 4, callbacks=callbacks, verbose=0)
    model.fit(*few, 4, callbacks=callbacks, verbose=0)
    assert [position.batch for position in positions] == [1, 2, 3, 1, 2, 3, 4, 5]


def test_bfloat16_weights_come_back_also_those_that_a_callback_keeps(few, tmp_path):
    model, best = compiled("bfloat16"), keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    backup = TrainingBackup(tmp_path / "new" / "backup", [best])
    model.fit(*few, 4, callbacks=[best, backup], verbose=0)
    other, best = compiled("bfloat16"), keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    backup = TrainingBackup(tmp_path / "new" / "backup", [best])
    assert backup.restore(other) == Position(1, 0)
    other.fit(*few, 4, initial_epoch=1, epochs=1, callbacks=[best, backup], verbose=0)
    for old, new in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(old).astype("float32"), keras.ops.convert_to_numpy(new).astype("float32")
        )
