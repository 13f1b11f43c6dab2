"""The whole way on film reviews, as a person would go it: fine-tune, evaluate, export, ask."""

import dataclasses
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np

from bertbin_tf import assets, data, evaluation
from bertbin_tf.cli import console
from bertbin_tf.export import export_run
from bertbin_tf.recipe import Recipe, load_run, train

TRAIN_DATA, TEST_DATA = "vader/movies:train", "vader/movies:test"
QUICK = "[:20%]"
SAVED_MODEL = Path("saved_models") / "movies"
SHOWN_METRICS = ("first_loss", "last_loss", "label_entropy", "seconds_to_first_step", "fit_seconds", "train_rows")
TEXTS = ["A quiet masterpiece.", "Two hours that I will never get back.", "It is, well, a film."]

# What a server does, in a process that has neither Keras models nor this package: it reads texts as JSON from standard
# input and writes what the SavedModel answers.
SERVER = textwrap.dedent(
    """
    import json, sys
    import tensorflow_text
    import tensorflow as tf
    assert not {"keras_nlp", "keras_hub", "bertbin_tf"} & set(sys.modules)
    serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
    answers = serve(text=tf.constant(json.load(sys.stdin)))
    print(json.dumps({name: answers[name].numpy().tolist() for name in ("probability", "label")}))
    """
)


def demo(quick: bool, compare: bool, as_json: bool) -> None:
    """Trains on the film reviews, evaluates, exports, and asks the exported model in a fresh process."""
    started = time.perf_counter()
    for name in ("minilm", "vader"):
        assets.fetch(name)
    portion = QUICK if quick else ""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    ours = Recipe(TRAIN_DATA + portion, epochs=1)
    recipes = {"ours": ours}
    if compare:
        set_ups = {"naive": Recipe.naive, "plateau": Recipe.plateau, "hidden_head": Recipe.hidden_head}
        recipes |= {name: set_up(ours.train_data, epochs=ours.epochs) for name, set_up in set_ups.items()}
    folders = {name: Path("runs") / f"demo-{stamp}-{name}" for name in recipes}
    results = {}
    for name, recipe in recipes.items():
        _say(f"Fine-tuning '{name}' on {recipe.train_data} ...", as_json)
        train(recipe, folders[name], verbose=console.keras_verbosity(as_json))
        results[name] = _evaluate(folders[name], TEST_DATA + portion, as_json)
    _say("Exporting, and asking the exported model in a fresh process ...", as_json)
    run = load_run(folders["ours"])
    with console.status("Writing the SavedModel ..."):
        version = export_run(run, folders["ours"], SAVED_MODEL)
    with console.status("Starting a fresh process ..."):
        answers = _ask(version)
    if np.abs(run.predict(TEXTS) - answers["probability"]).max() > 1e-5:
        raise RuntimeError(f"{version} answers {answers['probability']}, the run {run.predict(TEXTS).tolist()}.")
    summary = {
        "results": results,
        "answers": dict(zip(TEXTS, answers["probability"], strict=True)),
        "seconds": time.perf_counter() - started,
        "run": str(folders["ours"]),
        "saved_model": str(version),
    }
    if as_json:
        console.print_json(summary)
    else:
        _print(summary)


def _evaluate(folder, source, as_json):
    run = load_run(folder)
    texts, labels = data.collect(data.read(source))
    probabilities = run.predict(texts, verbose=int(console.is_terminal() and not as_json))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {
        "test": evaluation.evaluate(labels, probabilities, threshold=run.threshold).to_dict(),
        # Of the model itself: the temperature, which widens or narrows it, is taken back.
        "spread": float(np.std(evaluation.apply_temperature(probabilities, 1 / run.temperature))),
        "recipe": dataclasses.asdict(run.recipe),
        **{name: metrics[name] for name in SHOWN_METRICS},
    }


def _ask(version):
    process = subprocess.run(
        [sys.executable, "-c", SERVER, str(version)], input=json.dumps(TEXTS), capture_output=True, text=True
    )
    if process.returncode:
        raise RuntimeError(f"The exported model does not load in a fresh process:\n{process.stderr}")
    return json.loads(process.stdout)


def _print(summary):
    ours = summary["results"]["ours"]
    test = ours["test"]

    def with_interval(name):
        low, high = test["intervals"][name]
        return f"{test[name]:.3f}  ({low:.3f} to {high:.3f})"

    print()
    console.print_table(
        "Film reviews, held-out test split; the default recipe for one epoch",
        ("", ""),
        [
            ("training rows", f"{ours['train_rows']:,}"),
            ("test rows", f"{test['rows']:,}"),
            ("base rate (test)", f"{test['base_rate']:.3f}"),
            ("first loss / entropy of the labels", f"{ours['first_loss']:.4f} / {ours['label_entropy']:.4f}"),
            ("accuracy  (95 % interval)", with_interval("accuracy")),
            ("ROC AUC", with_interval("roc_auc")),
            ("Brier score", with_interval("brier")),
            (
                "seconds: to the first step / fit / all",
                f"{ours['seconds_to_first_step']:.0f} / {ours['fit_seconds']:.0f} / {summary['seconds']:.0f}",
            ),
            ("run", summary["run"]),
            ("SavedModel", summary["saved_model"]),
        ],
    )
    if len(summary["results"]) > 1:
        print()
        console.print_table(
            "The same problem set up in four ways, one epoch each",
            ("set-up", "rate", "accuracy", "spread of p", "first loss", "last loss"),
            [
                (
                    name,
                    f"{result['recipe']['learning_rate']:.0e}",
                    f"{result['test']['accuracy']:.3f}",
                    f"{result['spread']:.4f}",
                    f"{result['first_loss']:.4f}",
                    f"{result['last_loss']:.4f}",
                )
                for name, result in summary["results"].items()
            ],
        )
    print()
    console.print_table(
        "The SavedModel, asked in a fresh process",
        ("text", "probability"),
        [(text, f"{probability:.3f}") for text, probability in summary["answers"].items()],
    )


def _say(message, as_json):
    if not as_json:
        print(message, flush=True)
