"""Operations on large weights that take one pass over them, where plain ones take several and make copies."""

from collections.abc import Sequence

import keras
import tensorflow as tf

SCALARS = ("beta1_power", "beta2_power", "lr", "beta1", "beta2", "epsilon")  # of `ResourceApplyAdam`


def subtract(variable: keras.Variable | tf.Variable, factor: tf.Tensor, delta: tf.Tensor) -> None:
    """Subtracts `factor * delta` from a variable, of the same shape and dtype."""
    tf.raw_ops.ResourceApplyGradientDescent(var=handle(variable), alpha=tf.cast(factor, variable.dtype), delta=delta)


def adam(
    variable: keras.Variable | tf.Variable, moments: tuple, gradient: tf.Tensor, scalars: dict[str, tf.Tensor]
) -> None:
    """Takes Adam's step, and the one of its moments.

    Args:
        variable: The weight.
        moments: Pair of variables like it, those of the gradient and of its square.
        gradient: Tensor like it.
        scalars: See `adam_scalars`.
    """
    tf.raw_ops.ResourceApplyAdam(
        **dict(zip(("var", "m", "v"), map(handle, (variable, *moments)), strict=True)),
        **scalars,
        grad=tf.cast(gradient, variable.dtype),
    )


def adam_scalars(dtype: str, *, step, rate, betas, epsilon) -> dict[str, tf.Tensor]:
    """Returns what `adam` needs beside its variables, which all weights of a layer share.

    Args:
        dtype: String, that of the weights.
        step: Integer scalar >= 1, the number of this step.
        rate: Float scalar.
        betas: Pair of floats.
        epsilon: Float > 0; in float16 no smaller than what is not 0 there.
    """
    epsilon = max(epsilon, 6e-8) if dtype == "float16" else epsilon
    powers = [tf.pow(tf.cast(beta, dtype), tf.cast(step, dtype)) for beta in betas]
    scalars = [*powers, rate, *betas, epsilon]
    return dict(zip(SCALARS, (tf.cast(scalar, dtype) for scalar in scalars), strict=True))


def norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the Euclidean norm over all tensors, a float32 scalar."""
    return tf.sqrt(2 * tf.add_n([tf.nn.l2_loss(tf.cast(tensor, tf.float32)) for tensor in tensors]))


def clip_by_global_norm(grads: Sequence[tf.Tensor], limit: float) -> list[tf.Tensor]:
    """Returns gradients of a norm of at most `limit`, as Keras does, in fewer passes; not finite ones become NaN."""
    size = norm(grads)
    scale = limit / tf.maximum(size, limit) + (size - size)
    return [gradient * tf.cast(scale, gradient.dtype) for gradient in grads]


def handle(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    """Returns the resource of a variable, as raw operations take it."""
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
