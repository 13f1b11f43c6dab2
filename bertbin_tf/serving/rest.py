"""TF Serving's REST interface, as an ASGI application.

Paths, JSON and errors are those of `tensorflow_serving/model_servers/http_rest_api_handler.cc` and of its guide,
"RESTful API". What is added: limits, `/health`, and a description of it all in `/openapi.json`.
"""

import asyncio
import contextlib
import json
import re
import time
import traceback

from google.protobuf import any_pb2, json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from bertbin_tf.export.servable import INT64_MAX, InputError
from bertbin_tf.serving.limits import Limits
from bertbin_tf.serving.measures import Measures
from bertbin_tf.serving.openapi import describe
from bertbin_tf.serving.refused import Refused
from bertbin_tf.serving.tensors import read_inputs, read_request, write_answer
from bertbin_tf.serving.versions import Version, Versions

MODEL = re.compile(
    r"/v1/models(?:/(?P<model>[^/:]+))?(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<what>/metadata|:predict|:classify|:regress)?",
    re.IGNORECASE | re.ASCII,
)
METRICS_PATH = "/monitoring/prometheus/metrics"  # as TF Serving's example configuration has it
SMALL_BODY = 16 * 2**10  # bytes; larger ones are read in a thread, while others are answered


def build_app(versions: Versions, limits: Limits, measures: Measures) -> Starlette:
    """Returns the ASGI application that answers for a model.

    Args:
        versions: The `Versions` of the model.
        limits: The `Limits`.
        measures: The `Measures`, which are counted and shown.
    """
    api = _Api(versions, limits, measures)

    async def model(scope, receive, send):
        response = await api.model(Request(scope, receive))
        await response(scope, receive, send)

    return Starlette(
        routes=[
            Route("/health", api.health, methods=["GET"]),
            Route("/openapi.json", api.openapi, methods=["GET"]),
            Route(METRICS_PATH, api.metrics, methods=["GET"]),
            Mount("/", model),
        ]
    )


