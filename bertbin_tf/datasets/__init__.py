"""Data sets of TensorFlow Datasets that need no hub. Importing this registers them: `tfds.load("vader/movies")`."""

from bertbin_tf.datasets.vader import Vader

__all__ = ["Vader"]
