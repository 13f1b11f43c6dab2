"""What follows from the evidence: one small function for each code, its docstring the explanation that a user reads."""

from bertbin_tf.doctor.rules import data, head, rates, results, tokens, weights
from bertbin_tf.doctor.rules.registry import Proof, is_rule

# In this order causes are named: what is upstream in the story of a batch hides what is downstream.
RULES = {
    function.__name__.replace("_", "-"): function
    for module in (tokens, data, weights, head, rates, results)
    for function in vars(module).values()
    if is_rule(function) and function.__module__ == module.__name__
}

__all__ = ["RULES", "Proof"]
