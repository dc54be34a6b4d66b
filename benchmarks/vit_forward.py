"""Forward pass of the SigLIP So400m/14 image tower at 224 px, 4 pictures, weights in the dtype.

Usage: python -m benchmarks.vit_forward [--dtypes=float32,bfloat16] [--peers] [--rounds=5] [--tiny]

With `--peers` timm and transformers take turns with bigvlm, each in its own process.
`fraction` is that of the limit of matrix products, as in `benchmarks.train_step`.
"""

import argparse

from benchmarks import contest

_ROWS = 4
_PEERS = ("timm", "transformers")


def _ours(dtype: str, tiny: bool):
  import jax
  import numpy as np

  from benchmarks import workloads
  from bigvlm import build
  from bigvlm.trainers import launch
  from bigvlm.types import Batch, Media

  launch.initialize()
  sizes = dict(width=32, depth=1, hidden=64, heads=2, patch=14)
  image = dict(kind="vit", pool="map", **(sizes if tiny else dict(variant="So400m/14")))
  model = dict(kind="encoder", encoders=dict(image=image))
  module = build.model(model, dtype=dict(params=dtype, compute=dtype))
  size = 28 if tiny else 224
  pixels = np.random.default_rng(0).integers(0, 256, (_ROWS, 1, size, size, 3), dtype=np.uint8)
  batch = Batch(None, {"image": Media(pixels, np.ones((_ROWS, 1), np.int32))})
  batch = jax.device_put(batch)
  params = jax.jit(module.init)(jax.random.key(0), batch)["params"]
  forward = jax.jit(lambda p, b: module.apply({"params": p}, b).heads["image"])
  encoder = module.encoders["image"]
  tokens = encoder.grid(size, size)[0] ** 2
  tflop = _ROWS * workloads.encoder_operations(encoder, tokens) / 1e12
  facts = dict(rows=_ROWS, tflop=tflop, versions=dict(jax=jax.__version__))
  return lambda: jax.block_until_ready(forward(params, batch)), facts


def _serve(args: argparse.Namespace) -> None:
  def make():
    if args.serve == "bigvlm":
      return _ours(args.dtypes, args.tiny)
    from benchmarks import peers

    return peers.vit_forward(args.serve, args.dtypes, args.tiny)

  contest.serve(make, args.tiny)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--peers", action="store_true", help="timm and transformers too")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--tiny", action="store_true", help="sizes that show only that it runs")
  parser.add_argument("--serve", default="", help="compete as bigvlm or as a peer")
  args = parser.parse_args()
  if args.serve:
    return _serve(args)
  who = ["bigvlm"] + (contest.available(_PEERS) if args.peers else [])
  for dtype in args.dtypes.split(","):
    flags = [f"--dtypes={dtype}"] + (["--tiny"] if args.tiny else [])
    contest.run("vit_forward", __spec__.name, who, flags, dtype, rounds=args.rounds)


if __name__ == "__main__":
  main()
