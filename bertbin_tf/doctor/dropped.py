"""What a training pass drops, as its graph says it: also where no layer does."""

import re

import keras
import numpy as np
import tensorflow as tf

# In which TensorFlow's dropouts, which Keras' layers call too, compare random numbers with the rate.
COMPARISON = re.compile(r"dropout(_\d+)?/GreaterEqual(_\d+)?$")


def dropped_shares(model: keras.Model, x) -> list[float]:
    """Returns the rate of each dropout in a training pass, floats in [0, 1], where it is a constant.

    Args:
        model: The model.
        x: A batch as it takes it.
    """
    graph = tf.function(lambda x: model(x, training=True)).get_concrete_function(x).graph.as_graph_def()
    shares = []
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        constants = {node.name: node.attr["value"].tensor for node in nodes if node.op == "Const"}
        compared = [node.input[1].split(":")[0] for node in nodes if COMPARISON.search(node.name)]
        shares += [float(np.ravel(tf.make_ndarray(constants[rate]))[0]) for rate in compared if rate in constants]
    return shares
