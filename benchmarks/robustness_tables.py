"""The tables and the plot of `robustness.py`, from its lines alone."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

LABELS = {"adam": "stock Adam", "strong": "strong plain recipe", "ours": "bertbin_tf"}
OTHERS = {
    "strong_with_layer_decay": "strong, layer decay",
    "lamb": "Lamb",
    "adafactor": "Adafactor",
    "l_dog": "L-DoG",
    "strong_mean": "strong, mean pooling",
}
# Of a point on a learning curve, (step, accuracy, ROC AUC): which value, and what it has to reach.
GOALS = {"AUC 0.75": (2, 0.75), "accuracy 0.75": (1, 0.75), "accuracy 0.80": (1, 0.80)}
COLORS = {"adam": "#b2182b", "strong": "#4d4d4d", "ours": "#2166ac"}


def report(runs: list[dict], folder: Path) -> None:
    """Prints every table that has runs, and draws the plot into the folder."""
    for section, print_section in (
        ("rates", print_rates),
        ("own_pooling", print_rates),
        ("prior_art", print_rates),
        ("few_rows", print_few_rows),
        ("same_rows", print_few_rows),
        ("imbalance", print_curves),
        ("head_start", print_curves),
        ("cost", print_cost),
        ("backbones", print_rates),
    ):
        if chosen := [run for run in runs if run["section"] == section]:
            print(f"\n{section}: {len(chosen)} runs, {sum(run.get('seconds', 0) for run in chosen) / 3600:.1f} hours")
            print_section(chosen)
    if chosen := [run for run in runs if run["section"] == "rates"]:
        print(f"\nPlot: {draw(chosen, folder / 'robustness.png')}")
        if ours := [run for run in chosen if run["method"] == "ours"]:
            run = max(ours, key=lambda run: run["rate"])
            print(f"\nInterventions in one run, {run['dataset']}, asked for {run['rate']:.0e}:")
            print("\n".join(run["interventions"]) or "none")


def cells(runs):
    """Accuracies by (dataset, method) and rate."""
    found = {}
    for run in runs:
        found.setdefault((run["dataset"], run["method"]), {}).setdefault(run["rate"], []).append(run)
    return found


def print_rates(runs):
    table = cells(runs)
    rates = sorted({run["rate"] for run in runs})
    line("dataset", "method", *(f"{rate:.0e}" for rate in rates), "failed")
    for (dataset, method), row in sorted(table.items()):
        entries = [accuracy(row[rate]) if rate in row else "-" for rate in rates]
        failed = sum(run["failed"] for some in row.values() for run in some)
        line(dataset, (LABELS | OTHERS)[method], *entries, f"{failed} of {sum(map(len, row.values()))}")
    for dataset in sorted({run["dataset"] for run in runs}):
        strong, ours = table.get((dataset, "strong")), table.get((dataset, "ours"))
        if strong and ours:
            best = max(np.mean([run["accuracy"] for run in some]) for some in strong.values())
            means = [np.mean([run["accuracy"] for run in some]) for some in ours.values()]
            worst = min(run["accuracy"] for some in ours.values() for run in some)
            print(
                f"{dataset}: best cell of the strong recipe {best:.3f}; ours below it by at most "
                f"{100 * (best - min(means)):.1f} points in the mean of a cell, {100 * (best - worst):.1f} in one run"
            )


def print_few_rows(runs):
    line("method", "rate", "runs", "mean", "deviation", "failed")
    for (_, method), row in sorted(cells(runs).items()):
        for rate, some in row.items():
            accuracies = [run["accuracy"] for run in some]
            deviation = f"{np.std(accuracies, ddof=1):.4f}" if len(some) > 1 else "-"
            failed = sum(run["failed"] for run in some)
            line((LABELS | OTHERS)[method], f"{rate:.0e}", len(some), f"{np.mean(accuracies):.3f}", deviation, failed)


def print_curves(runs):
    line("start or remedy", "seed", "first loss", "entropy", *(f"steps to {goal}" for goal in GOALS), "ROC AUC at end")
    for run in sorted(runs, key=lambda run: (run["remedy"], run["seed"])):
        first, entropy = f"{run['first_loss']:.3f}", f"{run['entropy']:.3f}" if "entropy" in run else "-"
        line(run["remedy"], run["seed"], first, entropy, *steps_to(run["curve"]), f"{run['roc_auc']:.3f}")


def steps_to(curve):
    """Returns for each of `GOALS` after how many steps it was reached first."""
    for column, goal in GOALS.values():
        yield next((point[0] for point in curve if point[column] >= goal), "never")


def print_cost(runs):
    line(
        "ms a step: strong", "ours", "ratio of sums", "median ratio", "95 % of mean ratio", "copies", "watched / strong"
    )
    for run in runs:
        milliseconds, (low, high) = run["milliseconds"], run["mean_ratio_interval"]
        line(
            f"{milliseconds['strong']:.0f}",
            f"{milliseconds['ours']:.0f}",
            f"{run['total_ratio']:.3f}",
            f"{run['median_ratio']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{run['extra_copies_of_weights']:+.2f}",
            f"{run['watched_ratio']:.3f}" if "watched_ratio" in run else "-",
        )


def accuracy(runs):
    values = [run["accuracy"] for run in runs]
    return f"{np.mean(values):.3f}" + (f" ±{np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def line(*entries):
    first, *others = map(str, entries)
    print(f"{first:<22}" + "".join(f"{entry:>22}" for entry in others))


def draw(runs, path):
    table = cells(runs)
    datasets = sorted({run["dataset"] for run in runs})
    figure, axes = plt.subplots(1, len(datasets), figsize=(5.5 * len(datasets), 4), squeeze=False, layout="constrained")
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for method in LABELS:
            row = dict(sorted(table.get((dataset, method), {}).items()))
            if not row:
                continue
            values = [[run["accuracy"] for run in some] for some in row.values()]
            means = np.array([np.mean(some) for some in values])
            spans = [means - [min(some) for some in values], [max(some) for some in values] - means]
            spans = np.maximum(spans, 0)  # of equal values the mean may lie beside them by the last bit
            axis.errorbar(
                list(row), means, yerr=spans, marker="o", capsize=3, color=COLORS[method], label=LABELS[method]
            )
        num_seeds = sorted({len(some) for key, row in table.items() if key[0] == dataset for some in row.values()})
        seeds = " to ".join(map(str, [*num_seeds[:1], *num_seeds[1:][-1:]])) + f" seed{'s' * (num_seeds[-1] > 1)}"
        axis.set(xscale="log", xlabel="learning rate asked for", ylabel="test accuracy")
        axis.set_title(f"{dataset}, 150 steps, {seeds} (bars: lowest to highest)")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
