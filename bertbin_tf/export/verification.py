"""Does a version answer as the model did before it was saved, in the hands of a server?"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from bertbin_tf.export.extras import Golden, read_warmup
from bertbin_tf.export.servable import DEFAULT_SIGNATURE, Servable

# Ten times what another machine, other batches or another number of threads were seen to make of float32.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was found to be right.

    Args:
        path: String, the folder of the version.
        operations: Int, how many kinds of operation its graph has.
        texts: Int, how many texts got the probability that was noted for them.
        difference: Float, the largest difference among them.
        warmups: Int, how many requests for warming up were answered.
        seconds: Float.
        run_difference: Float, the largest difference from the run that was exported, or `None`: not compared.
    """

    path: str
    operations: int
    texts: int
    difference: float
    warmups: int
    seconds: float
    run_difference: float | None = None


def verify(
    path: str | os.PathLike,
    *,
    predict: Callable[[Sequence[str]], np.ndarray] | None = None,
    tolerance: float = TOLERANCE,
) -> Verification:
    """Loads a version as a server does, plays its warm-up requests and compares its answers with those noted at export.

    Args:
        path: Folder of the version, `saved_models/movies/1`.
        predict: Function from texts to the probabilities of the model that was exported, such as `Run.predict`, to
            compare with that too. Defaults to `None`.
        tolerance: Float > 0, the largest difference between two probabilities that is let pass. Defaults to `1e-5`,
            which is for float32: batches of other lengths differ by 4e-3 in bfloat16.

    Returns:
        A `Verification`.

    Raises:
        ValueError: If it cannot be loaded, has no golden file, or answers otherwise.

    Example:
    >>> verify("saved_models/movies/1").difference < 1e-5
    True
    """
    started = time.perf_counter()
    servable = Servable(path)
    try:
        verification = check(servable, tolerance=tolerance)
    finally:
        servable.close()
    if predict is not None:
        golden = Golden.read(path)
        difference = _difference(predict(list(golden.texts)), golden.probabilities)
        if not difference <= tolerance:
            raise ValueError(
                f"'{path}' is not what the run answers: its probabilities differ by up to {difference:.2g}. It may be "
                "the export of another run."
            )
        verification = dataclasses.replace(verification, run_difference=difference)
    return dataclasses.replace(verification, seconds=time.perf_counter() - started)


def check(servable: Servable, *, tolerance: float = TOLERANCE) -> Verification:
    """Does what `verify` does, on a version that is loaded.

    Args:
        servable: The `Servable`.
        tolerance: Float > 0. Defaults to `1e-5`.
    """
    started = time.perf_counter()
    path = servable.path
    require_text(servable)
    requests = read_warmup(path)
    for request in requests:
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        servable.run(inputs, request.model_spec.signature_name or DEFAULT_SIGNATURE)
    golden = Golden.read(path)
    if golden is None:
        raise ValueError(f"'{path}' has no golden file to compare with. Export the version again.")
    difference = _difference(servable.answer(golden.texts)["probability"], golden.probabilities)
    if not difference <= tolerance:
        raise ValueError(
            f"'{path}' does not answer as the model did when it was exported: its probabilities differ by up to "
            f"{difference:.2g}. It is damaged, or this machine computes wrong."
        )
    return Verification(
        str(path),
        len(servable.operations),
        len(golden.texts),
        difference,
        len(requests),
        time.perf_counter() - started,
    )


def require_text(servable: Servable) -> None:
    """Raises if a SavedModel is not one that goes from text to a probability.

    Raises:
        ValueError: If so.
    """
    signature = servable.signatures.get(DEFAULT_SIGNATURE)
    inputs = list(signature.inputs) if signature else []
    if inputs != ["text"] or not {"probability", "label"} <= set(signature.outputs):
        raise ValueError(
            f"The SavedModel '{servable.path}' does not go from text to a probability, as those of `bertbin-tf export` "
            f"do. Received: the signatures {', '.join(servable.signatures) or 'none'}; {DEFAULT_SIGNATURE} takes "
            f"{', '.join(inputs) or 'nothing'}."
        )


def _difference(probabilities, expected):
    return float(np.abs(np.asarray(probabilities, "float64") - np.asarray(expected, "float64")).max())
