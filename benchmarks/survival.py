"""Does a training that is killed again and again end with the weights that it would have had?

    python benchmarks/survival.py

Trains the real checkpoint on some film reviews, undisturbed; then again, killed with SIGKILL at random moments and
begun again with the same command each time, and compares weights, history and metrics bit for bit. Writes
`results/survival.json`. It takes some 20 minutes on two CPU cores.
"""

import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from bertbin_tf.recipe import load_run
from bertbin_tf.recipe.folder import write_whole

RESULTS = Path(__file__).parent / "results" / "survival.json"
NUM_KILLS = 20
FLAGS = ["--train-data", "vader/movies:train[:8%]", "--epochs", "2", "--sequence-length", "32", "--resume", "auto"]


def main():
    with tempfile.TemporaryDirectory() as folder:
        whole, often = Path(folder, "whole"), Path(folder, "often")
        started = time.monotonic()
        _train(whole).wait()
        seconds = time.monotonic() - started
        print(f"the undisturbed one took {seconds:.0f} s", flush=True)
        rng, kills, endings = random.Random(0), [], []
        while len(kills) < NUM_KILLS or not endings or often.exists():
            process = _train(often)
            if len(kills) < NUM_KILLS:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(rng.uniform(0.2, 0.9) * seconds)
                process.kill()
            code = process.wait()
            if code == -signal.SIGKILL:
                kills.append(_position(often))
                print(f"kill {len(kills)}: the last backup is at (epoch, batch) {kills[-1]}", flush=True)
            elif code == 0:  # it was faster; the kills that are left are those of another one
                endings.append(_compare(whole, often) | {"kills": len(kills)})
                print(endings[-1], flush=True)
                shutil.rmtree(often)
                _write(kills, endings)
            else:
                sys.exit(f"A training ended with exit code {code}.")
    num_same = sum(ending.items() >= _SAME.items() for ending in endings)
    print(
        f"{len(kills)} kills in {len(endings)} trainings, of which {num_same} ended as the undisturbed one, bit for bit"
    )


def _write(kills, endings):
    found = {
        "kills": kills,  # the (epoch, batch) of the last backup at each, or null where there was none yet
        "endings": endings,  # of each training that came to its end, after so many of the kills
        "keras": keras.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }
    write_whole(RESULTS, lambda file: file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8"))


_SAME = {"weights_that_differ": 0, "history_differs": False, "metrics_differ": False}


def _compare(whole, often):
    runs = [load_run(run).model.get_weights() for run in (whole, often)]
    return {
        "weights": int(sum(weight.size for weight in runs[0])),
        "weights_that_differ": int(sum(np.sum(a != b) for a, b in zip(*runs, strict=True))),
        "history_differs": _json(whole, "history") != _json(often, "history"),
        "metrics_differ": _without_times(_json(whole, "metrics")) != _without_times(_json(often, "metrics")),
    }


def _train(run):
    code = "import sys; from bertbin_tf.cli import main; sys.exit(main())"
    flags = [*FLAGS, "--output-dir", str(run), "--backup-every", "2", "--json"]
    return subprocess.Popen([sys.executable, "-c", code, "train", *flags], stdout=subprocess.DEVNULL)


def _position(run):
    names = sorted(path.name for path in (run / "backup").glob("*-*.npz")) if run.is_dir() else []
    return [int(part) for part in names[-1].split("-")[1:3]] if names else None


def _json(run, name):
    return json.loads((run / f"{name}.json").read_text(encoding="utf-8"))


def _without_times(metrics):
    return {name: value for name, value in metrics.items() if "seconds" not in name}


if __name__ == "__main__":
    main()
