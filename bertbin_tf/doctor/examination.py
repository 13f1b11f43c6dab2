"""From a model and its data to a diagnosis."""

import time
from typing import Any

import keras

from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.doctor.finding import Diagnosis, Finding
from bertbin_tf.doctor.patient import Patient, put_back
from bertbin_tf.doctor.rules import RULES


def diagnose(model: keras.Model, train_data: Any, validation_data: Any = None) -> Diagnosis:
    """Says why a model does not train: what is wrong, most likely cause first, with evidence and cure.

    Nothing is trained. Model, optimizer, metrics and random state are left as they were, bit for bit; a dataset is read
    from its beginning, as `fit` would.

    Args:
        model: A compiled `keras.Model` with a text encoder and one output of one or two units. What the doctor does not
            understand of a stranger model it leaves out, and says so.
        train_data: What `fit` takes: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a tuple of arrays, a list of
            batches.
        validation_data: The same. Defaults to `None`.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: If the model is not compiled.

    Example:
    >>> diagnosis = diagnose(model, batches)
    >>> diagnosis.cause
    'healthy'
    """
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ValueError(
            "`model` must be compiled, for loss and optimizer are what is examined. Call `model.compile(optimizer, "
            f"loss)` first. Received: the model '{getattr(model, 'name', model)}'"
        )
    started = time.monotonic()
    patient = Patient(model)
    with put_back(model):
        train = Batches(train_data, patient.preprocess)
        validation = None if validation_data is None else Batches(validation_data, patient.preprocess)
        unread = [f"training: {train.problem}"] if train.problem else []
        if validation is not None and validation.problem:
            unread.append(f"validation: {validation.problem}")
        findings, failed = [], {}
        evidence = Evidence(patient, train, validation)
        for code, rule in RULES.items():
            try:
                proof = rule(evidence)
            except Exception as error:  # a strange model must not cost the findings of the other rules
                failed.setdefault(" ".join(f"{type(error).__name__}: {error}".split())[:200], []).append(code)
                continue
            if proof is not None:
                findings.append(Finding(code, *proof, explanation=rule.__doc__))
    unread += [f"{', '.join(codes)}: {reason}" for reason, codes in failed.items()]
    return Diagnosis(tuple(findings), (), tuple(unread), time.monotonic() - started)
