"""The tables of `faults.py`, from the lines that its runs left."""

import collections

import numpy as np
import scipy.stats
from faults_baselines import BASELINES, NAMES

# A fault of these does not keep the model from training, but from being judged: what its user reads is off.
MISJUDGED = {"metric-misreads", "leak-between-splits", "train-validation-mismatch"}
POINTS, AUC = 0.05, 0.05
SICK_AUC = 0.65  # of one class in fifty a model may say the other to all texts, and still rank them


def report(lines, faulty, healthy, pairs) -> None:
    """Prints all tables.

    Args:
        lines: Dicts, as in the JSON Lines file.
        faulty, healthy, pairs: Lists of `Case`.
    """
    runs = collections.defaultdict(dict)
    for line in lines:
        runs[line["kind"]][line["case"]] = line
    examined = [case for case in faulty if case.name in runs["examine"]]
    trained = [case for case in examined if case.name in runs["train"] and case.twin.name in runs["train"]]
    counted = [case for case in trained if hurts(case, runs["train"])]
    controls = [case for case in healthy if case.name in runs["examine"]]
    sick = [case for case in controls if is_sick(runs["train"].get(case.name))]
    controls = [case for case in controls if case not in sick]
    print(f"\n{len(faulty)} faulty cases, {len(examined)} examined; of {len(trained)} trained {len(counted)} hurt.")
    print_measures("Faults that were shown to hurt", counted, controls, runs)
    print_measures("All that were examined, whether or not they hurt", examined, controls, runs)
    print_baselines(counted, [case for case in controls if case.name in runs["train"]], runs["train"])
    print_treatment(counted, runs)
    print_confusion(examined, controls, runs["examine"])
    print_harmless([case for case in trained if case not in counted], runs["train"])
    print_sick(sick, runs)
    print_pairs([case for case in pairs if case.name in runs["examine"]], runs["examine"])
    print_times([runs["examine"][case.name] for case in (*examined, *controls)])


def hurts(case, trained) -> bool:
    """Whether the plain run fails, or loses 5 points of accuracy or 0.05 of AUC to its twin, or misleads its user."""
    plain, twin = trained[case.name], trained[case.twin.name]
    if "raised" in plain:
        return True
    if MISJUDGED & set(case.codes):
        return plain.get("reported") is None or abs(plain["reported"] - plain["accuracy"]) >= POINTS
    is_worse = twin["accuracy"] - plain["accuracy"] >= POINTS or twin["roc_auc"] - plain["roc_auc"] >= AUC
    return is_worse or (plain["failed"] and not twin["failed"])


def is_sick(plain) -> bool:
    """Whether the plain run of a control failed: not a healthy one, then, as a fault that does not hurt is none."""
    return plain is not None and plain["failed"] and plain.get("roc_auc", 0.5) < SICK_AUC


def share(flags) -> str:
    """Returns a share as text, with its Wilson interval."""
    flags = list(map(bool, flags))
    if not flags:
        return "no run yet"
    interval = scipy.stats.binomtest(sum(flags), len(flags)).proportion_ci(method="wilson")
    return f"{sum(flags)}/{len(flags)} = {np.mean(flags):.1%} ({interval.low:.1%} to {interval.high:.1%})"


def print_measures(title, cases, controls, runs):
    examined = runs["examine"]
    print(f"\n{title}\n")
    causes = [(examined[case.name]["cause"], case.codes[0]) for case in cases]
    print(f"  something is reported                 {share(cause != 'healthy' for cause, _ in causes)}")
    print(f"  the cause is the planted code         {share(cause == code for cause, code in causes)}")
    print(f"  a finding is the planted code         {share(is_named(examined[case.name], case) for case in cases)}")
    print(f"  false alarms among healthy controls   {share(is_alarm(examined[case.name]) for case in controls)}")


def is_named(line, case):
    return set(case.codes) <= {finding["code"] for finding in line["findings"]}


def is_alarm(line):
    return line["cause"] != "healthy"


def print_baselines(cases, controls, trained):
    print("\nRe-implementations of other tools, on the traces of the plain runs\n")
    print(f"  {'':<16}{'something is reported':<38}{'the planted fault is named':<38}false alarms")
    for name, ask in BASELINES.items():
        said = [(ask(trained[case.name]["trace"]), case.codes[0]) for case in cases]
        named = [any(code in NAMES[word] for word in words) for words, code in said]
        alarms = [ask(trained[case.name]["trace"]) for case in controls]
        print(f"  {name:<16}{share(words for words, _ in said):<38}{share(named):<38}{share(alarms)}")


def print_treatment(cases, runs):
    treated = [
        (case, runs["treat"][case.name], runs["train"][case.twin.name]) for case in cases if case.name in runs["treat"]
    ]
    # What `treat` says is not for a program to mend is left as it was, and told apart.
    treatable = [(case, line, twin) for case, line, twin in treated if case.codes[0] not in line["left"]]
    within = [line.get("accuracy", 0.0) >= twin["accuracy"] - 0.02 for _, line, twin in treatable]
    print("\nTreatable faults that train after `treat` to within 2 points of the healthy twin\n")
    print(f"  {share(within)}")
    print(f"  left to the user: {', '.join(case.name for case, line, _ in treated if case.codes[0] in line['left'])}")
    for (case, line, twin), is_within in zip(treatable, within, strict=True):
        if not is_within:
            reason = line.get("raised") or "; ".join(line["left"].values()) or "; ".join(line["changes"])
            print(f"  {case.name}: {line.get('accuracy', 0):.3f}, twin {twin['accuracy']:.3f} ({reason[:120]})")


def print_confusion(cases, controls, examined):
    print("\nPlanted against named, where they differ\n")
    for case in (*cases, *controls):
        line, planted = examined[case.name], (case.codes or ("healthy",))[0]
        if line["cause"] != planted:
            others = [f"{finding['code']} ({finding['status']})" for finding in line["findings"]]
            print(f"  {planted:<32} {line['cause']:<32} {case.name}: {', '.join(others)}")


def print_harmless(cases, trained):
    print("\nFaults that did not hurt here, and are not counted\n")
    for case in cases:
        plain, twin = trained[case.name], trained[case.twin.name]
        print(
            f"  {case.codes[0]:<32} {case.name}: accuracy {plain['accuracy']:.3f}, twin {twin['accuracy']:.3f}; "
            f"AUC {plain['roc_auc']:.3f}, twin {twin['roc_auc']:.3f}"
        )


def print_sick(cases, runs):
    print("\nControls that fail when they are trained as their user would: not healthy, and not counted\n")
    for case in cases:
        plain = runs["train"][case.name]
        outcome = plain.get("raised") or f"ROC AUC {plain['roc_auc']:.3f}"
        print(f"  {case.name}: {outcome}; the doctor said {runs['examine'][case.name]['cause']}")


def print_pairs(cases, examined):
    print(f"\nTwo faults at once: both named in {share(is_named(examined[case.name], case) for case in cases)}\n")
    for case in cases:
        if not is_named(examined[case.name], case):
            print(f"  {case.name}: {', '.join(finding['code'] for finding in examined[case.name]['findings'])}")


def print_times(lines):
    if not lines:
        return
    seconds = sorted((line["seconds"], line["case"]) for line in lines)
    values = [value for value, _ in seconds]
    print(
        f"\nSeconds of an examination on {lines[0]['machine']}: median {np.median(values):.0f}, worst {values[-1]:.0f}"
    )
    for value, name in seconds[:-6:-1]:
        print(f"  {value:5.0f}  {name}")
