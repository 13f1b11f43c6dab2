"""The cure: what was concluded and tried, applied to the user's model."""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import keras

from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.doctor.finding import Finding, Treated
from bertbin_tf.doctor.regimen import Regimen
from bertbin_tf.doctor.remedies import OF_ROWS, REMEDIES, apply_remedies
from bertbin_tf.doctor.rules import RULES
from bertbin_tf.optimizers import schedule_of, warmup_cosine

# What a model was compiled with that no remedy is about.
KEPT = ("loss_weights", "weighted_metrics", "run_eagerly", "steps_per_execution", "jit_compile")


@dataclasses.dataclass(frozen=True)
class Treatment:
    """Applies remedies to a model, for good.

    Args:
        evidence: The model and its data, as measured.
        train_data: The training data, as the user gave them.
        validation_data: The validation data, as the user gave them, or `None`.
        pretrained: The untouched encoder, or `None`.
    """

    evidence: Evidence
    train_data: Any
    validation_data: Any = None
    pretrained: keras.Model | None = None

    def apply(self, findings: Sequence[Finding], epochs: int) -> Treated:
        """Applies what findings ask for, and compiles the model anew.

        What follows the first finding may be its consequence: tried in vain, it is left until that one is mended.

        Args:
            findings: Those to be treated, the most likely cause first.
            epochs: Int >= 1, over which a schedule that is set comes to its end.
        """
        regimen = Regimen(self.evidence, self.pretrained, epochs)
        if regimen.restore():
            regimen.changes.append("the encoder has the weights of `pretrained` again")
        left, codes = {}, []
        for finding in findings:
            if finding.code not in REMEDIES:
                left[finding.code] = f"this is not for a program to mend: {finding.remedy}"
            elif finding is not findings[0] and finding.was_tried_in_vain:
                left[finding.code] = f"its trial proved nothing: train, and `diagnose` again. {finding.trial}"
            else:
                codes.append(finding.code)
        left |= apply_remedies(regimen, codes)
        train_data = _map_data(regimen, self.train_data, "training data", left)
        validation_data = self._mend_validation_data(codes, regimen.changes, left)
        model, optimizer = self.evidence.patient.model, self.evidence.patient.optimizer
        rate = schedule_of(optimizer) or float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        if regimen.peak is not None:
            rate = warmup_cosine(regimen.peak, self.evidence.steps.num_steps * epochs)
        if regimen.loss is not None and type(model).compute_loss is not keras.Model.compute_loss:
            # A loss of the model's own would be asked, whatever it is compiled with.
            model.compute_loss = types.MethodType(keras.Model.compute_loss, model)
            regimen.changes.append(f"the loss compiled with is taken, and not {type(model).__name__}.compute_loss")
        metrics = model._compile_metrics._user_metrics if model._compile_metrics is not None else None
        # As Keras keeps them; nothing of a model with a `compile` of its own.
        given = getattr(getattr(model, "_compile_config", None), "config", {})
        kept = {name: given[name] for name in KEPT if given.get(name) is not None}
        new = regimen.build_optimizer(rate)
        if isinstance(scaler := model.optimizer, keras.optimizers.LossScaleOptimizer):
            new = keras.optimizers.LossScaleOptimizer(new, scaler.initial_scale, scaler.dynamic_growth_steps)
        model.compile(new, regimen.loss or model.loss, metrics=metrics, **kept)
        return Treated(train_data, tuple(regimen.changes), left, tuple(findings), validation_data)

    def _mend_validation_data(self, codes, changes, left):
        """Returns the validation data, mended where they have the faults that the training data have."""
        if self.evidence.validation is None:
            return self.validation_data
        alone = Evidence(self.evidence.patient, self.evidence.validation)
        regimen = Regimen(alone)
        apply_remedies(regimen, [code for code in codes if code in OF_ROWS and RULES[code](alone) is not None])
        mended = _map_data(regimen, self.validation_data, "validation data", left)
        if mended is not self.validation_data:
            changes.extend(f"validation data: {change}" for change in regimen.changes)
        return mended


def _map_data(regimen, source, name, left):
    """Returns data as a regimen wants them, or as they are, with the reason in `left`."""
    try:
        return regimen.map_data(source)
    except ValueError as error:
        left[name] = str(error)
        return source
