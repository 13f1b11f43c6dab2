"""Memory that is freed stays with the process, and what the user has set stands."""

import os
import subprocess
import sys

import pytest

# Page faults are what the system does for memory that is asked for again; they do not depend on how busy it is.
COUNT_FAULTS = """
import resource, sys
import numpy as np
from bertbin_tf.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.zeros(2**23, "float64")[::64] = 1.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed_memory() if sys.argv[1] == "keep" else None)
faults()  # the first time it has to come from the system
print(faults())
"""


def count_faults(keep, **variables):
    process = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, keep],
        env={name: value for name, value in os.environ.items() if "MALLOC" not in name} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = process.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_freed_memory_is_not_asked_for_again():
    _, faults = count_faults("no")
    kept, fewer = count_faults("keep")
    assert kept == "True"
    assert fewer < faults / 20


def test_what_the_environment_says_stands():
    assert count_faults("keep", MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"
