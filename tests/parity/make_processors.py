"""Makes tests/fixtures/processors: files of the reference's processors and what they give.

Usage: python -m tests.parity.make_processors

Needs torch, torchvision, transformers and num2words. A directory holds what a checkpoint holds
beside its weights, `cases.json` (calls, decoded ids, conversations) and `expected.npz`; those named
human_* are whole tiny checkpoints with the answers of the reference.
"""

import json
import os
import pathlib
import shutil

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402

import tests.parity.torchvision_ops  # noqa: E402, F401
from tests.parity import (  # noqa: E402
  processors_fusion,
  processors_reference,
  tiling_reference,
)
from tests.parity.processors_live import CHATS, DIRECTORIES, HUMAN, MODELS  # noqa: E402

SEED = 1
ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "processors"
_KEPT = ("internvl", "paligemma", "siglip")  # Of the whole checkpoints.


def main() -> None:
  shutil.rmtree(ROOT, ignore_errors=True)
  (ROOT / "pictures").mkdir(parents=True)
  for name, picture in processors_reference.pictures(SEED).items():
    picture.save(ROOT / "pictures" / f"{name}.png")
  np.savez_compressed(ROOT / "videos.npz", **processors_fusion.videos(SEED))
  np.savez_compressed(ROOT / "tiling.npz", **tiling_reference.golden(SEED))
  for name in DIRECTORIES:
    directory(name)
  for name in _KEPT:
    model(name)


def model(name: str) -> None:
  """Writes one whole tiny checkpoint."""
  folder = ROOT / (HUMAN + name)
  folder.mkdir()
  expected = MODELS[name](SEED, folder)
  plain = {k: (given, np.asarray(want).tolist()) for k, (given, want) in expected.items()}
  (folder / "cases.json").write_text(json.dumps(plain), "utf-8")


def directory(name: str) -> None:
  """Writes one directory of a processor."""
  folder = ROOT / name
  folder.mkdir()
  rows = DIRECTORIES[name](SEED, folder)
  cases: dict = {"calls": [call for call, _ in rows]}
  if not name.startswith("image_"):
    cases["decoded"] = processors_reference.decoded(folder, SEED)
    cases["chats"] = processors_reference.chats(folder) if name in CHATS else []
  arrays = {f"{n}/{k}": v for n, (_, out) in enumerate(rows) for k, v in out.items()}
  np.savez_compressed(folder / "expected.npz", **arrays)
  processors_reference.write(folder, "cases.json", cases)


if __name__ == "__main__":
  main()
