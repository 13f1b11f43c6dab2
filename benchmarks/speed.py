"""How fast is training and prediction? Beside what a user would pick instead, on the same machine, weights and texts.

    python benchmarks/speed.py train predict steps race --peers .venv-peers/bin/python

`train` counts the rows that a second of training takes, `predict` those of prediction, both on film reviews and on
texts of 300 to 500 words; `steps` times our step over lengths and batch sizes; `race` counts the seconds from the start
of the program to an accuracy of 0.83 on the test split, of five seeds. Every contestant is a process of its own; they
take turns, so that a noisy machine is noisy for all. Prints the tables, writes `results/speed.json` and
`results/races.jsonl`, whose races are not run again, and draws `results/speed.png`. It wants the machine for itself:
`train` for 40 minutes, `predict` for 20, `steps` for ten, `race` for three hours. Without a word only the tables are
printed.
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from kept_runs import KeptRuns
from speed_tables import draw, print_races, print_tables
from speed_texts import GOAL, OURS
from turns import Turns

HERE = Path(__file__).parent
RESULTS, PLOT = HERE / "results" / "speed.json", HERE / "results" / "speed.png"
RACES = HERE / "results" / "races.jsonl"
ROUNDS = 3
LIMITS = {"short": 128, "long": 512}
PREDICTED = {"short": 2000, "long": 64}
# What the last words of a contestant's name mean.
ENVIRONMENTS = {
    # What `bertbin_tf.memory` does, from outside.
    "memory kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "4000000000"},
    # glibc's own value, which `keep_freed_memory` lets stand because it is given.
    "memory not kept": {"MALLOC_TRIM_THRESHOLD_": "131072"},
    # As the command line has it; TensorFlow's own choice depends on the processor.
    "oneDNN": {"TF_ENABLE_ONEDNN_OPTS": "1"},
}
# Name, program, steps in a turn on which texts, the slow ones fewer.
TRAINING = (
    ("bertbin_tf", "speed_ours.py train", {"short": 24, "long": 6}),
    ("bertbin_tf, memory not kept", "speed_ours.py train", {"short": 24}),
    (OURS, "speed_ours.py train", {"short": 24, "long": 6}),
    ("bertbin_tf, XLA", "speed_ours.py train_xla", {"short": 24}),
    ("Trainer", "speed_peers.py trainer", {"short": 24, "long": 6}),
    ("Trainer by length", "speed_peers.py trainer_by_length", {"short": 24, "long": 6}),
    ("Trainer by length, memory kept", "speed_peers.py trainer_by_length", {"short": 24, "long": 6}),
    ("keras-hub at 128", "speed_ours.py keras_hub", {"short": 3}),
    ("keras-hub at 128, memory kept", "speed_ours.py keras_hub", {"short": 3}),
)
# Padded to 512 tokens, as by default, it needs 10 GB, and has the machine for itself.
GUIDE = "keras-hub as its guide"
PREDICTION = (
    ("bertbin_tf", "speed_ours.py predict"),
    (OURS, "speed_ours.py predict"),
    ("bertbin_tf, SavedModel", "speed_ours.py saved_model"),
    ("bertbin_tf, SavedModel, oneDNN", "speed_ours.py saved_model"),
    ("pipeline", "speed_peers.py pipeline"),
    ("pipeline, memory kept", "speed_peers.py pipeline"),
    ("ONNX Runtime", "speed_peers.py onnx"),
    ("ONNX Runtime, memory kept", "speed_peers.py onnx"),
)
RACE = (
    (OURS, "speed_ours.py race"),
    ("Trainer", "speed_peers.py race"),
    ("Trainer by length", "speed_peers.py race_by_length"),
    ("Trainer by length, memory kept", "speed_peers.py race_by_length"),
    ("setfit", "speed_peers.py race_setfit"),
    ("keras-hub at 128", "speed_ours.py race_keras_hub"),
)
NUM_SEEDS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="train, predict, steps, race")
    parser.add_argument("--texts", nargs="+", choices=LIMITS, default=tuple(LIMITS), help="default: both kinds")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these contestants, and ours")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="of requirements-peers.txt")
    arguments = parser.parse_args()
    measures = {"train": measure_training, "predict": measure_prediction, "steps": measure_steps}
    if unknown := set(arguments.parts) - {*measures, "race"}:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(measures)}, race")
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.parts:
            write_contest(Path(folder))
        for part in [part for part in arguments.parts if part in measures]:
            results[part] = results.get(part, {}) | measures[part](
                Path(folder), arguments.peers, arguments.texts, arguments.only
            )
            results["machine"] = f"{platform.machine()}, {os.cpu_count()} CPU cores"
            RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if "race" in arguments.parts:
            run_races(Path(folder), arguments.peers, arguments.only)
    print_tables(results)
    print_races(KeptRuns(RACES, ()).load())
    draw(results, PLOT)


def write_contest(folder):
    """Writes texts, and the same untrained model for all."""
    import keras
    from encoders import save_for_transformers
    from speed_texts import write_texts

    from bertbin_tf.export import export_saved_model
    from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor

    write_texts(folder)
    keras.utils.set_random_seed(0)
    model = binary_classifier(load_backbone("minilm"), kernel_initializer="glorot_uniform")
    save_for_transformers(model, folder / "peer")
    for limit in LIMITS.values():
        export_saved_model(model, load_preprocessor("minilm", limit), folder / f"saved_model-{limit}")


def measure_training(folder, peers, kinds, only):
    """Returns, for each kind of text and each contestant, seconds and steps of every turn, and the largest memory."""
    results = {}
    for kind in kinds:
        limit = LIMITS[kind]
        counts = {name: steps[kind] for name, _, steps in TRAINING if kind in steps and takes_part(name, only)}
        commands = {name: program(peers, words, folder, kind, limit) for name, words, _ in TRAINING if name in counts}
        results[kind] = take_turns(commands, counts, warm_up={name: min(count, 8) for name, count in counts.items()})
    if "short" in kinds and takes_part(GUIDE, only):
        command = program(peers, "speed_ours.py keras_hub", folder, "short", 512)
        results["short"] |= take_turns({GUIDE: command}, {GUIDE: 1}, warm_up={}, rounds=2)
    results["peak"] = measure_peak(folder, peers)
    results["tokens"] = tokens_per_row(folder)
    return results


def measure_prediction(folder, peers, kinds, only):
    """Returns, for each kind of text and each contestant, the seconds of every turn."""
    results = {}
    for kind in kinds:
        limit = LIMITS[kind]
        commands = {
            name: program(peers, words, folder, kind, limit) for name, words in PREDICTION if takes_part(name, only)
        }
        results[kind] = take_turns(commands, dict.fromkeys(commands, PREDICTED[kind]), warm_up={})
    return results


def measure_steps(folder, peers, kinds, only):
    """Returns the seconds of three steps for each length and batch size."""
    with playing({OURS: program(peers, "speed_ours.py steps", folder, "short", 512)}) as players:
        # The program knows the order; a turn is one shape.
        return {"shapes": [players[OURS].take(1) for _ in range(players[OURS].start["shapes"])]}


def measure_peak(folder, peers):
    """Returns the products of 2,048 x 2,048 matrices in a second, turn by turn, of TensorFlow and of PyTorch."""
    commands = {
        "TensorFlow": program(peers, "speed_ours.py peak", folder, "short", 0),
        "TensorFlow, oneDNN": program(peers, "speed_ours.py peak", folder, "short", 0),
        "PyTorch": program(peers, "speed_peers.py peak", folder, "short", 0),
    }
    return take_turns(commands, dict.fromkeys(commands, 20), warm_up=dict.fromkeys(commands, 5))


def run_races(folder, peers, only):
    """Has each contestant train once with each seed until it is good enough, one after the other."""
    races = KeptRuns(RACES, ("name", "seed", "goal"))
    shown = ("name", "seed", "reached", "seconds", "steps")
    for seed in range(NUM_SEEDS):
        for name, words in RACE:
            if takes_part(name, only):
                command = program(peers, words, folder, "short", LIMITS["short"], seed)
                run = {"name": name, "seed": seed, "goal": GOAL}
                races.keep(run, lambda run, command=command: race(run["name"], command), shown)


def race(name, command):
    """Returns the seconds from a program's start to its goal, beside what it reports."""
    started = time.perf_counter()
    player = Turns(command, environment_of(name))
    seconds = time.perf_counter() - started - player.start["uncounted"]
    player.end()
    return player.start | {"seconds": seconds}


