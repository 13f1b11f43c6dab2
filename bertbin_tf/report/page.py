"""From what was read and drawn to the page."""

import base64
import dataclasses
import hashlib
import importlib.resources
import json
import os
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import markupsafe
import numpy as np

from bertbin_tf import __version__
from bertbin_tf.recipe import Recipe
from bertbin_tf.report import figures
from bertbin_tf.report.reading import RunRecord, read_record
from bertbin_tf.report.verdict import verdict

NUM_MISTAKES = 20
MAX_CHARACTERS = 400  # of a text in the table of mistakes
TEMPLATES = importlib.resources.files("bertbin_tf.report") / "templates"
COMPARED = ("run", "verdict", "accuracy", "ROC AUC", "log loss", "steps", "seconds of fit")


class Plot(NamedTuple):
    """A figure on the page.

    Args:
        name: Of its element.
        svg: The SVG element.
        caption: What is to be seen, in words and numbers, for those who do not see it too.
    """

    name: str
    svg: markupsafe.Markup
    caption: str


def render(*paths: str | os.PathLike) -> str:
    """Returns an HTML page about a finished run, or one that compares several.

    The page needs no network and no other file. It follows the reader's light or dark mode, is made for a phone's width
    as well, and can be read by keyboard and screen reader; texts from the data are escaped.

    Args:
        paths: Folders that `train` wrote, one or more.

    Raises:
        ValueError: If none is given, or one is not the folder of a finished run.

    Example:
    >>> history = train(Recipe("reviews.csv", epochs=1), "runs/reviews", verbose=0)
    >>> page = render("runs/reviews")
    >>> page.startswith("<!doctype html>")
    True
    """
    if not paths:
        raise ValueError("`render` needs the folder of a run, or several.")
    return render_records([read_record(path) for path in paths])


