"""What a model holds that looking at it may change, and how that is put back."""

import contextlib
import random
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf


@contextlib.contextmanager
def put_back(model: keras.Model) -> Iterator[None]:
    """Leaves weights, optimizer, metrics, seeds and the state of all random generators as they were, bit for bit.

    Args:
        model: The compiled model.
    """
    variables = _variables_of(model)
    values = [tf.identity(variable) for variable in variables]
    counters = {name: value for name, value in vars(model).items() if type(value) in (int, float)}
    trainable = [(layer, layer.trainable) for layer in [*model._flatten_layers(), *model.variables]]
    states = random.getstate(), np.random.get_state()
    with _global_seed(), _tensorflow_seed():
        try:
            yield
        finally:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            known = set(map(id, variables))
            for metric in model.metrics:  # of those that have been built since
                if not known.issuperset(map(id, metric.variables)):
                    metric.reset_state()
            # From the outside in, for a model passes it on to its layers, and a layer to its variables.
            for layer, was_trainable in trainable:
                if layer.trainable != was_trainable:
                    layer.trainable = was_trainable
            for name, value in counters.items():
                if getattr(model, name) != value:
                    setattr(model, name, value)
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextlib.contextmanager
def with_optimizers(model: keras.Model, make: Callable) -> Iterator[None]:
    """Has a model train with other optimizers for a while, and with a training function of its own for them.

    Args:
        model: The compiled model.
        make: Function from an optimizer that the model holds, in whatever attribute, to the one in its place.
    """
    held = {name: value for name, value in vars(model).items() if isinstance(value, keras.optimizers.Optimizer)}
    others = {name: make(optimizer) for name, optimizer in held.items()}  # all of them, before any takes its place
    function, jit_compile = model.train_function, model.jit_compile
    try:
        model.jit_compile = False  # which takes longer than the few steps
        for name, optimizer in others.items():
            setattr(model, name, optimizer)
        yield
    finally:
        model.train_function, model.jit_compile = function, jit_compile
        for name, optimizer in held.items():
            setattr(model, name, optimizer)


def _variables_of(model):
    """Every variable that looking at a model may change, each once."""
    owners = [model.variables]
    if model.optimizer is not None and model.optimizer.built:
        owners.append(model.optimizer.variables)
    owners.append([variable for metric in model.metrics for variable in metric.variables])
    owners.append(_plain_variables(model))
    return list({id(variable): variable for some in owners for variable in some}.values())


def _plain_variables(model):
    """TensorFlow's variables that a model or its layers hold, also in lists or dicts: of them Keras knows nothing."""
    return [one for layer in model._flatten_layers() for one in held_by(layer) if isinstance(one, tf.Variable)]


def held_by(owner: object) -> list:
    """Returns what the attributes of an object hold, what is in lists or dicts of them included."""
    members = [list(value.values()) if isinstance(value, dict) else value for value in vars(owner).values()]
    return [one for some in members for one in (some if isinstance(some, (list, tuple)) else [some])]


@contextlib.contextmanager
def _global_seed():
    """Keras' generator for layers without one of their own."""
    from keras.src.backend.common import global_state

    generator = global_state.get_global_attribute("global_seed_generator")
    state = None if generator is None else tf.identity(generator.state.value)
    try:
        yield
    finally:
        if generator is None:
            global_state.set_global_attribute("global_seed_generator", None)
        else:
            global_state.set_global_attribute("global_seed_generator", generator)
            generator.state.assign(state)


@contextlib.contextmanager
def _tensorflow_seed():
    """TensorFlow's seed, and its count of the operations that were given none."""
    from tensorflow.python.eager import context

    seed = context.global_seed()
    generator = getattr(context.context(), "_rng", None)  # made with the first `tf.random.set_seed`
    state = None if generator is None else generator.getstate()
    try:
        yield
    finally:
        context.context()._seed = seed
        context.context()._rng = generator
        if generator is not None:
            generator.setstate(state)
