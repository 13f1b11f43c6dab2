"""Measures, intervals, thresholds and temperatures, against scikit-learn and against counting by hand."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from bertbin_tf.evaluation import (
    apply_temperature,
    bootstrap,
    evaluate,
    expected_calibration_error,
    fit_temperature,
    thresholds,
    tune_threshold,
)

MEASURES = ["accuracy", "balanced_accuracy", "f1", "mcc", "roc_auc", "pr_auc", "brier", "log_loss", "ece"]

# Few distinct probabilities, so that ties are common; 0 and 1 among them.
rows = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.51, 0.9, 1.0])), min_size=2, max_size=30
).filter(lambda drawn: len({label for label, _ in drawn}) == 2)


def draw_predictions(num_rows=2000, seed=0, sharpness=1.0, base_rate=0.5):
    """Labels drawn from the probabilities themselves: calibrated at sharpness 1, overconfident above."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(np.log(base_rate / (1 - base_rate)), 2, num_rows)
    labels = (generator.random(num_rows) < 1 / (1 + np.exp(-logits))).astype(int)
    return labels, 1 / (1 + np.exp(-logits * sharpness))


def test_worked_example_by_hand():
    evaluation = evaluate([0, 0, 0, 1, 1], [0.2, 0.4, 0.8, 0.6, 0.3], num_bootstrap=0)
    assert evaluation.confusion == {"tn": 2, "fp": 1, "fn": 1, "tp": 1}
    assert evaluation.accuracy == pytest.approx(3 / 5)
    assert evaluation.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert evaluation.f1 == pytest.approx(1 / 2)
    assert evaluation.mcc == pytest.approx((1 * 2 - 1 * 1) / np.sqrt(2 * 2 * 3 * 3))
    assert evaluation.roc_auc == pytest.approx(3 / 6)  # 0.6 beats two, 0.3 beats one
    assert evaluation.pr_auc == pytest.approx(0.5 * 1 / 2 + 0.5 * 2 / 4)
    assert evaluation.brier == pytest.approx((0.04 + 0.16 + 0.64 + 0.16 + 0.49) / 5)
    assert evaluation.log_loss == pytest.approx(-np.log([0.8, 0.6, 0.2, 0.6, 0.3]).mean())
    assert evaluation.ece == pytest.approx((0.2 + 0.4 + 0.8 + 0.4 + 0.7) / 5)  # each row in a bin of its own
    assert (evaluation.rows, evaluation.base_rate, evaluation.threshold) == (5, 0.4, 0.5)


def test_threshold_itself_counts_as_positive():
    assert evaluate([0, 1], [0.1, 0.7], threshold=0.7, num_bootstrap=0).accuracy == 1.0


def test_log_loss_of_a_saturated_wrong_answer_is_finite():
    assert evaluate([0, 1], [1.0, 1.0], num_bootstrap=0).log_loss == pytest.approx(-np.log(2**-23) / 2, rel=1e-6)


@pytest.mark.parametrize("as_given", [list, np.array, lambda v: np.array(v)[:, None], tf.constant])
def test_lists_arrays_columns_and_tensors_give_the_same(as_given):
    labels, probabilities = [0, 1, 1, 0], [0.25, 0.5, 0.75, 0.75]
    expected = evaluate(labels, probabilities, num_bootstrap=5)
    assert evaluate(as_given(labels), as_given(probabilities), num_bootstrap=5) == expected
    assert evaluate(np.array(labels, bool), probabilities, num_bootstrap=5) == expected


@given(rows)
@settings(max_examples=100, deadline=None)
def test_resample_is_measured_as_scikit_learn_measures_its_rows(drawn):
    """The bootstrap has its own arithmetic for speed; on rows that are really repeated scikit-learn must agree."""
    labels, probabilities = (np.array(column) for column in zip(*sorted(drawn, key=lambda row: -row[1]), strict=True))
    counts = np.random.default_rng(len(drawn)).integers(0, 4, (3, len(drawn)))
    counts[0] = 1
    measured = bootstrap._Rows(labels, probabilities, 0.5).measure(counts.astype("float64"))
    for resample, repeats in enumerate(counts):
        repeated = np.repeat(labels, repeats)
        if len(set(repeated)) < 2:
            assert np.isnan([measured[name][resample] for name in bootstrap.TWO_CLASS_MEASURES]).all()
            continue
        expected = evaluate(repeated, np.repeat(probabilities, repeats), num_bootstrap=0)
        assert set(measured) == set(MEASURES) - {"ece"}  # whose resamples do not tell how uncertain it is
        for name in measured:
            assert measured[name][resample] == pytest.approx(getattr(expected, name), abs=1e-9), name


