"""What would BERT-base take on 1 to 64 TPU cores or GPUs? On paper: formulas, with inputs that were measured here.

    python benchmarks/scaling.py            # the tables, from results/scaling.json
    python benchmarks/scaling.py measure    # measures the inputs on this machine, which it wants for itself: 10 minutes

A step is computing, at some share of the chip's peak, and then an all-reduce of the gradients along one ring over one
link. That is pessimistic: in truth the two overlap, and a chip has several links. That latency is not counted is
optimistic. Each replica keeps its batch, so that all of them together take a larger one; whether that trains as well is
another question. The share of the peak on a TPU or GPU could not be measured here, which is why there are two.
`tests/test_scaling.py` holds the formulas (`scaling_formulas.py`) to TensorFlow's own count and to real models.
"""

import argparse
import json
import math
import os
import platform
from pathlib import Path

import numpy as np
from scaling_formulas import (
    BERT_BASE,
    CHIPS,
    EPOCHS,
    LENGTH,
    REPLICAS,
    REPLICAS_PER_HOST,
    REVIEWS,
    ROWS,
    SHARES,
    Chip,
    all_reduce_bytes,
    estimate,
    predict_steps,
)

RESULTS = Path(__file__).parent / "results" / "scaling.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["measure"], help="default: only the tables are printed")
    if parser.parse_args().part:
        from scaling_inputs import measure

        load = os.getloadavg()[0]
        machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, load {load:.1f} beforehand"
        RESULTS.write_text(json.dumps({"machine": machine, "inputs": measure()}, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    print_inputs(results)
    print_estimates(results["inputs"])


def print_inputs(results: dict) -> None:
    """Prints what was measured, and how well the formula predicts one measured step from another."""
    inputs = results["inputs"]
    print(f"{results['machine']}; medians of the rounds, [lowest, highest]")
    print(f"matrix products  {spread(inputs['peak'], 1e-9)} GFLOP/s")
    for name in ("tokenize", "batches"):
        print(f"{name:<16} {spread(inputs[name])} rows/s, of {LENGTH} tokens")
    print(f"\n{'a training step':<22}{'measured, s':>24}{'share of peak':>15}{'predicted, s':>14}{'ratio':>7}")
    for row in predict_steps(inputs):
        measured = spread(inputs[row["name"]], digits=2)
        ratio = row["predicted"] / row["seconds"]
        print(f"{row['name']:<22}{measured:>24}{row['share']:>15.0%}{row['predicted']:>14.2f}{ratio:>7.2f}")


def print_estimates(inputs: dict) -> None:
    """Prints a line for each chip and number of them; two figures are those at the two shares of the peak."""
    for chip in CHIPS:
        print(
            f"\n{chip.name}: peak {chip.peak / 1e12:.0f} TFLOP/s, {chip.link / 1e9:.0f} GB/s over a link, "
            f"{chip.link_between_hosts / 1e9:.0f} GB/s between hosts",
            end="",
        )
    low, high = SHARES
    print(
        f"\n\nBERT-base, {ROWS} rows of {LENGTH} tokens for each replica, at {low:.0%}/{high:.0%} of the peak; "
        f"minutes for {REVIEWS:,} reviews x {EPOCHS}"
    )
    print(
        f"{'':<12}{'replicas':>9}{'hosts':>6}{'ms a step':>10}{'MB sent':>8}{'its share':>10}{'rows/s':>15}"
        f"{'x input':>11}{'efficiency':>11}{'min alone':>11}{'with input':>11}"
    )
    for chip in CHIPS:
        for replicas in REPLICAS:
            print(line(chip, replicas, inputs))


def line(chip: Chip, replicas: int, inputs: dict) -> str:
    """Returns a line of the table, without spaces at its end."""
    estimates = [estimate(chip, replicas, share, inputs) for share in SHARES]

    def pair(name, factor, digits=0):
        return "/".join(f"{factor * values[name]:,.{digits}f}" for values in estimates)

    return (
        f"{chip.name:<12}{replicas:>9}{math.ceil(replicas / REPLICAS_PER_HOST):>6}{pair('step', 1e3):>10}"
        f"{all_reduce_bytes(BERT_BASE, replicas) / 1e6:>8.0f}{pair('all_reduce_share', 100) + ' %':>10}"
        f"{pair('rows_per_second', 1):>15}{pair('asked', 1, 1):>11}{pair('efficiency', 100) + ' %':>11}"
        f"{pair('alone', 1 / 60, 1):>11}{pair('with_input', 1 / 60, 1):>11}"
    )


def spread(values: list[float], factor: float = 1, digits: int = 0) -> str:
    median, low, high = (factor * value for value in (np.median(values), min(values), max(values)))
    return f"{median:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"


if __name__ == "__main__":
    main()
