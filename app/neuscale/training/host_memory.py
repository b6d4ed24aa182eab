"""Memory of training on a CPU, which the C library is told to keep between steps."""

import ctypes
import os
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_GROW_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Has freed memory of this process kept for the next step; whether it is (glibc only).

    By default glibc gives large blocks back to the system as they are freed, and a training
    step, which needs the same activations again, spends a fifth of its time having zeroed pages
    mapped anew. What a process takes at its peak stays the same; it is held until it ends.
    Settings of the user's (`MALLOC_…`, `GLIBC_TUNABLES`) are left alone.
    """
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _GROW_BYTES))
    )
