"""Does memory stay bounded: while a large file is read, and while a long training runs?

    python benchmarks/endurance.py            # all three
    python benchmarks/endurance.py csv        # writes a CSV file of 2 GB into the temporary folder, and reads it
    python benchmarks/endurance.py texts      # the same file, read as `predict` does
    python benchmarks/endurance.py steps      # 2,000 steps of the recipe on a two-layer encoder

Each runs in a process of its own. Writes `results/endurance.json`; it takes some 15 minutes on two CPU cores.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RESULTS = Path(__file__).parent / "results" / "endurance.json"
GIGABYTES = 2.0
NUM_STEPS = 2000
WARM_UP = 500  # steps, after which memory should be flat
PARTS = ("csv", "texts", "steps")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--here", action="store_true", help="in this process, and print what was found as JSON")
    arguments = parser.parse_args()
    if arguments.here:
        functions = {"csv": read_to_train, "texts": read_to_predict, "steps": train_for_long}
        print(json.dumps(functions[arguments.part]()))
        return
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for part in [arguments.part] if arguments.part else PARTS:
        command = [sys.executable, __file__, part, "--here"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[part] = json.loads(output.splitlines()[-1])
        print(part, json.dumps(found[part], indent=2), flush=True)
        found["machine"] = f"{platform.machine()}, {os.cpu_count()} CPU cores"
        RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def read_to_train():
    """Returns the rows of a large CSV file, how long reading it took, and the memory before, at most and after."""
    from bertbin_tf import data

    return read_large_file(lambda path: int(data.read(path).cardinality()))


def read_to_predict():
    """Returns the same where nothing is kept of a text once it is read."""
    from bertbin_tf import data

    return read_large_file(lambda path: sum(1 for _ in data.read_texts(path)))


def read_large_file(count_rows):
    from turns import largest_memory

    from bertbin_tf import data

    texts, labels = data.collect(data.read("vader/movies"))
    rows = [
        b'"' + text.replace(b'"', b'""') + b" %d" + b'",%d\n' % label for text, label in zip(texts, labels, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reviews.csv")
        with path.open("wb") as file:
            file.write(b"text,label\n")
            number = 0
            while file.tell() < GIGABYTES * 2**30:
                file.writelines(row.replace(b"%d", b"%d" % (number + index)) for index, row in enumerate(rows))
                number += len(rows)
        del texts, labels, rows
        before, started = memory(), time.perf_counter()
        assert largest_memory() < before + 200, "what came before took more memory than is to be measured"
        num_rows = count_rows(path)
        return {
            "file_mb": path.stat().st_size / 2**20,
            "rows": num_rows,
            "seconds": time.perf_counter() - started,
            "mb_before": before,
            "mb_at_most": largest_memory(),
        }


def train_for_long():
    """Returns how memory, file handles and threads grow over the steps of a training with all that the recipe has."""
    import keras
    import keras_nlp
    import numpy as np

    from bertbin_tf.models import load_preprocessor, save_preprocessor
    from bertbin_tf.recipe import Recipe, TrainingBackup, prepare
    from bertbin_tf.recipe.building import build_callbacks

    class Sampler(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.samples, self._step = [], 0

        def on_train_batch_end(self, batch, logs=None):
            self._step += 1
            if self._step % 10 == 0:
                handles, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
                self.samples.append((self._step, memory(), handles, threads))

    with tempfile.TemporaryDirectory() as folder:
        preprocessor = load_preprocessor("minilm")
        size = preprocessor.tokenizer.vocabulary_size()
        backbone = keras_nlp.models.BertBackbone(size, 2, 2, 32, 64, max_sequence_length=64)
        backbone.save_to_preset(f"{folder}/preset")
        save_preprocessor(preprocessor, backbone, f"{folder}/preset")
        recipe = Recipe("vader/movies:train[:20%]", preset=f"{folder}/preset", sequence_length=64, epochs=100)
        made = prepare(recipe)
        tokens = next(iter(made.validation_batches))[0]
        callbacks = [
            callback
            for callback in build_callbacks(recipe, made.backbone, tokens, f"{folder}/run")
            if not isinstance(callback, keras.callbacks.EarlyStopping)
        ]
        backup, sampler = TrainingBackup(Path(folder, "backup"), callbacks, every=5.0), Sampler()
        num_epochs = -(-NUM_STEPS // len(made.batches))
        made.model.fit(
            made.batches_from(0),
            validation_data=made.validation_batches,
            epochs=num_epochs,
            steps_per_epoch=len(made.batches),
            callbacks=[*callbacks, backup, sampler],
            verbose=0,
        )
    steps, megabytes, handles, threads = np.array(sampler.samples).T
    late = steps > WARM_UP
    return {
        "steps": int(steps[-1]),
        "epochs": num_epochs,
        "seconds": backup.fit_seconds,
        "mb": {int(step): round(megabytes[steps == step].item()) for step in steps if step % 250 == 0},
        "mb_per_1000_steps_after_500": 1000 * float(np.polyfit(steps[late], megabytes[late], 1)[0]),
        "file_handles": [int(handles[late][0]), int(handles[-1])],
        "threads": [int(threads[late][0]), int(threads[-1])],
    }


def memory():
    """Returns the memory that this process has now, in MB, on Linux."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
