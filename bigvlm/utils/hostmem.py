"""The C library's allocator, set so that a training step on the CPU does not beg for its memory.

XLA allocates a program's temporaries anew in every run. glibc takes large blocks from the kernel
and gives them back at once, so each step pays a page fault for every 4 KiB it touches: a third
of the time of a step whose layers are small (`python -m benchmarks.host_memory`).
"""

import ctypes
import os
import sys

# From malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep() -> bool:
  """Lets the process keep what it has freed; its peak is then what it holds to its end.

  One arena, no mmap for large blocks, nothing returned to the kernel. Variables of the same
  purpose that the user set (MALLOC_ARENA_MAX, GLIBC_TUNABLES, LD_PRELOAD of another allocator)
  win. To be called before JAX starts its threads: those that live already keep arenas of their own.

  Returns:
    Whether the allocator was set: false where it is not glibc's.
  """
  if not sys.platform.startswith("linux"):
    return False
  if any(name.startswith("MALLOC_") for name in os.environ):
    return False
  if "GLIBC_TUNABLES" in os.environ or "LD_PRELOAD" in os.environ:
    return False
  libc = ctypes.CDLL(None)
  if not hasattr(libc, "gnu_get_libc_version"):
    return False
  # -1 is "never": any number of bytes that fits would give back the temporaries of a larger model.
  options = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**28), (_ARENA_MAX, 1))
  return all([libc.mallopt(option, value) for option, value in options])
