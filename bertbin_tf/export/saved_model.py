"""A SavedModel that takes raw text and answers with a probability, in the layout that TF Serving watches."""

import errno
import math
import os
import pathlib
import shutil
import uuid

import keras
import tensorflow as tf

from bertbin_tf import data
from bertbin_tf.export.extras import TEXTS, Golden, fingerprint_of, write_warmup
from bertbin_tf.export.servable import quiet_tensorflow, versions_in
from bertbin_tf.export.verification import verify
from bertbin_tf.models import check_preprocessor

_VERSION_EXISTS = (
    "Version {version} exists in '{path}' and is not overwritten. Leave `version` out to get the next number."
)


def export_saved_model(
    model: keras.Model,
    preprocessor,
    path: str | os.PathLike,
    *,
    temperature: float = 1.0,
    threshold: float = 0.5,
    facts: dict[str, str | float] | None = None,
    run: str | os.PathLike = "",
    version: int | None = None,
) -> pathlib.Path:
    """Writes a model and its tokenizer as one SavedModel, `path/<version>/`, that needs only TensorFlow and TF Text.

    Its signatures, all of which take a batch of any size:

    * `serving_default` goes from `text`, strings of shape `(batch,)`, to `probability`, float32 of shape `(batch,)`,
      and `label`, int64 of shape `(batch,)`. Texts are padded to the longest of their batch.
    * `tokens` takes what the preprocessor returns instead, for servers that were built without TF Text.
    * `info` says `name`, `version`, `temperature`, `threshold` and the `facts`, once for each `text`. It does not read
      the texts; TF Serving's REST interface refuses a signature without inputs.

    In `assets.extra/` lie requests that TF Serving warms up with, and texts with the probabilities that the model gives
    before it is saved. The version is written under a name that TF Serving ignores, loaded as a server loads it,
    compared with those probabilities, and only then renamed: a server that watches `path` never loads half of it. A
    version that exists is never overwritten, not by two exports at the same moment either.

    Args:
        model: Functional `keras.Model` from token ids to a probability of shape `(batch, 1)`, whose last layer is the
            sigmoid: an `Activation` or a `Dense`. `models.binary_classifier` makes such a model.
        preprocessor: The keras-nlp preprocessor that the model was trained with.
        path: Folder of the model, `saved_models/movies`; made if it does not exist.
        temperature: Float > 0, the logit is divided by it. See `evaluation.fit_temperature`. Defaults to `1.0`.
        threshold: Float in (0, 1); `label` is 1 where `probability >= threshold`, after the temperature. See
            `evaluation.tune_threshold`. Defaults to `0.5`.
        facts: Dict of strings and numbers that `info` says too, such as `base_rate`, `preset` and `fingerprint`.
            Defaults to `None`.
        run: The folder of the run, which `bertbin-tf verify` compares with where it finds it. Defaults to `""`.
        version: Integer >= 1. Defaults to the largest version in `path` plus 1.

    Returns:
        `pathlib.Path` of the version's folder.

    Raises:
        ValueError: If the model does not end in one sigmoid unit, the preprocessor does not fit the model, an argument
            is out of range, the version exists, or `path` cannot be written.

    Example:
    ```python
    folder = export_saved_model(model, preprocessor, "saved_models/movies", temperature=1.3)

    import tensorflow_text  # anywhere else; registers the tokenizer's operations
    import tensorflow as tf

    served = tf.saved_model.load(folder)
    served.signatures["serving_default"](text=tf.constant(["a great film"]))["probability"]
    ```
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` must be positive and finite. Received: temperature={temperature}.")
    if not 0 < threshold < 1:
        raise ValueError(f"`threshold` must lie between 0 and 1, both excluded. Received: threshold={threshold}.")
    if version is not None and (not isinstance(version, int) or version < 1):
        raise ValueError(f"`version` must be an integer of at least 1, or None. Received: version={version!r}.")
    if version in versions_in(path := pathlib.Path(path)):
        raise ValueError(_VERSION_EXISTS.format(version=version, path=path))
    name = pathlib.Path(os.path.abspath(path)).name
    facts = {"name": name, "temperature": float(temperature), "threshold": float(threshold)} | (facts or {})
    signatures = _build_signatures(model, preprocessor, temperature, threshold)
    probabilities = signatures["serving_default"](text=tf.constant(TEXTS))["probability"].numpy().tolist()
    golden = Golden(TEXTS, tuple(probabilities), str(run), str(facts.get("fingerprint", "")))
    # A bare module and not the Keras model, which is saved with every weight twice (keras-team/keras#23553). It must
    # hold whatever the signatures read: the weights, and the lookup tables of which byte-pair tokenizers consist.
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    module.tokenizer = preprocessor.tokenizer

    def save(folder, number):
        _save(module, folder, signatures | {"info": _build_info(facts | {"version": number})})
        golden.write(folder)
        write_warmup(folder, name)
        verify(folder)

    return _write_version(path, version, save)


def export_run(run, folder: str | os.PathLike, path: str | os.PathLike) -> pathlib.Path:
    """Writes a finished run as a SavedModel, with all that is known of it.

    Args:
        run: The `recipe.Run`.
        folder: The folder that it was loaded from.
        path: Folder of the model, as for `export_saved_model`.

    Returns:
        `pathlib.Path` of the version's folder.

    Raises:
        ValueError: As `export_saved_model`.

    Example:
    ```python
    folder = export_run(load_run("runs/reviews"), "runs/reviews", "saved_models/reviews")
    ```
    """
    fingerprint = fingerprint_of(pathlib.Path(folder))
    return export_saved_model(
        run.model,
        run.preprocessor,
        path,
        temperature=run.temperature,
        threshold=run.threshold,
        facts={"base_rate": run.base_rate, "preset": run.recipe.preset, "fingerprint": fingerprint},
        run=folder,
    )


def _build_signatures(model, preprocessor, temperature, threshold):
    compute_logits = _find_logits(model)
    check_preprocessor(model, preprocessor)

    def answer(tokens):
        logits = compute_logits({name: tokens[name] for name in model.input})
        probability = tf.sigmoid(tf.reshape(tf.cast(logits, "float32"), [-1]) / temperature)
        # In float64, because between two neighbouring float32 probabilities lies no float32 threshold.
        label = tf.cast(probability, "float64") >= tf.constant(threshold, "float64")
        return {"probability": probability, "label": tf.cast(label, "int64")}

    @tf.function
    def answer_text(text):
        return answer(data.encode(preprocessor, text))

    @tf.function
    def answer_tokens(**tokens):
        return answer(tokens)

    return {
        "serving_default": answer_text.get_concrete_function(tf.TensorSpec([None], tf.string, name="text")),
        "tokens": answer_tokens.get_concrete_function(
            **{name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in model.input.items()}
        ),
    }


def _build_info(facts):
    @tf.function
    def info(text):
        # One for each text, and not once: a server that batches requests splits the answers as it joined the texts.
        return {
            name: tf.fill(tf.shape(text), tf.constant(value, tf.int64 if isinstance(value, int) else None))
            for name, value in facts.items()
        }

    return info.get_concrete_function(tf.TensorSpec([None], tf.string, name="text"))


def _save(module, folder, signatures):
    with quiet_tensorflow():  # it would announce the temporary name
        tf.saved_model.save(module, str(folder), signatures)


def _find_logits(model):
    """Returns a function from tokens to what the final sigmoid is applied to.

    Going back from the probability would not do: a float32 sigmoid is exactly 1 from a logit of 17 on, and no
    temperature brings such an answer back.
    """
    inputs, outputs = getattr(model, "input", None), getattr(model, "outputs", None) or []
    if not isinstance(inputs, dict) or [tuple(output.shape) for output in outputs] != [(None, 1)]:
        raise ValueError(
            "`model` must be a functional model from a dict of tokens to one probability of shape (batch, 1), such as "
            f"`binary_classifier` returns. Received: a {type(model).__name__} with outputs of shape "
            f"{[tuple(output.shape) for output in outputs] or 'unknown (not built or not functional)'}."
        )
    head = model.layers[-1]
    is_last = head.output is outputs[0] and isinstance(head, keras.layers.Activation | keras.layers.Dense)
    if not is_last or head.activation is not keras.activations.sigmoid:
        raise ValueError(
            "The last layer of `model` must be an `Activation` or a `Dense` with the activation 'sigmoid'. Received: "
            f"the layer '{head.name}' of type {type(head).__name__}. Put the sigmoid last, as `binary_classifier` does."
        )
    body = keras.Model(inputs, head.input)
    if isinstance(head, keras.layers.Activation):
        return lambda tokens: body(tokens, training=False)

    def compute_dense(tokens):
        features = tf.cast(body(tokens, training=False), head.compute_dtype)
        logits = keras.ops.matmul(features, keras.ops.cast(head.kernel, head.compute_dtype))
        return logits + keras.ops.cast(head.bias, head.compute_dtype) if head.use_bias else logits

    return compute_dense


def _write_version(path, version, save):
    """Has a folder saved under a temporary name in `path`, and renames it to the version in one step."""
    while True:
        number = version or max(versions_in(path), default=0) + 1
        partial = path / f".tmp-{uuid.uuid4().hex}"  # TF Serving looks at names that are numbers only
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise ValueError(
                f"Cannot write to `path`. Received: '{path}' ({error.strerror}). Choose a folder that you may write to."
            ) from error
        try:
            save(partial, number)
            os.replace(partial, path / str(number))
            return path / str(number)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if version:
                raise ValueError(_VERSION_EXISTS.format(version=version, path=path)) from error
            # Another export took that number since, and the graph says its own: once more, under the next one.
        finally:
            shutil.rmtree(partial, ignore_errors=True)
