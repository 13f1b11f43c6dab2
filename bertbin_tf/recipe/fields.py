"""The description of a training run: one flat, frozen dataclass that JSON can hold."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from bertbin_tf.notebook import html_table


def _field(default, help, *, choices=None, minimum=None, maximum=None, above=None):
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum, "above": above}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run does, on whatever machine.

    The defaults are ours. `naive`, `plateau` and `hidden_head` are three other ways to set up the same problem, which
    are often seen and worth comparing with.

    Args:
        train_data: String, a source that `data.read` takes: a file, `"vader/movies"`, `"tfds:glue/sst2"`.
        validation_data: String, another source. Defaults to `None`: a tenth of the training texts is held out.
        text: String, the column with the texts. Defaults to `None`: guessed.
        label: String, the column with the labels. Defaults to `None`: guessed.
        positive: String, the label that becomes 1. Defaults to `None`: labels are 0 and 1.
        on_bad_rows: `"error"` or `"drop"`. Defaults to `"error"`.
        preset: String, the pre-trained encoder. Defaults to `"minilm"`.
        sequence_length: Int >= 3, texts are cut to so many tokens. Defaults to `128`.
        pooling: `"mean"` over the tokens, `"cls"`, the first one, or `"pooled"`, what the encoder's own pooler makes of
            that. Defaults to `"mean"`: all-MiniLM-L6-v2 was pre-trained with it (Reimers and Gurevych, 2019, section
            3) and its pooler with nothing.
        hidden_dim: Int >= 1, the width of a hidden layer in the head. Defaults to `None`: no such layer.
        head_init: `"base_rate"` starts the head at the base rate; `"probe"` fits it to the untouched encoder first;
            `"keras"` takes Keras' own random weights and a bias of 0. Defaults to `"base_rate"`.
        optimizer: `"controlled"` is AdamW layer by layer, each step bounded, the rates set by
            `LayerwiseLearningRateController`; `"adamw"` takes the rates as they are asked for; both have a global
            clip of 1.0. `"adam"` is Keras' plain one, without clip and `layer_decay`. Defaults to `"controlled"`.
        learning_rate: Float > 0, the highest rate of the topmost encoder layer; `"controlled"` corrects it layer by
            layer where it would not train. Defaults to `1e-4`.
        schedule: `"cosine"` warms up over the first tenth of the steps and decays to 0; `"plateau"` halves the rate
            after an epoch without a lower validation loss; `"constant"`. Defaults to `"cosine"`.
        layer_decay: Float in (0, 1], the factor of the rate from each block to the one below.
            Defaults to `1.0`.
        batch_size: Int >= 1, over all devices. Defaults to `32`.
        epochs: Int >= 1; fewer if the validation loss rises for two. Defaults to `3`.
        imbalance: `"none"`, `"class_weight"` or `"focal"`. Defaults to `"none"`.
        threshold_metric: What the decision threshold is tuned for on validation data: `"accuracy"`,
            `"balanced_accuracy"`, `"f1"` or `"mcc"`. Defaults to `"mcc"`.
        seed: Int >= 0. The same seed on the same machine gives the same weights, bit for bit, under the same
            `TF_ENABLE_ONEDNN_OPTS`, which the command line sets to 1. Defaults to `0`.

    Raises:
        ValueError: If a value is of the wrong type or out of range; the message names the field and what is allowed.

    Example:
    >>> recipe = Recipe("vader/movies", epochs=1)
    >>> Recipe.from_json(recipe.to_json()) == recipe
    True
    """

    train_data: str = _field(dataclasses.MISSING, "labelled texts to train on: a file, vader/movies, tfds:NAME")
    validation_data: str | None = _field(None, "labelled texts to validate on (default: a tenth is held out)")
    text: str | None = _field(None, "column with the texts (default: guessed)")
    label: str | None = _field(None, "column with the labels (default: guessed)")
    positive: str | None = _field(None, "the label that becomes 1, where labels are two words")
    on_bad_rows: str = _field("error", "what to do with rows without text or label", choices=("error", "drop"))
    preset: str = _field("minilm", "pre-trained encoder: minilm, a keras-nlp preset, hf://..., a folder")
    sequence_length: int = _field(128, "texts are cut to so many tokens", minimum=3)
    pooling: str = _field("mean", "how token features become one", choices=("pooled", "cls", "mean"))
    hidden_dim: int | None = _field(None, "width of a hidden layer in the head (default: none)", minimum=1)
    head_init: str = _field("base_rate", "where the head starts", choices=("base_rate", "probe", "keras"))
    optimizer: str = _field(
        "controlled", "controlled sets each layer's rate itself", choices=("controlled", "adamw", "adam")
    )
    learning_rate: float = _field(1e-4, "highest learning rate of the topmost encoder layer", above=0)
    schedule: str = _field("cosine", "how the rate changes", choices=("cosine", "plateau", "constant"))
    layer_decay: float = _field(1.0, "factor of the rate from block to block downwards", above=0, maximum=1)
    batch_size: int = _field(32, "rows per step, over all devices", minimum=1)
    epochs: int = _field(3, "passes over the training data at most", minimum=1)
    imbalance: str = _field("none", "remedy for rare classes", choices=("none", "class_weight", "focal"))
    threshold_metric: str = _field(
        "mcc", "what the threshold is tuned for", choices=("accuracy", "balanced_accuracy", "f1", "mcc")
    )
    seed: int = _field(0, "decides order, dropout and initial weights", minimum=0, maximum=2**32 - 1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))

    @classmethod
    def naive(cls, train_data: str, **fields) -> "Recipe":
        """The reported failure: a plain sigmoid head under Keras' default Adam, whose rate of 1e-3 destroys BERT."""
        return cls(train_data, **{**_PLAIN, "optimizer": "adam", "learning_rate": 1e-3, **fields})

    @classmethod
    def plateau(cls, train_data: str, **fields) -> "Recipe":
        """AdamW at a small rate that `ReduceLROnPlateau` halves, one rate for all layers."""
        return cls(train_data, **{**_PLAIN, "schedule": "plateau", **fields})

    @classmethod
    def hidden_head(cls, train_data: str, **fields) -> "Recipe":
        """AdamW at a small rate under a hidden layer of 128 units."""
        return cls(train_data, **{**_PLAIN, "hidden_dim": 128, **fields})

    @classmethod
    def from_json(cls, source: str | os.PathLike) -> "Recipe":
        """Returns the recipe in a JSON text, or in a JSON file if a path is given.

        Raises:
            ValueError: If it is not a JSON object, or a field is unknown, missing or wrong.
        """
        where = f"the recipe '{source}'" if isinstance(source, os.PathLike) else "the recipe"
        try:
            fields = json.loads(Path(source).read_bytes() if isinstance(source, os.PathLike) else source)
        except (ValueError, RecursionError) as error:
            hint = "" if isinstance(source, os.PathLike) else " A file is given as a `pathlib.Path`."
            raise ValueError(f"{where} is not JSON: {error}.{hint}") from error
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or "train_data" not in fields:
            raise ValueError(f"{where} must be a JSON object with at least 'train_data'. Received: {str(fields)[:80]}")
        if unknown := sorted(set(fields) - set(names)):
            raise ValueError(f"{where} has unknown fields: {', '.join(unknown)}. Allowed are {', '.join(names)}.")
        return cls(**fields)

    def _repr_html_(self):
        rows = [(field.name, getattr(self, field.name), field.metadata["help"]) for field in dataclasses.fields(self)]
        return html_table(("field", "value", "what it is"), rows)

    def to_json(self) -> str:
        """Returns all fields as a JSON object, in their order, one per line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_PLAIN = {
    "optimizer": "adamw",
    "learning_rate": 5e-5,
    "schedule": "constant",
    "head_init": "keras",
    "pooling": "pooled",
}


def field_type(field: dataclasses.Field) -> type:
    """Returns `str`, `int` or `float`: the type of a field's values, whether it may be `None` or not."""
    return next(type_ for type_ in (str, int, float) if field.type in (type_, type_ | None))


def _check(field: dataclasses.Field, value: Any) -> None:
    allowed = field_type(field)
    limits = field.metadata
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None and field.default is None:
        return
    if limits["choices"]:
        expected, is_valid = f"one of {', '.join(limits['choices'])}", value in limits["choices"]
    elif allowed is str:
        expected, is_valid = "a string that is not empty", isinstance(value, str) and value != ""
    else:
        bounds = [
            f"{words} {limits[name]}"
            for name, words in (("minimum", "at least"), ("above", "greater than"), ("maximum", "at most"))
            if limits[name] is not None
        ]
        expected = f"{'an integer' if allowed is int else 'a number'}, {' and '.join(bounds)}"
        is_valid = (
            is_number
            and (allowed is float or isinstance(value, int))
            and value == value
            and (limits["minimum"] is None or value >= limits["minimum"])
            and (limits["above"] is None or value > limits["above"])
            and value <= (float("inf") if limits["maximum"] is None else limits["maximum"])
            and value != float("inf")
        )
    if not is_valid:
        optional = ", or left out" if field.default is None else ""
        raise ValueError(f"Recipe: `{field.name}` must be {expected}{optional}. Received: {field.name}={value!r}")
