"""The server and its clients: TF Serving's answers to right and wrong requests, and nobody's answer lost in a swap."""

import asyncio
import base64
import collections
import contextlib
import functools
import http.client
import json
import shutil
import socket
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from conftest import build_tiny_backbone
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from test_export import build_model, build_preprocessor

from bertbin_tf.export import Servable, export_saved_model
from bertbin_tf.export.servable import InputError
from bertbin_tf.serving import GrpcClient, Limits, ModelServer, RestClient, ServerError
from bertbin_tf.serving.batching import Batcher
from bertbin_tf.serving.versions import Versions
from bertbin_tf.texts import as_bytes

TEXTS = ["a great film", "the movie was very dull .", "", "superb !", "góod", "not\0good", "film " * 40]


@pytest.fixture(scope="module")
def preprocessor():
    return build_preprocessor()


@pytest.fixture(scope="module")
def exported(preprocessor, tmp_path_factory):
    """Two versions, with other weights."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    model = build_model(build_tiny_backbone())
    export_saved_model(model, preprocessor, path)
    model.get_layer(index=-2).bias.assign([1.5])
    export_saved_model(model, preprocessor, path, threshold=0.9)
    return path


@pytest.fixture(scope="module")
def expected(exported):
    """The probabilities of `TEXTS` by version."""
    return {version: Servable(exported / str(version)).answer(TEXTS)["probability"] for version in (1, 2)}


@contextlib.contextmanager
def serving(path, **options):
    """Serves a folder from a thread, and yields the address and the lines that were reported."""
    lines = []
    server = ModelServer(path, port=0, poll_seconds=0.1, report=lines.append, **options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.wait(60)
    try:
        yield f"http://127.0.0.1:{server.port}", lines
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def url(exported):
    limits = Limits(body_bytes=20_000, rows=50, text_bytes=1000)
    with serving(exported, labels={"stable": 1}, limits=limits) as (url, _):
        yield url


def ask(url, body, path="/v1/models/tiny:predict"):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(url + path, data=data, timeout=60)


def test_highest_version_answers_in_rows_and_columns(url, expected):
    rows = ask(url, {"instances": TEXTS}).json()["predictions"]
    assert [row["probability"] for row in rows] == pytest.approx(expected[2].tolist(), abs=1e-6)
    assert [row["label"] for row in rows] == [int(probability >= 0.9) for probability in expected[2]]
    named = ask(url, {"instances": [{"text": text} for text in TEXTS], "signature_name": "serving_default"})
    assert named.json()["predictions"] == rows
    for inputs in (TEXTS, {"text": TEXTS}):
        columns = ask(url, {"inputs": inputs}).json()["outputs"]
        assert columns["probability"] == pytest.approx([row["probability"] for row in rows], abs=1e-6)
    assert ask(url, {"inputs": []}).json() == {"outputs": {"probability": [], "label": []}}


def test_version_and_label_choose(url, expected):
    for which, version in (("versions/1", 1), ("versions/2", 2), ("labels/stable", 1)):
        rows = ask(url, {"instances": TEXTS}, f"/v1/models/tiny/{which}:predict").json()["predictions"]
        assert [row["probability"] for row in rows] == pytest.approx(expected[version].tolist(), abs=1e-6)


def test_text_that_is_not_utf_8_comes_in_base64(url, exported):
    texts = [b"good \xff film", b"good film"]
    instances = [{"b64": base64.b64encode(text).decode()} for text in texts]
    rows = ask(url, {"instances": instances}).json()["predictions"]
    assert [row["probability"] for row in rows] == pytest.approx(
        Servable(exported / "2").answer(texts)["probability"].tolist(), abs=1e-6
    )


def test_tokens_and_info_are_asked_for_by_name(url, preprocessor, expected):
    from bertbin_tf import data

    tokens = {name: value.numpy() for name, value in data.encode(preprocessor, tf.constant(TEXTS)).items()}
    rows = [{name: value[i].tolist() for name, value in tokens.items()} for i in range(len(TEXTS))]
    for request in (
        {"signature_name": "tokens", "instances": rows},
        {"signature_name": "tokens", "inputs": {name: value.tolist() for name, value in tokens.items()}},
    ):
        answer = ask(url, request).json()
        if "predictions" in answer:
            probabilities = [row["probability"] for row in answer["predictions"]]
        else:
            probabilities = answer["outputs"]["probability"]
        assert probabilities == pytest.approx(expected[2].tolist(), abs=1e-6)
    info = ask(url, {"signature_name": "info", "instances": [""]}).json()["predictions"][0]
    assert (info["name"], info["version"], info["threshold"]) == ("tiny", 2, 0.9)


def test_status_and_metadata_are_those_of_tf_serving(url):
    status = requests.get(url + "/v1/models/tiny", timeout=60).json()
    ok = {"error_code": "OK", "error_message": ""}
    assert status == {"model_version_status": [{"version": str(n), "state": "AVAILABLE", "status": ok} for n in (2, 1)]}
    one = requests.get(url + "/v1/models/tiny/versions/2", timeout=60).json()
    assert one["model_version_status"] == status["model_version_status"][:1]
    metadata = requests.get(url + "/v1/models/tiny/metadata", timeout=60).json()
    assert metadata["model_spec"] == {"name": "tiny", "signature_name": "", "version": "2"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["text"]["dtype"] == "DT_STRING"
    assert signature["outputs"]["probability"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]


def test_health_metrics_and_description_are_there(url):
    ask(url, {"instances": ["good"]})
    assert requests.get(url + "/health", timeout=60).json() == {"status": "AVAILABLE", "version": "2"}
    metrics = requests.get(url + "/monitoring/prometheus/metrics", timeout=60).text
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(values['bertbin_tf_requests_total{method="predict",status="200"}']) >= 1
    assert float(values["bertbin_tf_rows_total"]) >= 1 and float(values["bertbin_tf_version"]) == 2
    assert "/v1/models/tiny:predict" in requests.get(url + "/openapi.json", timeout=60).json()["paths"]


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "The document is empty"),
        (b"{", "JSON Parse error"),
        (b"\xff\xfe", "not UTF-8 at offset: 0"),
        (b"[" * 19_000, "JSON Parse error"),
        (b'{"instances": ' + b"9" * 5000 + b"}", "JSON Parse error"),
        (b'{"instances": ["\\ud800"]}', "surrogate pair in string is invalid"),
        ([], "Is not object"),
        ({"texts": ["a"]}, "Missing 'inputs' or 'instances' key"),
        ({"instances": ["a"], "inputs": ["a"]}, "only one of"),
        ({"instances": "a"}, "to be a list/array"),
        ({"instances": []}, "No values in 'instances' array"),
        ({"instances": [1]}, "Type: Number is not of expected type: string"),
        ({"instances": [None]}, "Type: Null"),
        ({"instances": [True]}, "Type: Boolean"),
        ({"instances": [["a"]]}, "Type: Array"),
        ({"instances": ["a", {"text": "b"}]}, "Expecting value/list at item 1"),
        ({"instances": [{"text": "b"}, "a"]}, "Expecting object at item 1"),
        ({"instances": [{"words": "a"}]}, "keys must be equal to: text"),
        ({"instances": [{"text": "a", "more": 1}]}, "keys must be equal to: text"),
        ({"instances": [{"b64": "?"}]}, "Unable to base64 decode"),
        ({"inputs": {"words": ["a"]}}, "Missing named input: text"),
        ({"inputs": "a"}, "is not a list nested 1 deep"),
        ({"instances": ["a"], "signature_name": 1}, "'signature_name' key must be a string"),
        ({"instances": ["a"], "signature_name": "other"}, 'signature name: "other" not found'),
        ({"signature_name": "tokens", "instances": [[1, 2]]}, "expecting list of objects"),
        ({"instances": ["a"] * 51}, "may have 50 rows. Received: 51"),
        ({"instances": ["a" * 1001]}, "may have 1000 bytes"),
    ],
)
def test_bad_request_is_told_what_is_wrong(url, body, message):
    response = ask(url, body)
    assert response.status_code == 400
    assert list(response.json()) == ["error"] and message in response.json()["error"]


def test_ids_beyond_the_vocabulary_are_refused_and_nobody_else_is(url, expected):
    row = {name: [10**6, 1] for name in ("token_ids", "segment_ids", "padding_mask")}
    with ThreadPoolExecutor(8) as threads:
        bad = [threads.submit(ask, url, {"signature_name": "tokens", "instances": [row]}) for _ in range(8)]
        good = [threads.submit(ask, url, {"instances": TEXTS}) for _ in range(8)]
    assert {future.result().status_code for future in bad} == {400}
    for future in good:
        rows = future.result().json()["predictions"]
        assert [row["probability"] for row in rows] == pytest.approx(expected[2].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    "method, path, status, message",
    [
        ("POST", "/v1/models/other:predict", 404, "Servable not found for request: Latest(other)"),
        ("POST", "/v1/models/tiny/versions/7:predict", 404, "Specific(tiny, 7)"),
        ("POST", "/v1/models/tiny/labels/beta:predict", 400, "Unrecognized servable version label: beta"),
        ("POST", "/v1/models/tiny/versions/99999999999999999999:predict", 400, "Failed to convert version"),
        ("POST", "/v1/models/tiny:classify", 400, "Expected classify signature"),
        ("GET", "/v1/models/tiny:predict", 400, "Malformed request: GET /v1/models/tiny:predict"),
        ("DELETE", "/v1/models/tiny", 400, "Malformed request"),
        ("GET", "/v1/models/tiny/versions/x", 400, "Malformed request"),
        ("GET", "/v1/models/tiny/versions/7", 404, "Could not find version 7 of model tiny"),
        ("GET", "/v1/models/other", 404, "Could not find any versions of model other"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("POST", "/V1/MODELS/tiny/versions/7:PREDICT", 404, "Specific(tiny, 7)"),
        ("POST", "/v1/models/tiny/versions/٣:predict", 400, "Malformed request"),
        ("BREW", "/v1/models/tiny", 400, "Malformed request: BREW /v1/models/tiny"),
        ("GET", "/", 404, "Not found: /"),
        ("GET", "/v1/models/../../etc/passwd", 400, "Malformed request"),
    ],
)
def test_wrong_path_is_told_what_is_wrong(url, method, path, status, message):
    request = requests.Request(method, url, json={"instances": ["a"]} if method == "POST" else None).prepare()
    request.url = url + path
    response = requests.Session().send(request, timeout=60)
    assert response.status_code == status and message in response.json()["error"]


def test_body_beyond_the_limit_is_not_read(url):
    assert ask(url, b"x" * 20_001).status_code == 413
    parts = (b"x" * 1000 for _ in range(10**6))  # no length is announced, and it would be 1 GB
    with contextlib.suppress(
        requests.ConnectionError
    ):  # the server hangs up, perhaps before it is asked for the answer
        assert requests.post(url + "/v1/models/tiny:predict", data=parts, timeout=60).status_code == 413
    assert ask(url, {"instances": ["a"]}).status_code == 200


def test_bodies_are_not_held_without_end(exported):
    limits = Limits(body_bytes=20_000, held_bytes=20_000)
    body = json.dumps({"instances": ["a"]}).encode()
    body += b" " * (15_000 - len(body))
    with serving(exported, limits=limits) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as slow:
            slow.sendall(b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 15000\r\n\r\n")
            slow.sendall(body[:-1])
            wait_for(lambda: ask(url, body).status_code == 503)
            slow.sendall(body[-1:])
            assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        assert {ask(url, body).status_code for _ in range(3)} == {200}  # what was refused is not held


def test_body_that_does_not_arrive_ends(exported):
    with serving(exported, limits=Limits(seconds=0.3)) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"POST /v1/models/tiny:predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_silent_connection_ends_and_one_that_is_kept_does_not(exported):
    with serving(exported, limits=Limits(seconds=0.5)) as (url, _), contextlib.ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        kept = stack.enter_context(contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=60)))

        def ask_kept():
            kept.request("GET", "/health")
            response = kept.getresponse()
            return response.status, len(response.read()) > 0

        assert ask_kept() == (200, True)
        connection = kept.sock
        silent, halfway = (
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(2)
        )
        halfway.sendall(b"GET /health HTTP/1.1\r\nHost")
        assert silent.recv(1000) == halfway.recv(1000) == b""
        assert ask_kept() == (200, True) and kept.sock is connection


def test_compressed_body_is_refused(url):
    response = requests.post(
        url + "/v1/models/tiny:predict", data=b"\x1f\x8b", headers={"Content-Encoding": "gzip"}, timeout=60
    )
    assert response.status_code == 415 and "Content-Encoding: gzip" in response.json()["error"]


def test_too_many_waiting_texts_are_refused(exported):
    with serving(exported, limits=Limits(rows=5, waiting=5)) as (url, _), ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(ask, url, {"instances": ["a"] * 5}) for _ in range(80)]
        answers = [future.result() for future in asked]
        statuses = collections.Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503}
        assert {answer.headers.get("Retry-After") for answer in answers} == {None, "1"}
        assert ask(url, {"instances": ["a"] * 5}).status_code == 200


def test_rest_client_gets_the_answers(url, expected):
    client = RestClient("tiny", url)
    answers = client.predict([*TEXTS, b"good \xff film"])
    np.testing.assert_allclose(answers.probability[: len(TEXTS)], expected[2], rtol=0, atol=1e-6)
    assert answers.label.dtype == np.int64 and len(answers.label) == len(TEXTS) + 1
    assert client.predict([]).probability.shape == (0,)
    assert RestClient("tiny", url, label="stable").info()["version"] == 1
    assert client.versions() == {1: "AVAILABLE", 2: "AVAILABLE"}
    with pytest.raises(ServerError, match=r"Specific\(tiny, 9\) \(404\)"):
        RestClient("tiny", url, version=9).predict(["a"])
    with pytest.raises(ValueError, match="not both"):
        RestClient("tiny", url, version=1, label="stable")
    with pytest.raises(ValueError, match="must be a sequence of texts. Received: one str"):
        client.predict("good")
    cyrillic = ["\u0444" * 300] * 30  # 18 kB in UTF-8 and 54 kB escaped; 20 kB are allowed
    assert len(client.predict(cyrillic).label) == 30
    with pytest.raises(ServerError, match="cannot be asked"):
        RestClient("tiny", "http://127.0.0.1:9").predict(["a"])


@pytest.mark.parametrize("content", [{"status": "ok"}, None, ["a"]], ids=str)
def test_answer_of_something_else_is_said_to_be_none(content, monkeypatch):
    response = requests.Response()
    response.status_code, response.reason, response._content = 200, "OK", json.dumps(content).encode()
    monkeypatch.setattr(requests.Session, "request", lambda self, *args, **kwargs: response)
    with pytest.raises(ServerError, match="without 'predictions'. Is it a model server?"):
        RestClient("tiny").predict(["a"])


class StandIn(prediction_service_pb2_grpc.PredictionServiceServicer):
    """TF Serving's gRPC side, with its own messages, on a version loaded as it loads one."""

    def __init__(self, servable):
        self.servable = servable

    def Predict(self, request, context):
        if request.model_spec.name != "tiny":
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({request.model_spec.name})"
            )
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        outputs = self.servable.run(inputs, request.model_spec.signature_name)
        tensors = {name: tf.make_tensor_proto(value) for name, value in outputs.items()}
        return predict_pb2.PredictResponse(model_spec=request.model_spec, outputs=tensors)


