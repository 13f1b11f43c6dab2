"""The tables and the plot of `speed.py`."""

import matplotlib.pyplot as plt
import numpy as np
from speed_texts import BATCH_SIZES, GOAL, OURS

PRODUCT = 2 * 2048**3  # floating-point operations of one of the measured matrix products
DIM, FEED_FORWARD, NUM_LAYERS = 384, 1536, 6


def print_tables(results):
    """Prints what was measured so far."""
    print(
        f"\n{results.get('machine', 'nothing measured yet')}; MiniLM, float32; medians, [lowest, highest] of the turns"
    )
    if "train" in results:
        _print_training(results["train"])
    if "predict" in results:
        _print_prediction(results["predict"])
    if "steps" in results:
        _print_steps(results["steps"]["shapes"])


def _print_training(train):
    peaks = {name: np.median(_rates(turns)) * PRODUCT for name, turns in train["peak"].items()}
    peak = max(peaks.values())
    print("\nMatrix products: " + ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in peaks.items()))
    for kind, contestants in _kinds(train):
        tokens = train["tokens"][kind]
        print(f"\nTraining, {kind} texts, batches of {BATCH_SIZES[kind]}, {tokens:.0f} tokens a row")
        print(f"{'':<32}{'rows/s':>22}{'ours / it':>24}{'share of peak':>15}{'MB':>8}{'ready after':>13}")
        ours = _rates(contestants[OURS]) * BATCH_SIZES[kind]
        for name, turns in contestants.items():
            rates = _rates(turns) * BATCH_SIZES[kind]
            share = np.median(rates) * flops_of_row(tokens) / peak
            memory = max(turn["megabytes"] for turn in turns)
            print(
                f"{name:<32}{_spread(rates):>22}{_spread(ours / rates, 2):>24}{share:>15.0%}{memory:>8.0f}"
                f"{turns[0]['ready']:>11.0f} s"
            )


def _print_prediction(predict):
    for kind, contestants in _kinds(predict):
        print(f"\nPrediction, {kind} texts")
        print(f"{'':<32}{'rows/s':>22}{'ours / it':>24}{'MB':>8}")
        ours = _rates(contestants[OURS])
        for name, turns in contestants.items():
            rates = _rates(turns)
            memory = max(turn["megabytes"] for turn in turns)
            print(f"{name:<32}{_spread(rates):>22}{_spread(ours / rates, 2):>24}{memory:>8.0f}")


def _print_steps(steps):
    print("\nMilliseconds of a training step for each token, no padding")
    lengths = sorted({step["length"] for step in steps})
    print(f"{'rows':>8}" + "".join(f"{length:>8}" for length in lengths))
    for rows in sorted({step["rows"] for step in steps}):
        costs = {step["length"]: _cost(step) for step in steps if step["rows"] == rows}
        print(f"{rows:>8}" + "".join(f"{costs[length]:>8.2f}" if length in costs else f"{'':>8}" for length in lengths))


def print_races(races):
    """Prints the seconds to the goal of each contestant, and how ours compare, seed by seed."""
    races = [race for race in races if race["goal"] == GOAL]
    if not races:
        return
    print(f"\nSeconds from start to an accuracy of {GOAL} on the test rows, short texts")
    print("One epoch of batches of 32; setfit: 200 steps of 16 pairs")
    print(f"{'':<32}{'reached':>10}{'seconds':>24}{'steps':>20}{'ours / it':>24}{'MB':>8}")
    reached = {name: {} for name in dict.fromkeys(race["name"] for race in races)}
    for race in races:
        if race["reached"]:
            reached[race["name"]][race["seed"]] = race
    ours = reached.get(OURS, {})
    for name, by_seed in reached.items():
        its = [race for race in races if race["name"] == name]
        columns = [_spread(np.array([race[key] for race in by_seed.values()]), 0) for key in ("seconds", "steps")]
        ratios = [ours[seed]["seconds"] / race["seconds"] for seed, race in by_seed.items() if seed in ours]
        print(
            f"{name:<32}{f'{len(by_seed)} of {len(its)}':>10}{columns[0]:>24}{columns[1]:>20}"
            f"{_spread(np.array(ratios), 2):>24}{max(race['megabytes'] for race in its):>8.0f}"
        )


def draw(results, path):
    """Draws rows per second of all contestants, and the cost of a token over the length."""
    parts = [(part, kind) for part in ("train", "predict") for kind, _ in _kinds(results.get(part, {}))]
    num_panels = len(parts) + ("steps" in results)
    if not num_panels:
        return
    figure, axes = plt.subplots(num_panels, 1, figsize=(8, 2.4 * num_panels), layout="constrained", squeeze=False)
    axes = axes[:, 0]
    for axis, (part, kind) in zip(axes, parts, strict=False):
        contestants = results[part][kind]
        factor = BATCH_SIZES[kind] if part == "train" else 1
        rates = [_rates(turns) * factor for turns in contestants.values()]
        medians = np.array([np.median(rate) for rate in rates])
        errors = np.abs([[np.min(rate), np.max(rate)] for rate in rates] - medians[:, None]).T
        colors = ["#0b6e4f" if name.startswith("bertbin_tf") else "#9aa5b1" for name in contestants]
        axis.barh(list(contestants), medians, xerr=errors, color=colors, ecolor="#333333", capsize=2)
        axis.invert_yaxis()
        axis.set_xlabel("rows per second")
        axis.set_title(f"{'Training' if part == 'train' else 'Prediction'}, {kind} texts", loc="left", fontsize=10)
    if "steps" in results:
        for rows in sorted({step["rows"] for step in results["steps"]["shapes"]}):
            some = sorted(
                (step for step in results["steps"]["shapes"] if step["rows"] == rows), key=lambda step: step["length"]
            )
            lengths = [step["length"] for step in some]
            axes[-1].plot(lengths, [_cost(step) for step in some], marker="o", label=f"{rows} rows")
        axes[-1].set_xscale("log", base=2)
        axes[-1].set_xticks(lengths := sorted({step["length"] for step in results["steps"]["shapes"]}), lengths)
        axes[-1].set_ylim(bottom=0)
        axes[-1].set_xlabel("tokens in a row")
        axes[-1].set_ylabel("ms a token")
        axes[-1].set_title("A training step, by token", loc="left", fontsize=10)
        axes[-1].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def flops_of_row(tokens):
    """Returns the floating-point operations of training on one row: the products alone, backwards counted twice.

    Kaplan et al., 2020, https://arxiv.org/abs/2001.08361, section 2.1, with the attention over all pairs.
    """
    dense = 2 * (4 * DIM**2 + 2 * DIM * FEED_FORWARD)
    return 3 * NUM_LAYERS * tokens * (dense + 4 * DIM * tokens)


def _kinds(part):
    return [(kind, part[kind]) for kind in ("short", "long") if kind in part]


def _rates(turns):
    return np.array([turn["count"] / turn["seconds"] for turn in turns])


def _cost(step):
    return 1000 * np.median(step["step_seconds"]) / (step["rows"] * step["length"])


def _spread(values, digits=1):
    if not len(values):
        return "-"
    return f"{np.median(values):.{digits}f} [{values.min():.{digits}f}, {values.max():.{digits}f}]"
