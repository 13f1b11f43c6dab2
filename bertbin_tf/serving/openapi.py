"""The description of the REST interface in the terms of OpenAPI 3.1."""

from typing import Any

import bertbin_tf

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
}
_REASONS = {
    400: "The request cannot be understood, or is beyond a limit; there is no such label.",
    404: "There is no such model or version.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    503: "Too many texts are waiting, or bytes being received.",
    504: "No answer in time.",
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
        "label": {"type": "integer", "minimum": 0, "maximum": 1},
    },
    "required": ["probability", "label"],
}


def describe(name: str, limits) -> dict:
    """Returns the description of a server.

    Args:
        name: String, the name of the model.
        limits: The `Limits`.
    """
    text = {
        "oneOf": [
            {"type": "string"},
            {
                "type": "object",
                "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
                "required": ["b64"],
                "additionalProperties": False,
            },
        ],
        "description": "A text, or its bytes in base64, where it is not UTF-8.",
    }
    texts = {"type": "array", "items": text, "maxItems": limits.rows}
    named = {"type": "object", "properties": {"text": text}, "required": ["text"], "additionalProperties": False}
    rows = {
        "type": "object",
        "properties": {
            "instances": {
                "oneOf": [
                    texts | {"minItems": 1},
                    {"type": "array", "items": named, "minItems": 1, "maxItems": limits.rows},
                ]
            },
            "signature_name": {"const": "serving_default"},
        },
        "required": ["instances"],
        "additionalProperties": False,
    }
    columns = {
        "type": "object",
        "properties": {
            "inputs": {
                "oneOf": [
                    texts,
                    {
                        "type": "object",
                        "properties": {"text": texts},
                        "required": ["text"],
                        "additionalProperties": False,
                    },
                ]
            },
            "signature_name": {"const": "serving_default"},
        },
        "required": ["inputs"],
        "additionalProperties": False,
    }
    answer = {
        "oneOf": [
            {
                "type": "object",
                "properties": {"predictions": {"type": "array", "items": _ANSWER}},
                "required": ["predictions"],
            },
            {
                "type": "object",
                "properties": {
                    "outputs": {
                        "type": "object",
                        "properties": {
                            key: {"type": "array", "items": value} for key, value in _ANSWER["properties"].items()
                        },
                        "required": ["probability", "label"],
                    }
                },
                "required": ["outputs"],
            },
        ]
    }
    status = {
        "type": "object",
        "properties": {
            "model_version_status": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "version": {"type": "string"},
                        "state": {"enum": ["LOADING", "AVAILABLE", "UNLOADING", "END"]},
                        "status": {"type": "object"},
                    },
                    "required": ["version", "state", "status"],
                },
            }
        },
        "required": ["model_version_status"],
    }
    metadata = {
        "type": "object",
        "properties": {"model_spec": {"type": "object"}, "metadata": {"type": "object"}},
        "required": ["model_spec", "metadata"],
    }
    parameters = {
        "version": {"name": "version", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}},
        "label": {"name": "label", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
    }
    paths = {}
    for which, names in (("", []), ("/versions/{version}", ["version"]), ("/labels/{label}", ["label"])):
        base, common = f"/v1/models/{name}{which}", [parameters[key] for key in names]
        paths[f"{base}:predict"] = {
            "parameters": common,
            "post": {
                "summary": "Probabilities and labels of texts.",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"oneOf": [rows, columns]}}},
                },
                "responses": _responses(answer, (400, 404, 408, 413, 415, 503, 504)),
            },
        }
        paths[base] = {
            "parameters": common,
            "get": {"summary": "The state of the versions.", "responses": _responses(status, (400, 404))},
        }
        paths[f"{base}/metadata"] = {
            "parameters": common,
            "get": {"summary": "The signatures.", "responses": _responses(metadata, (400, 404))},
        }
    paths["/health"] = {
        "get": {"summary": "Whether a version answers.", "responses": _responses({"type": "object"}, (503,))}
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"{name}, as TF Serving would serve it",
            "version": bertbin_tf.__version__,
            "description": "Texts in, probabilities out: the REST interface of TF Serving.",
        },
        "paths": paths,
    }


def _responses(schema, errors):
    responses = {"200": {"description": "Done.", "content": {"application/json": {"schema": schema}}}}
    for status in errors:
        responses[str(status)] = {
            "description": _REASONS[status],
            "content": {"application/json": {"schema": _ERROR}},
        }
    return responses
