"""Saving and restoring 1 GiB: this project's checkpoints against orbax as it comes.

Usage: python benchmarks/checkpoint.py [--mib=1024] [--repeats=5] [--dir=FOLDER]

One line a measurement. `blocking` is how long a save keeps the trainer, and
`next_step` how much longer than usual the step after it takes (a copy that is put
off is paid for there); `fraction` of blocking = a plain copy of the same memory by as
many threads just before / blocking. `verify_*` = the digests alone, `of_restore` their
share of a restore without. `ratio` = seconds / those of plain orbax in the same
rounds, in which both take turns. Files stay in the page cache: restores are warm.
Medians over the rounds.
"""

import argparse
import collections
import functools
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from concurrent import futures

import common

_BLOCK = 16 << 20


def clock(fn) -> float:
  """Seconds of one call."""
  start = time.perf_counter()
  fn()
  return time.perf_counter() - start


def make(mib: int):
  """A state of 16 MiB tensors of noise, as trained weights are: no codec makes it small."""
  import jax
  import jax.numpy as jnp

  def noise(key):
    return jax.random.normal(key, (2048, 2048), jnp.float32)

  keys = jax.random.split(jax.random.key(0), mib // 16)
  state = {f"w{i:03d}": jax.jit(noise)(key) for i, key in enumerate(keys)}
  step = jax.jit(lambda t: jax.tree.map(lambda x: x * 0.999, t), donate_argnums=0)
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  return step(state), step, like


class Ours:
  """Same calls for both."""

  def __init__(self, directory, state):
    from bigvlm.ckpt import native

    self._manager = native.Checkpointer(directory, keep=1)
    self._manager.reserve(state)

  def save(self, i, state):
    self._manager.save(i, state, {"step": i})

  def wait(self):
    self._manager.wait()

  def check(self, i, state, verify):
    self._manager.check(i, state, verify=verify)

  def restore(self, i, like, verify="off"):
    return self._manager.restore(like, i, verify=verify)[0]


class Orbax:
  """`CheckpointManager` with its defaults."""

  def __init__(self, directory, state):
    import orbax.checkpoint as ocp

    self._ocp = ocp
    self._manager = ocp.CheckpointManager(
      directory, options=ocp.CheckpointManagerOptions(max_to_keep=1)
    )

  def save(self, i, state):
    self._manager.save(i, args=self._ocp.args.StandardSave(state))

  def wait(self):
    self._manager.wait_until_finished()

  def restore(self, i, like, verify="off"):
    assert verify == "off", "orbax has no digests"
    return self._manager.restore(i, args=self._ocp.args.StandardRestore(like))


def restored(system, i, like, verify="off"):
  """Restores, and waits for the arrays."""
  import jax

  return jax.block_until_ready(system.restore(i, like, verify))


class Copy:
  """A plain copy of so much memory by as many threads as there are cores."""

  def __init__(self, mib: int):
    import numpy as np

    self._from, self._to = (np.ones(mib << 20, np.uint8) for _ in range(2))
    self._pool = futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))

  def __call__(self):
    import numpy as np

    parts = [slice(i, i + _BLOCK) for i in range(0, self._to.size, _BLOCK)]
    list(self._pool.map(lambda p: np.copyto(self._to[p], self._from[p]), parts))


def measure(mib: int, repeats: int, directory: pathlib.Path) -> None:
  """Runs the rounds and emits the lines."""
  import jax

  state, step, like = make(mib)
  both = {"bigvlm": Ours(directory / "ours", state), "orbax": Orbax(directory / "orbax", state)}
  copy = Copy(mib)
  times = collections.defaultdict(list)

  def advance():
    nonlocal state
    state = jax.block_until_ready(step(state))

  for i in range(repeats + 1):
    for name, system in both.items():
      advance()
      usual = min(clock(advance) for _ in range(3))
      plain = min(clock(copy) for _ in range(2))
      start = time.perf_counter()
      system.save(i, state)
      found = {"blocking": time.perf_counter() - start, "copy": plain}
      found["next_step"] = clock(advance) - usual
      system.wait()
      found["save"] = time.perf_counter() - start
      found["restore"] = clock(functools.partial(restored, system, i, like))
      if name == "bigvlm":
        loaded = restored(system, i, like)
        for mode in ("sample", "full"):
          found[f"restore_{mode}"] = clock(functools.partial(restored, system, i, like, mode))
          found[f"verify_{mode}"] = clock(functools.partial(system.check, i, loaded, mode))
      if i:  # The first round pays for memory and imports.
        for key, seconds in found.items():
          times[name, key].append(seconds)
  medians = {key: statistics.median(values) for key, values in times.items()}
  for (name, key), seconds in medians.items():
    extra = {"ratio": seconds / medians["orbax", key]} if ("orbax", key) in medians else {}
    if key == "blocking":
      extra["fraction"] = medians[name, "copy"] / seconds
    if key.startswith("verify_"):
      extra["of_restore"] = seconds / medians[name, "restore"]
    common.emit(
      f"checkpoint_{key}",
      system=name,
      mib=mib,
      seconds=seconds,
      best=min(times[name, key]),
      gib_per_s=mib / 1024 / seconds if seconds > 0 else 0.0,
      **extra,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--mib", type=int, default=1024)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--dir", default=None)
  args = parser.parse_args()
  directory = pathlib.Path(tempfile.mkdtemp(dir=args.dir))
  try:
    measure(args.mib, args.repeats, directory)
  finally:
    shutil.rmtree(directory)


if __name__ == "__main__":
  main()
