"""The commands about exported models, which need TensorFlow and TF Text only."""

import dataclasses
from pathlib import Path

from bertbin_tf.cli import console
from bertbin_tf.export.extras import Golden, fingerprint_of
from bertbin_tf.export.servable import find_version
from bertbin_tf.export.verification import verify as verify_version
from bertbin_tf.serving import Limits, ModelServer

__all__ = ["serve", "verify"]


def verify(path: Path, run_path: Path | None, as_json: bool) -> None:
    """Loads a version as a server does, and compares its answers with those noted and with its run's."""
    version = find_version(path)
    if version is None:
        raise ValueError(f"There is no SavedModel in '{path}'. Give saved_models/NAME/VERSION, as export wrote it.")
    with console.status("Loading the SavedModel, and asking it ..."):
        verification = verify_version(version, predict=_find_run(version, run_path))
    if as_json:
        console.print_json(dataclasses.asdict(verification))
        return
    run = "" if verification.run_difference is None else f"{verification.run_difference:.1e}"
    console.print_table(
        f"{version} answers as it should",
        ("", ""),
        [
            ("largest difference from what was noted at export", f"{verification.difference:.1e}"),
            ("texts compared", verification.texts),
            ("largest difference from the run", run or "not compared: the run is not there"),
            ("warm-up requests answered", verification.warmups),
            ("kinds of operation in the graph", verification.operations),
            ("seconds", f"{verification.seconds:.1f}"),
        ],
    )


def serve(path: Path, host: str, port: int, labels: list[str], **limits) -> None:
    """Answers over HTTP until it is interrupted."""
    limits = {name.removeprefix("max_"): value for name, value in limits.items()}
    if not path.is_dir():
        raise ValueError(f"There is no folder '{path}'. Give saved_models/NAME, as `bertbin-tf export` wrote it.")

    def report(line):
        print(line, flush=True)

    ModelServer(
        path, host=host, port=port, labels=dict(map(_label, labels)), limits=Limits(**limits), report=report
    ).run()


def _find_run(version, run_path):
    """Returns `predict` of the run that a version was exported from, or `None` where it is not there any more."""
    if run_path is None:
        golden = Golden.read(version)
        if golden is None or not golden.run or fingerprint_of(Path(golden.run)) != golden.fingerprint:
            return None
        run_path = Path(golden.run)
    from bertbin_tf.recipe import load_run  # needs Keras, which the rest does not

    return load_run(run_path).predict


def _label(text):
    name, _, version = text.partition("=")
    if not name or not version.isdecimal():
        raise ValueError(f"A label is given as NAME=VERSION, as in stable=3. Received: '{text}'")
    return name, int(version)
