"""From a trained model to a SavedModel that TF Serving would run for years, and back to the answers of one.

`Servable` and `verify` need TensorFlow and TF Text only, as the server does; `export_saved_model` needs Keras too.
"""

__all__ = ["Servable", "Verification", "export_saved_model", "verify"]


def __getattr__(name):
    # A server must not pay for Keras models, which it has none of.
    if name == "export_saved_model":
        from bertbin_tf.export.saved_model import export_saved_model as value
    elif name == "Servable":
        from bertbin_tf.export.servable import Servable as value
    elif name == "verify":
        from bertbin_tf.export.verification import verify as value
    elif name == "Verification":
        from bertbin_tf.export.verification import Verification as value
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return value
