"""Every example in a docstring runs, and prints what it says."""

import doctest
import functools
import importlib
import inspect
import pkgutil
import re
import shutil
import threading
from pathlib import Path

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import bertbin_tf
from bertbin_tf import callbacks, data, doctor, evaluation, export, memory, metrics, models, optimizers, recipe, serving

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(bertbin_tf.__path__, "bertbin_tf.")
    if not module.name.endswith("__main__")
]


def examples():
    for module in MODULES:
        for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs={}):
            if test.examples:
                needs_assets = any(name in test.docstring for name in ("vader/", "minilm"))
                marks = [pytest.mark.checkpoint] if needs_assets else []
                yield pytest.param(test, id=test.name.removeprefix("bertbin_tf."), marks=marks)


def public_objects():
    for module in MODULES:
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__:
                if inspect.isclass(value) or inspect.isfunction(value):
                    yield pytest.param(value, id=f"{module.__name__}.{name}".removeprefix("bertbin_tf."))


@pytest.fixture
def namespace(tiny_backbone, tiny_preprocessor, tiny_reviews, reviews_csv, tmp_path, monkeypatch, eager):
    """What an example may take for granted: the usual imports, a tiny compiled model and its data."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(reviews_csv, "reviews.csv")
    model = models.binary_classifier(tiny_backbone)
    model.compile(optimizers.LayerwiseAdamW(2e-5), "binary_crossentropy")
    tokens = data.tokenize(data.read(tiny_reviews), tiny_preprocessor)
    names = {"keras": keras, "keras_nlp": keras_nlp, "np": np, "tf": tf, "tfds": tfds, "threading": threading}
    names |= {"backbone": tiny_backbone, "preprocessor": tiny_preprocessor, "model": model}
    names |= {"batches": data.batch_by_length(tokens, 32)}
    for module in (callbacks, data, doctor, evaluation, export, memory, metrics, models, optimizers, recipe, serving):
        names |= {name: getattr(module, name) for name in getattr(module, "__all__", vars(module)) if name[0] != "_"}
    return names


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("test", examples())
def test_example_runs(test, namespace, tiny_preset):
    module = max((m for m in MODULES if test.name.startswith(m.__name__)), key=lambda m: len(m.__name__))
    if "tfds.load" in test.docstring:
        tfds.load("vader/movies")  # which says at length that it prepares the set, the first time
    test.globs = namespace | {name: value for name, value in vars(module).items() if not name.startswith("__")}
    if "train(Recipe(" in test.docstring:  # of the real encoder each takes a minute
        test.globs["Recipe"] = functools.partial(recipe.Recipe, preset=tiny_preset, sequence_length=16)
    if "saved_models/movies" in test.docstring and "export_" not in test.docstring:
        tf.config.run_functions_eagerly(False)
        export.export_saved_model(namespace["model"], namespace["preprocessor"], "saved_models/movies")
    report = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.failed == 0, "".join(report)


@pytest.mark.checkpoint
def test_readme_example_runs():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "@@" not in readme
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    exec(code.replace('"vader/movies"', '"vader/movies:train[:1%]"'), {})


@pytest.mark.parametrize("value", public_objects())
def test_public_object_says_what_it_is(value):
    assert inspect.getdoc(value), "no docstring"
