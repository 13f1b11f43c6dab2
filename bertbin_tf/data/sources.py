"""From whatever a user names to a `Table`, without judging what its columns hold."""

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import tensorflow as tf

from bertbin_tf import assets
from bertbin_tf.data.files import load_file
from bertbin_tf.data.table import Table, describe

_SPELLINGS = (
    "a file ending in .csv, .tsv, .jsonl or .parquet; 'vader/<movies|tweets|amazon|nyt>[:split]'; "
    "'tfds:<name>[/config][:split]'; a tuple (texts, labels); a list of dicts or of (text, label) pairs; a dict of "
    "columns; a pandas DataFrame; a Hugging Face Dataset; a tf.data.Dataset"
)


def load_table(source) -> Table:
    """Returns the table that a source holds. See `bertbin_tf.data.read` for what a source is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the source cannot be understood.
    """
    if isinstance(source, str) and source.startswith(("vader/", "tfds:")):
        return _load_tfds(source)
    if isinstance(source, str | os.PathLike):
        if not Path(source).suffix:
            raise ValueError(f"Unknown source. Expected {_SPELLINGS}. Received: {str(source)!r}")
        return load_file(Path(source))
    if isinstance(source, tf.data.Dataset):
        return _from_dataset("the tf.data.Dataset", source)
    if hasattr(source, "iloc") and hasattr(source, "columns"):
        return Table.from_columns("the DataFrame", {str(name): source[name] for name in source.columns})
    if hasattr(source, "column_names") and hasattr(source, "with_format"):
        return _from_hugging_face(source)
    if isinstance(source, dict):
        return Table.from_columns("the dict", source)
    if isinstance(source, tuple) and len(source) == 2:
        return Table.from_columns("the tuple (texts, labels)", {"text": source[0], "label": source[1]})
    if isinstance(source, list):
        return _from_rows(source)
    raise ValueError(f"Unknown kind of source. Expected {_SPELLINGS}. Received: {describe(source)}")


def _from_rows(rows):
    if all(isinstance(row, dict) for row in rows):
        return Table.from_dicts("the list", rows)
    for index, row in enumerate(rows):
        if not (isinstance(row, tuple | list) and len(row) == 2):
            raise ValueError(
                f"A list must hold dicts or (text, label) pairs; a list of texts and a list of labels come as a tuple "
                f"(texts, labels). Received in row {index}: {describe(row)}"
            )
    return Table.from_columns("the list", {"text": [row[0] for row in rows], "label": [row[1] for row in rows]})


def _from_hugging_face(dataset):
    if isinstance(dataset.column_names, dict):
        splits = list(dataset)
        raise ValueError(f"A DatasetDict holds several datasets. Give one of them, such as source[{splits[0]!r}].")
    dataset = dataset.with_format(None)
    return Table(
        "the Dataset", dataset.column_names, lambda *names: zip(*(dataset[name] for name in names), strict=True)
    )


def _load_tfds(source):
    # Not at the top: it takes a second, and files do not need it.
    import tensorflow_datasets as tfds

    # "imdb_reviews:1.0.0:test": what looks like a version belongs to the name.
    match = re.fullmatch(r"(?:tfds:)?(?P<name>[^:]+(?::[\d.*]+)?)(?::(?P<split>.+))?", source)
    if match is None:
        raise ValueError(f"Expected 'tfds:<name>[/config][:split]', such as 'tfds:glue/sst2'. Received: {source!r}")
    name, split = match["name"], match["split"] or "train"
    if source.startswith("vader/"):
        return _from_dataset(source, _load_vader(source, name, split))
    try:
        # What TFDS prints belongs to the progress of a command, not to its output.
        with contextlib.redirect_stdout(sys.stderr):
            dataset = tfds.load(name, split=split)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"TensorFlow Datasets has no set of this name. Expected 'tfds:<name>[/config][:split]', such as "
            f"'tfds:glue/sst2'; `tfds.list_builders()` lists the names. Received: {source!r}"
        ) from None
    except (OSError, tfds.download.DownloadError) as error:
        raise assets.AssetError(
            f"Could not fetch {source!r}: {error}. Connect to the network once; afterwards it is cached."
        ) from error
    return _from_dataset(source, dataset)


def _load_vader(source, name, split):
    import tensorflow_datasets as tfds

    from bertbin_tf.datasets import Vader

    configs = [config.name for config in Vader.BUILDER_CONFIGS]
    if name.removeprefix("vader/") not in configs:
        raise ValueError(f"Unknown part of the VADER data. Expected vader/<{'|'.join(configs)}>. Received: {source!r}")
    # Before the silence below, so that its progress is seen.
    assets.fetch("vader")
    home = assets.home() / "tensorflow_datasets"
    # Preparing takes a second and would print a page of finished progress bars.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if not (prepared := Path(tfds.builder(name, data_dir=home).data_dir)).exists():
            # Elsewhere, and moved when it is whole: of two processes that prepare it in one folder, both fail.
            home.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=home) as folder:
                builder = tfds.builder(name, data_dir=folder)
                builder.download_and_prepare()
                prepared.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.rename(builder.data_dir, prepared)
                except OSError:
                    if not prepared.exists():  # else another one was faster
                        raise
        return tfds.load(name, split=split, data_dir=home)


def _from_dataset(name, dataset):
    spec = dataset.element_spec
    if isinstance(spec, tuple) and len(spec) == 2 and not any(isinstance(s, tuple | dict) for s in spec):
        dataset = dataset.map(lambda text, label: {"text": text, "label": label})
    elif not isinstance(spec, dict):
        raise ValueError(f"{name} must have (text, label) pairs or dicts as elements. Received: {spec}")
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{name} never ends. Give it before `repeat()`.")

    def rows(*names):
        for column in names:
            shape = getattr(dataset.element_spec[column], "shape", None)
            if shape is None or shape.rank != 0:
                raise ValueError(
                    f"{name} must have one value per row in '{column}', not batches or lists. `unbatch()` it first. "
                    f"Received: {dataset.element_spec[column]}"
                )
        for batch in dataset.map(lambda row: [row[n] for n in names]).batch(1024).as_numpy_iterator():
            yield from zip(*(values.tolist() for values in batch), strict=True)

    return Table(name, list(dataset.element_spec), rows)