def test_grpc_client_gets_the_answers(exported, expected):
    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(StandIn(Servable(exported / "2")), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        client = GrpcClient("tiny", f"127.0.0.1:{port}")
        np.testing.assert_allclose(client.predict(TEXTS * 30).probability, np.tile(expected[2], 30), rtol=0, atol=1e-6)
        assert client.predict([]).label.shape == (0,) and client.info()["version"] == 2
        with pytest.raises(ServerError, match=r"Latest\(other\) \(NOT_FOUND\)"):
            GrpcClient("other", f"127.0.0.1:{port}").predict(["a"])
    finally:
        server.stop(None)


def test_swaps_under_load_lose_no_answer(exported, expected, tmp_path):
    """Every request is answered once, by one version as a whole, while ten versions come and go."""
    path = tmp_path / "tiny"
    shutil.copytree(exported / "1", path / "1")
    answered, done = [], threading.Event()

    def keep_asking(client):
        while not done.is_set():
            answered.append(client.predict(TEXTS).probability)

    with serving(path) as (url, lines):
        with ThreadPoolExecutor(4) as threads:
            asking = [threads.submit(keep_asking, RestClient("tiny", url)) for _ in range(4)]
            for number in range(2, 12):
                shutil.copytree(exported / ("2" if number % 2 == 0 else "1"), path / ".tmp")
                (path / ".tmp").rename(path / str(number))
                wait_for(functools.partial(lines.__contains__, f"version {number} is served"))
                shutil.rmtree(path / str(number - 1))
                wait_for(functools.partial(lines.__contains__, f"version {number - 1} is dropped"))
            done.set()
        for future in asking:
            future.result()  # none raised: nothing was lost
        wait_for(lambda: RestClient("tiny", url).versions() == {11: "AVAILABLE"})
    assert len(answered) >= 40
    for probabilities in answered:
        assert min(np.abs(probabilities - of_version).max() for of_version in expected.values()) < 1e-6


def test_bad_versions_leave_the_old_one_in_place(exported, expected, tmp_path):
    path = tmp_path / "tiny"
    shutil.copytree(exported / "1", path / "1")
    with serving(path) as (url, lines):
        (path / "2").mkdir()  # half-written
        wait_for(lambda: any(line.startswith("version 2 is not served") for line in lines))
        shutil.copytree(exported / "2", path / ".tmp")
        golden = path / ".tmp" / "assets.extra" / "golden.json"
        content = json.loads(golden.read_text())
        golden.write_text(json.dumps(content | {"probabilities": [0.5] * 20}))
        (path / ".tmp").rename(path / "3")
        wait_for(lambda: any("does not answer as the model did" in line for line in lines))
        client = RestClient("tiny", url)
        np.testing.assert_allclose(client.predict(TEXTS).probability, expected[1], rtol=0, atol=1e-6)
        assert client.versions() == {1: "AVAILABLE", 2: "END", 3: "END"}
        golden = path / "3" / "assets.extra" / "golden.json"
        golden.write_text(json.dumps(content))  # mended: it is tried again
        wait_for(lambda: "version 3 is served" in lines)
        np.testing.assert_allclose(client.predict(TEXTS).probability, expected[2], rtol=0, atol=1e-6)
        shutil.rmtree(path / "3")
        shutil.rmtree(path / "2")
        wait_for(lambda: client.versions() == {1: "AVAILABLE"})  # going back is taking the new one away
        shutil.rmtree(path / "1")
        time.sleep(0.5)  # an empty folder drops nothing
        np.testing.assert_allclose(client.predict(TEXTS).probability, expected[1], rtol=0, atol=1e-6)


def test_version_written_anew_under_its_number_is_taken_up(exported, expected, tmp_path):
    path = tmp_path / "tiny"
    shutil.copytree(exported / "1", path / "1")
    with serving(path) as (url, lines):
        client = RestClient("tiny", url)
        golden = path / "1" / "assets.extra" / "golden.json"
        golden.write_text(golden.read_text().replace("probabilities", "nothing"))
        wait_for(lambda: any(line.startswith("version 1 was changed, and is served as it was") for line in lines))
        np.testing.assert_allclose(client.predict(TEXTS).probability, expected[1], rtol=0, atol=1e-6)
        shutil.rmtree(path / "1")
        shutil.copytree(exported / "2", path / ".tmp")
        (path / ".tmp").rename(path / "1")
        wait_for(lambda: any("is served as it is now" in line for line in lines))
        np.testing.assert_allclose(client.predict(TEXTS).probability, expected[2], rtol=0, atol=1e-6)
        assert client.versions() == {1: "AVAILABLE"}


def test_labelled_version_does_not_answer_for_the_highest(exported, monkeypatch):
    loaded = []
    monkeypatch.setattr("bertbin_tf.serving.versions._load", lambda folder: loaded.append(int(folder.name)))
    versions = Versions(exported, lambda servable: types.SimpleNamespace(num_waiting=0), labels={"stable": 1})
    asyncio.run(versions.update())
    assert loaded == [2, 1] and versions.find().number == 2 and versions.find(label="stable").number == 1


def test_folder_without_a_version_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no version that can be served"):
        ModelServer(tmp_path, port=0).run()


def test_address_in_use_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ValueError, match=r"Cannot listen on 127.0.0.1, port \d+: Address already in use"):
            ModelServer(tmp_path, port=taken.getsockname()[1])


