"""The other end: texts in, probabilities out, from TF Serving or from `bertbin-tf serve`."""

import base64
import dataclasses
import json
from collections.abc import Callable, Sequence

import numpy as np
import requests

TEXTS_AT_ONCE = 32  # what a server computes together: more in a request is no faster, and others wait behind it


class ServerError(RuntimeError):
    """The server could not be reached, or said no. The message is the server's."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a server answers to some texts, in their order.

    Args:
        probability: Float32 array of shape `(n,)`, in [0, 1].
        label: Int64 array of shape `(n,)`, of 0 and 1.
    """

    probability: np.ndarray
    label: np.ndarray


class _Client:
    """What both clients do, whatever carries the request."""

    _outputs: Callable[[Sequence[str | bytes], str], dict]

    def predict(self, texts: Sequence[str | bytes]) -> Answers:
        """Returns the `Answers` to some texts, of which 32 are sent at a time.

        Args:
            texts: Strings, or bytes in UTF-8 or not.

        Raises:
            ServerError: If the server cannot be reached or refuses.
            ValueError: If it is one text and not a sequence.
        """
        if isinstance(texts, str | bytes):
            raise ValueError(f"`texts` must be a sequence of texts. Received: one {type(texts).__name__}.")
        parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        answers = [self._outputs(part, "serving_default") for part in parts]
        return Answers(
            np.array([value for answer in answers for value in answer["probability"]], "float32"),
            np.array([value for answer in answers for value in answer["label"]], "int64"),
        )

    def info(self) -> dict:
        """Returns what the model says of itself: name, version, threshold ...

        Raises:
            ServerError: As `predict`.
        """
        firsts = {name: values[0] for name, values in self._outputs([""], "info").items()}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in firsts.items()}


class RestClient(_Client):
    """Asks a server over HTTP: TF Serving or `bertbin-tf serve`.

    Args:
        name: String, the name of the model.
        url: String. Defaults to `"http://127.0.0.1:8501"`.
        version: Int, the version to ask. Defaults to `None`: the highest that is served.
        label: String, the label of the version to ask. Defaults to `None`.
        seconds: Float > 0, to wait for each answer. Defaults to `30.0`.

    Raises:
        ValueError: If both `version` and `label` are given.

    Example:
    ```python
    client = RestClient("movies")
    client.predict(["a great film"]).probability
    ```
    """

    def __init__(
        self,
        name: str,
        url: str = "http://127.0.0.1:8501",
        *,
        version: int | None = None,
        label: str | None = None,
        seconds: float = 30.0,
    ):
        _check_one(version, label)
        self._model = f"{url.rstrip('/')}/v1/models/{requests.utils.quote(name, safe='')}"
        self._which = "" if version is None else f"/versions/{version}"
        if label is not None:
            self._which = f"/labels/{requests.utils.quote(label, safe='')}"
        self._seconds = seconds
        self._session = requests.Session()  # one connection for all requests
        self._session.trust_env = False  # no proxy between a client and its server

    def versions(self) -> dict[int, str]:
        """Returns the state of each version, such as `{2: "AVAILABLE"}`.

        Raises:
            ServerError: As `predict`.
        """
        statuses = self._ask("model_version_status", "get", "")
        return {int(status["version"]): status["state"] for status in statuses}

    def _outputs(self, texts, signature):
        body = {"signature_name": signature, "instances": list(map(_to_json, texts))}
        # In UTF-8 and not escaped, as `requests` would: Cyrillic is a third of the size, and servers limit the body.
        encoded = json.dumps(body, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json"}
        rows = self._ask("predictions", "post", f"{self._which}:predict", data=encoded, headers=headers)
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _ask(self, wanted, method, path, **options):
        """Returns what the server's answer has under the name that is wanted."""
        try:
            response = self._session.request(method, self._model + path, timeout=self._seconds, **options)
        except requests.RequestException as error:
            raise ServerError(f"{self._model} cannot be asked: {error}") from error
        try:
            content = response.json()
        except requests.JSONDecodeError:  # not the server's, but of something before it
            content = {"error": f"{response.reason}: {response.text[:80]}"}
        if not isinstance(content, dict) or wanted not in content:
            content = content if isinstance(content, dict) else {}
            reason = content.get("error", f"{response.reason}, without '{wanted}'. Is it a model server?")
            raise ServerError(f"{self._model}: {reason} ({response.status_code})")
        return content[wanted]


class GrpcClient(_Client):
    """Asks TF Serving over gRPC, with the stubs of tensorflow-serving-api.

    Args:
        name: String, the name of the model.
        target: String. Defaults to `"127.0.0.1:8500"`.
        version: Int, the version to ask. Defaults to `None`: the highest that is served.
        label: String, the label of the version to ask. Defaults to `None`.
        credentials: `grpc.ChannelCredentials`. Defaults to `None`: without encryption.
        seconds: Float > 0, to wait for each answer. Defaults to `30.0`.

    Raises:
        ValueError: If both `version` and `label` are given.

    Example:
    ```python
    client = GrpcClient("movies")
    client.predict(["a great film"]).label
    ```
    """

    def __init__(
        self,
        name: str,
        target: str = "127.0.0.1:8500",
        *,
        version: int | None = None,
        label: str | None = None,
        credentials=None,
        seconds: float = 30.0,
    ):
        import grpc  # here, for whoever asks over HTTP needs neither it nor TensorFlow
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        _check_one(version, label)
        self._name, self._version, self._label, self._seconds = name, version, label, seconds
        self._target = target
        if credentials is None:
            channel = grpc.insecure_channel(target)
        else:
            channel = grpc.secure_channel(target, credentials)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def _outputs(self, texts, signature):
        import grpc
        import tensorflow as tf

        from bertbin_tf.export.extras import predict_request
        from bertbin_tf.texts import as_bytes

        request = predict_request(self._name, {"text": as_bytes(texts)}, signature)
        if self._version is not None:
            request.model_spec.version.value = self._version
        if self._label is not None:
            request.model_spec.version_label = self._label
        try:
            response = self._stub.Predict(request, timeout=self._seconds)
        except grpc.RpcError as error:
            raise ServerError(f"{self._target}: {error.details()} ({error.code().name})") from error
        return {name: tf.make_ndarray(tensor).tolist() for name, tensor in response.outputs.items()}


def _check_one(version, label):
    if version is not None and label is not None:
        raise ValueError(f"Give `version` or `label`, not both. Received: version={version}, label={label!r}")


def _to_json(text):
    """Returns a text as JSON has it: as it is, or in base64 where it is not UTF-8."""
    encoded = text if isinstance(text, bytes) else text.encode(errors="replace")
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(encoded).decode()}
