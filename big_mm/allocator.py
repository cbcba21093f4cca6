"""The C heap of a process that computes on the CPU."""

import ctypes
import importlib.util
import os

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Makes glibc keep what is freed, so that a training step does not fault it in again.

    XLA allocates the temporaries of each step anew. By default glibc maps and unmaps hundreds of
    megabytes for that, and zeroing pages in the kernel was a quarter to a third of the CPU time of
    a small model's step. In return, resident memory stays at its peak. Call it before JAX starts a
    backend: a thread that has its own arena already stays with it.

    Returns:
      Whether it was done: not where an accelerator may compute, nor with another C library.
    """
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(
        importlib.util.find_spec(module) for module in ("jax_plugins", "libtpu")
    ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all([mallopt(key, value) == 1 for key, value in settings])
