"""M-RoPE positions against the reference's `get_rope_index`, on random mixed batches.

Usage: python -m tests.parity.positions_live [COUNT [SEED]]
"""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np

import tests.parity.torchvision_ops  # noqa: F401
from bigvlm.processing import positions

MERGE = 2


def layout(rng: np.random.Generator) -> dict[str, Any]:
  """A batch: kinds and mask [B, T], grids of pictures and videos, seconds between frames."""
  rows, grids = [], {1: [], 2: []}
  for _ in range(int(rng.integers(1, 5))):
    kinds = [0] * int(rng.integers(0, 4))
    for _ in range(int(rng.integers(0, 4))):
      kind = int(rng.integers(1, 3))
      t = 1 if kind == 1 else int(rng.integers(1, 7))
      h, w = (int(n) * MERGE for n in rng.integers(1, 6, 2))
      grids[kind].append((t, h, w))
      kinds += [kind] * (t * h * w // MERGE**2) + [0] * int(rng.integers(1, 4))
    rows.append(kinds + [0])
  length = max(map(len, rows)) + int(rng.integers(0, 3))
  kinds, mask = (np.zeros((len(rows), length), np.int64) for _ in range(2))
  for row, found in enumerate(rows):
    start = int(rng.integers(0, length - len(found) + 1))
    kinds[row, start : start + len(found)], mask[row, start : start + len(found)] = found, 1
  seconds = rng.choice([0.5, 1.0, 1.3, 0.04, 2.0], len(grids[2])).astype(np.float32)
  return dict(kinds=kinds, mask=mask, grids=grids, seconds=seconds)


def theirs(made: dict[str, Any], tokens_per_second: int) -> np.ndarray:
  """Positions [B, T, 3] of the reference: Qwen2.5-VL with a rate, without one Qwen2-VL."""
  import torch
  from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
  from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

  cls = Qwen2_5_VLModel if tokens_per_second else Qwen2VLModel
  vision = SimpleNamespace(spatial_merge_size=MERGE, tokens_per_second=tokens_per_second)
  model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
  model.get_vision_position_ids = lambda *a, **k: cls.get_vision_position_ids(model, *a, **k)
  kinds, mask = (torch.from_numpy(made[k]) for k in ("kinds", "mask"))
  grids = [torch.tensor(g) if g else None for g in made["grids"].values()]
  more = {"second_per_grid_ts": torch.from_numpy(made["seconds"])} if tokens_per_second else {}
  ids, _ = cls.get_rope_index(model, kinds, kinds, *grids, attention_mask=mask, **more)
  return ids.permute(1, 2, 0).numpy()


def ours(made: dict[str, Any], tokens_per_second: int) -> np.ndarray:
  """The same of `processing.positions`."""
  spans = {}
  for kind, grids in made["grids"].items():
    timed = kind == 2 and tokens_per_second
    spans[kind] = [
      positions.Span(
        (t, h // MERGE, w // MERGE), tokens_per_second * made["seconds"][n] if timed else 1
      )
      for n, (t, h, w) in enumerate(grids)
    ]
  return positions.mrope(made["kinds"], spans, made["mask"])


def main() -> int:
  count, seed = (int(x) for x in (sys.argv[1:] + ["100", "0"][len(sys.argv) - 1 :]))
  rng = np.random.default_rng(seed)
  bad = 0
  for n in range(count):
    made, rate = layout(rng), int(rng.integers(0, 5)) * int(rng.integers(0, 2))
    if not np.array_equal(theirs(made, rate), ours(made, rate)):
      bad += 1
      print("layout", n, "differs")
  print(f"{count - bad} of {count} layouts equal")
  return 1 if bad else 0


if __name__ == "__main__":
  raise SystemExit(main())
