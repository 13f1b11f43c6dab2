"""What can be typed, and what `--help` says about it."""

import argparse
import dataclasses
import functools
import importlib
from pathlib import Path

from bertbin_tf import __version__
from bertbin_tf.recipe import Recipe
from bertbin_tf.recipe.fields import field_type
from bertbin_tf.serving.limits import Limits

MODULES_WITHOUT_KERAS = {"verify": "serving", "serve": "serving", "report": "reporting", "compare": "reporting"}


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}. See '{self.prog} --help'.\n")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser; what it parses has the command's function as `run` and that function's arguments."""
    parser = _Parser(
        prog="bertbin-tf",
        description="Binary text classification with a pre-trained BERT under a sigmoid head, made to train.",
    )
    parser.add_argument("--version", action="version", version=f"bertbin-tf {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    demo = _add(commands, "demo", "the whole way, on film reviews: fine-tune, evaluate, export, ask the exported model")
    demo.add_argument("--quick", action="store_true", help="fewer texts, the same path")
    demo.add_argument("--compare", action="store_true", help="train three other set-ups as well, side by side")

    train = _add(commands, "train", "fine-tune on labelled texts")
    for field in dataclasses.fields(Recipe):
        train.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=field_type(field),
            default=argparse.SUPPRESS,
            choices=field.metadata["choices"],
            metavar=None if field.metadata["choices"] else field_type(field).__name__.upper(),
            help=field.metadata["help"] + _default(field),
        )
    train.add_argument("--recipe", type=Path, metavar="FILE", help="JSON file with these values; flags go before it")
    train.add_argument("--strategy", default="auto", help="auto, one_device, mirrored, tpu or multi_worker")
    train.add_argument("--output-dir", type=Path, metavar="RUN", help="new folder (default: runs/<date>-<time>)")
    train.add_argument(
        "--resume", choices=("never", "auto"), default="never", help="auto: go on in a RUN that was begun"
    )
    train.add_argument(
        "--backup-every", type=float, default=600.0, metavar="SECONDS", help="from backup to backup (default: 600)"
    )
    train.add_argument("--dry-run", action="store_true", help="read, check, build, time some steps, print the plan")

    evaluate = _add(commands, "evaluate", "measure a trained run on labelled texts")
    evaluate.add_argument("path", type=Path, metavar="RUN", help="folder that train wrote")
    evaluate.add_argument("--data", dest="source", required=True, metavar="SOURCE", help="labelled texts, as for train")
    for name in ("text", "label", "positive"):
        evaluate.add_argument(f"--{name}", help="as for train (default: as in training)")

    predict = _add(commands, "predict", "probabilities for texts, as JSON Lines: text, probability, label")
    predict.add_argument("path", type=Path, metavar="RUN_OR_SAVED_MODEL", help="folder that train or export wrote")
    predict.add_argument(
        "source", nargs="?", default="-", metavar="FILE", help="a text per line; .csv, .jsonl ...; or -"
    )
    predict.add_argument("--text", help="column with the texts (default: guessed)")

    export = _add(commands, "export", "write a SavedModel for TF Serving: text in, probability out")
    export.add_argument("path", type=Path, metavar="RUN", help="folder that train wrote")
    export.add_argument("target", type=Path, metavar="saved_models/NAME", help="gets a folder for the next version")

    verify = _add(commands, "verify", "load a SavedModel as a server does, and compare its answers with those noted")
    verify.add_argument("path", type=Path, metavar="saved_models/NAME/VERSION", help="or saved_models/NAME: the latest")
    verify.add_argument(
        "--run",
        dest="run_path",
        type=Path,
        metavar="RUN",
        help="compare with this run too (default: its own, if there)",
    )

    serve = _add(commands, "serve", "answer over HTTP as TF Serving does, and take up new versions")
    serve.add_argument("path", type=Path, metavar="saved_models/NAME", help="the folder that export wrote")
    serve.add_argument("--host", default="127.0.0.1", help="address to bind (default: %(default)s, this machine only)")
    serve.add_argument("--port", type=int, default=8501, help="(default: %(default)s)")
    serve.add_argument(
        "--label", dest="labels", action="append", default=[], metavar="NAME=VERSION", help="serve this one as NAME too"
    )
    for field in dataclasses.fields(Limits):
        serve.add_argument(
            f"--max-{field.name.replace('_', '-')}",
            type=field.type,
            default=field.default,
            metavar=field.type.__name__.upper(),
            help=f"most {field.metadata['help']} (default: %(default)s)",
        )

    doctor = _add(commands, "doctor", "say why a model does not train, and try the cure")
    doctor.add_argument(
        "source", metavar="RECIPE.json|MODULE:BUILD", help="a recipe, or a function that returns (model, train_data)"
    )
    doctor.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="for trials (default: 60)")
    doctor.add_argument("--treat", action="store_true", help="apply what a program can apply, and train for an epoch")
    doctor.add_argument("--output-dir", type=Path, metavar="DIR", help="where the treated model.keras goes")

    report = _add(commands, "report", "write an HTML page about a run")
    report.add_argument("path", type=Path, metavar="RUN", help="folder that train wrote")
    report.add_argument("--output", type=Path, metavar="FILE", help="(default: RUN/report.html)")

    compare = _add(commands, "compare", "compare runs in a table, and on a page")
    compare.add_argument("paths", type=Path, nargs="+", metavar="RUN", help="folders that train wrote")
    compare.add_argument("--output", type=Path, metavar="FILE", help="an .html file to write (default: only the table)")

    for command in (demo, train, evaluate, export, verify, doctor, report, compare):
        command.add_argument("--json", dest="as_json", action="store_true", help="print JSON, for machines")
    return parser


def _add(commands, name, help):
    command = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    command.add_argument("--traceback", action="store_true", help="show where an error came from")
    # What loads no Keras models does not wait for the packages that have them.
    module = MODULES_WITHOUT_KERAS.get(name, "commands")
    command.set_defaults(
        run=functools.partial(_run, f"bertbin_tf.cli.{module}", name),
        needs_keras=name not in MODULES_WITHOUT_KERAS,
    )
    return command


def _run(module, name, **arguments):
    # Found when it is run, for it imports TensorFlow.
    return getattr(importlib.import_module(module), name)(**arguments)


def _default(field):
    if field.default in (None, dataclasses.MISSING):
        return ""
    return f" (default: {field.default})"
