"""What can be wrong with how results are read, in a model that trains."""

from bertbin_tf.doctor.evidence import Evidence
from bertbin_tf.doctor.rules.head import logits_taken_for_probabilities, sigmoid_twice, single_unit_softmax
from bertbin_tf.doctor.rules.registry import Proof, rule

# BERT-large has 1,024 hidden units; of the tasks of Mosbach et al. (2021, arXiv 2006.04884), section 4, those with
# fewer than 10,000 rows are the unstable ones. Section 6 is the remedy.
LARGE, FEW_ROWS = 1024, 10_000
# Times the rate that suits most layers; at three times of it `learning_rate_too_high` applies.
RISKY = 1.5


@rule
def metric_misreads(evidence: Evidence) -> Proof | None:
    """A metric that says the same of right answers as of wrong ones: the model may well train, and nobody sees it."""
    causes = single_unit_softmax, sigmoid_twice, logits_taken_for_probabilities
    if evidence.response.is_deaf or any(rule(evidence) for rule in causes):
        return None  # then it is the answers that do not follow the logits
    misread = {name: score for name, score in evidence.scores.by_metric.items() if score.right - score.wrong < 0.5}
    if not misread:
        return None
    name, score = next(iter(misread.items()))
    is_probability = evidence.answers.are_probabilities
    threshold = 0.5 if is_probability else 0.0
    return Proof(
        f"of answers on the right side of even odds, for all rows, {name} says {score.right:.2f}, and "
        f"{score.wrong:.2f} of the same on the wrong side",
        f"metrics=[keras.metrics.BinaryAccuracy(threshold={threshold}), "
        f"keras.metrics.AUC(from_logits={not is_probability})]",
    )


@rule
def overfitting(evidence: Evidence) -> Proof | None:
    """The training rows are known by heart, and what was learned of them does not hold for others."""
    num_steps = int(evidence.patient.optimizer.iterations.numpy())
    if not num_steps or evidence.validation is None or not evidence.validation.batches:
        return None
    train, validation = evidence.answers.mean_loss, evidence.validation_answers.mean_loss
    if not (train < 0.5 * evidence.entropy and validation > max(evidence.entropy, 4 * train)):
        return None
    return Proof(
        f"after {num_steps} steps the loss of the training rows is {train:.2f} and that of the validation rows "
        f"{validation:.2f}; the base rate alone gives {evidence.entropy:.2f}",
        "callbacks = [keras.callbacks.EarlyStopping('val_loss', restore_best_weights=True)]  # or more rows",
    )


@rule
def seed_instability(evidence: Evidence) -> Proof | None:
    """The seed decides whether the model trains: so it is of large encoders on few rows, and near the highest rates."""
    if evidence.is_explained:  # short runs cost time, and another cause makes them fail or not
        return None
    steps = evidence.steps
    is_large = (
        evidence.patient.hidden_dim >= LARGE
        and (evidence.train.num_batches or 0) * max(evidence.train.sizes, default=0) < FEW_ROWS
    )
    if not steps.encoder_moves or not (is_large or steps.highest_rate > RISKY * steps.healthy_rate):
        return None
    scores = evidence.auc_by_seed()
    if len(scores) < 2 or max(scores) < 0.7 or min(scores) > 0.55:
        return None
    return Proof(
        f"short runs that differ in the seed alone tell other rows apart with a ROC AUC of "
        f"{', '.join(f'{score:.2f}' for score in sorted(scores))}",
        f"optimizer = keras.optimizers.AdamW(warmup_cosine({steps.healthy_rate / 5:.0e}, batches, 20))  # 20 epochs",
    )
