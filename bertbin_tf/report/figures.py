"""The plots of the page, drawn by matplotlib, as SVG that takes the page's own colours for text and axes."""

import functools
import io
import re
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
import scipy.stats
from cycler import cycler
from matplotlib.figure import Figure
from sklearn import metrics

from bertbin_tf.evaluation.calibration import NUM_BINS, assign_bins
from bertbin_tf.report.reading import Curve, RunRecord

# Okabe & Ito's palette for all kinds of colour vision, the two lightened until they can be read on white and on black.
COLORS = ("#2f86c5", "#d9791f", "#1a9e77", "#b565a7", "#8a8a8a", "#c44e52")
INK = "#010203"  # stands for the page's own text colour
NUM_RESAMPLES = 200  # of a band around a curve
GRID = np.linspace(0, 1, 101)
MAX_COLUMNS = 80  # of a heat map
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, selectable, in the reader's own font
    "svg.hashsalt": "bertbin_tf",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "text.parse_math": False,  # names of runs may hold a dollar
    "legend.frameon": False,
}


def _figure(width=5.4, height=3.4, **kwargs):
    figure = Figure(figsize=(width, height), layout="constrained", **kwargs)
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str) -> str:
    """Returns a figure as an SVG element for a page.

    Args:
        figure: The matplotlib figure.
        name: Put before the identifiers in it, so that those of two figures differ.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\sid=")', rf"\1{name}-", svg)
    svg = re.sub(r'((?:url\(|href=")#)', rf"\1{name}-", svg)
    # Scaled to the column by the page; what it shows is said in the caption.
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]+")[^>]*>',
        r'<svg xmlns="http://www.w3.org/2000/svg" '
        r'xmlns:xlink="http://www.w3.org/1999/xlink" \1 aria-hidden="true">',
        svg,
        count=1,
    )


def styled(draw):
    """Makes a function that draws use this page's style."""

    @functools.wraps(draw)
    def drawing(*args, **kwargs):
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawing


@styled
def loss(records: list[RunRecord]) -> Figure:
    """Draws the loss by step where it was written, and by epoch, and that of answering the prior to every text."""
    figure, axes = _figure()
    for record, color in zip(records, _colors(records), strict=True):
        label = "" if len(records) == 1 else f"{record.name}: "
        steps_per_epoch = record.metrics["steps"] / len(record.history["loss"])
        ends = steps_per_epoch * np.arange(1, len(record.history["loss"]) + 1)
        if curve := record.curves.get("loss/cross_entropy"):
            axes.plot(curve.steps, curve.values, color=color, alpha=0.6, linewidth=1.2, label=f"{label}training")
        else:
            axes.plot(ends, record.history["loss"], "o:", color=color, label=f"{label}training, by epoch")
        kind = ", focal loss" if record.recipe.imbalance == "focal" else ""
        axes.plot(ends, record.history["val_loss"], "s-", color=color, markersize=4, label=f"{label}validation{kind}")
    for entropy in sorted({round(record.metrics["label_entropy"], 3) for record in records}):
        axes.axhline(entropy, color=COLORS[4], linestyle="--", label=f"answering the prior, {entropy:.3f}")
    axes.set(xlabel="step", ylabel="loss (nats)")
    axes.legend()
    return figure


@styled
def spread(records: list[RunRecord]) -> Figure:
    """Draws the spread of the logits by step, or by epoch."""
    figure, axes = _figure()
    for record, color in zip(records, _colors(records), strict=True):
        if curve := record.curves.get("logits/spread"):
            axes.plot(curve.steps, curve.values, color=color, label=record.name)
        else:
            values = record.history["logit_spread"]
            ends = record.metrics["steps"] / len(values) * np.arange(1, len(values) + 1)
            axes.plot(ends, values, "o-", color=color, label=record.name)
    axes.set(xlabel="step", ylabel="standard deviation of the logits")
    axes.set_ylim(bottom=0)
    if len(records) > 1:
        axes.legend()
    return figure


