"""Fresh random processors of the reference against bigvlm's. Exit code 1 on any difference.

Usage: python -m tests.parity.processors_live [--only=NAME,...] [--seed=N]
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tests.parity.torchvision_ops  # noqa: E402, F401
from tests.parity import (  # noqa: E402
  human_fusion,
  human_reference,
  processors_check,
  processors_fusion,
  processors_reference,
)

DIRECTORIES = processors_reference.DIRECTORIES | processors_fusion.DIRECTORIES
CHATS = ("gemma", "gemma3", *processors_fusion.CHATS)
MODELS = human_reference.MODELS | human_fusion.MODELS
HUMAN = "human_"  # Tiny models with their processors: what people call.


def run(name: str, seed: int) -> list[str]:
  """What differs for one directory of the reference."""
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    if name.startswith(HUMAN):
      expected = MODELS[name.removeprefix(HUMAN)](seed, folder)
      media = processors_reference.pictures(seed), processors_fusion.videos(seed)
      return processors_check.check_human(folder, expected, *media)
    cases = DIRECTORIES[name](seed, folder)
    pictures, videos = processors_reference.pictures(seed), processors_fusion.videos(seed)
    wrong = processors_check.check(folder, cases, pictures, videos)
    if not name.startswith("image_"):
      decoded = processors_reference.decoded(folder, seed)
      chats = processors_reference.chats(folder) if name in CHATS else []
      wrong += processors_check.check_texts(folder, decoded, chats)
  return wrong


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--only", default="", help="directories, by name")
  parser.add_argument("--seed", type=int, default=None, help="default: the clock")
  args = parser.parse_args()
  seed = int(time.time()) % 10**6 if args.seed is None else args.seed
  chosen = [n for n in args.only.split(",") if n] or [
    *DIRECTORIES,
    *(HUMAN + name for name in MODELS),
  ]
  failed = 0
  for name in chosen:
    wrong = run(name, seed)
    failed += bool(wrong)
    print(f"{name} seed {seed}: {'differs' if wrong else 'equal'}", flush=True)
    for line in wrong:
      print(f"  {line:.400}")
  return int(failed > 0)


if __name__ == "__main__":
  sys.exit(main())
