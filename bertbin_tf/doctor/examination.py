"""From a model and its data to a diagnosis."""

import contextlib
import functools
import time
from typing import Any

import keras

from bertbin_tf.doctor.batches import Batches
from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.doctor.finding import Diagnosis, Finding
from bertbin_tf.doctor.model_state import put_back
from bertbin_tf.doctor.patient import Patient
from bertbin_tf.doctor.rules import RULES
from bertbin_tf.doctor.symptoms import failure_of, in_one_line, slowness_of, symptoms_of
from bertbin_tf.doctor.treatment import Treatment
from bertbin_tf.doctor.trials import Trials


def diagnose(
    model: keras.Model,
    train_data: Any,
    validation_data: Any = None,
    *,
    budget: float = 60.0,
    pretrained: keras.Model | None = None,
) -> Diagnosis:
    """Says why a model does not train: what is wrong, most likely cause first, with evidence and cure.

    Where a program can apply the cure it is tried: a short run with it and one without, from the same weights on the
    same batches, are judged by other rows. Model, optimizer, metrics and random state are left as they were, bit for
    bit; a dataset is read from its beginning, as `fit` would.

    Args:
        model: A compiled `keras.Model` with a text encoder and one output of one or two units. What the doctor does not
            understand of a stranger model it leaves out, and says so.
        train_data: What `fit` takes: a `tf.data.Dataset`, a `keras.utils.PyDataset`, a tuple of arrays, a list of
            batches.
        validation_data: The same. Defaults to `None`.
        budget: Float > 0, seconds after which no other short run is begun; the examination itself always ends. Defaults
            to `60.0`.
        pretrained: The untouched encoder, for a model that was trained already: short runs then begin from its weights,
            and `Diagnosis.treat` restores them. Layers are matched by name. Defaults to `None`.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: If the model is not compiled, or `budget` is not positive.

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
    if not budget > 0:
        raise ValueError(f"`budget` must be a positive number of seconds. Received: budget={budget}")
    started = time.monotonic()
    if not model.built:
        _build(model, train_data)
    patient = Patient(model)
    with put_back(model):
        train = Batches(train_data, patient.preprocess)
        validation = None
        if validation_data is not None:
            validation = Batches(validation_data, patient.preprocess, are_signs=train.are_signs)
        evidence = Evidence(patient, train, validation)
        unread = [f"{name}: {some.problem}" for name, some in evidence.data.items() if some.problem]
        if not patient.backbone:
            unread.append(
                "the encoder: none was found by the names of its layers, so its rates, its freezing and its "
                "pre-training were not examined"
            )
        if patient.has_own_step:
            unread.append(
                "the loss: the model has a `train_step` of its own, and what is said of loss and gradients is of the "
                "loss that it was compiled with"
            )
        trials = functools.cache(lambda: Trials(evidence, pretrained, started + budget))
        evidence.auc_by_seed = lambda: [outcome.auc for outcome in trials().try_seeds()]
        findings, failed = _conclude(evidence)
        if findings and train.batches:
            try:
                findings = trials().try_all(findings)
                if trials().ran_out:
                    unread.append(f"trials: not all could be made within {budget:g} s, for another takes longer")
            except Exception as error:  # a strange model must not cost the findings
                failed.setdefault(in_one_line(error), []).append("no cure could be tried")
        if any(finding.stands for finding in findings):  # which explain all but a `fit` that fails
            symptoms = tuple(filter(None, [failure_of(evidence)]))
        else:
            symptoms = symptoms_of(evidence)
            try:
                symptoms += tuple(filter(None, [slowness_of(evidence)]))
            except Exception as error:
                failed.setdefault(in_one_line(error), []).append("whether it overfits a few rows")
    for reason, codes in failed.items():
        is_said = any(reason in symptom for symptom in symptoms)
        unread.append(f"{', '.join(codes)}: {'what `fit` cannot take, they cannot either' if is_said else reason}")
    treatment = Treatment(evidence, train_data, validation_data, pretrained)
    return Diagnosis(tuple(findings), symptoms, tuple(unread), time.monotonic() - started, treatment)


def _build(model, train_data):
    """Has a subclassed model make its weights, as `fit` would, before it is looked at. Bad data are told of later."""
    batches = Batches(train_data, Patient(model).preprocess, num_rows=1, seconds=0.0)
    with contextlib.suppress(Exception):
        model(batches.first[0])


def _conclude(evidence):
    """Returns the findings, and by reason the codes whose rules failed."""
    findings, failed = [], {}
    for code, rule in RULES.items():
        try:
            proof = rule(evidence)
        except Exception as error:  # a strange model must not cost the findings of the other rules
            failed.setdefault(in_one_line(error), []).append(code)
            continue
        if proof is not None:
            findings.append(Finding(code, *proof, explanation=rule.__doc__))
            evidence.is_explained = True
    return findings, failed
