"""Memory that one training step frees is kept for the next."""

import ctypes
import os
import sys

# mallopt(3): the first of the two options keeps large arrays out of mappings of their own, which go back to the system
# when they are freed; the second keeps what is freed at the end of the heap.
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1
_VARIABLES = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Has this process keep the memory that it frees, so that a step on a CPU does not have to ask for it again.

    A step allocates and frees arrays of tens of MB again and again. glibc gives each of them back to the system at
    once, which has to clear it, page by page, for the next one. In a virtual machine that can be half of the time of a
    step: `benchmarks/speed.py` measures it. The price is that the process stays as large as it once was. Weights and
    results are the same. `train` and the command line do this; call it before a `fit` of your own.

    Returns:
        Whether it was done. It is not where the C library is another one than glibc (macOS, Windows, Alpine), and not
        where the environment already says how memory is to be kept, in one of glibc's variables.

    Example:
    >>> kept = keep_freed_memory()
    >>> history = model.fit(batches, verbose=0)

    Reference: the manual page mallopt(3), `M_MMAP_MAX` and `M_TRIM_THRESHOLD`.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _VARIABLES):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and set_option(_M_MMAP_MAX, 0) == 1 and set_option(_M_TRIM_THRESHOLD, -1) == 1
