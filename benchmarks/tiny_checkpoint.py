"""What a tiny checkpoint costs in a process that has compiled nothing, of each kind of fusion.

Usage: python -m benchmarks.tiny_checkpoint [--names=paligemma-0,mllama-1] [--tiny]

From the start of Python: `bigvlm.load`, two `forward_hf`, two `generate_hf` (of models that have a
decoder) and `save_hf`, on the checkpoints in `tests/fixtures/hub`, without a compilation cache.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from benchmarks import common

NAMES = (
  "siglip2-1",
  "paligemma2-1",
  "gemma3-1",
  "t5-1",
  "llava_onevision-1",
  "internvl-1",
  "idefics2-1",
  "idefics-1",
  "instructblip_t5-1",
  "deepseek_vl_hybrid-1",
  "qwen2_vl-1",
  "qwen2_5_vl-1",
  "pixtral-1",
  "mllama-1",
  "fuyu-1",
)
_FIXTURES = common.ROOT / "tests" / "fixtures" / "hub"


def run(name: str) -> None:
  """All of it, in this process."""
  import numpy as np

  import bigvlm
  from tests.parity import reference

  with np.load(_FIXTURES / name / "io.npz") as z:
    io = dict(z)
  inputs = {k.removeprefix("in_"): v for k, v in io.items() if k.startswith("in_")}
  model = bigvlm.load(_FIXTURES / name)
  for _ in range(2):
    model.forward_hf(inputs)
  for _ in range(2 if "ids" in io else 0):
    model.generate_hf(reference.prompts(io), max_new_tokens=8)
  with tempfile.TemporaryDirectory() as folder:
    model.save_hf(folder)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--names", default=",".join(NAMES))
  parser.add_argument("--tiny", action="store_true", help="one, to show only that it runs")
  parser.add_argument("--run", default="", help="do it in this process")
  args = parser.parse_args()
  if args.run:
    return run(args.run)
  for name in ["siglip2-1"] if args.tiny else args.names.split(","):
    command = [sys.executable, "-m", __spec__.name, f"--run={name}"]
    start = time.perf_counter()
    env = {**os.environ, "BIGVLM_CACHE": "off"}
    subprocess.run(command, cwd=common.ROOT, env=env, check=True, stdout=sys.stderr)
    common.emit("tiny_checkpoint", system=name, seconds=time.perf_counter() - start)


if __name__ == "__main__":
  main()
