"""The proof: a short run with the remedies, and one without, from the same weights, on the same batches."""

import contextlib
import dataclasses
import functools
import math
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from bertbin_tf.doctor.answers import flat
from bertbin_tf.doctor.batches import flat_labels, to_tensors
from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.doctor.finding import Finding
from bertbin_tf.doctor.model_state import put_back
from bertbin_tf.doctor.regimen import Regimen
from bertbin_tf.doctor.remedies import REMEDIES, UNTRIED, apply_remedies
from bertbin_tf.doctor.sample import draw
from bertbin_tf.doctor.steps import gradients_of
from bertbin_tf.metrics import label_entropy

# MiniLM, film reviews of at most 20 tokens, one seed, ROC AUC on 192 other rows: after 18 steps of 16 0.78 with warm-up
# to 1e-4 and 0.46 with Adam at 1e-3; after 12 steps of 32 tokens, on 96 rows, 0.66 and 0.49.
BATCH_SIZE, NUM_STEPS, NUM_TEST = 16, 18, 12
NUM_SEEDS = 3
# So much better in ROC AUC, or so much lower in cross-entropy, is no chance.
BETTER_AUC, LOWER_LOSS = 0.1, 0.95
LEARNED_LOSS = 0.98  # of the loss of the base rate: below it something was learned


class Outcome(NamedTuple):
    """What a short run came to.

    Args:
        auc: Float, the ROC AUC of the answers to rows that it was not trained on.
        loss: Float, their cross-entropy, in nats, whatever loss was trained with; infinite if it is not finite.
        seconds: Float, how long it took.
    """

    auc: float
    loss: float
    seconds: float


