"""Is the doctor right? Planted faults and tempting healthy models, on the real checkpoint, beside other tools.

    python benchmarks/faults.py examine train treat

`examine` asks the doctor about every case, `train` trains each as its user would and shows that the fault hurts,
`treat` trains it again after the treatment. Each run is a line in `results/faults.jsonl` and is not run again; without
a word only the tables are printed. An examination takes up to 90 seconds on two CPU cores, a training one to three
minutes.
`examine` is timed and wants the machine for itself; of the others two processes of one thread each get through more:
`TF_NUM_INTRAOP_THREADS=1`, `--share 1/2` and `--share 2/2`. `--only WORD` runs the cases with that word in their name.
"""

import argparse
import itertools
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from faults_cases import faulty_cases, healthy_cases, pairs_of_faults
from faults_runs import examine, train_plainly, train_treated
from kept_runs import KeptRuns

from bertbin_tf.doctor.remedies import REMEDIES

RESULTS = Path(__file__).parent / "results" / "faults.jsonl"
SHOWN = ("kind", "case", "cause", "accuracy", "roc_auc", "failed", "raised", "seconds")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="examine, train, treat", default=[])
    parser.add_argument("--share", default="1/1", metavar="K/N", help="only every Nth run, from the Kth")
    parser.add_argument("--only", default="", metavar="WORD", help="only cases with this in their name or code")
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - {"examine", "train", "treat"}:
        parser.error(f"unknown kind {', '.join(sorted(unknown))}; choose from examine, train, treat")
    faulty, healthy, pairs = faulty_cases(), healthy_cases(), pairs_of_faults()
    runs = KeptRuns(RESULTS, ("kind", "case"), arguments.share)

    def keep(kind, case, measure):
        if any(arguments.only in word for word in (case.name, *case.codes)):
            run = {"kind": kind, "case": case.name, "codes": case.codes}
            runs.keep(run, lambda run: measure(case), SHOWN)

    # One of each code first: what is there after a part of the time covers all of them.
    firsts = list({case.codes: case for case in reversed(faulty)}.values())[::-1]
    faulty = [*firsts, *(case for case in faulty if case not in firsts)]
    if "examine" in arguments.kinds:
        for case in dict.fromkeys((*firsts, *healthy, *faulty, *pairs)):
            keep("examine", case, examine)
    if "train" in arguments.kinds:
        for case in dict.fromkeys(itertools.chain(*((case.twin, case) for case in faulty), healthy)):
            keep("train", case, train_plainly)
    if "treat" in arguments.kinds:
        for case in faulty:
            # What is not for a program to mend is trained no better, and not counted.
            if case.codes[0] in REMEDIES and (examined := runs.find(kind="examine", case=case.name)):
                keep("treat", case, lambda case, examined=examined: train_treated(case, examined["findings"]))

    # Here, because the tables need more than the runs do.
    import faults_tables

    faults_tables.report(runs.load(), faulty, healthy, pairs)


if __name__ == "__main__":
    main()
