import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import running_eagerly

from bertbin_tf.cli import main
from bertbin_tf.export import export_saved_model
from bertbin_tf.models import binary_classifier
from bertbin_tf.recipe import Preempted, load_run
from bertbin_tf.serving import RestClient

pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture(scope="module")
def train_flags(tiny_preset, reviews_csv):
    return [
        "train",
        "--train-data",
        str(reviews_csv),
        "--preset",
        tiny_preset,
        "--sequence-length",
        "16",
        "--epochs",
        "1",
    ]


@pytest.fixture(scope="module")
def trained(train_flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    with running_eagerly():
        assert main([*train_flags, "--output-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of one small run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def give_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(content)))


def test_train_prints_the_validation_and_where_the_run_is(train_flags, tmp_path, capsys):
    assert main([*train_flags, "--output-dir", str(tmp_path / "run"), "--learning-rate", "3e-4"]) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out and str(tmp_path / "run") in out
    assert load_run(tmp_path / "run").recipe.learning_rate == 3e-4


def test_train_takes_a_recipe_file_and_flags_go_before_it(train_flags, run_dir, tmp_path, capsys):
    flags = ["train", "--recipe", str(run_dir / "recipe.json"), "--seed", "7", "--json"]
    assert main([*flags, "--output-dir", str(tmp_path / "again")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run"] == str(tmp_path / "again")
    first, again = load_run(run_dir).recipe, load_run(tmp_path / "again").recipe
    assert again.seed == 7 and again.train_data == first.train_data


def test_dry_run_prints_the_plan_and_writes_nothing(train_flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main([*train_flags, "--dry-run"]) == 0
    assert "train rows" in capsys.readouterr().out
    assert main([*train_flags, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train_rows"] == 108
    assert sorted(tmp_path.iterdir()) == before


def test_preempted_training_says_where_it_is_and_exits_with_75(train_flags, monkeypatch, capsys):
    def preempted(*_, **__):
        raise Preempted("asked to end; it goes on from there")

    monkeypatch.setattr("bertbin_tf.cli.commands.train_recipe", preempted)
    assert main(train_flags) == 75
    assert capsys.readouterr().err.endswith("bertbin-tf: asked to end; it goes on from there\n")


def test_train_resumes_a_finished_run_by_printing_it(train_flags, run_dir, capsys):
    again = [*train_flags, "--output-dir", str(run_dir), "--json"]
    assert main(again) == 2
    assert "resume" in capsys.readouterr().err
    assert main([*again, "--resume", "auto"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == str(run_dir)


def test_evaluating_on_the_training_texts_is_warned_about(run_dir, reviews_csv, capsys):
    assert main(["evaluate", str(run_dir), "--data", str(reviews_csv), "--json"]) == 0
    assert "The run was trained on" in capsys.readouterr().err


def test_foreign_saved_model_is_refused(tmp_path, capsys):
    module = tf.Module()
    module.double = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([], tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.double)
    assert main(["predict", str(tmp_path), "texts.txt"]) == 2
    assert "does not go from text to a probability" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is empty"),
        ("header.csv", b"text,label\n", "no rows"),
        ("two.csv", b"text,label\na,1\nb,2\n", "Which label of two.csv is the positive one"),
        ("nan.jsonl", b'{"text": "a", "label": NaN}\n{"text": "b", "label": 1}\n', "missing text or label"),
        ("none.jsonl", b'{"text": null, "label": 0}\n{"text": "b", "label": 1}\n', "missing text or label"),
        ("broken.jsonl", b'{"text": "a", "label": 0}\n{"text": \n', "broken JSON in line 2"),
        ("latin.csv", "text,label\nnaïve,1\nb,0\n".encode("latin-1"), "not UTF-8: byte 0xef in line 2"),
        (
            "mixed.jsonl",
            b'{"text": "a", "label": "0"}\n{"text": "b", "label": 1}\n',
            "all be strings or all be numbers",
        ),
        ("broken.parquet", b"PAR1 not really", "cannot be read as Parquet"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_bad_file_is_one_line_and_exit_code_2(command, name, content, message, run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["train", "--train-data", name] if command == "train" else ["evaluate", str(run_dir), "--data", name]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.strip().splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_evaluate_prints_json_with_the_fixed_keys(run_dir, reviews_csv, capsys):
    assert main(["evaluate", str(run_dir), "--data", str(reviews_csv), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"accuracy", "roc_auc", "log_loss", "brier", "threshold", "rows", "intervals"} <= set(printed)
    assert printed["rows"] == 120
    assert main(["evaluate", str(run_dir), "--data", str(reviews_csv)]) == 0
    assert "roc_auc" in capsys.readouterr().out


def test_predict_answers_a_line_with_a_line(run_dir, capsys, monkeypatch):
    give_input(monkeypatch, 'a great film\n\nnaïve "quoted"\r\nbad \xff byte'.encode("latin-1"))
    assert main(["predict", str(run_dir)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["a great film", "", 'na\ufffdve "quoted"', "bad \ufffd byte"]
    run = load_run(run_dir)
    np.testing.assert_allclose(rows[0]["probability"], run.predict(["a great film"])[0], atol=1e-6)
    assert {row["label"] for row in rows} <= {0, 1}


def test_predict_asks_the_column_that_was_trained_on_and_no_other(run_dir, tmp_path, capsys):
    recipe = json.loads((run_dir / "recipe.json").read_text())
    (run_dir / "recipe.json").write_text(json.dumps(recipe | {"text": "body"}))
    (tmp_path / "both.csv").write_text("body,text\ngreat,AAA\n,BBB\n")
    assert main(["predict", str(run_dir), str(tmp_path / "both.csv")]) == 2
    assert "missing text: line 3" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("text\ngreat\n")
    assert main(["predict", str(run_dir), str(tmp_path / "other.csv")]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "great"


def test_exported_model_predicts_as_the_run_does(run_dir, reviews_csv, tmp_path, capsys):
    target = tmp_path / "saved_models" / "tiny"
    assert main(["export", str(run_dir), str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(target / "1"), "version": 1}
    assert main(["export", str(run_dir), str(target)]) == 0
    assert "version 2" in capsys.readouterr().out
    answers = []
    for path in (run_dir, target, target / "1"):
        assert main(["predict", str(path), str(reviews_csv)]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert main(["verify", str(target), "--json"]) == 0
    verification = json.loads(capsys.readouterr().out)
    assert verification["path"] == str(target / "2") and verification["run_difference"] < 1e-6
    (run_dir / "model.keras").write_bytes(b"another model")
    assert main(["verify", str(target / "1")]) == 0
    assert re.search("1 answers as it should(.|\n)*not compared", capsys.readouterr().out)
    assert len(answers[0]) == 120
    for other in answers[1:]:
        assert [row["text"] for row in other] == [row["text"] for row in answers[0]]
        difference = [a["probability"] - b["probability"] for a, b in zip(answers[0], other, strict=True)]
        assert np.abs(difference).max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["train"], "--train-data is missing"),
        (["train", "--train-data", "{reviews}", "--resume", "auto"], "--resume auto needs the --output-dir"),
        (["train", "--train-data", "nowhere.csv"], "nowhere.csv"),
        (["train", "--train-data", "{one_class}"], "one class|only the label"),
        (["train", "--train-data", "{reviews}", "--text", "body"], "body"),
        (["train", "--train-data", "{odd}"], r"not obvious. Name it with --text\."),
        (["train", "--train-data", "{semicolons}"], "one column, 'text;label': .* divided by ';'"),
        (["train", "--train-data", "{reviews}", "--learning-rate", "-1"], "greater than 0"),
        (["train", "--train-data", "{reviews}", "--learning-rate", "fast"], "invalid float value: 'fast'"),
        (["train", "--train-data", "{reviews}", "--pooling", "max"], "invalid choice: 'max'"),
        (["train", "--train-data", "{reviews}", "--preset", "no_such"], "Could not load the preset 'no_such'"),
        (["train", "--train-data", "{reviews}", "--strategy", "gpus"], "name='gpus'"),
        (["train", "--train-data", "{reviews}", "--output-dir", "{folder}"], "not an empty folder"),
        (["train", "--train-data", "{reviews}", "--output-dir", "{folder}", "--dry-run"], "not an empty folder"),
        (["train", "--recipe", "nowhere.json"], "nowhere.json"),
        (["evaluate", "{folder}", "--data", "{reviews}"], "not the folder of a finished run"),
        (["evaluate", "{folder}"], "required: --data"),
        (["predict", "nowhere"], "There is no 'nowhere'"),
        (["predict", "{folder}", "{reviews}"], "not the folder of a finished run"),
        (["export", "{folder}", "{folder}/saved"], "not the folder of a finished run"),
        (["verify", "{folder}"], "There is no SavedModel"),
        (["serve", "nowhere"], "There is no folder 'nowhere'"),
        (["serve", "{folder}", "--port", "0"], "has no version that can be served"),
        (["serve", "{folder}", "--port", "70000"], "Cannot listen on 127.0.0.1, port 70000"),
        (["serve", "{folder}", "--label", "stable"], "NAME=VERSION, as in stable=3"),
        (["serve", "{folder}", "--max-rows", "0"], "`rows` must be positive"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_users_mistake_is_one_line_and_exit_code_2(arguments, message, reviews_csv, tmp_path, monkeypatch, capsys):
    (tmp_path / "one_class.csv").write_text("text,label\na,1\nb,1\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.csv").write_text("a,b\nx,1\ny,0\n")
    (tmp_path / "semicolons.csv").write_text("text;label\na;1\nb;0\n")
    paths = {"reviews": reviews_csv, "folder": tmp_path}
    paths |= {name: tmp_path / f"{name}.csv" for name in ("one_class", "odd", "semicolons")}
    before = sorted(tmp_path.rglob("*"))
    try:
        code = main([argument.format(**paths) for argument in arguments])
    except SystemExit as exit:  # argparse
        code = exit.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    # What the fixture `eager` provokes is not the command's.
    assert len([line for line in err.splitlines() if "run_functions_eagerly" not in line]) == 1
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_command_is_quiet_and_a_closed_pipe_is_no_error(run_dir, reviews_csv):
    # A real process: TensorFlow greets on the file descriptor, where `capsys` does not see it.
    command = [sys.executable, "-m", "bertbin_tf.cli", "predict", str(run_dir), str(reviews_csv)]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (process.returncode, process.stderr) == (0, "")
    assert len(process.stdout.splitlines()) == 120
    head = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    head.stdout.close()
    assert (head.wait(), head.stderr.read()) == (0, b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        (["predict", "nowhere", "texts.csv"], None, "1"),
        (["verify", "nowhere"], None, "1"),
        (["doctor", "nowhere:build"], None, "1"),
        (["predict", "nowhere", "texts.csv"], "0", "0"),
        (["train", "--train-data", "nowhere.csv", "--output-dir", "run"], None, "1"),
    ],
)
def test_every_command_asks_for_onednn_unless_told_otherwise(command, given, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    if given is not None:
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", given)
    code = "import os, sys; from bertbin_tf.cli import main; code = main(sys.argv[1:])"
    code += "; print(code, os.environ.get('TF_ENABLE_ONEDNN_OPTS'))"
    process = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, cwd=tmp_path)
    assert process.stdout == f"2 {expected}\n", process.stderr


@pytest.mark.slow
def test_serve_answers_until_it_is_told_to_stop(tiny_backbone, tiny_preprocessor, tmp_path):
    export_saved_model(binary_classifier(tiny_backbone, base_rate=0.3), tiny_preprocessor, tmp_path / "tiny")
    command = [sys.executable, "-m", "bertbin_tf.cli", "serve", str(tmp_path / "tiny"), "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0] == "version 1 is served\n"
        address = re.fullmatch(r"answers at (http://127.0.0.1:\d+)/v1/models/tiny\n", lines[1])[1]
        np.testing.assert_allclose(RestClient("tiny", address).predict(["a film"]).probability, [0.3], atol=1e-6)
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "version 1 is dropped\n", "bertbin-tf: interrupted\n")


def test_unreadable_recipe_shows_a_traceback_only_when_asked(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text("{")
    assert main(["train", "--recipe", str(tmp_path / "recipe.json"), "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


COMMANDS = ("demo", "train", "evaluate", "predict", "export", "verify", "serve", "doctor")


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_is_there_for_every_command(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    assert exit.value.code == 0
    assert "usage: bertbin-tf" in capsys.readouterr().out


USER_MODULE = """
import sys
sys.path.insert(0, {tests!r})
from test_doctor import healthy_model, rate_of_zero

def build():
    return rate_of_zero()

def build_nothing():
    return healthy_model()

def fail():
    raise OSError("the disk is gone")
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A folder with a user's own `mine.py`, in which the command is typed."""
    code = USER_MODULE.format(tests=os.path.dirname(__file__))
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.mark.filterwarnings("ignore")
def test_doctor_examines_what_a_function_of_the_user_builds(user_module, capsys):
    assert main(["doctor", "mine:build", "--budget", "0.001", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cause"] == "nothing-trains"


@pytest.mark.filterwarnings("ignore")
def test_doctor_treats_and_saves_a_model_that_trains(user_module, capsys):
    assert main(["doctor", "mine:build", "--budget", "0.001", "--treat", "--output-dir", "treated"]) == 0
    printed = capsys.readouterr().out
    assert "nothing-trains (suspected)" in printed and "changed: learning_rate = warmup_cosine" in printed
    assert "trained for an epoch: accuracy" in printed and os.listdir("treated") == ["model.keras"]
    model = keras.saving.load_model("treated/model.keras")
    assert int(model.optimizer.iterations) == 16


def test_folder_with_something_in_it_is_not_treated_over(user_module, capsys):
    os.mkdir("run")
    with open("run/model.keras", "w") as file:
        file.write("a model")
    assert main(["doctor", "mine:build", "--treat", "--output-dir", "run"]) == 2
    assert "new or an empty folder" in capsys.readouterr().err and open("run/model.keras").read() == "a model"


def test_output_dir_is_for_the_treated_model(user_module, capsys):
    assert main(["doctor", "mine:build", "--output-dir", "treated"]) == 2
    assert "--treat" in capsys.readouterr().err and not os.path.exists("treated")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mine", "module:function"),
        ("yours:build", "ModuleNotFoundError: No module named 'yours'"),
        ("mine:buidl", "AttributeError.*buidl"),
        ("mine:fail", "OSError: the disk is gone .*mine.py, line 13"),
        ("mine:build_nothing", r"must return \(model, train_data\)"),
        ("no.json", "no.json"),
    ],
)
def test_doctor_says_in_a_line_why_it_could_not_build(source, message, user_module, capsys):
    assert main(["doctor", source]) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err) and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rate", ["1e-6", "1e-2"])
def test_doctor_examines_a_recipe_as_it_is_trained(rate, run_dir, capsys):
    path = run_dir / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": float(rate)}))
    assert main(["doctor", str(path), "--budget", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "learning-rate" not in printed, printed
