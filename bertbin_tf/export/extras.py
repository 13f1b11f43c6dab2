"""What lies beside the graph in `assets.extra/`: requests that warm a server up, and answers that it must give."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from bertbin_tf.export.servable import DEFAULT_SIGNATURE
from bertbin_tf.texts import as_bytes

FOLDER = "assets.extra"
WARMUP_FILE = "tf_serving_warmup_requests"  # the name that TF Serving looks for
GOLDEN_FILE = "golden.json"
MAX_GOLDEN_BYTES = 2**20
WARMUP_BATCH_SIZES = (1, 8, 32)

# Twenty texts of all lengths, some of which have broken a tokenizer.
TEXTS = (
    "A quiet masterpiece.",
    "Two hours that I will never get back.",
    "It is, well, a film.",
    "",
    " ",
    "!",
    "not bad",
    "NOT GOOD AT ALL",
    "Très émouvant, with a naïve charm.",
    "这部电影很好看。",
    "Это было скучно.",
    "הסרט היה מצוין",
    "I laughed 😂 and cried 😭 -- 10/10 👍🏽",
    "good\u0000bad",
    "<b>Great</b> &amp; cheap: https://example.com/?q=1",
    "[CLS] is this [SEP] one text or two? [MASK]",
    "supercalifragilisticexpialidocious " * 3,
    "The plot moves, the actors do not, and nobody seems to have told the director. " * 2,
    "Bought it in March; works as on the first day. Would buy again, and so would my mother. " * 5,
    "It starts slowly, then it goes nowhere, and in the end one wonders what all these people were paid for. " * 12,
)


@dataclasses.dataclass(frozen=True)
class Golden:
    """Texts and the probabilities that the model gave before it was saved.

    Args:
        texts: Sequence of strings.
        probabilities: Sequence of floats in [0, 1], one for each text.
        run: String, the folder of the run that was exported, as it was given. Defaults to `""`: unknown.
        fingerprint: String, the SHA-256 of that run's model.keras. Defaults to `""`.
    """

    texts: tuple[str, ...]
    probabilities: tuple[float, ...]
    run: str = ""
    fingerprint: str = ""

    @classmethod
    def read(cls, version: str | os.PathLike) -> "Golden | None":
        """Returns what lies in a version's folder, or `None`.

        Raises:
            ValueError: If it is damaged.
        """
        file = Path(version) / FOLDER / GOLDEN_FILE
        if not file.is_file():
            return None
        try:
            if file.stat().st_size > MAX_GOLDEN_BYTES:
                raise ValueError(f"it is larger than {MAX_GOLDEN_BYTES} bytes")
            content = json.loads(file.read_text(encoding="utf-8"))
            golden = cls(
                tuple(content["texts"]),
                tuple(map(float, content["probabilities"])),
                str(content["run"]),
                str(content["fingerprint"]),
            )
            if not golden.texts or len(golden.texts) != len(golden.probabilities):
                raise ValueError("as many probabilities as texts are needed, and one at least")
            if not all(isinstance(text, str) for text in golden.texts):
                raise ValueError("texts must be strings")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{file}' is damaged: {error}. Export the version again.") from error
        return golden

    def write(self, version: str | os.PathLike) -> None:
        """Writes it into the folder of a version."""
        folder = Path(version) / FOLDER
        folder.mkdir(exist_ok=True)
        (folder / GOLDEN_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def write_warmup(version: str | os.PathLike, name: str) -> None:
    """Writes the requests that TF Serving plays to a version before it sends anybody else's there.

    They are short and long texts, in batches of 1, 8 and 32: whatever a first request pays for is paid by them.

    Args:
        version: Folder of the version.
        name: String, the name of the model.

    Reference: TF Serving's guide, "SavedModel warmup".
    """
    folder = Path(version) / FOLDER
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as writer:
        for batch_size in WARMUP_BATCH_SIZES:
            for text in (min(filter(str.strip, TEXTS), key=len), max(TEXTS, key=len)):
                request = predict_request(name, {"text": as_bytes([text] * batch_size)})
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def read_warmup(version: str | os.PathLike) -> list[predict_pb2.PredictRequest]:
    """Returns the requests that `write_warmup` wrote, or whatever else lies there for TF Serving.

    Raises:
        ValueError: If the file is damaged.
    """
    file = Path(version) / FOLDER / WARMUP_FILE
    if not file.is_file():
        return []
    try:
        records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
        logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    except (tf.errors.OpError, DecodeError) as error:
        raise ValueError(f"'{file}' is damaged: {str(error).splitlines()[0]}. Export the version again.") from error
    return [log.predict_log.request for log in logs if log.HasField("predict_log")]


def predict_request(
    name: str, inputs: dict[str, np.ndarray], signature: str = DEFAULT_SIGNATURE
) -> predict_pb2.PredictRequest:
    """Returns TF Serving's request for the outputs of a signature."""
    spec = model_pb2.ModelSpec(name=name, signature_name=signature)
    tensors = {key: tf.make_tensor_proto(value) for key, value in inputs.items()}
    return predict_pb2.PredictRequest(model_spec=spec, inputs=tensors)


def fingerprint_of(run: Path) -> str:
    """Returns the SHA-256 of the model.keras in the folder of a run, or `""` if there is none."""
    file = run / "model.keras"
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
