"""How the process asks the system for memory: once, and keeps what it has had.

XLA frees its arrays after each step and allocates them again for the next. Of blocks above some
tens of MB, glibc gives each back to the system at once and gets it page by page the next time,
which is up to a fifth of a training step on a CPU.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_SETTINGS = ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad", "arena_max")


def keep_memory() -> bool:
    """Lets this process keep what it frees, of blocks below 2 GiB, for its next arrays.

    To be called before other threads run: those that already have an arena of their own stay
    with it. Nothing happens without glibc, and where the environment has settings of its own
    (``GLIBC_TUNABLES``, ``MALLOC_ARENA_MAX``, ...).

    Returns:
        Whether it is set.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if any(f"malloc.{name}=" in tunables for name in _SETTINGS) or any(
        f"MALLOC_{name.upper()}_" in os.environ or f"MALLOC_{name.upper()}" in os.environ
        for name in _SETTINGS
    ):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Arenas of threads are limited to 64 MB: what is larger would always come from the system.
    # -1 is never.
    wanted = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 2**31 - 1), (_TRIM_THRESHOLD, -1))
    return all([mallopt(name, value) for name, value in wanted])
