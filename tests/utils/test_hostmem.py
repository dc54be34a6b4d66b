"""Freed memory stays with a process that asked for it, and the user's own settings win."""

import os
import subprocess
import sys

CODE = """
import numpy as np
from bigvlm.utils import hostmem
def resident():
  return int(open("/proc/self/statm").read().split()[1]) * 4096
kept = START
before = resident()
x = np.empty(SIZE << 20, np.uint8)
x[::4096] = 1
del x
print(kept, resident() - before > (SIZE - 4) << 20)
"""


def said(start="hostmem.keep()", mib=64, **env):
  kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_"))}
  return subprocess.run(
    [sys.executable, "-c", CODE.replace("START", start).replace("SIZE", str(mib))],
    env=kept | env,
    capture_output=True,
    text=True,
    check=True,
  ).stdout.split()


def test_freed_memory_stays():
  assert said() == ["True", "True"]


def test_so_do_the_temporaries_of_a_large_model():
  assert said(mib=2304) == ["True", "True"]  # More bytes than an int of the C library holds.


def test_the_users_settings_win():
  assert said(MALLOC_ARENA_MAX="2")[0] == "False"
  assert said(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0] == "False"


def test_a_training_process_on_cpus_keeps_its_memory():
  start = "__import__('bigvlm.trainers.launch', fromlist='x').initialize()"
  assert said(start, JAX_PLATFORMS="cpu") == ["None", "True"]
