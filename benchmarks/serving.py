"""How fast does an exported model answer, and does it lose a request? Beside two others, on the same machine and texts.

    python benchmarks/serving.py --peers .venv-peers/bin/python

Three servers run side by side, each in a process of its own: `bertbin-tf serve` with an export of MiniLM, and the
same weights in transformers' text-classification pipeline and in ONNX Runtime, both behind the same ASGI server
(`serving_peers.py`, in the environment of `requirements-peers.txt`). Requests come from this process, to one server at
a time and to each in turn, round after round. Then versions are swapped under load, and memory is watched over 10,000
requests. Prints the tables and writes `results/serving.json`. It wants the machine for itself, for half an hour.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import requests

RESULTS = Path(__file__).parent / "results" / "serving.json"
PEERS = Path(__file__).parent / "serving_peers.py"
NAME, LIMIT = "movies", 128
SERVERS = ("bertbin-tf", "ONNX Runtime", "pipeline")
NUM_CLIENTS = (1, 8, 32)
ROUNDS = 5
SECONDS = 4.0  # of each measurement with several clients
SINGLE_REQUESTS = 60  # one after the other, in each round
NUM_SWAPS, SWAP_CLIENTS = 10, 8
MEMORY_REQUESTS, MEMORY_CLIENTS = 10_000, 8


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="of requirements-peers.txt")
    arguments = parser.parse_args()
    texts = texts_by_kind()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model = export(folder)
        commands = {
            "bertbin-tf": [sys.executable, "-m", "bertbin_tf.cli", "serve", str(folder / NAME), "--port", "0"],
            "ONNX Runtime": [arguments.peers, str(PEERS), "onnx", str(folder / "peer"), str(LIMIT)],
            "pipeline": [arguments.peers, str(PEERS), "pipeline", str(folder / "peer"), str(LIMIT)],
        }
        processes = {}
        try:
            processes = {name: start(command) for name, command in commands.items()}
            urls = {name: address(process) for name, process in processes.items()}
            check_answers(urls, texts["short"], model)
            results = measure(urls, texts)
            results["swaps"] = swap(folder / NAME, processes["bertbin-tf"], urls["bertbin-tf"], texts["short"])
            results["memory"] = watch_memory(processes["bertbin-tf"], urls["bertbin-tf"], texts["short"])
        finally:
            for process in processes.values():
                process.terminate()
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    report(results)


def texts_by_kind():
    """Returns the film reviews of the test set, and texts of 300 to 500 words joined of them."""
    from speed_texts import join_reviews

    from bertbin_tf import data

    short = [text.decode() for text in data.collect(data.read("vader/movies:test"))[0]]
    return {"short": short, "long": join_reviews(short, np.random.default_rng(0))}


def export(folder):
    """Writes the same model for all: a SavedModel, and a folder of transformers'; returns its probabilities."""
    import keras
    from encoders import save_for_transformers

    from bertbin_tf import data
    from bertbin_tf.export import export_saved_model
    from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor

    keras.utils.set_random_seed(0)
    model = binary_classifier(load_backbone("minilm"), kernel_initializer="glorot_uniform")
    preprocessor = load_preprocessor("minilm", LIMIT)
    export_saved_model(model, preprocessor, folder / NAME)
    save_for_transformers(model, folder / "peer")

    def predict(texts):
        return np.concatenate(
            [
                model(data.encode(preprocessor, texts[i : i + 64]), training=False)[:, 0]
                for i in range(0, len(texts), 64)
            ]
        )

    return predict


def start(command):
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "true"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def address(process):
    for line in process.stdout:
        if found := re.search(r"http://127.0.0.1:\d+", line):
            return f"{found[0]}/v1/models/{NAME}:predict"
    raise RuntimeError(f"{process.args} did not start")


def ask(session, url, texts):
    response = session.post(url, json={"instances": texts}, timeout=120)
    response.raise_for_status()
    return [row["probability"] for row in response.json()["predictions"]]


def check_answers(urls, texts, predict):
    """Raises if the servers do not answer alike."""
    expected = predict(texts[:64])
    for name, url in urls.items():
        difference = np.abs(np.array(ask(requests.Session(), url, texts[:64])) - expected).max()
        print(f"{name}: largest difference from the Keras model {difference:.1e}", flush=True)
        if difference > 1e-3:
            raise RuntimeError(f"{name} serves another model")


def measure(urls, texts):
    results = {"single": {}, "throughput": {}}
    for kind, some in texts.items():
        generator = np.random.default_rng(1)
        for _ in range(ROUNDS):
            chosen = [some[i] for i in generator.integers(0, len(some), SINGLE_REQUESTS)]
            for name, url in urls.items():
                results["single"].setdefault(f"{name}, {kind}", []).extend(time_each(url, chosen))
        for num_clients in NUM_CLIENTS:
            for _ in range(ROUNDS):
                for name, url in urls.items():
                    key = f"{name}, {kind}, {num_clients}"
                    results["throughput"].setdefault(key, []).append(throughput(url, some, num_clients))
            print(f"{kind}, {num_clients} clients: done", flush=True)
    return results


def time_each(url, texts):
    session, seconds = requests.Session(), []
    for text in texts:
        started = time.perf_counter()
        ask(session, url, [text])
        seconds.append(time.perf_counter() - started)
    return seconds


