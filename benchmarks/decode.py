"""Generation with the reduced PaliGemma: prefill, tokens a second, time to the first token.

Usage: python -m benchmarks.decode [--dtypes=float32,bfloat16] [--batches=1,8] [--new=64] [--peers]
  [--rounds=5] [--starts=3] [--tiny]

A prompt is a picture of 256 tokens and 16 of text; nothing ends a row. With `--peers` others take
turns with bigvlm, each in its own process. `prefill` is the time for one token, `decode` what
the others take on top of the best of it (`tokens_per_s` of all rows together). `first_token` is a
process each time: from a model in memory, as a checkpoint gives it, and a batch on the host to the
token on the host; `cold` with nothing compiled, `warm` with the compilation cache of `cold`.
big_vision competes too where its checkout is on PYTHONPATH.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import common, contest
from benchmarks.startup import environment

# big_vision computes in float32 only.
_PEERS = dict(float32=("transformers", "big_vision"), bfloat16=("transformers",))


def _model(dtype: str, rows: int, tiny: bool):
  """(module, random parameters, batch on the host); nothing is compiled for it."""
  import jax

  from benchmarks import workloads
  from bigvlm import build
  from bigvlm.trainers import launch

  launch.initialize()
  config, batch = workloads.prompts(rows, tiny)
  dtypes = dict(params=dtype, compute=dtype, logits="float32")
  module = build.model(config, dtype=dtypes, layers="scan")
  shapes = jax.eval_shape(module.init, jax.random.key(0), batch)["params"]
  return module, workloads.drawn(shapes), batch


def _ours(dtype: str, rows: int, tiny: bool):
  import jax

  from bigvlm import generate

  module, params, batch = _model(dtype, rows, tiny)
  params, batch, key = generate.unstack(params), jax.device_put(batch), jax.random.key(0)

  def run(new: int):
    out = generate.generate(module, params, batch, key, max_new_tokens=new, eos=())
    return jax.block_until_ready(out)

  return run, dict(mode=dtype, versions=dict(jax=jax.__version__))


def _serve(args: argparse.Namespace) -> None:
  def make():
    if args.serve == "bigvlm":
      run, facts = _ours(args.dtypes, int(args.batches), args.tiny)
    else:
      from benchmarks import peers

      run, facts = peers.decode(args.serve, args.dtypes, int(args.batches), args.tiny)
    return dict(prefill=lambda: run(1), all=lambda: run(args.new)), facts

  contest.serve(make, args.tiny)


def _contest(who: list[str], dtype: str, rows: int, args: argparse.Namespace) -> None:
  flags = [f"--dtypes={dtype}", f"--batches={rows}", f"--new={args.new}"]
  flags += ["--tiny"] if args.tiny else []
  players, taken = {}, {}
  fields = dict(dtype=dtype, batch=rows)
  try:
    contest.enter(players, "decode", __spec__.name, who, flags, **fields)
    for i in range(args.rounds):
      for one in list(players)[:: -1 if i % 2 else 1]:
        for step in ("prefill", "all"):
          seconds = players[one].ask(f"step {step}")["seconds"]
          taken.setdefault((one, step), []).append(seconds)
    facts = {one: player.ask("facts") for one, player in players.items()}
  finally:
    for player in players.values():
      player.close()
  for one in players:
    prefill, best = taken[one, "prefill"], min(taken[one, "prefill"])
    # Less the best prefill: the difference of two that were disturbed says nothing.
    rest = [max(seconds - best, 1e-6) for seconds in taken[one, "all"]]
    about = dict(
      who=one,
      **fields,
      rounds=args.rounds,
      peak_rss_gib=facts[one]["peak_rss"] / 2**30,
      versions=facts[one]["versions"],
    )
    common.emit("prefill", seconds=statistics.median(prefill), best_seconds=best, **about)
    common.emit(
      "decode",
      seconds=statistics.median(rest),
      best_seconds=min(rest),
      new=args.new,
      tokens_per_s=rows * (args.new - 1) / statistics.median(rest),
      **about,
    )


def _first(who: str, dtype: str, tiny: bool) -> float:
  """Seconds to the first token in this process, in which nothing has been generated."""
  if who != "bigvlm":
    from benchmarks import peers

    run, _ = peers.decode(who, dtype, 1, tiny)
    start = time.perf_counter()
    run(1)
    return time.perf_counter() - start
  import jax

  from bigvlm import generate

  module, params, batch = _model(dtype, 1, tiny)
  key = jax.random.key(0)
  start = time.perf_counter()
  stream = generate.stream(module, params, batch, key, max_new_tokens=64, eos=())
  next(stream)
  return time.perf_counter() - start


def _starts(who: list[str], dtype: str, args: argparse.Namespace) -> None:
  """Processes that take turns, each with a compilation cache of its own."""
  taken = {}
  flags = [f"--dtypes={dtype}"] + (["--tiny"] if args.tiny else [])
  for _ in range(args.starts):
    with tempfile.TemporaryDirectory() as cache:
      for one in who:
        for start in ("cold",) if one == "transformers" else ("cold", "warm"):
          command = [sys.executable, "-m", __spec__.name, f"--first={one}", *flags]
          env = environment(pathlib.Path(cache))
          done = subprocess.run(
            command, cwd=common.ROOT, env=env, stdout=subprocess.PIPE, text=True, check=True
          )
          taken.setdefault((one, start), []).append(json.loads(done.stdout.splitlines()[-1]))
  for (one, start), seconds in taken.items():
    common.emit(
      "first_token",
      who=one,
      start=start,
      dtype=dtype,
      batch=1,
      seconds=statistics.median(seconds),
      best_seconds=min(seconds),
      rounds=len(seconds),
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--batches", default="1,8")
  parser.add_argument("--new", type=int, default=64, help="tokens a row")
  parser.add_argument("--peers", action="store_true", help="others too")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--starts", type=int, default=3)
  parser.add_argument("--tiny", action="store_true", help="sizes that show only that it runs")
  parser.add_argument("--serve", default="", help="compete as bigvlm or as a peer")
  parser.add_argument("--first", default="", help="time the first token of bigvlm or of a peer")
  args = parser.parse_args()
  if args.serve:
    return _serve(args)
  if args.first:
    return print(_first(args.first, args.dtypes, args.tiny), flush=True)
  for dtype in args.dtypes.split(","):
    who = ["bigvlm"] + (contest.available(_PEERS[dtype]) if args.peers else [])
    for rows in map(int, args.batches.split(",")):
      _contest(who, dtype, rows, args)
    _starts(who, dtype, args)


if __name__ == "__main__":
  main()