@pytest.mark.parametrize(
    "limits, message",
    [
        ({"rows": 0}, "`rows` must be positive"),
        ({"waiting": 5}, "`waiting` must be at least `rows`"),
        ({"held_bytes": 5}, "`held_bytes` must be at least `body_bytes`"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        Limits(**limits)


class Slow:
    """Stands in for a `Servable`: answers after a while, raises at the text "bad", and remembers its batches."""

    def __init__(self, seconds=0.0):
        self.seconds, self.batches = seconds, []

    def run(self, inputs, signature):
        (values,) = inputs.values()
        self.batches.append(list(values))
        time.sleep(self.seconds)
        if any(np.array_equal(value, b"bad") for value in values):
            raise InputError("a bad text")
        return {"length": np.array([len(value) for value in values])}

    def close(self):
        pass


def texts_of(*texts):
    return {"text": as_bytes(texts)}


def test_batches_are_of_similar_texts_and_the_oldest_goes_first():
    async def run():
        servable = Slow(0.05)
        batcher = Batcher(servable, max_waiting=1000)
        first = asyncio.ensure_future(batcher.answer(texts_of("a")))
        await asyncio.sleep(0.01)  # it is being computed; the others gather
        long = asyncio.ensure_future(batcher.answer(texts_of("b" * 500)))
        short = asyncio.ensure_future(batcher.answer(texts_of(*["c"] * 40)))
        other = asyncio.ensure_future(batcher.answer({"ids": np.ones((2, 9), "int32")}, "tokens"))
        answers = [answer["length"].tolist() for answer in await asyncio.gather(first, long, short, other)]
        await batcher.close()
        return servable.batches, answers

    batches, answers = asyncio.run(run())
    assert [(len(batch), len(batch[0])) for batch in batches] == [(1, 1), (1, 500), (32, 1), (8, 1), (2, 9)]
    assert answers == [[1], [500], [1] * 40, [9, 9]]


def test_text_that_fails_takes_nobody_with_it():
    async def run():
        servable = Slow(0.02)
        batcher = Batcher(servable, max_waiting=1000)
        texts = (["a"], ["b", "bad", "c"], ["d"], ["bad"] * 200)
        tasks = [asyncio.ensure_future(batcher.answer(texts_of(*some))) for some in texts]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        num_batches = len(servable.batches)
        await asyncio.sleep(0.2)
        return results, len(servable.batches) - num_batches, batcher.num_waiting

    results, batches_after, num_waiting = asyncio.run(run())
    assert [type(result) for result in results] == [dict, InputError, dict, InputError]
    assert batches_after <= 40 and num_waiting == 0  # of the 200 that need no answer, those in one batch at most


def test_answer_that_takes_too_long_is_given_up(exported, monkeypatch):
    with serving(exported, limits=Limits(seconds=0.5)) as (url, _):
        run = Servable.run
        slow = threading.Event()
        monkeypatch.setattr(Servable, "run", lambda *arguments: (slow.is_set() or time.sleep(1), run(*arguments))[1])
        response = ask(url, {"instances": ["a"]})
        assert response.status_code == 504 and "No answer within 0.5 seconds" in response.json()["error"]
        slow.set()
        wait_for(lambda: ask(url, {"instances": ["a"]}).status_code == 200)


def test_whoever_hangs_up_is_not_computed_for(exported, monkeypatch):
    batches = []
    with serving(exported, limits=Limits()) as (url, _):
        run = Servable.run

        def slow(servable, inputs, signature):
            batches.append(len(inputs["text"]))
            time.sleep(0.2)
            return run(servable, inputs, signature)

        monkeypatch.setattr(Servable, "run", slow)
        with pytest.raises(requests.Timeout):
            requests.post(url + "/v1/models/tiny:predict", json={"instances": ["a"] * 640}, timeout=0.5)
        assert ask(url, {"instances": ["b"]}).status_code == 200
    assert sum(batches) < 320


def test_what_was_taken_is_answered_before_the_end(exported, monkeypatch):
    with serving(exported) as (url, lines), ThreadPoolExecutor(4) as threads:
        run = Servable.run
        monkeypatch.setattr(Servable, "run", lambda *arguments: (time.sleep(0.5), run(*arguments))[1])
        asked = [threads.submit(ask, url, {"instances": [text]}) for text in ("a", "b" * 100, "c" * 300)]
        time.sleep(0.2)
    assert [future.result().status_code for future in asked] == [200] * 3
    assert lines[-1] == "version 2 is dropped"


def test_broken_log_stops_nothing(exported, tmp_path):
    def report(line):
        raise BrokenPipeError

    path = tmp_path / "tiny"
    shutil.copytree(exported / "1", path / "1")
    server = ModelServer(path, port=0, poll_seconds=0.1, report=report)
    thread = threading.Thread(target=server.run)
    thread.start()
    client = RestClient("tiny", f"http://127.0.0.1:{server.port}")
    assert server.wait(60)
    shutil.copytree(exported / "2", path / "2")  # not in one step: it fails until it is whole
    wait_for(lambda: client.versions() == {1: "END", 2: "AVAILABLE"})
    server.stop()
    thread.join(30)
    assert not thread.is_alive()


def test_health_says_no_until_a_version_is_loaded(exported, monkeypatch):
    go = threading.Event()
    load = Servable.__init__
    monkeypatch.setattr(Servable, "__init__", lambda *arguments: (go.wait(60), load(*arguments))[1])
    server = ModelServer(exported, port=0, report=lambda line: None)
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{server.port}"
    assert requests.get(url + "/health", timeout=60).status_code == 503
    go.set()
    assert server.wait(60)
    assert requests.get(url + "/health", timeout=60).status_code == 200
    server.stop()
    thread.join(30)


def test_large_request_holds_up_nobody(exported):
    """Read beside the others: four megabytes of numbers, and more rows than there may be."""
    with serving(exported) as (url, _), ThreadPoolExecutor(1) as threads:
        tokens = {name: [[1] * 400_000] for name in ("token_ids", "segment_ids", "padding_mask")}
        for body in ({"signature_name": "tokens", "inputs": tokens}, {"inputs": [""] * 10**6}):
            large = threads.submit(ask, url, body)
            while not large.done():
                assert requests.get(url + "/health", timeout=60).ok
            assert large.result().status_code == 400


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("good film"),
    lambda children: (
        st.lists(children, max_size=5)
        | st.dictionaries(
            st.sampled_from(["instances", "inputs", "signature_name", "text", "b64", "token_ids"]) | st.text(), children
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    body=st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()), which=st.sampled_from(["", "/labels/x"])
)
def test_whatever_is_sent_the_server_lives_and_says_what_is_wrong(url, body, which):
    response = ask(url, body, f"/v1/models/tiny{which}:predict")
    assert response.status_code in (200, 400, 404)
    assert set(response.json()) <= {"predictions", "outputs", "error"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="schemathesis needs Python 3.11")
@pytest.mark.parametrize("is_valid", [True, False])
def test_server_does_what_its_description_says(url, is_valid):
    import schemathesis
    from schemathesis import checks
    from schemathesis.specs.openapi.checks import (
        negative_data_rejection,
        response_schema_conformance,
        status_code_conformance,
    )

    mode = schemathesis.GenerationMode.POSITIVE if is_valid else schemathesis.GenerationMode.NEGATIVE
    wanted = [checks.not_a_server_error, response_schema_conformance, status_code_conformance, negative_data_rejection]
    count = 0
    for operation in schemathesis.openapi.from_url(url + "/openapi.json").get_all_operations():
        if not is_valid and operation.ok().method != "post":
            continue

        @settings(max_examples=25, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=operation.ok().as_strategy(generation_mode=mode))
        def try_one(case):
            nonlocal count
            count += 1
            case.call_and_validate(checks=wanted)

        try_one()
    assert count >= 60
