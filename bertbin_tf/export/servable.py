"""One version of a SavedModel, loaded as TF Serving loads it."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the tokenizer's operations
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from bertbin_tf.texts import as_bytes, order_by_length

DEFAULT_SIGNATURE = "serving_default"
# Operations that reach out of the graph, into files, streams or Python; an exported classifier has none of them. Its
# weights and vocabulary come through operations of their own.
REACHING_OUT = re.compile(
    r"Dataset|Reader|ReadFile|WriteFile|MatchingFiles|PyFunc|^Print|Summary|^Debug|^Save(Slices)?$"
)
# What TensorFlow writes above and below the reason.
HEADING = re.compile(r"\s*(Graph execution error|Detected at node|\d+ root error|\(\d+\)|Original stack|\[\[|File )")
INT64_MAX = 2**63 - 1
TEXTS_AT_ONCE = 64


class InputError(ValueError):
    """A graph cannot take what it was given."""


class Servable:
    """A SavedModel in a session of its own, as TF Serving has it: loaded by the session loader, with the tag `serve`.

    It needs TensorFlow and TF Text, no Keras. `run` may be called from several threads at once.

    Args:
        path: Folder of the version, which holds `saved_model.pb`.

    Attributes:
        path: `pathlib.Path` of the version.
        version: Int, the name of the folder where that is a number, else 0.
        operations: Frozenset of the names of all operations in the graph and its functions.
        signatures: Dict from a signature's name to its `SignatureDef`.

    Raises:
        ValueError: If the folder holds no SavedModel, it cannot be loaded, or its graph reads or writes files or calls
            Python.

    Example:
    >>> servable = Servable("saved_models/movies/1")
    >>> servable.answer(["a great film"])["probability"]
    array([0.5], dtype=float32)
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.version = int(self.path.name) if self.path.name.isdecimal() else 0
        self.operations = operations_of(self.path)
        if forbidden := sorted(filter(REACHING_OUT.search, self.operations)):
            raise ValueError(
                f"The SavedModel '{path}' is not loaded: its graph has the operations {', '.join(forbidden)}, which "
                "reach out of it. Export it again from a model that you trust."
            )
        graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=graph)
        try:
            with graph.as_default(), quiet_tensorflow():  # it calls its own session loader deprecated
                loaded = tf.compat.v1.saved_model.load(self._session, [tf.saved_model.SERVING], str(path))
        except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
            self._session.close()
            raise ValueError(
                f"The SavedModel '{path}' cannot be loaded: {str(error).splitlines()[0]}. It may be half-written; "
                "export it again."
            ) from error
        names = (name for name in loaded.signature_def if not name.startswith("__"))
        self.signatures = {name: loaded.signature_def[name] for name in names}
        self._calls = {name: self._make_call(signature) for name, signature in self.signatures.items()}

    def run(self, inputs: dict[str, np.ndarray], signature: str = DEFAULT_SIGNATURE) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature by name.

        Args:
            inputs: Dict from the name of each input to an array; strings as bytes in an object array.
            signature: String. Defaults to `"serving_default"`.

        Raises:
            ValueError: If there is no such signature.
            InputError: If the inputs are not what the graph takes.
        """
        if signature not in self.signatures:
            raise ValueError(f'Serving signature name: "{signature}" not found in signature def')
        names, call = self._calls[signature]
        try:
            return dict(zip(self.signatures[signature].outputs, call(*(inputs[name] for name in names)), strict=True))
        except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError) as error:
            reasons = [line for line in error.message.splitlines() if line.strip() and not HEADING.match(line)]
            raise InputError(f"The model cannot take these inputs: {(reasons or ['no reason given'])[0]}") from error

    def answer(self, texts: Sequence[str | bytes]) -> dict[str, np.ndarray]:
        """Returns `probability` (float32) and `label` (int64), both of shape `(n,)`, in the order of the texts.

        Args:
            texts: Strings, or bytes in UTF-8. What is not valid UTF-8 becomes `[UNK]`.
        """
        rows = as_bytes(texts)
        order = order_by_length(rows)
        parts = [order[start : start + TEXTS_AT_ONCE] for start in range(0, max(len(order), 1), TEXTS_AT_ONCE)]
        answers = [self.run({"text": rows[part]}) for part in parts]
        back = np.argsort(order)
        return {name: np.concatenate([answer[name] for answer in answers])[back] for name in answers[0]}

    def info(self) -> dict:
        """Returns what the signature `info` says of the model: its name, version, threshold ...; empty without one."""
        if "info" not in self.signatures:
            return {}
        firsts = {name: values[0] for name, values in self.run({"text": as_bytes([""])}, "info").items()}
        return {
            name: value.decode(errors="replace") if isinstance(value, bytes) else value.item()
            for name, value in firsts.items()
        }

    def close(self) -> None:
        """Frees the weights. What still runs is cancelled."""
        self._session.close()

    def _make_call(self, signature):
        names = list(signature.inputs)
        return names, self._session.make_callable(
            [signature.outputs[name].name for name in signature.outputs],
            feed_list=[signature.inputs[name].name for name in names],
        )


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Returns a context in which TensorFlow says nothing below errors."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def operations_of(path: str | os.PathLike) -> frozenset[str]:
    """Returns the names of all operations in the graph of a SavedModel and in its functions, without loading it.

    Raises:
        ValueError: If there is no SavedModel.
    """
    file = Path(path) / "saved_model.pb"
    if not file.is_file():
        raise ValueError(f"'{path}' holds no SavedModel: there is no {file.name}.")
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    except (OSError, DecodeError) as error:
        raise ValueError(f"'{path}' holds no SavedModel: {file.name} cannot be read ({error}).") from error
    graphs = [meta_graph.graph_def for meta_graph in saved_model.meta_graphs]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for function in graph.library.function for node in function.node_def]
    return frozenset(node.op for node in nodes)


def find_version(path: str | os.PathLike) -> Path | None:
    """Returns the folder of a SavedModel: the path itself, or the highest version below it, or `None`."""
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return path
    versions = versions_in(path)
    complete = [number for number, folder in versions.items() if (folder / "saved_model.pb").is_file()]
    return versions[max(complete)] if complete else None


def versions_in(path: str | os.PathLike) -> dict[int, Path]:
    """Returns the folders whose names are numbers, which is what TF Serving takes for versions, by number."""
    path = Path(path)
    folders = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    numbered = {int(folder.name): folder for folder in folders if folder.name.isascii() and folder.name.isdecimal()}
    return {number: folder for number, folder in numbered.items() if number <= INT64_MAX}
