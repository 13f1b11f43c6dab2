"""A keras-nlp backbone under a sigmoid head: tokens in, one probability out."""

import keras

from bertbin_tf.models.classifier import POOLINGS, binary_classifier
from bertbin_tf.models.features import cache_features, fit_head
from bertbin_tf.models.presets import check_preprocessor, load_backbone, load_preprocessor, save_preprocessor

__all__ = [
    "POOLINGS",
    "binary_classifier",
    "cache_features",
    "check_preprocessor",
    "fit_head",
    "load_backbone",
    "load_preprocessor",
    "save_preprocessor",
]

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"bertbin_tf needs Keras on TensorFlow. Received the backend '{keras.backend.backend()}': set the environment "
        "variable KERAS_BACKEND=tensorflow, or import bertbin_tf before keras."
    )