class _Api:
    def __init__(self, versions, limits, measures):
        self._versions, self._limits, self._measures = versions, limits, measures
        self._held_bytes = 0

    async def health(self, request: Request) -> Response:
        try:
            version = self._versions.find()
        except Refused as error:
            return JSONResponse({"status": "UNAVAILABLE", "error": str(error)}, status_code=503)
        return JSONResponse({"status": "AVAILABLE", "version": str(version.number)})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(describe(self._versions.name, self._limits))

    async def metrics(self, request: Request) -> Response:
        text, media_type = self._measures.render()
        return Response(text, media_type=media_type)

    async def model(self, request: Request) -> Response:
        """Answers whatever begins with `/v1/models`, and says of all else what is wrong."""
        started = time.perf_counter()
        status, headers, what = 200, {}, "unknown"
        try:
            path = MODEL.fullmatch(request.scope["path"])
            what, answer = self._route(request, path)
            answer = await answer
        except Refused as error:
            status, headers, answer = error.status, error.headers, _error(error)
        except ClientDisconnect:
            status, answer = 499, b""  # nobody reads it; nginx counts these so
        except Exception as error:  # ours: the server lives on, and says no more than this
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._measures.report(f"{type(error).__name__}: {error} ({where.filename}, line {where.lineno})")
            status, answer = 500, _error("Internal error")
        self._measures.count(what, status, time.perf_counter() - started)
        return Response(answer, status, headers, media_type="application/json")

    def _route(self, request, path):
        """Returns the name of what is asked for, and a coroutine that answers."""
        what = (path["what"] or "/status")[1:].lower() if path else None
        if request.method == "POST" and what in ("predict", "classify", "regress") and path["model"]:
            return what, self._predict(request, path, what)
        if request.method == "GET" and what == "status":
            return what, self._status(path)
        if request.method == "GET" and what == "metadata" and path["model"]:
            return what, self._metadata(path)
        if not request.scope["path"].lower().startswith("/v1/"):
            raise Refused(404, f"Not found: {request.scope['path']}")
        raise Refused(400, f"Malformed request: {request.method} {request.scope['path']}")

    async def _predict(self, request, path, what):
        which = self._which(path)
        self._versions.find(*which)  # 404 before a body is read
        if what != "predict":
            raise Refused(400, f"Expected {what} signature method_name; this model has predict signatures")
        with self._holding() as hold:
            body = await self._read(request, hold)
            async with self._versions.use(*which) as batcher:
                signatures = batcher.servable.signatures
                if len(body) > SMALL_BODY:
                    inputs, name, as_rows = await asyncio.to_thread(self._parse, body, signatures)
                else:
                    inputs, name, as_rows = self._parse(body, signatures)
                hold(-len(body))
                del body  # many may wait
                outputs = await self._unless_gone(request, batcher.answer(inputs, name))
        self._measures.rows.inc(len(next(iter(inputs.values()))))
        return write_answer(outputs, as_rows)

    def _parse(self, body, signatures):
        request, name = read_request(body)
        if name not in signatures:
            raise Refused(400, f'Serving signature name: "{name}" not found in signature def')
        specs = signatures[name].inputs
        if not specs:
            raise Refused(400, f"Failed to get input map for signature: {name}")
        inputs, as_rows = read_inputs(request, specs, self._limits.rows)
        texts = [text for array in inputs.values() if array.dtype == object for text in array.ravel()]
        longest = max(map(len, texts), default=0)
        if longest > self._limits.text_bytes:
            raise Refused(400, f"A text may have {self._limits.text_bytes} bytes. Received: one of {longest}.")
        return inputs, name, as_rows

    async def _unless_gone(self, request, answer):
        """Returns the answer, unless its time runs out or whoever asked is gone: then it is not computed."""
        answer, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({answer, gone}, timeout=self._limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect()
            raise Refused(504, f"No answer within {self._limits.seconds:g} seconds")
        except InputError as error:  # such as token ids beyond the vocabulary
            raise Refused(400, str(error)) from error
        finally:
            answer.cancel()
            gone.cancel()

    async def _status(self, path):
        if not path["model"]:
            raise Refused(400, "Missing model name in request.")
        number, label = self._which(path, "Could not find any versions of model {model}")
        if label is not None:
            versions = [self._versions.find(label=label)]
        else:
            versions = [version for version in reversed([*self._versions]) if number in (None, version.number)]
        if not versions:
            which = "any versions" if number is None else f"version {number}"
            raise Refused(404, f"Could not find {which} of model {self._versions.name}")
        return _to_json(get_model_status_pb2.GetModelStatusResponse(model_version_status=map(_status_of, versions)))

    async def _metadata(self, path):
        version = self._versions.find(*self._which(path))
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.batcher.servable.signatures)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self._versions.name
        response.model_spec.version.value = version.number
        packed = any_pb2.Any()
        packed.Pack(signatures)
        response.metadata["signature_def"].CopyFrom(packed)
        return _to_json(response)

    def _which(self, path, unknown="Servable not found for request: Latest({model})"):
        if path["model"] != self._versions.name:
            raise Refused(404, unknown.format(model=path["model"]))
        number = None if path["version"] is None else int(path["version"][:20])
        if number is not None and number > INT64_MAX:
            raise Refused(400, f"Failed to convert version: {path['version'][:40]} to numeric.")
        return number, path["label"]

    @contextlib.contextmanager
    def _holding(self):
        """Gives a function that counts bytes of a body, and refuses them where all bodies together are too many."""
        mine = 0

        def hold(num_bytes):
            nonlocal mine
            mine += num_bytes
            self._held_bytes += num_bytes
            if self._held_bytes > self._limits.held_bytes:
                raise Refused(503, "Too many bytes are being received. Send it again later.", Connection="close")

        try:
            yield hold
        finally:
            self._held_bytes -= mine

    async def _read(self, request, hold):
        async def read():
            body = bytearray()
            async for part in request.stream():
                hold(len(part))
                body += part
                if len(body) > self._limits.body_bytes:
                    raise too_large
            return bytes(body)

        if (encoding := request.headers.get("content-encoding", "identity").lower()) != "identity":
            raise Refused(415, f"Content-Encoding: {encoding} is not read. Send the body as it is.", Connection="close")
        limit = self._limits.body_bytes
        too_large = Refused(
            413, f"The body is larger than {limit} bytes. Send fewer texts at a time.", Connection="close"
        )
        if int(request.headers.get("content-length") or 0) > limit:
            raise too_large
        try:
            return await asyncio.wait_for(read(), self._limits.seconds)
        except TimeoutError as error:
            raise Refused(
                408, f"The body did not arrive in {self._limits.seconds:g} seconds", Connection="close"
            ) from error


async def _disconnected(request):
    """Returns when whoever asked is gone. Its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _status_of(version: Version) -> get_model_status_pb2.ModelVersionStatus:
    status = get_model_status_pb2.ModelVersionStatus(version=version.number, state=version.state.value)
    status.status.error_code = 9 if version.error else 0  # FAILED_PRECONDITION, OK
    status.status.error_message = version.error
    status.status.SetInParent()  # shown also where it is all zeros
    return status


def _to_json(message):
    text = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return text.encode("utf-8")


def _error(error):
    return json.dumps({"error": str(error)}).encode("utf-8")