def throughput(url, texts, num_clients):
    """Returns the texts answered in a second, asked for one at a time by each of several clients."""
    ends = time.perf_counter() + SECONDS

    def keep_asking(number):
        session, count, generator = requests.Session(), 0, np.random.default_rng(number)
        while time.perf_counter() < ends:
            ask(session, url, [texts[generator.integers(len(texts))]])
            count += 1
        return count

    started = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as threads:
        total = sum(threads.map(keep_asking, range(num_clients)))
    return total / (time.perf_counter() - started)


def swap(path, process, url, texts):
    """Swaps versions under load, and counts what was asked, answered, and answered wrongly."""
    session = requests.Session()
    sample = texts[:200]
    expected = dict(zip(sample, ask(session, url, sample), strict=True))
    done, asked, answered, wrong = threading.Event(), [], [], []

    def keep_asking(number):
        session, generator = requests.Session(), np.random.default_rng(number)
        while not done.is_set():
            text = sample[generator.integers(len(sample))]
            asked.append(1)
            (probability,) = ask(session, url, [text])
            answered.append(1)
            if abs(probability - expected[text]) > 1e-5:
                wrong.append(text)

    with ThreadPoolExecutor(SWAP_CLIENTS) as threads:
        asking = [threads.submit(keep_asking, number) for number in range(SWAP_CLIENTS)]
        for number in range(2, NUM_SWAPS + 2):
            shutil.copytree(path / str(number - 1), path / ".tmp")
            (path / ".tmp").rename(path / str(number))
            wait_for(process, f"version {number} is served")
            shutil.rmtree(path / str(number - 1))
            wait_for(process, f"version {number - 1} is dropped")
        done.set()
    errors = [str(future.exception()) for future in asking if future.exception()]
    return {
        "swaps": NUM_SWAPS,
        "asked": len(asked),
        "answered": len(answered),
        "wrong": len(wrong),
        "errors": errors,
    }


def wait_for(process, line):
    while process.stdout.readline().strip() != line:
        if process.poll() is not None:
            raise RuntimeError("the server has ended")


def watch_memory(process, url, texts):
    """Returns the resident memory, in MB, after every 1,000 of 10,000 requests, and the slope in MB per 1,000."""
    memory, part = [], MEMORY_REQUESTS // 10

    def ask_some(number):
        session, generator = requests.Session(), np.random.default_rng(number)
        for _ in range(part // MEMORY_CLIENTS):
            ask(session, url, [texts[generator.integers(len(texts))]])

    for _ in range(10):
        with ThreadPoolExecutor(MEMORY_CLIENTS) as threads:
            list(threads.map(ask_some, range(MEMORY_CLIENTS)))
        memory.append(psutil.Process(process.pid).memory_info().rss / 1e6)
        print(f"memory: {memory[-1]:.0f} MB", flush=True)
    return {"megabytes": memory, "slope": float(np.polyfit(range(len(memory)), memory, 1)[0])}


def report(results):
    """Prints the tables."""
    print(f"\n{results['machine']}; MiniLM, limit {LIMIT} tokens; medians over {ROUNDS} rounds, servers in turn\n")
    print(f"{'':<16}{'':<8}{'p50 ms':>8}{'p99 ms':>8}" + "".join(f"{n:>9} clients/s" for n in NUM_CLIENTS))
    for kind in ("short", "long"):
        for name in SERVERS:
            milliseconds = 1000 * np.array(results["single"][f"{name}, {kind}"])
            rates = [np.median(results["throughput"][f"{name}, {kind}, {n}"]) for n in NUM_CLIENTS]
            p50, p99 = np.percentile(milliseconds, [50, 99])
            print(f"{name:<16}{kind:<8}{p50:>8.1f}{p99:>8.1f}" + "".join(f"{rate:>19.1f}" for rate in rates))
    print("\nRatios, with the lowest and highest of the rounds\n")
    for kind in ("short", "long"):
        ours = np.reshape(results["single"][f"bertbin-tf, {kind}"], (ROUNDS, -1))
        onnx = np.reshape(results["single"][f"ONNX Runtime, {kind}"], (ROUNDS, -1))
        print(f"  p50 to ONNX Runtime's, {kind:<6} {spread(np.median(ours, 1) / np.median(onnx, 1))}")
        for n in NUM_CLIENTS:
            rates = {name: np.array(results["throughput"][f"{name}, {kind}, {n}"]) for name in SERVERS}
            for other in SERVERS[1:]:
                ratio = spread(rates["bertbin-tf"] / rates[other])
                print(f"  throughput to {other + chr(39) + 's':<15} {kind:<6} {n:>2} clients {ratio}")
    swaps, memory = results["swaps"], results["memory"]
    print(
        f"\n{swaps['swaps']} swaps under {SWAP_CLIENTS} clients: {swaps['asked']} asked, {swaps['answered']} answered, "
        f"{swaps['wrong']} wrongly, errors: {swaps['errors'] or 'none'}"
    )
    print(
        f"Memory over {MEMORY_REQUESTS:,} requests: {memory['megabytes'][0]:.0f} to {memory['megabytes'][-1]:.0f} MB, "
        f"slope {memory['slope']:+.2f} MB per 1,000"
    )


def spread(ratios):
    return f"{np.median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


if __name__ == "__main__":
    main()
