"""What makes a function a rule, and what it returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bertbin_tf.doctor.evidence import Evidence


class Proof(NamedTuple):
    """What a rule returns where it applies.

    Args:
        evidence: String, what was measured, in numbers.
        remedy: String, the lines of code that mend it.
    """

    evidence: str
    remedy: str


def rule(function: Callable[[Evidence], Proof | None]) -> Callable[[Evidence], Proof | None]:
    """Marks a function as a rule. Its name with dashes is the code, its docstring the explanation that a user reads."""
    function._is_rule = True  # type: ignore[attr-defined]
    return function


def is_rule(value: Any) -> bool:
    """Whether a value was marked by `rule`."""
    return getattr(value, "_is_rule", False)