def render_records(records: Sequence[RunRecord]) -> str:
    """Returns the page of `render`, of runs that have been read."""
    template, values = ("run.html", _run(*records)) if len(records) == 1 else ("runs.html", _runs(records))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (TEMPLATES / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    script = (TEMPLATES / "threshold.js").read_text(encoding="utf-8")
    return environment.get_template(template).render(
        values,
        version=__version__,
        style=markupsafe.Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
        script=markupsafe.Markup(script),
        # The browser then runs this script and no other, should a text ever get into the page as it is.
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def comparison(records: Sequence[RunRecord]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns header and rows of a table of several runs, the best ROC AUC first."""

    def told(record, name):
        value, interval = next(line[1:] for line in record.evaluation.table if line[0] == name)
        return f"{value} ({interval})" if interval else value

    rows = [
        (
            record.name,
            verdict(record).word,
            *(told(record, name) for name in ("accuracy", "roc_auc", "log_loss")),
            f"{record.metrics['steps']:,}",
            f"{record.metrics['fit_seconds']:.0f}",
        )
        for record in sorted(records, key=lambda record: -(record.evaluation.roc_auc or 0.0))
    ]
    return COMPARED, rows


def have_same_rows(records: Sequence[RunRecord]) -> bool:
    """Whether all runs were validated on the same texts and labels."""
    return len({record.data_sha256 for record in records}) == 1


def _run(record):
    measured = record.evaluation
    histogram = figures.histogram(record.labels, record.probabilities, measured.threshold)
    by_class = [np.median(record.probabilities[record.labels == label]) for label in np.unique(record.labels)]
    medians = " and ".join(f"{median:.2f}" for median in by_class)
    plots = _curves([record]) | {
        "histogram": _plot(
            "histogram", histogram, f"Probabilities of the validation texts. Medians by label, 0 before 1: {medians}."
        ),
        "reliability": _plot(
            "reliability",
            figures.reliability(record.labels, record.probabilities),
            f"Reliability, after the temperature {record.metrics['temperature']:.2f}: where points lie "
            f"below the line, label 1 is rarer than was said. Expected calibration error {measured.ece:.3f}. Bars are "
            "95 % intervals.",
        ),
    }
    rates, steps, multipliers = map(record.by_layer, ("learning_rate", "relative_step", "multiplier"))
    if rates:
        plots |= {
            "learning_rate": _plot("learning_rate", figures.layers(rates, "learning rate"), _told("Rate", rates)),
            "relative_step": _plot(
                "relative_step",
                figures.layers(steps, "relative step"),
                _told("What a step changes, relative to the weights", steps)
                + " Near 2e-3 is healthy for an encoder; a head grows faster.",
            ),
        }
    counts = tuple(float(measured.confusion[cell]) for cell in ("tn", "fp", "fn", "tp"))
    return {
        "title": record.name,
        "verdict": verdict(record),
        "recipe": record.recipe,
        "plots": plots,
        "threshold": _shown(measured.threshold),
        "histogram_width": f"{histogram.axes[0].get_position().width * histogram.get_figwidth() * 72:.2f}",
        "confusion": {cell: f"{count:,}" for cell, count in measured.confusion.items()},
        "decision_measures": _decision_measures(*counts),
        "rows": f"{measured.rows:,}",
        "measured": measured.table,
        "interventions": record.metrics["interventions"],
        "layer_numbers": [
            (
                layer,
                [f"{multipliers[layer].values[-1]:.3g}"]
                + [f"{np.nanmax(curves[layer].values):.1e}" for curves in (rates, steps)],
            )
            for layer in reversed(rates)
        ],
        "mistakes": list(_mistakes(record)),
        "data": record.provenance["data"],
        "command": _command(record.recipe),
        "facts": {
            "Recipe": dataclasses.asdict(record.recipe),
            "Versions": record.provenance["packages"] | {"python": record.provenance["python"]},
            "Machine": {
                name: ", ".join(value) if isinstance(value, list) else value
                for name, value in record.provenance.items()
                if name in ("machine", "devices", "strategy", "replicas")
            },
        },
        "rows_json": _json(
            {
                "labels": record.labels.tolist(),
                "probabilities": record.probabilities.tolist(),
                "threshold": measured.threshold,
            }
        ),
    }


def _runs(records):
    header, table = comparison(records)
    recipes = [dataclasses.asdict(record.recipe) for record in records]
    return {
        "title": f"{len(records)} runs compared",
        "plots": _curves(records),
        "header": header,
        "table": table,
        "names": [record.name for record in records],
        "same_rows": have_same_rows(records),
        "differences": {
            field: [recipe[field] for recipe in recipes]
            for field in recipes[0]
            if len({recipe[field] for recipe in recipes}) > 1
        },
    }


def _curves(records):
    """Draws what can be drawn of one run and of several."""
    entropies = _each(records, lambda record: f"{record.metrics['label_entropy']:.3f}")
    losses = _each(
        records,
        lambda record: "the focal loss, which is lower" if record.recipe.imbalance == "focal" else "the cross-entropy",
    )
    ends = _each(records, lambda record: f"{record.history['val_loss'][-1]:.3f}")
    spreads = _each(records, lambda record: f"{record.history['logit_spread'][-1]:.2f}")
    plots = {
        "loss": _plot(
            "loss",
            figures.loss(records),
            f"Loss. Answering the prior to every text gets {entropies}. The validation loss ends at {ends}; it is "
            f"{losses}.",
        ),
        "spread": _plot(
            "spread",
            figures.spread(records),
            f"Spread of the logits, which announces a collapse by falling to 0. In the last epoch {spreads}.",
        ),
    }
    ranked = [record for record in records if record.evaluation.roc_auc is not None]
    if ranked:
        areas = _each(ranked, lambda record: f"{record.evaluation.roc_auc:.3f}")
        precisions = _each(ranked, lambda record: f"{record.evaluation.pr_auc:.3f}")
        band = "The bands are pointwise 95 % bootstrap intervals."
        plots["roc"] = _plot("roc", figures.roc(ranked), f"ROC curve. Area {areas}. {band}")
        plots["precision_recall"] = _plot(
            "precision_recall",
            figures.precision_recall(ranked),
            f"Precision and recall. Average precision {precisions}. {band}",
        )
    return plots


def _shown(threshold):
    """Returns a threshold as text, with three digits that count also where it is small."""
    return f"{threshold:.3f}" if threshold >= 0.1 else f"{threshold:.3g}"


def _each(records, say):
    """Returns what there is to say of each run, with its name where they differ."""
    if len({say(record) for record in records}) == 1:
        return say(records[0])
    return "; ".join(f"{say(record)} ({record.name})" for record in records)


def _plot(name, figure, caption):
    return Plot(name, markupsafe.Markup(figures.to_svg(figure, name)), caption)


def _told(what, curves):
    largest = max(curves, key=lambda layer: np.nanmax(curves[layer].values))
    value = np.nanmax(curves[largest].values)
    return f"{what}, layer by layer over the steps, the head on top. The largest is {value:.1e}, of {largest}."


def _decision_measures(tn, fp, fn, tp):
    def share(part, whole):
        return f"{part / whole:.3f}" if whole else "-"

    return [
        ("accuracy", share(tp + tn, tn + fp + fn + tp)),
        ("precision", share(tp, tp + fp)),
        ("recall", share(tp, tp + fn)),
        ("specificity", share(tn, tn + fp)),
        ("f1", share(2 * tp, 2 * tp + fp + fn)),
    ]


def _mistakes(record):
    said = record.probabilities >= record.evaluation.threshold
    distance = np.abs(record.probabilities - record.labels)
    wrong = np.flatnonzero(said != record.labels)
    chosen = wrong[np.argsort(-distance[wrong], kind="stable")][:NUM_MISTAKES]
    for row in chosen:
        text = record.texts[row]
        if len(text) > MAX_CHARACTERS:
            text = text[:MAX_CHARACTERS] + " ..."
        yield int(record.labels[row]), f"{record.probabilities[row]:.3f}", text


def _command(recipe):
    """Returns the command that trains this recipe again, with what differs from the defaults."""
    words = ["bertbin-tf", "train"]
    for field in dataclasses.fields(Recipe):
        value = getattr(recipe, field.name)
        if value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _json(content):
    # Inside a script element only this could end it early.
    return markupsafe.Markup(json.dumps(content, separators=(",", ":")).replace("<", "\\u003c"))
