"""The JSON of TF Serving's REST interface, to arrays and back.

It follows `tensorflow_serving/util/json_tensor.cc`, its rules and the words of its errors: a request holds `instances`,
a list of rows, or `inputs`, a column for each input; the answer holds `predictions` or `outputs` accordingly.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bertbin_tf.serving.refused import Refused

_TYPES = {str: "String", bool: "Boolean", int: "Number", float: "Number", list: "Array", dict: "Object"}


def read_request(body: bytes) -> tuple[dict, str]:
    """Returns the JSON object of a request and the name of the signature that it asks for.

    Raises:
        Refused: If it is no JSON object.
    """
    if not body:
        raise Refused(400, "JSON Parse error: The document is empty")
    try:
        request = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refused(
            400, f"JSON Parse error: The body is not UTF-8 at offset: {error.start}. Send such text as {{'b64': ...}}"
        ) from error
    except json.JSONDecodeError as error:
        raise Refused(400, f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    except (RecursionError, ValueError) as error:  # nested a thousand deep; a number of thousands of digits
        raise Refused(400, f"JSON Parse error: {str(error).partition(':')[0]}") from error
    if not isinstance(request, dict):
        raise Refused(400, f"JSON Value: {_show(request)} Is not object")
    signature = request.get("signature_name", "serving_default")
    if not isinstance(signature, str):
        raise Refused(
            400,
            f"JSON Value: {_show(request)} not formatted correctly. 'signature_name' key must be a string value.",
        )
    return request, signature or "serving_default"


def read_inputs(request: dict, specs: Mapping[str, Any], max_rows: int) -> tuple[dict[str, np.ndarray], bool]:
    """Returns the arrays of a request, and whether they came as rows.

    Args:
        request: Dict, as `read_request` returns it.
        specs: Dict from an input's name to its `TensorInfo`; not empty.
        max_rows: Int >= 1. More are refused before any is looked at.

    Raises:
        Refused: If they are not what the signature takes.
    """
    if "instances" in request and "inputs" in request:
        raise Refused(400, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    if "instances" in request:
        columns = _columns_of_rows(request["instances"], specs, max_rows)
    elif "inputs" in request:
        columns = _columns(request["inputs"], specs)
    else:
        raise Refused(400, "Missing 'inputs' or 'instances' key")
    for values in columns.values():
        _check_rows(values, max_rows)
    return {name: _to_array(name, columns[name], spec) for name, spec in specs.items()}, "instances" in request


def write_answer(outputs: Mapping[str, np.ndarray], as_rows: bool) -> bytes:
    """Returns the JSON of an answer, in rows or columns as the request was."""
    columns = {name: _to_json(value) for name, value in outputs.items()}
    if not as_rows:
        answer = {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    elif len(columns) > 1:
        answer = {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}
    else:
        answer = {"predictions": next(iter(columns.values()))}
    return json.dumps(answer).encode("utf-8")


def _columns_of_rows(rows, specs, max_rows):
    if not isinstance(rows, list):
        raise Refused(400, "Expecting 'instances' to be a list/array")
    if not rows:
        raise Refused(400, "No values in 'instances' array")
    _check_rows(rows, max_rows)
    has_names = isinstance(rows[0], dict) and not _is_base64(rows[0])
    if not has_names and len(specs) > 1:
        raise Refused(
            400,
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        )
    columns = {name: [] for name in specs}
    for number, row in enumerate(rows):
        if has_names != (isinstance(row, dict) and not _is_base64(row)):
            raise Refused(400, f"Expecting {'object' if has_names else 'value/list'} at item {number} of input list")
        row = row if has_names else {next(iter(specs)): row}
        if set(row) != set(specs):
            raise Refused(
                400,
                f"Failed to process element: {number} of 'instances' list. JSON object: {_show(row)} keys must be "
                f"equal to: {','.join(sorted(specs))}",
            )
        for name, value in row.items():
            columns[name].append(value)
    return columns


def _columns(columns, specs):
    if not isinstance(columns, dict) or _is_base64(columns):
        if len(specs) > 1:
            raise Refused(
                400,
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map",
            )
        columns = {next(iter(specs)): columns}
    if missing := [name for name in specs if name not in columns]:
        raise Refused(400, f"Missing named input: {missing[0]} in 'inputs' object.")
    return {name: columns[name] for name in specs}


def _check_rows(rows, max_rows):
    if isinstance(rows, list) and len(rows) > max_rows:
        raise Refused(400, f"A request may have {max_rows} rows. Received: {len(rows)}. Send them in parts.")


def _to_array(name, values, spec):
    dtype, leaves, shape = tf.as_dtype(spec.dtype), [values], []
    for _ in spec.tensor_shape.dim:
        if not all(isinstance(leaf, list) for leaf in leaves):
            raise Refused(
                400,
                f"JSON Value: {_show(values)} is not a list nested {len(spec.tensor_shape.dim)} deep, which the input "
                f"{name} is",
            )
        if len({len(leaf) for leaf in leaves}) > 1:
            raise Refused(400, f"Encountered list at unexpected size in the input {name}: all must be of one size")
        shape.append(len(leaves[0]) if leaves else 0)
        leaves = [item for leaf in leaves for item in leaf]
    if dtype == tf.string:
        array = np.empty(len(leaves), object)
        array[:] = list(map(_to_bytes, leaves))
    else:
        array = _to_integers(leaves, dtype)
    return array.reshape(shape)


def _to_bytes(leaf):
    if _is_base64(leaf):
        try:
            encoded = leaf["b64"]
            return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(400, "Unable to base64 decode") from error
    if not isinstance(leaf, str):
        raise _wrong_type(leaf, tf.string)
    try:
        return leaf.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused(400, "JSON Parse error: The surrogate pair in string is invalid.") from error


def _to_integers(leaves, dtype):
    # All at once, for a request may hold a million of them.
    if not dtype.is_integer or not set(map(type, leaves)) <= {int}:
        wrong = [leaf for leaf in leaves if type(leaf) is not int or not dtype.is_integer]
        raise _wrong_type(wrong[0] if wrong else leaves, dtype)
    if leaves and not dtype.min <= min(leaves) <= max(leaves) <= dtype.max:
        raise _wrong_type(max(leaves, key=abs), dtype)
    return np.array(leaves, dtype.as_numpy_dtype)


def _wrong_type(leaf, dtype):
    kind = "Null" if leaf is None else _TYPES[type(leaf)]
    return Refused(400, f"JSON Value: {_show(leaf)} Type: {kind} is not of expected type: {dtype.name}")


def _is_base64(value):
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _to_json(array):
    if array.dtype == np.float32:
        # The shortest decimal that is the same float32; as float64 it would have nine digits of noise.
        values = [float(str(value)) for value in array.ravel()]
    elif array.dtype == object:
        values = [value.decode("utf-8", errors="replace") for value in array.ravel()]
    else:
        return array.tolist()
    return np.array(values, object).reshape(array.shape).tolist()


def _show(value):
    try:
        text = json.dumps(value)
    except RecursionError:
        return "[[[..."
    return text if len(text) <= 80 else text[:77] + "..."