class Trials:
    """Short runs on the user's rows, the schedule of an epoch drawn together, judged by other rows.

    With all remedies the model must come to know something of the others, and with all but one it must not: then that
    one is proved.

    Args:
        evidence: The model and its data, as measured.
        pretrained: An untouched encoder, or `None`: then the weights are taken as they are.
        deadline: Float, `time.monotonic()` after which no run is begun that would not end in time.

    Attributes:
        ran_out: Bool, whether a run was left out for that.
    """

    def __init__(self, evidence: Evidence, pretrained: keras.Model | None, deadline: float):
        self._evidence, self._pretrained, self._deadline = evidence, pretrained, deadline
        self._sample = draw(
            evidence.train,
            batch_size=BATCH_SIZE,
            num_train=NUM_STEPS,
            num_test=NUM_TEST,
            fixed_length=evidence.patient.fixed_length,
        )
        self._longest, self._compiled = 0.0, {}
        self.ran_out = False

    def try_all(self, findings: list[Finding]) -> list[Finding]:
        """Returns the findings, each with the status that its trial gave it; those refuted come last.

        Args:
            findings: As concluded, the most likely cause first.
        """
        codes = [finding.code for finding in findings if finding.code in REMEDIES]
        to_be_tried = set(codes) - set(UNTRIED) - set(self._find_untreatable(codes))
        if not self._sample.test or not to_be_tried:
            return findings
        treated = self._run(codes)
        if treated is None:
            return findings
        tried = [self._try(finding, codes, treated) if finding.code in to_be_tried else finding for finding in findings]
        return sorted(tried, key=lambda finding: finding.status == "refuted")

    def run(self, codes: list[str], seed: int | None = None) -> Outcome:
        """Trains from the restored weights, with the remedies of some findings; afterwards all is as it was.

        Args:
            codes: Of the findings.
            seed: Int, from which head, dropout and the order of the batches are drawn anew. Defaults to `None`: as the
                user has them.
        """
        started = time.monotonic()
        with self._restored() as regimen:
            apply_remedies(regimen, codes)
            batches = self._sample.train
            if seed is not None:
                self._evidence.patient.draw_anew(seed)
                batches = [batches[i] for i in np.random.default_rng(seed).permutation(len(batches))]
            auc, loss = self._train(regimen, batches)
        return Outcome(auc, loss, time.monotonic() - started)

    def try_seeds(self) -> list[Outcome]:
        """Returns what becomes of the model as it is, under `NUM_SEEDS` seeds; fewer if the time does not allow it."""
        if not self._sample.test:
            return []
        return [outcome for seed in range(NUM_SEEDS) if (outcome := self._run([], seed)) is not None]

    def _find_untreatable(self, codes):
        """Returns by code why its remedy cannot be applied, before time is spent on training."""
        with self._restored() as regimen:
            return apply_remedies(regimen, codes)

    @contextlib.contextmanager
    def _restored(self):
        """The user's regimen from the restored weights; afterwards all is as it was."""
        with put_back(self._evidence.patient.model):
            regimen = Regimen(self._evidence, self._pretrained)
            try:
                regimen.restore()
                yield regimen
            finally:
                regimen.undo()

    def _run(self, codes, seed=None):
        """`run`, if the time allows."""
        # The first run was the longest: what it compiled the others have.
        if time.monotonic() + 0.7 * self._longest > self._deadline:
            self.ran_out = True
            return None
        outcome = self.run(codes, seed)
        self._longest = max(self._longest, outcome.seconds)
        return outcome

    def _try(self, finding, codes, treated):
        # What is mended the same way is left out too, or its remedy would hide that this one is missing.
        control = self._run([code for code in codes if REMEDIES[code] is not REMEDIES[finding.code]])
        return finding if control is None else self._judge(finding, treated, control)

    def _judge(self, finding, treated, control):
        entropy = label_entropy(self._labels.mean())
        # A lower loss alone may be no more than answers nearer to the base rate.
        is_lower = treated.loss < LOWER_LOSS * control.loss and treated.auc > control.auc - BETTER_AUC
        is_better = treated.auc > control.auc + BETTER_AUC or is_lower
        status = "suspected"
        # What ranks better than AdamW after so few steps is suited, however far its answers are from the base rate.
        is_suited = finding.code == "optimizer-unsuited" and control.auc > treated.auc > 0.5 + 2 * BETTER_AUC
        has_learned = control.auc > treated.auc - BETTER_AUC and control.loss < LEARNED_LOSS * entropy
        if is_suited:
            status = "refuted"
        elif is_better and not has_learned and treated.auc > 0.5 + BETTER_AUC and treated.loss < 1.1 * entropy:
            status = "confirmed"
        # A control that does no better than the base rate has not trained either, and refutes nothing.
        elif control.loss < min(treated.loss, LEARNED_LOSS * entropy) and (
            control.auc > treated.auc + BETTER_AUC  # the remedy does harm
            or treated.auc > 0.5 + 2 * BETTER_AUC
            and control.auc > treated.auc - 0.02
        ):
            status = "refuted"
        trial = (
            f"Tried for {NUM_STEPS} steps of {BATCH_SIZE} rows: other rows are told apart with a ROC AUC of "
            f"{treated.auc:.2f} with the remedy and {control.auc:.2f} without it, at a loss of {treated.loss:.2f} and "
            f"{control.loss:.2f}; the base rate alone gives {entropy:.2f}."
        )
        return dataclasses.replace(finding, status=status, trial=trial)

    @functools.cached_property
    def _labels(self):
        return self._evidence.binary(np.concatenate([flat_labels(y) for _, y, _ in self._sample.test]))

    def _train(self, regimen, batches):
        model = regimen.model
        weights = [
            weight for weight in model.trainable_variables if regimen.bound is None or id(weight) in regimen.bound
        ]
        compute_gradients, answers_to = self._compile(regimen, weights)
        batches = [to_tensors(regimen.map_row(*batch)) for batch in batches]
        if weights:
            optimizer = self._build_optimizer(regimen, weights)
            for step in range(NUM_STEPS):
                optimizer.learning_rate.assign(regimen.rates((step + 0.5) / NUM_STEPS))
                # Not compiled: TF's registry of gradients would keep the graph of `apply`, and with it the memory of
                # all weights and moments, until the process ends (CONTRIBUTING).
                optimizer.apply(compute_gradients(*batches[step % len(batches)]), weights)
            optimizer.finalize_variable_values(weights)  # as `fit` does: with `use_ema` it takes the mean
        tested = [regimen.map_row(*batch)[0] for batch in self._sample.test]
        answers = np.concatenate([flat(answers_to(to_tensors(x))) for x in tested])
        logits = self._evidence.answers.to_logits(answers)
        if not np.isfinite(logits).all():
            return 0.5, math.inf
        loss = np.logaddexp(0, np.where(self._labels, -logits, logits)).mean()
        return float(roc_auc_score(self._labels, logits)), float(loss)

    def _compile(self, regimen, weights):
        """Returns the gradients and the answers as compiled functions, traced once for regimens that compute alike."""
        model = regimen.model
        functions = (
            tf.function(lambda *batch: gradients_of(model, regimen.compute_loss, weights, batch)),
            tf.function(lambda x: model(x, training=False)),
        )
        return self._compiled.setdefault(tuple(regimen.structure), functions)

    def _build_optimizer(self, regimen, weights):
        """Returns the regimen's optimizer, without a past and at a rate of 0."""
        # Too few steps to add up gradients, but where the finding is that too many are added up.
        steps = regimen.optimizer_config.get("gradient_accumulation_steps")
        optimizer = regimen.build_optimizer(
            0.0, gradient_accumulation_steps=steps if self._evidence.steps.has_no_step else None
        )
        optimizer.build(weights)
        return optimizer