@styled
def layers(curves: dict[str, Curve], label: str) -> Figure:
    """Draws a positive measure of all layers over the steps as a heat map, the head on top."""
    steps = next(iter(curves.values())).steps
    columns = np.unique(np.linspace(0, len(steps) - 1, MAX_COLUMNS).round().astype(int))
    values = np.array([curve.values[columns] for curve in curves.values()])
    values = np.log10(np.where(values > 0, values, np.nan))
    figure, axes = _figure(height=1.2 + 0.28 * len(curves))
    image = axes.pcolormesh(
        steps[columns], np.arange(len(curves)), values, cmap="viridis", shading="nearest", rasterized=False
    )
    axes.set_yticks(range(len(curves)), list(curves), fontsize=8)
    axes.set(xlabel="step")
    bar = figure.colorbar(image, ax=axes, label=label, format=lambda value, _: f"{10.0**value:.0e}")
    bar.locator = matplotlib.ticker.MaxNLocator(5)
    bar.update_ticks()
    return figure


@styled
def histogram(labels: np.ndarray, probabilities: np.ndarray, threshold: float) -> Figure:
    """Draws how the probabilities of each class are spread, and the threshold."""
    figure, axes = _figure()
    for label in (0, 1):
        axes.hist(probabilities[labels == label], np.linspace(0, 1, 31), alpha=0.6, label=f"label {label}")
    axes.axvline(threshold, color=INK, linestyle="--", gid="threshold", label="threshold")
    axes.set(xlabel="probability of label 1", ylabel="texts", xlim=(0, 1))
    axes.legend()
    return figure


@styled
def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Figure:
    """Draws the share of label 1 among texts of similar probability, with Wilson's 95 % intervals."""
    figure, axes = _figure()
    bins = assign_bins(probabilities)
    axes.plot([0, 1], [0, 1], color=COLORS[4], linestyle="--", label="as often as said")
    for index in np.unique(bins):
        inside = bins == index
        positive, count = int(labels[inside].sum()), int(inside.sum())
        low, high = scipy.stats.binomtest(positive, count).proportion_ci(method="wilson")
        share, mean = positive / count, probabilities[inside].mean()
        axes.errorbar(
            mean, share, [[max(share - low, 0)], [max(high - share, 0)]], fmt="o", color=COLORS[0], markersize=4
        )
    axes.set(xlabel=f"mean probability in {NUM_BINS} bins", ylabel="share of label 1", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    return figure


@styled
def roc(records: list[RunRecord]) -> Figure:
    """Draws ROC curves with their pointwise 95 % bootstrap bands."""

    def curve(labels, probabilities):
        false, true, _ = metrics.roc_curve(labels, probabilities)
        return np.interp(GRID, false, true)

    figure, axes = _curves(records, curve, "roc_auc")
    axes.plot([0, 1], [0, 1], color=COLORS[4], linestyle="--", label="chance")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right")
    return figure


@styled
def precision_recall(records: list[RunRecord]) -> Figure:
    """Draws precision-recall curves with their pointwise 95 % bootstrap bands."""

    def curve(labels, probabilities):
        precision, recall, _ = metrics.precision_recall_curve(labels, probabilities)
        return np.interp(GRID, recall[::-1], precision[::-1])

    figure, axes = _curves(records, curve, "pr_auc")
    axes.axhline(records[0].evaluation.base_rate, color=COLORS[4], linestyle="--", label="base rate")
    axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    axes.legend(loc="lower left")
    return figure


def _curves(records, curve, measure):
    figure, axes = _figure()
    for record, color in zip(records, _colors(records), strict=True):
        labels, probabilities = record.labels, record.probabilities
        generator = np.random.default_rng(0)
        draws = generator.integers(len(labels), size=(NUM_RESAMPLES, len(labels)))
        drawn = [curve(labels[rows], probabilities[rows]) for rows in draws if 0 < labels[rows].mean() < 1]
        low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
        axes.fill_between(GRID, low, high, color=color, alpha=0.2, linewidth=0)
        label = f"area {getattr(record.evaluation, measure):.3f}"
        if len(records) > 1:
            label = f"{record.name}: {label}"
        axes.plot(GRID, curve(labels, probabilities), color=color, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure, axes


def _colors(records):
    return [COLORS[index % len(COLORS)] for index in range(len(records))]
