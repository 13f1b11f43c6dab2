"""TF Serving's REST interface, as an ASGI application.

Paths, JSON and errors are those of `tensorflow_serving/model_servers/http_rest_api_handler.cc` and of its guide,
"RESTful API". What is added: limits, `/health`, and a description of it all in `/openapi.json`.
"""

import asyncio
import json
import re
import time

from google.protobuf import any_pb2, json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from bertbin_tf.serving.batching import Overloaded
from bertbin_tf.serving.limits import Limits
from bertbin_tf.serving.measures import Measures
from bertbin_tf.serving.openapi import describe
from bertbin_tf.serving.tensors import RequestError, read_inputs, read_request, write_answer
from bertbin_tf.serving.versions import NotServed, Version, Versions

MODEL = re.compile(
    r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<what>/metadata|:predict|:classify|:regress)?"
)
METRICS_PATH = "/monitoring/prometheus/metrics"  # as TF Serving's example configuration has it
INT64_MAX = 2**63 - 1


class _Refused(Exception):
    """A request ends here, with a status and a message."""

    def __init__(self, status, message, **headers):
        super().__init__(message)
        self.status, self.headers = status, headers


def build_app(versions: Versions, limits: Limits, measures: Measures, **starlette_options) -> Starlette:
    """Returns the ASGI application that answers for a model.

    Args:
        versions: The `Versions` of the model.
        limits: The `Limits`.
        measures: The `Measures`, which are counted and shown.
        **starlette_options: Passed to `Starlette`, such as `lifespan`.
    """
    api = _Api(versions, limits, measures)
    routes = [
        Route("/health", api.health, methods=["GET"]),
        Route("/openapi.json", api.openapi, methods=["GET"]),
        Route(METRICS_PATH, api.metrics, methods=["GET"]),
        Route("/{path:path}", api.model, methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    ]
    return Starlette(routes=routes, **starlette_options)


class _Api:
    def __init__(self, versions, limits, measures):
        self._versions, self._limits, self._measures = versions, limits, measures

    async def health(self, request: Request) -> Response:
        try:
            version = self._versions.find()
        except NotServed as error:
            return JSONResponse({"status": "UNAVAILABLE", "error": str(error)}, status_code=503)
        return JSONResponse({"status": "AVAILABLE", "version": str(version.number)})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(describe(self._versions.path.name, self._limits))

    async def metrics(self, request: Request) -> Response:
        text, media_type = self._measures.render()
        return Response(text, media_type=media_type)

    async def model(self, request: Request) -> Response:
        """Answers whatever begins with `/v1/models/`, and says of all else that it is malformed."""
        started = time.perf_counter()
        method, headers = "unknown", {}
        try:
            path = MODEL.fullmatch(request.url.path)
            what = path["what"] if path else None
            if path and request.method == "POST" and what in (":predict", ":classify", ":regress"):
                method = what[1:]
                answer = await self._predict(request, path)
            elif path and request.method == "GET" and what in (None, "/metadata"):
                method = "status" if what is None else "metadata"
                answer = await (self._status if what is None else self._metadata)(request, path)
            else:
                raise _Refused(400, f"Malformed request: {request.method} {request.url.path}")
            status = 200
        except RequestError as error:
            status, answer = 400, _error(error)
        except NotServed as error:
            status, answer = 404, _error(error)
        except Overloaded as error:
            status, answer, headers = 503, _error(error), {"Retry-After": "1"}
        except _Refused as error:
            status, answer, headers = error.status, _error(error), error.headers
        except ClientDisconnect:
            status, answer = 499, b""  # nobody reads it; nginx counts these so
        except Exception as error:  # ours: the server lives on, and says no more than this
            self._measures.report(f"{type(error).__name__}: {error}")
            status, answer = 500, _error("Internal error")
        self._measures.count(method, status, time.perf_counter() - started)
        return Response(answer, status, headers, media_type="application/json")

    async def _predict(self, request, path):
        number, label = self._which(path)
        self._versions.find(number, label)  # 404 before a body is read
        if path["what"] != ":predict":
            raise RequestError(f"Expected {path['what'][1:]} signature method_name; this model has predict signatures")
        body = await self._read(request)
        async with self._versions.use(number, label) as batcher:
            content, name = read_request(body)
            if name not in batcher.servable.signatures:
                raise RequestError(f'Serving signature name: "{name}" not found in signature def')
            inputs, as_rows = read_inputs(content, batcher.servable.signatures[name].inputs)
            self._check(inputs)
            call = batcher.answer(inputs["text"]) if name == "serving_default" else batcher.run(inputs, name)
            try:
                outputs = await asyncio.wait_for(call, self._limits.seconds)
            except asyncio.TimeoutError as error:
                raise _Refused(504, f"No answer within {self._limits.seconds:g} seconds") from error
            except ValueError as error:  # such as token ids beyond the vocabulary
                raise RequestError(str(error)) from error
        self._measures.rows.inc(len(next(iter(inputs.values()))))
        return write_answer(outputs, as_rows)

    async def _status(self, request, path):
        number, label = self._which(path)
        if number is None and label is None:
            versions = list(self._versions)
        elif label is not None:
            versions = [self._versions.find(label=label)]
        else:
            versions = [version for version in self._versions if version.number == number]
        if not versions:
            of = self._versions.path.name if number is None else f"{self._versions.path.name} version {number}"
            raise NotServed(f"Could not find any versions of model {of}")
        return _to_json(get_model_status_pb2.GetModelStatusResponse(model_version_status=map(_status_of, versions)))

    async def _metadata(self, request, path):
        version = self._versions.find(*self._which(path))
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=version.batcher.servable.signatures)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self._versions.path.name
        response.model_spec.version.value = version.number
        packed = any_pb2.Any()
        packed.Pack(signatures)
        response.metadata["signature_def"].CopyFrom(packed)
        return _to_json(response)

    def _which(self, path):
        if path["model"] != self._versions.path.name:
            raise NotServed(f"Servable not found for request: Latest({path['model']})")
        number = None if path["version"] is None else int(path["version"][:20])
        if number is not None and number > INT64_MAX:
            raise RequestError(f"Failed to convert version: {path['version'][:40]} to numeric.")
        return number, path["label"]

    async def _read(self, request):
        async def read():
            body = bytearray()
            async for part in request.stream():
                body += part
                if len(body) > self._limits.body_bytes:
                    raise too_large
            return bytes(body)

        limit = self._limits.body_bytes
        too_large = _Refused(
            413, f"The body is larger than {limit} bytes. Send fewer texts at a time.", Connection="close"
        )
        if int(request.headers.get("content-length") or 0) > limit:
            raise too_large
        try:
            return await asyncio.wait_for(read(), self._limits.seconds)
        except asyncio.TimeoutError as error:
            raise _Refused(
                408, f"The body did not arrive in {self._limits.seconds:g} seconds", Connection="close"
            ) from error

    def _check(self, inputs):
        rows = max(len(array) for array in inputs.values())
        if rows > self._limits.rows:
            raise RequestError(f"A request may have {self._limits.rows} rows. Received: {rows}. Send them in parts.")
        for array in inputs.values():
            sizes = [len(text) for text in array.ravel()] if array.dtype == object else [0]
            if max(sizes, default=0) > self._limits.text_bytes:
                raise RequestError(f"A text may have {self._limits.text_bytes} bytes. Received: one of {max(sizes)}.")


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
