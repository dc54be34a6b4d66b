"""Makes tests/fixtures/processors: files of the reference's processors and what they give.

Usage: python -m tests.parity.make_processors

Needs torch and transformers. A directory holds what a checkpoint holds beside its weights,
`cases.json` (calls, decoded ids, conversations) and `expected.npz`; those named human_* are whole
tiny checkpoints with the answers of the reference.
"""

import json
import os
import pathlib
import shutil

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402

from tests.parity import human_reference, processors_reference  # noqa: E402
from tests.parity.processors_live import CHATS, HUMAN  # noqa: E402

SEED = 1
ROOT = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "processors"
_KEPT = ("paligemma", "siglip")  # Of the whole checkpoints.


def main() -> None:
  shutil.rmtree(ROOT, ignore_errors=True)
  (ROOT / "pictures").mkdir(parents=True)
  for name, picture in processors_reference.pictures(SEED).items():
    picture.save(ROOT / "pictures" / f"{name}.png")
  for name, make in processors_reference.DIRECTORIES.items():
    folder = ROOT / name
    folder.mkdir()
    rows = make(SEED, folder)
    cases = {"calls": [call for call, _ in rows]}
    if not name.startswith("image_"):
      cases["decoded"] = processors_reference.decoded(folder, SEED)
      cases["chats"] = processors_reference.chats(folder) if name in CHATS else []
    arrays = {f"{n}/{k}": v for n, (_, out) in enumerate(rows) for k, v in out.items()}
    np.savez_compressed(folder / "expected.npz", **arrays)
    processors_reference.write(folder, "cases.json", cases)
  for name in _KEPT:
    folder = ROOT / (HUMAN + name)
    folder.mkdir()
    expected = human_reference.MODELS[name](SEED, folder)
    plain = {k: (given, np.asarray(want).tolist()) for k, (given, want) in expected.items()}
    (folder / "cases.json").write_text(json.dumps(plain), "utf-8")


if __name__ == "__main__":
  main()
