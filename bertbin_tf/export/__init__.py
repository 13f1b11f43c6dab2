"""From a trained model to a SavedModel that TF Serving would run for years, and back to the answers of one.

`Servable` and `verify` need TensorFlow and TF Text only, as the server does; `export_saved_model` needs Keras too.
"""

__all__ = ["Servable", "Verification", "export_run", "export_saved_model", "verify"]


def __getattr__(name):
    # A server must not pay for Keras models, which it has none of.
    if name in ("export_run", "export_saved_model"):
        from bertbin_tf.export import saved_model as module
    elif name == "Servable":
        from bertbin_tf.export import servable as module
    elif name in ("Verification", "verify"):
        from bertbin_tf.export import verification as module
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(module, name)
