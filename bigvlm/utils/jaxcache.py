"""JAX's persistent compilation cache, on by default: a second start does not compile again."""

import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

# Options of XLA on a CPU. For programs somebody waits for: half of the time to compile them, where
# layers are scanned, and hardly slower steps.
SOON = dict(xla_backend_optimization_level=1, xla_cpu_use_fusion_emitters=False)
# For programs that run a few times only: a fifth of the time, half of that by not sharing so little
# work out to threads.
QUICK = SOON | dict(xla_backend_optimization_level=0, xla_cpu_parallel_codegen_split_count=1)


def known(options: Mapping[str, Any]) -> dict[str, Any]:
  """Those of some options that this XLA has; names come and go with its versions.

  A warning names the others: without them a program only takes longer to compile.
  """
  import jax

  options = dict(options)
  while True:
    try:
      jax.jit(lambda: 0, compiler_options=options).lower().compile()
      return options
    except jax.errors.JaxRuntimeError as e:
      gone = [name for name in options if f"No such compile option: '{name}'" in str(e)]
      if not gone:
        raise
      del options[gone[0]]
      warnings.warn(f"XLA of jax {jax.__version__} has no option {gone[0]} any more", stacklevel=2)


def directory() -> pathlib.Path | None:
  """`$BIGVLM_CACHE/xla`, else `~/.cache/bigvlm/xla`; None when BIGVLM_CACHE is `off`."""
  base = os.environ.get("BIGVLM_CACHE", "")
  if base == "off":
    return None
  return pathlib.Path(base or pathlib.Path.home() / ".cache" / "bigvlm").expanduser() / "xla"


def enable() -> pathlib.Path | None:
  """Turns the cache on for this process; to be called before the first compilation.

  A directory that the user gave to JAX itself (JAX_COMPILATION_CACHE_DIR) wins. An
  unwritable directory costs a warning by JAX and no more.

  Returns:
    The directory in use, or None when the cache is off.
  """
  import jax

  path = jax.config.jax_compilation_cache_dir
  if path is None:
    path = directory()
    if path is None:
      return None
    jax.config.update("jax_compilation_cache_dir", str(path))
  # Small programs too: a start runs dozens of them, and each costs more to compile than to read.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  return pathlib.Path(path)
