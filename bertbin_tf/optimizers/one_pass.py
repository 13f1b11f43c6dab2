"""Operations on large weights that take one pass over them, where plain ones take several and make copies."""

import keras
import tensorflow as tf


def subtract(variable: keras.Variable | tf.Variable, factor: tf.Tensor, delta: tf.Tensor) -> None:
    """Subtracts `factor * delta` from a variable, of the same shape and dtype."""
    tf.raw_ops.ResourceApplyGradientDescent(var=handle(variable), alpha=tf.cast(factor, variable.dtype), delta=delta)


def norm(tensors: list[tf.Tensor]) -> tf.Tensor:
    """Returns the Euclidean norm over all tensors, a float32 scalar."""
    return tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors]))


def handle(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    """Returns the resource of a variable, as raw operations take it."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
