"""One train step of SigLIP B/16 (batch 8) and of the reduced PaliGemma (batch 4).

Usage: python -m benchmarks.train_step [--kinds=siglip,paligemma] [--dtypes=float32,bfloat16]
  [--peers] [--rounds=5] [--layers=loop] [--remat=none] [--tiny]

Forward, backward, clip and Adam, through the trainer's own jitted step. With `--peers`
transformers and open_clip do the same work in turns, each in its own process. `seconds` is
the median step; `fraction` = time that the matrix products alone would take at the limit
of XLA in `dtype`, measured between the rounds (float32, or bfloat16 summed in float32) /
time taken.
"""

import argparse
import pathlib
import tempfile

from benchmarks import contest

_PEERS = dict(siglip=("transformers", "open_clip"), paligemma=("transformers",))


def _ours(args: argparse.Namespace):
  from benchmarks import workloads

  arg = f"kind={args.kinds},dtype={args.dtypes},layers={args.layers},remat={args.remat}"
  with tempfile.TemporaryDirectory() as folder:
    arg += ",tiny" if args.tiny else ""
    step, facts, _ = workloads.train_step(arg, pathlib.Path(folder))
  return step, facts


def _serve(args: argparse.Namespace) -> None:
  def make():
    if args.serve == "bigvlm":
      return _ours(args)
    from benchmarks import peers

    return peers.train_step(args.serve, args.kinds, args.dtypes, args.tiny)

  contest.serve(make, args.tiny)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--kinds", default="siglip,paligemma")
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--peers", action="store_true", help="transformers and open_clip too")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--layers", default="loop")
  parser.add_argument("--remat", default="none")
  parser.add_argument("--tiny", action="store_true", help="sizes that show only that it runs")
  parser.add_argument("--serve", default="", help="compete as bigvlm or as a peer")
  args = parser.parse_args()
  if args.serve:
    return _serve(args)
  for kind in args.kinds.split(","):
    who = ["bigvlm"] + (contest.available(_PEERS[kind]) if args.peers else [])
    for dtype in args.dtypes.split(","):
      flags = [f"--kinds={kind}", f"--dtypes={dtype}", f"--layers={args.layers}"]
      flags += [f"--remat={args.remat}"] + (["--tiny"] if args.tiny else [])
      contest.run("train_step", __spec__.name, who, flags, dtype, rounds=args.rounds, kind=kind)


if __name__ == "__main__":
  main()