def takes_part(name, only):
    return not only or name in only or name == OURS


def program(peers, words, folder, kind, limit, seed=0):
    file, what = words.split()
    python = peers if file == "speed_peers.py" else sys.executable
    return [python, str(HERE / file), what, str(folder), kind, str(limit), str(seed)]


def take_turns(commands, counts, warm_up, rounds=ROUNDS):
    """Has all contestants work in turn, round after round, and returns what each reports."""
    turns = {name: [] for name in commands}
    with playing(commands) as players:
        for name, count in warm_up.items():
            players[name].take(count)
        for number in range(rounds):
            for name, player in players.items():
                ready = {"ready": player.start["seconds"]}
                turns[name].append(player.take(counts[name]) | {"count": counts[name]} | ready)
                rate = counts[name] / turns[name][-1]["seconds"]
                print(f"round {number + 1}: {name} {rate:.3f} per second", flush=True)
    return turns


def environment_of(name):
    return ENVIRONMENTS.get(name.rpartition(", ")[2], {})


@contextlib.contextmanager
def playing(commands):
    """Starts contestants, one after the other, and ends them."""
    players = {}
    try:
        for name, command in commands.items():
            players[name] = Turns(command, environment_of(name))
            print(f"{name} is ready after {players[name].start['seconds']:.0f} s", flush=True)
        yield players
    finally:
        for player in players.values():
            player.end()


def tokens_per_row(folder):
    """Returns the mean number of tokens of a training row of each kind, cut at its limit."""
    from speed_texts import load_texts

    from bertbin_tf import data
    from bertbin_tf.models import load_preprocessor

    means = {}
    for kind, limit in LIMITS.items():
        tokens = data.encode(load_preprocessor("minilm", limit), load_texts(folder, kind, "train")[0])
        means[kind] = float(np.sum(tokens["padding_mask"]) / len(tokens["padding_mask"]))
    return means


if __name__ == "__main__":
    main()
