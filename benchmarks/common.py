"""What all benchmarks share: one JSON line a measurement, clocks, memory, this machine's limits."""

import functools
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
_TITLE = "# What was measured\n\nEvery section is written by the command that it names.\n"
_GEMM_SIZES = (1024, 2048)


@functools.cache
def host() -> dict[str, Any]:
  """Facts about the machine and the versions that a figure depends on."""
  facts = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
  cpu = pathlib.Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
  lines = dict(line.split(":", 1) for line in cpu.splitlines() if ":" in line)
  named = {key.strip(): value.strip() for key, value in lines.items()}
  facts["cpu"] = named.get("model name", platform.machine())
  facts["avx512_bf16"] = "avx512_bf16" in named.get("flags", "").split()
  if "jax" in sys.modules:
    import jax

    facts["jax"] = jax.__version__
    facts["device"] = jax.devices()[0].device_kind
  return facts


def emit(name: str, **fields: Any) -> None:
  """Prints one measurement as one JSON line; floats to 4 digits, with the load and the host."""
  line = {"name": name, **fields, "load": os.getloadavg()[0], "host": host()}
  print(json.dumps(_rounded(line), allow_nan=False), flush=True)


def _rounded(x: Any) -> Any:
  if isinstance(x, dict):
    return {key: _rounded(value) for key, value in x.items()}
  return float(f"{x:.4g}") if isinstance(x, float) else x


def time_it(fn: Callable[[], Any], *, warmup: int = 1, repeats: int = 5) -> float:
  """Median seconds of `fn()`, results waited for, after `warmup` calls that do not count."""
  import jax

  times = []
  for i in range(warmup + repeats):
    start = time.perf_counter()
    jax.block_until_ready(fn())
    if i >= warmup:
      times.append(time.perf_counter() - start)
  return statistics.median(times)


def gemm_limit(dtype: str = "float32", tiny: bool = False) -> float:
  """FLOP/s of this machine's best square matrix product now: `dtype` in, float32 out.

  The best of several, so that a busy moment does not lower the limit. `tiny` takes a
  product too small to say anything, to show only that it runs.
  """
  import jax
  import jax.numpy as jnp

  product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
  best = 0.0
  for n in (128,) if tiny else _GEMM_SIZES:
    a, b = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
    seconds = min(time_it(lambda a=a, b=b: product(a, b), repeats=1) for _ in range(7))
    best = max(best, 2 * n**3 / seconds)
  return best


def peak_rss() -> int:
  """Most bytes this process has held in memory at once."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class LiveMemory:
  """Bytes that are resident while the block runs, beyond what was there before.

  >>> with LiveMemory() as memory: work()
  >>> memory.peak
  """

  def __enter__(self) -> "LiveMemory":
    self.before = self.peak_rss = _rss()
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._stop.set()
    self._thread.join()
    self._look()

  @property
  def peak(self) -> int:
    return self.peak_rss - self.before

  def _watch(self) -> None:
    while not self._stop.wait(0.005):
      self._look()

  def _look(self) -> None:
    self.peak_rss = max(self.peak_rss, _rss())


def _rss() -> int:
  pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
  return int(pages) * os.sysconf("SC_PAGE_SIZE")


def write_section(name: str, markdown: str, path: pathlib.Path = RESULTS) -> None:
  """Puts a section into RESULTS.md, in the place of the one that had this name.

  Args:
    name: what marks the section; readers do not see it.
    markdown: all of it, its heading too.
  """
  begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
  text = path.read_text() if path.exists() else _TITLE
  before, found, rest = text.partition(begin)
  after = rest.partition(end)[2] if found else "\n"
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  part.write_text(f"{before.rstrip()}\n\n{begin}\n{markdown.strip()}\n{end}{after}")
  os.replace(part, path)


def in_subprocess(script: str, *args: str) -> None:
  """Runs a benchmark file again with `args`, so that its memory and caches are its own."""
  env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, _paths()))}
  subprocess.run([sys.executable, script, *args], check=True, env=env)


def _paths() -> tuple[str, ...]:
  return str(ROOT), os.environ.get("PYTHONPATH", "")
