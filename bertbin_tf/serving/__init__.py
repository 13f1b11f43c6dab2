"""Probabilities over HTTP, by TF Serving or in its place, and the clients that ask either.

In the order of a request: `rest` takes it, `tensors` reads its JSON, `versions` knows the version that it is for, and
`batching` answers it together with those that came at the same time. `clients` is the other end.
"""

__all__ = ["GrpcClient", "Limits", "ModelServer", "RestClient", "ServerError"]


def __getattr__(name):
    # A client needs no server and no TensorFlow; the command line needs the limits, for its flags, at once.
    if name in ("GrpcClient", "RestClient", "ServerError"):
        from bertbin_tf.serving import clients as module
    elif name == "Limits":
        from bertbin_tf.serving import limits as module
    elif name == "ModelServer":
        from bertbin_tf.serving import server as module
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(module, name)
