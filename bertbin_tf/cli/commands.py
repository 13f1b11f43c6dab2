"""What each command does. Each function's arguments are its flags."""

import dataclasses
import importlib
import itertools
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

from bertbin_tf import data, evaluation
from bertbin_tf.callbacks import LayerwiseLearningRateController
from bertbin_tf.cli import console
from bertbin_tf.cli.demo import demo
from bertbin_tf.doctor import diagnose
from bertbin_tf.export import Servable, export_run
from bertbin_tf.export.servable import find_version
from bertbin_tf.export.verification import require_text
from bertbin_tf.recipe import Recipe, load_run, plan, prepare
from bertbin_tf.recipe import train as train_recipe
from bertbin_tf.recipe.folder import write_whole
from bertbin_tf.recipe.runs import check_output_folder

__all__ = ["demo", "doctor", "evaluate", "export", "predict", "train"]

LINES_AT_ONCE = 1024


def train(
    recipe: Path | None,
    strategy: str,
    output_dir: Path | None,
    resume: str,
    backup_every: float,
    dry_run: bool,
    as_json: bool,
    **fields,
) -> None:
    """Fine-tunes and writes a run, or says what it would do."""
    if recipe is not None:
        fields = dataclasses.asdict(Recipe.from_json(recipe)) | fields
    if "train_data" not in fields:
        raise ValueError("--train-data is missing: give a file, vader/movies, tfds:NAME, or a --recipe that has it.")
    wanted = Recipe(**fields)
    if dry_run:
        if output_dir is not None:
            check_output_folder(output_dir, wanted, resume)
        with console.status("Reading the data, building the model, timing some steps ..."):
            planned = plan(wanted, strategy=strategy)
        if as_json:
            console.print_json(planned)
        else:
            console.print_table("Plan", ("", ""), _lines_of_plan(planned))
        return
    if output_dir is None and resume != "never":
        raise ValueError(f"--resume {resume} needs the --output-dir of the training that was cut off.")
    output_dir = output_dir or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    verbose = console.keras_verbosity(as_json)
    train_recipe(wanted, output_dir, strategy=strategy, resume=resume, backup_every=backup_every, verbose=verbose)
    metrics = json.loads((output_dir / "metrics.json").read_text(encoding="utf-8"))
    if as_json:
        console.print_json({"run": str(output_dir)} | metrics)
        return
    print(evaluation.Evaluation(**metrics["validation"]))
    print("\nThese are the validation texts, on which the threshold was tuned too; `evaluate` measures on others.")
    print(f"The run is in {output_dir}.")
    from bertbin_tf.report import read_record, verdict  # here, because matplotlib takes its time

    if (came_to := verdict(read_record(output_dir))).word != "trained":
        print(f"It {came_to.word}: {came_to.sentence}")


def _lines_of_plan(planned):
    for name, value in planned.items():
        if isinstance(value, dict):
            yield from _lines_of_plan({f"{name}: {part}": size for part, size in value.items()})
        elif isinstance(value, float):
            yield name.replace("_", " "), f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
        else:
            yield name.replace("_", " "), ", ".join(value) if isinstance(value, list) else f"{value:,}"


def evaluate(path: Path, source: str, text: str | None, label: str | None, positive: str | None, as_json: bool) -> None:
    """Measures a run on labelled texts."""
    run = _load(path)
    if os.path.abspath(source) == os.path.abspath(run.recipe.train_data):
        has_splits = source.startswith(("vader/", "tfds:"))
        split = " A split is named behind a colon: 'vader/movies:test'." if has_splits else ""
        warnings.warn(f"The run was trained on '{source}', so this says little about other texts.{split}", stacklevel=1)
    rows = data.read(
        source,
        text=text or run.recipe.text,
        label=label or run.recipe.label,
        positive=positive or run.recipe.positive,
        on_bad_rows=run.recipe.on_bad_rows,
    )
    texts, labels = data.collect(rows)
    probabilities = run.predict(texts, verbose=int(console.is_terminal() and not as_json))
    with console.status("Resampling for the intervals ..."):
        result = evaluation.evaluate(labels, probabilities, threshold=run.threshold)
    if as_json:
        console.print_json(result.to_dict())
    else:
        print(result)


def predict(path: Path, source: str, text: str | None) -> None:
    """Writes one JSON object per text to standard output."""
    if not path.exists():
        raise ValueError(f"There is no '{path}'. Give the folder of a run, or of a SavedModel.")
    saved_model = find_version(path)
    answer, column = (_ask_saved_model(saved_model), None) if saved_model else _ask_run(path)
    if source == "-":
        # Undecodable bytes pass through to the tokenizer, which makes them `[UNK]`.
        lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)
    else:
        lines = _read_texts(source, text, column)
    while some := list(itertools.islice(lines, LINES_AT_ONCE)):
        for line, probability, label in zip(some, *answer(some), strict=True):
            line = line.decode("utf-8", errors="replace") if isinstance(line, bytes) else line
            print(json.dumps({"text": line, "probability": float(probability), "label": int(label)}))


