"""How a process asks the system for memory: once, and keeps what it has had.

XLA frees its arrays after each step and allocates them again for the next. Of blocks above some
tens of MB, glibc gives each back to the system at once and gets it page by page the next time,
which is up to a fifth of a training step on a CPU core.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_TUNABLES = ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad", "arena_max")
_VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TOP_PAD_",
    "MALLOC_ARENA_MAX",
)


def keep_memory() -> bool:
    """Lets this process keep what it frees for its next arrays; its size stays at its peak.

    All threads then share one heap. To be called before others run, which otherwise stay with
    heaps of their own; the command line does. Nothing happens without glibc, and where the
    environment says something of the same: one of glibc's variables ``MALLOC_ARENA_MAX``,
    ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_MMAP_MAX_``,
    ``MALLOC_TOP_PAD_``, or one of their tunables in ``GLIBC_TUNABLES``, such as
    ``glibc.malloc.arena_max=8``.

    Returns:
        Whether the process keeps its memory from now on.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(f"malloc.{name}=" in tunables for name in _TUNABLES):
        return False
    if any(name in os.environ for name in _VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Other threads' heaps are limited to 64 MB: what is larger would not be kept. -1 is never.
    return all(
        mallopt(name, value)
        for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    )
