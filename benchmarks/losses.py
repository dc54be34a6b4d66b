"""Both contrastive losses with their gradients: seconds and memory at N = 1k to 32k.

Usage: python -m benchmarks.losses [--kinds=sigmoid,softmax] [--sizes=1024,...,32768]
  [--dtypes=float32] [--width=768] [--chunk=0] [--tiny]

One process a measurement, so that peaks are clean. `memory` counts what the
call holds beyond its inputs: gradients, accumulators and tiles. The limit is
that of the machine's matrix products (`gemm_gflops`, measured just before and
after); `fraction` = time they alone would take / time taken. The
matrix products are 6 N^2 D (sigmoid) and 8 N^2 D (softmax) operations.
"""

import argparse

from benchmarks import common

_PRODUCTS = {"sigmoid": 6, "softmax": 8}


def measure(kind: str, n: int, dtype: str, width: int, chunk: int, tiny: bool) -> None:
  """Measures one loss + gradients for image, text, scale (and bias)."""
  import jax
  import jax.numpy as jnp

  from bigvlm.objectives import sigmoid, softmax

  def embed(key):
    x = jax.random.normal(key, (n, width))
    return (x / jnp.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)

  x, y = (jax.jit(embed)(key) for key in jax.random.split(jax.random.key(0)))
  scalars = (jnp.float32(10), jnp.float32(-10)) if kind == "sigmoid" else (jnp.float32(10),)
  loss = sigmoid.sigmoid_loss if kind == "sigmoid" else softmax.softmax_loss
  valid = jnp.ones(n)

  def value(*args):
    return loss(*args, valid, None, chunk)[0]

  args = (x, y, *scalars)
  step = jax.jit(jax.value_and_grad(value, argnums=tuple(range(len(args)))))
  program = step.lower(*args).compile()
  limit = common.gemm_limit(dtype, tiny)
  with common.LiveMemory() as memory:
    seconds = common.time_it(lambda: program(*args), warmup=0, repeats=1)
  if seconds < 5:
    seconds = min(seconds, common.time_it(lambda: program(*args), repeats=3))
  limit = max(limit, common.gemm_limit(dtype, tiny))
  planned = program.memory_analysis()
  common.emit(
    f"{kind}_loss",
    n=n,
    width=width,
    dtype=dtype,
    seconds=seconds,
    examples_per_s=n / seconds,
    memory_gib=memory.peak / 2**30,
    planned_gib=(planned.temp_size_in_bytes + planned.output_size_in_bytes) / 2**30,
    gemm_gflops=limit / 1e9,
    fraction=_PRODUCTS[kind] * n**2 * width / limit / seconds,
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kinds", default="sigmoid,softmax")
  parser.add_argument("--sizes", default="1024,2048,4096,8192,16384,32768")
  parser.add_argument("--dtypes", default="float32")
  parser.add_argument("--width", type=int, default=768)
  parser.add_argument("--chunk", type=int, default=0, help="side of a tile; 0 = the default")
  parser.add_argument("--tiny", action="store_true", help="sizes that show only that it runs")
  parser.add_argument("--here", action="store_true", help="measure in this process")
  args = parser.parse_args()
  if args.tiny:
    args.sizes, args.width = "64", 16
  for kind in args.kinds.split(","):
    for dtype in args.dtypes.split(","):
      for size in map(int, args.sizes.split(",")):
        if args.here:
          measure(kind, size, dtype, args.width, args.chunk, args.tiny)
        else:
          one = [f"--kinds={kind}", f"--dtypes={dtype}", f"--sizes={size}", "--here"]
          one += ["--tiny"] if args.tiny else []
          common.in_subprocess(__file__, *one, f"--width={args.width}", f"--chunk={args.chunk}")


if __name__ == "__main__":
  main()