def test_interval_of_accuracy_is_that_of_the_binomial_distribution():
    labels, probabilities = draw_predictions(2000)
    evaluation = evaluate(labels, probabilities, num_bootstrap=2000)
    half_width = 1.96 * np.sqrt(evaluation.accuracy * (1 - evaluation.accuracy) / 2000)
    low, high = evaluation.intervals["accuracy"]
    assert low == pytest.approx(evaluation.accuracy - half_width, abs=0.003)
    assert high == pytest.approx(evaluation.accuracy + half_width, abs=0.003)


def test_interval_of_roc_auc_is_that_of_hanley_and_mcneil():
    """Their standard error (1982, Radiology 143) needs no resampling; theirs is the wider one away from its model."""
    labels, probabilities = draw_predictions(2000)
    evaluation = evaluate(labels, probabilities)
    auc, num_positive = evaluation.roc_auc, labels.sum()
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (num_positive - 1) * (q1 - auc**2) + (2000 - num_positive - 1) * (q2 - auc**2)
    width = 2 * 1.96 * np.sqrt(variance / (num_positive * (2000 - num_positive)))
    low, high = evaluation.intervals["roc_auc"]
    assert high - low == pytest.approx(width, rel=0.1)


def test_intervals_depend_on_the_seed_only_and_on_its_value_little():
    labels, probabilities = draw_predictions(500)
    first, again, other = (evaluate(labels, probabilities, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.intervals != other.intervals
    for name in first.intervals:
        assert first.intervals[name] == pytest.approx(other.intervals[name], abs=0.02)


def test_block_size_does_not_change_the_intervals(monkeypatch):
    labels, probabilities = draw_predictions(200)
    expected = evaluate(labels, probabilities, num_bootstrap=50)
    monkeypatch.setattr(bootstrap, "_MAX_CELLS", 7 * 200)
    assert evaluate(labels, probabilities, num_bootstrap=50).intervals == {
        name: pytest.approx(ends) for name, ends in expected.intervals.items()
    }


def test_rare_class_leaves_finite_intervals():
    labels = np.zeros(50, int)
    labels[7] = 1  # missing from a third of the resamples
    evaluation = evaluate(labels, np.linspace(0.1, 0.9, 50))
    assert all(np.isfinite(ends).all() for ends in evaluation.intervals.values())


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only_still_gets_accuracy_and_a_warning(label):
    with pytest.warns(UserWarning, match=f"All 3 labels are {label}: .*roc_auc"):
        evaluation = evaluate([label] * 3, [0.2, 0.6, 0.7], num_bootstrap=20)
    assert evaluation.accuracy == pytest.approx((1 / 3, 2 / 3)[label])
    assert evaluation.brier == pytest.approx(np.mean((np.array([0.2, 0.6, 0.7]) - label) ** 2))
    for name in ("balanced_accuracy", "f1", "mcc", "roc_auc", "pr_auc"):
        assert getattr(evaluation, name) is None
        assert evaluation.intervals[name] is None
    assert json.loads(json.dumps(evaluation.to_dict()))["roc_auc"] is None
    assert "roc_auc                 -\n" in str(evaluation)


def test_dict_survives_json_unchanged():
    fields = evaluate(*draw_predictions(100), num_bootstrap=10).to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert set(MEASURES) | {"confusion", "threshold", "rows", "base_rate", "intervals"} == set(fields)
    assert list(fields["intervals"]) == MEASURES[:-1]  # of the calibration error resamples do not tell


def test_table_is_aligned_and_complete():
    lines = str(evaluate(*draw_predictions(1500))).splitlines()
    assert lines[0].startswith("1,500 rows, base rate 0.")
    table = [line for line in lines if line.split(" ")[0] in MEASURES]
    assert [line.split()[0] for line in table] == MEASURES
    assert len({len(line) for line in table[:-1]}) == 1
    assert len(table[-1]) == 18 + 7  # of the calibration error there is no interval
    assert "interval" not in str(evaluate([0, 1], [0.1, 0.9], num_bootstrap=0))


def test_calibration_error_is_zero_for_frequencies_and_the_gap_otherwise():
    labels = np.repeat([0, 1], [30, 70])
    assert expected_calibration_error(labels, np.full(100, 0.7)) == pytest.approx(0)
    assert expected_calibration_error(labels, np.full(100, 0.9)) == pytest.approx(0.2)


def test_calibration_error_agrees_with_scikit_learn_curve():
    from sklearn.calibration import calibration_curve

    labels, probabilities = draw_predictions(3000, sharpness=2)
    shares, means = calibration_curve(labels, probabilities, n_bins=15)
    sizes = np.histogram(probabilities, bins=15, range=(0, 1))[0]
    expected = (np.abs(shares - means) * sizes[sizes > 0]).sum() / 3000
    assert expected_calibration_error(labels, probabilities) == pytest.approx(expected)


SCORES = {
    "accuracy": metrics.accuracy_score,
    "balanced_accuracy": metrics.balanced_accuracy_score,
    "f1": lambda labels, decisions: metrics.f1_score(labels, decisions, zero_division=0),
    "mcc": metrics.matthews_corrcoef,
}


@given(rows, st.sampled_from(sorted(SCORES)))
@settings(max_examples=100, deadline=None)
def test_tuned_threshold_is_the_best_one_found_by_trying_all(drawn, metric):
    labels, probabilities = (np.array(column) for column in zip(*drawn, strict=True))
    edges = sorted({0.0, 1.0, *probabilities})
    candidates = {0.5, *((low + high) / 2 for low, high in zip(edges, edges[1:], strict=False))}
    scores = {tried: SCORES[metric](labels, probabilities >= tried) for tried in candidates}
    threshold = tune_threshold(labels, probabilities, metric=metric)
    assert scores[threshold] == pytest.approx(max(scores.values()))
    equally_good = [tried for tried, score in scores.items() if score > scores[threshold] - 1e-12]
    assert abs(threshold - 0.5) == min(abs(tried - 0.5) for tried in equally_good)


@pytest.mark.parametrize(
    "probabilities, threshold",
    [
        ([0.1, 0.2, 0.3, 0.4], 0.25),
        ([0.1, 0.2, 0.8, 0.9], 0.5),
        ([0.1, 0.4, 0.7, 0.9], 0.5),  # 0.5 decides like the midpoint 0.55
        ([0.6, 0.7, 0.8, 0.9], 0.75),
    ],
)
def test_threshold_is_the_midpoint_or_one_half_where_that_is_as_good(probabilities, threshold):
    assert tune_threshold([0, 0, 1, 1], probabilities, metric="accuracy") == pytest.approx(threshold)


def test_equally_good_thresholds_are_settled_towards_one_half():
    # Accuracy 3/4 both at 0.15 and at 0.75.
    assert tune_threshold([0, 1, 0, 1], [0.1, 0.2, 0.7, 0.8], metric="accuracy") == pytest.approx(0.75)


def test_threshold_between_adjacent_floats_still_separates_them():
    low = 0.7
    high = np.nextafter(low, 1)
    threshold = tune_threshold([0, 1], [low, high], metric="accuracy")
    assert (low >= threshold, high >= threshold) == (False, True)


@pytest.mark.parametrize("name", sorted(SCORES))
def test_array_measures_equal_scikit_learn(name):
    generator = np.random.default_rng(0)
    for _ in range(30):
        labels, decisions = generator.integers(0, 2, (2, 12))
        if len(set(labels)) == 2:
            cells = metrics.confusion_matrix(labels, decisions, labels=[0, 1]).ravel().astype("float64")
            assert thresholds.MEASURES_OF_COUNTS[name](*cells) == pytest.approx(SCORES[name](labels, decisions))


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_known_sharpening(sharpness):
    labels, probabilities = draw_predictions(20_000, sharpness=sharpness)
    assert fit_temperature(labels, probabilities) == pytest.approx(sharpness, rel=0.05)


def test_temperature_is_that_of_logistic_regression_without_intercept():
    from sklearn.linear_model import LogisticRegression

    labels, probabilities = draw_predictions(300, sharpness=2.5)
    logits = np.log(probabilities / (1 - probabilities))[:, None]
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(logits, labels).coef_[0, 0]
    assert fit_temperature(labels, probabilities) == pytest.approx(1 / slope, rel=1e-4)


def test_temperature_lowers_log_loss_and_keeps_the_ranking():
    labels, probabilities = draw_predictions(500, sharpness=4)
    calibrated = apply_temperature(probabilities, fit_temperature(labels, probabilities))
    before, after = (evaluate(labels, p, num_bootstrap=0) for p in (probabilities, calibrated))
    assert after.log_loss < before.log_loss
    assert after.ece < before.ece
    assert after.roc_auc == before.roc_auc
    assert after.confusion == before.confusion
    assert (np.argsort(calibrated, kind="stable") == np.argsort(probabilities, kind="stable")).all()


def test_temperature_one_changes_nothing_and_the_ends_stay():
    probabilities = np.array([0.0, 1e-30, 0.3, 0.5, 1 - 1e-7, 1.0])
    np.testing.assert_allclose(apply_temperature(probabilities, 1.0), probabilities, rtol=1e-12)
    assert apply_temperature([0.0, 0.5, 1.0], 7.0).tolist() == [0.0, 0.5, 1.0]
    assert apply_temperature([[0.8]], 2.0) == pytest.approx(2 / 3)  # odds 4 become odds 2


def test_saturated_wrong_answers_leave_a_finite_temperature():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 1 < fit_temperature([0, 1] * 20 + [0], [0.0, 1.0] * 20 + [1.0]) < 20


@pytest.mark.parametrize(
    "probabilities, temperature, reason", [([0.2, 0.8], 0.05, "right side of 0.5"), ([0.8, 0.2], 20.0, "say nothing")]
)
def test_temperature_at_the_end_of_its_range_warns(probabilities, temperature, reason):
    with pytest.warns(UserWarning, match=reason):
        assert fit_temperature([0, 1], probabilities) == pytest.approx(temperature, rel=1e-3)


@pytest.mark.parametrize("function", [evaluate, tune_threshold, fit_temperature, expected_calibration_error])
@pytest.mark.parametrize(
    "y_true, probabilities, message",
    [
        ([0, 1], [0.1, 0.2, 0.3], "Received: 2 labels and 3 probabilities"),
        ([], [], "Received: 0 rows"),
        ([0, 2, -1], [0.1, 0.2, 0.3], r"must be 0 or 1. Received: 2 in row 1, -1 in row 2"),
        ([0, np.nan], [0.1, 0.2], "Received: nan in row 1"),
        ([0.3, 0.9], [0, 1], "Received: 0.3 in row 0, 0.9 in row 1.*swapped"),
        (["ham", "spam"], [0.1, 0.2], "`y_true` must hold numbers .*'ham'"),
        ([0, None], [0.1, 0.2], "Received: nan in row 1"),
        ([0, [1]], [0.1, 0.2], "`y_true` must hold numbers"),
        ([0, 1], [0.1, 1.2], r"`probabilities` must lie in \[0, 1\]. Received: 1.2 in row 1.*sigmoid"),
        ([0, 1], [-3.0, 4.0], "Received: -3 in row 0, 4 in row 1"),
        ([0, 1], [0.1, np.nan], "Received: nan in row 1.*diverged"),
        ([0, 1] * 3, [-1.0] * 6, "-1 in row 2 and 3 more"),
        ([0, 1], [[0.1, 0.9], [0.8, 0.2]], r"Received: shape \(2, 2\).*softmax"),
        (0, 0.5, r"Received: shape \(\)"),
    ],
)
def test_unusable_input_is_refused_by_value(function, y_true, probabilities, message):
    with pytest.raises(ValueError, match=message):
        function(y_true, probabilities)


@pytest.mark.parametrize("function", [tune_threshold, fit_temperature])
def test_one_class_only_cannot_be_tuned(function):
    with pytest.raises(ValueError, match="Received: 3 rows, all with label 1"):
        function([1, 1, 1], [0.1, 0.5, 0.9])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: tune_threshold([0, 1], [0, 1], metric="auc"), "accuracy, balanced_accuracy, f1, mcc. .*metric='auc'"),
        (lambda: evaluate([0, 1], [0, 1], threshold=1.5), "threshold=1.5"),
        (lambda: evaluate([0, 1], [0, 1], num_bootstrap=-1), "num_bootstrap=-1"),
        (lambda: apply_temperature([0.5], 0.0), "temperature=0.0"),
        (lambda: apply_temperature([0.5], np.nan), "temperature=nan"),
    ],
)
def test_argument_out_of_range_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_evaluation_does_not_import_tensorflow():
    code = "import sys, bertbin_tf.evaluation; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_notebook_shows_the_table_of_the_terminal():
    result = evaluate([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    shown = result._repr_html_()
    assert all(f"<th>{name}</th><td>{value}</td><td>{interval}</td>" in shown for name, value, interval in result.table)
    assert all(f"{value}   {interval}".rstrip() in str(result) for _, value, interval in result.table)