def _read_texts(source, text, usual):
    """Reads the column that was asked for, else that of the training data where there is one, else the obvious one."""
    if text is None and usual is not None and usual in data.columns_of(source):
        text = usual
    return data.read_texts(source, text=text)


def export(path: Path, target: Path, as_json: bool) -> None:
    """Writes a run as a SavedModel."""
    with console.status("Writing the SavedModel ..."):
        folder = export_run(load_run(path), path, target)
    if as_json:
        console.print_json({"path": str(folder), "version": int(folder.name)})
    else:
        print(f"Exported version {folder.name} to {folder}")


def doctor(source: str, budget: float, treat: bool, output_dir: Path | None, as_json: bool) -> None:
    """Examines a recipe's model, or anyone's; treats it, and trains it for an epoch, if asked to."""
    if budget <= 0:
        raise ValueError(f"--budget must be a positive number of seconds. Received: {budget:g}")
    if output_dir is not None:
        if not treat:
            raise ValueError("--output-dir is for the treated model: give --treat too.")
        if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise ValueError(f"--output-dir must be a new or an empty folder. Received: '{output_dir}'")
        output_dir.mkdir(parents=True, exist_ok=True)
    with console.status("Building the model ..."):
        examined = _built_by_recipe(Path(source)) if source.endswith(".json") else _built_by_user(source)
    with console.status(f"Examining, and trying cures for up to {budget:g} s ..."):
        diagnosis = diagnose(*examined, budget=budget)
    if not as_json:
        print(diagnosis)
    report = json.loads(diagnosis.to_json())
    if treat and diagnosis.findings:
        treated = diagnosis.treat()
        trained = _train_for_an_epoch(examined[0], treated, output_dir)
        report["treated"] = {"changes": treated.changes, "left": treated.left} | trained
        if not as_json:
            print("\n".join(["", *treated.lines, *_lines_of(trained)]))
    elif treat:
        if output_dir is not None:
            output_dir.rmdir()
        if not as_json:
            print("\nThere is nothing to treat; nothing was trained or saved.")
    if as_json:
        console.print_json(report)


def _train_for_an_epoch(model, treated, output_dir):
    with console.status("Training the treated model for an epoch ..."):
        history = model.fit(treated.train_data, validation_data=treated.validation_data, verbose=0).history
    report = {"epoch": {name: values[-1] for name, values in history.items()}}
    if output_dir is not None:
        write_whole(output_dir / "model.keras", model.save)
        report["model"] = str(output_dir / "model.keras")
    return report


def _lines_of(trained):
    yield "trained for an epoch: " + ", ".join(f"{name} {value:.4g}" for name, value in trained["epoch"].items())
    if "model" in trained:
        yield f"saved: {trained['model']}"


def _built_by_recipe(path):
    recipe = Recipe.from_json(path)
    made = prepare(recipe, strategy="one_device")
    if recipe.optimizer == "controlled":  # it is the rates that training begins with which are examined
        controller = LayerwiseLearningRateController()
        controller.set_params({"steps": len(made.batches), "epochs": recipe.epochs})
        controller.set_model(made.model)
        controller.on_train_begin()
        controller.on_train_batch_begin(0)
        controller.on_train_end()
    return made.model, made.batches, made.validation_batches


def _built_by_user(source):
    name, _, function = source.partition(":")
    if not name or not function:
        raise ValueError(f"Give a recipe's .json file, or 'module:function', as in 'train:build'. Received: '{source}'")
    sys.path.insert(0, "")  # as `python -m` does: modules of the folder one is in
    try:
        made = getattr(importlib.import_module(name), function)()
    except Exception as error:  # whatever the user's own code raises
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"'{source}' could not be called: {type(error).__name__}: {error} ({where.filename}, line {where.lineno})"
        ) from error
    finally:
        sys.path.remove("")
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        raise ValueError(
            f"'{source}' must return (model, train_data) or (model, train_data, validation_data). "
            f"Received: {type(made).__name__}"
        )
    return made


def _load(path):
    with console.status("Loading the run ..."):
        return load_run(path)


def _ask_run(path):
    run = _load(path)

    def answer(texts):
        probabilities = run.predict(texts)
        return probabilities, probabilities >= run.threshold

    return answer, run.recipe.text


def _ask_saved_model(path):
    with console.status("Loading the SavedModel ..."):
        servable = Servable(path)
    require_text(servable)

    def answer(texts):
        answers = servable.answer(texts)
        return answers["probability"], answers["label"]

    return answer
