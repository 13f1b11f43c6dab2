import dataclasses
import inspect
import json
import os
import random
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from conftest import running_eagerly

from bertbin_tf import data, evaluation
from bertbin_tf.models import load_backbone, load_preprocessor, save_preprocessor
from bertbin_tf.optimizers import LayerwiseAdamW
from bertbin_tf.recipe import Recipe, load_run, plan, prepare, train


@pytest.fixture(scope="module")
def recipe(tiny_preset, reviews_csv):
    """Two steps in each of two epochs."""
    fields = {"preset": tiny_preset, "sequence_length": 16, "batch_size": 54, "learning_rate": 1e-2, "epochs": 2}
    return Recipe(str(reviews_csv), **fields)


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    """The folder of a run of that recipe; not to be changed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with running_eagerly():
        train(recipe, folder, verbose=0)
    return folder


def test_json_round_trips_and_stays_small(tmp_path):
    recipe = Recipe("reviews.csv", positive="good", learning_rate=3e-4, hidden_dim=8)
    assert Recipe.from_json(recipe.to_json()) == recipe
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert Recipe.from_json(tmp_path / "recipe.json") == recipe
    assert len(dataclasses.fields(Recipe)) <= 20


def test_notebook_shows_every_field_escaped():
    shown = Recipe("<b>.csv")._repr_html_()
    assert all(f"<th>{field.name}</th>" in shown for field in dataclasses.fields(Recipe))
    assert "&lt;b&gt;.csv" in shown and "<b>" not in shown


def test_docstring_names_every_field_with_its_default():
    arguments = inspect.getdoc(Recipe).partition("Args:\n")[2].partition("\nRaises:")[0]
    entries = re.split(r"^    (\w+): ", arguments, flags=re.MULTILINE)[1:]
    documented = {name: " ".join(entry.split()) for name, entry in zip(entries[::2], entries[1::2], strict=True)}
    fields = dataclasses.fields(Recipe)
    assert list(documented) == [field.name for field in fields]
    for field in fields[1:]:
        default = "1e-4" if field.name == "learning_rate" else json.dumps(field.default).replace("null", "None")
        assert f"Defaults to `{default}`" in documented[field.name]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_data", "", "a string that is not empty"),
        ("train_data", None, "a string that is not empty"),
        ("text", 3, "a string that is not empty, or left out"),
        ("pooling", "max", "one of pooled, cls, mean"),
        ("optimizer", ["adam"], "one of controlled, adamw, adam"),
        ("learning_rate", 0, "a number, greater than 0"),
        ("learning_rate", float("nan"), "a number, greater than 0"),
        ("learning_rate", float("inf"), "a number, greater than 0"),
        ("learning_rate", "1e-3", "a number, greater than 0"),
        ("layer_decay", 1.5, "a number, greater than 0 and at most 1"),
        ("batch_size", 0, "an integer, at least 1"),
        ("batch_size", 1.5, "an integer, at least 1"),
        ("epochs", True, "an integer, at least 1"),
        ("sequence_length", 2, "an integer, at least 3"),
        ("seed", -1, "an integer, at least 0"),
    ],
)
def test_wrong_value_is_refused_with_what_is_allowed(field, value, message):
    with pytest.raises(ValueError) as error:
        Recipe(**({"train_data": "reviews.csv"} | {field: value}))
    assert f"`{field}` must be {message}" in str(error.value)
    assert f"Received: {field}={value!r}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("recipe.json", "A file is given as a `pathlib.Path`"),
        ("[]", "a JSON object"),
        ("{}", "'train_data'"),
        ('{"train_data": "a.csv", "learning_rat": 1}', "unknown fields: learning_rat. Allowed are train_data"),
    ],
)
def test_broken_recipe_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(text)


def test_set_ups_of_the_article_differ_where_it_says():
    naive, plateau, hidden = Recipe.naive("a"), Recipe.plateau("a"), Recipe.hidden_head("a", epochs=1)
    assert (naive.optimizer, naive.learning_rate, naive.schedule) == ("adam", 1e-3, "constant")
    assert (plateau.optimizer, plateau.schedule, plateau.layer_decay) == ("adamw", "plateau", 1.0)
    assert (hidden.hidden_dim, hidden.epochs) == (128, 1)
    assert {recipe.head_init for recipe in (naive, plateau, hidden)} == {"keras"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optimizer": "adam", "schedule": "constant", "head_init": "keras"},
        {"schedule": "plateau", "hidden_dim": 3, "pooling": "mean"},
        {"imbalance": "class_weight"},
        {"imbalance": "focal"},
        {"optimizer": "adamw", "head_init": "probe"},
    ],
    ids=str,
)
def test_every_set_up_trains(recipe, fields, eager):
    history = train(dataclasses.replace(recipe, **fields), verbose=0)
    assert len(history.history["val_loss"]) == 2
    assert np.isfinite(history.history["loss"]).all()
    assert isinstance(history.model.optimizer, LayerwiseAdamW) == (fields.get("optimizer") != "adam")


def test_class_weights_start_at_one_half_and_leave_the_base_rate_in_the_answers(recipe, tmp_path, eager):
    rows = [f"a good film{number},1" for number in range(10)] + [f"a bad film{number},0" for number in range(90)]
    (tmp_path / "rare.csv").write_text("\n".join(["text,label", *rows]))
    rare = dataclasses.replace(
        recipe, train_data=str(tmp_path / "rare.csv"), epochs=1, optimizer="adamw", learning_rate=1e-30
    )
    for imbalance, prior in (("none", 0.1), ("focal", 0.1), ("class_weight", 0.5)):
        model = train(dataclasses.replace(rare, imbalance=imbalance), tmp_path / imbalance, verbose=0).model
        logit = model.get_layer("logit").bias.numpy()[0]
        np.testing.assert_allclose(1 / (1 + np.exp(-logit)), 0.1, rtol=0.02)
        metrics = json.loads((tmp_path / imbalance / "metrics.json").read_text())
        entropy = -prior * np.log(prior) - (1 - prior) * np.log(1 - prior)
        np.testing.assert_allclose([metrics["first_loss"], metrics["label_entropy"]], entropy, rtol=0.02)


def test_plateau_halves_the_rate_and_training_goes_on(recipe, eager):
    still = dataclasses.replace(recipe, optimizer="adamw", schedule="plateau", epochs=4, learning_rate=1e-30)
    rates = train(still, verbose=0).history["learning_rate"]
    # The validation loss stays as it is: halved after the second epoch, stopped after the third.
    np.testing.assert_allclose(rates, [1e-30, 1e-30, 5e-31], rtol=1e-3)


def test_few_validation_rows_are_not_calibrated_on(recipe, trained, reviews_csv, tmp_path, eager):
    assert load_run(trained).temperature == 1.0
    many = dataclasses.replace(recipe, validation_data=str(reviews_csv), epochs=1)
    train(many, tmp_path / "many", verbose=0)
    assert 0.2 <= load_run(tmp_path / "many").temperature <= 5.0


def test_more_tokens_than_the_encoder_has_positions_for_is_an_error(recipe, tmp_path, eager):
    with pytest.raises(ValueError, match=r"cannot take 65 tokens \(`sequence_length`\)"):
        train(dataclasses.replace(recipe, sequence_length=65), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_resume_takes_up_the_same_recipe_only(recipe, tmp_path, eager):
    first = train(recipe, tmp_path / "run", verbose=0)
    with pytest.raises(ValueError, match="resume='auto'"):
        train(recipe, tmp_path / "run", verbose=0)
    finished = train(recipe, tmp_path / "run", resume="auto", verbose=0)
    assert set(finished.history) == set(first.history)
    np.testing.assert_allclose(finished.history["val_loss"], first.history["val_loss"])
    (tmp_path / "run" / "model.keras").unlink()  # as if it had been killed
    begun_again = train(recipe, tmp_path / "run", resume="auto", verbose=0)
    for a, b in zip(begun_again.model.get_weights(), first.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="another recipe.*differs in seed"):
        train(dataclasses.replace(recipe, seed=1), tmp_path / "run", resume="auto", verbose=0)
    with pytest.raises(ValueError, match="resume='always'"):
        train(recipe, tmp_path / "run", resume="always", verbose=0)


def test_run_holds_all_that_is_needed_to_use_it_again(recipe, reviews_csv, tmp_path, eager):
    history = train(recipe, tmp_path / "run", verbose=0)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "recipe.json",
        "model.keras",
        "preprocessor",
        "metrics.json",
        "history.json",
        "provenance.json",
        "tensorboard",
        "validation.parquet",
    }
    run = load_run(tmp_path / "run")
    assert run.recipe == recipe
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    # A balanced set: the untouched model's loss is the entropy of its labels.
    np.testing.assert_allclose(metrics["first_loss"], metrics["label_entropy"], rtol=0.02)
    assert 0 < metrics["seconds_to_first_step"] < metrics["seconds"]
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    dataset = data.read(reviews_csv)
    rest, held_out = data.split(dataset, 0.1, seed=0)
    assert provenance["data"]["train"]["sha256"] == data.fingerprint(rest)
    assert provenance["data"]["validation"]["rows"] == int(held_out.cardinality())
    assert provenance["packages"]["keras"] == keras.__version__

    texts, labels = data.collect(held_out)
    tokens = data.encode(run.preprocessor, texts)
    logits = keras.Model(history.model.input, history.model.get_layer("logit").output)(tokens)[:, 0]
    expected = 1 / (1 + np.exp(-np.asarray(logits, "float64") / run.temperature))
    np.testing.assert_allclose(run.predict(texts), expected, atol=1e-6)
    rows = pq.read_table(tmp_path / "run" / "validation.parquet").to_pydict()
    assert rows["text"] == [text.decode() for text in texts] and rows["label"] == labels.tolist()
    np.testing.assert_allclose(rows["probability"], run.predict(texts), atol=1e-6)
    again = evaluation.evaluate(labels, run.predict(texts), threshold=run.threshold)
    assert again.accuracy == pytest.approx(run.validation.accuracy)


def test_predictions_come_in_the_order_of_the_texts(trained, eager):
    run = load_run(trained)
    texts = ["a very very very great film !", "bad", "", "naïve \ud800 \x00 film", "word " * 500]
    np.testing.assert_allclose(run.predict(texts), [run.predict([text])[0] for text in texts], atol=1e-6)
    assert run.predict([]).shape == (0,)
    with pytest.raises(ValueError, match="a sequence of texts. Received: one str"):
        run.predict("a great film")
    with pytest.raises(ValueError, match="Received: None at position 1"):
        run.predict(["a great film", None])


def test_bad_input_leaves_nothing_behind(recipe, tmp_path):
    (tmp_path / "one.csv").write_text("text,label\na,1\nb,1\n")
    with pytest.raises(ValueError):
        train(dataclasses.replace(recipe, train_data=str(tmp_path / "one.csv")), tmp_path / "run", verbose=0)
    with pytest.raises(ValueError, match="Could not load the preset"):
        train(dataclasses.replace(recipe, preset="no_such_preset"), tmp_path / "run", verbose=0)
    with pytest.raises(ValueError, match="name='gpus'"):
        train(recipe, tmp_path / "run", strategy="gpus", verbose=0)
    assert not (tmp_path / "run").exists()


def test_plan_is_what_training_then_does(recipe, tmp_path, eager):
    planned = plan(recipe)
    model = train(recipe, tmp_path / "run", verbose=0).model
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert planned["steps"] == metrics["steps"]
    assert planned["train_rows"] == metrics["train_rows"]
    weights = sum(weight.size for weight in model.get_weights())
    assert planned["weights"] == weights
    memory = planned["memory_mb"]
    trained = weights - (4 * 4 + 4)  # not the pooler, of width 4: the mean over tokens passes it by
    assert memory["weights"] == weights * 4 / 1e6
    assert memory["gradients"] == memory["moments"] / 2 == trained * 4 / 1e6
    shapes = [tokens["token_ids"].shape for tokens, _ in prepare(recipe).batches]  # 2 layers of width 4 with 2 heads
    kept = [2 * 2 * rows * length * (34 * 4 + 5 * 2 * length) for rows, length in shapes]
    assert memory["activations"] == max(kept) / 1e6
    assert 0 <= planned["padding"] < 0.5 and planned["tokens_per_epoch"] > planned["train_rows"]
    assert planned["devices"] == ["CPU:0"]
    assert planned["fit_seconds"] == pytest.approx(planned["step_seconds"] * planned["steps"])


def test_too_few_rows_to_validate_on_is_an_error(recipe, tmp_path):
    (tmp_path / "few.csv").write_text("text,label\ngood,1\nbad,0\nfine,1\n")
    with pytest.raises(ValueError, match="too small to hold out.*validation_data"):
        train(dataclasses.replace(recipe, train_data=str(tmp_path / "few.csv")), verbose=0)


def test_loss_that_is_not_finite_is_an_error_about_the_rate(recipe, tmp_path, eager):
    wild = dataclasses.replace(recipe, optimizer="adamw", learning_rate=1e38, schedule="constant")
    with pytest.raises(ValueError, match="Lower the learning rate.*learning_rate=1e"):
        train(wild, tmp_path / "runs" / "wild", verbose=0)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", ["file", "full folder", "below a file"])
def test_output_dir_in_use_is_refused_before_training(recipe, tmp_path, kind):
    path = tmp_path / "run"
    if kind == "full folder":
        path.mkdir()
        (path / "precious.txt").write_text("keep")
    else:
        path.write_text("keep")
    with pytest.raises(ValueError, match="`output_dir`"):
        train(recipe, path / "deeper" if kind == "below a file" else path, verbose=0)
    assert "keep" in (path / "precious.txt" if kind == "full folder" else path).read_text()


def test_folder_that_is_no_run_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no recipe.json, metrics.json, model.keras"):
        load_run(tmp_path)


def test_damaged_run_is_an_error(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "model.keras").write_bytes(b"torn")
    with pytest.raises(ValueError, match="damaged"):
        load_run(tmp_path / "run")


HASH_OF_WEIGHTS = """
import hashlib, sys
from bertbin_tf.recipe import Recipe, train
model = train(Recipe.from_json(sys.argv[1]), verbose=0).model
print(hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest())
"""


def hash_in_a_new_process(recipe):
    command = [sys.executable, "-c", HASH_OF_WEIGHTS, recipe.to_json()]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.split()[-1]


def test_seed_alone_decides_and_not_what_is_drawn_while_reading(recipe, eager, monkeypatch):
    first = train(recipe, verbose=0).model.get_weights()
    other = train(dataclasses.replace(recipe, seed=1), verbose=0).model.get_weights()
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    read = data.read

    def read_and_draw(*args, **kwargs):  # as TFDS does when it prepares a set
        random.random(), np.random.random(), tf.random.uniform(())
        return read(*args, **kwargs)

    monkeypatch.setattr(data, "read", read_and_draw)
    for a, b in zip(first, train(recipe, verbose=0).model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.checkpoint
def test_same_seed_gives_the_same_weights_of_a_layer_of_real_size(tmp_path):
    """In two processes. `benchmarks/survival.py` does it with all of MiniLM."""
    minilm = load_backbone("minilm")
    backbone = minilm.__class__.from_config(minilm.get_config() | {"num_layers": 1})
    backbone.save_to_preset(str(tmp_path))
    save_preprocessor(load_preprocessor("minilm"), backbone, tmp_path)
    recipe = Recipe("vader/movies:train[:100]", preset=str(tmp_path), epochs=1)
    first = hash_in_a_new_process(recipe)
    assert hash_in_a_new_process(recipe) == first
