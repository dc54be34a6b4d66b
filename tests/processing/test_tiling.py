"""Tiling against what the reference's functions made of 200 odd sizes (recorded)."""

import pathlib

import numpy as np
import pytest

from bigvlm.processing import tiling
from tests.parity.tiling_reference import CASES

FILE = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "processors" / "tiling.npz"


def anyres(size, grids, side, tile, most=None):
  best = tiling.best_resolution(size, grids)
  grid = tiling.unpadded(size, tuple(s // tile * side for s in best))
  rows, columns = grid if most is None else tiling.pooled(grid, side, most)
  return *best, *tiling.fitted(size, best), rows * columns, rows


def idefics3(size, edge, tile):
  resized = tiling.longest_edge(size, edge)
  whole = tiling.whole_tiles(resized, tile)
  return *resized, *whole, *tiling.split(whole, tile)


def mllama(size, tile, most):
  found = tiling.canvas(size, tile, most)
  return *found, tiling.canvas_shapes(most).index(found[:2]) + 1


def fuyu(size, box, patch):
  resized = tiling.shrunk(size, box)
  return *resized, *tiling.covering(resized, box, (patch, patch))


CALLS = {
  "next": anyres,
  "onevision": anyres,
  "internvl": lambda size, tile, **k: tiling.aspect_tiles(size, (tile, tile), **k),
  "idefics3": idefics3,
  "smolvlm": idefics3,
  "idefics2": tiling.between_edges,
  "qwen2_vl": tiling.smart_resize,
  "mllama": mllama,
  "pixtral": lambda size, edge, patch: tiling.within(size, (edge, edge), (patch, patch)),
  "deepseek": tiling.largest_side,
  "fuyu": fuyu,
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference_for_200_sizes(name):
  call = CALLS[max((k for k in CALLS if name.startswith(k)), key=len)]
  with np.load(FILE, allow_pickle=False) as recorded:
    sizes, wanted = recorded["sizes"].tolist(), recorded[name].tolist()
  assert len(sizes) == 200
  found = [list(call(tuple(size), **CASES[name])) for size in sizes]
  wrong = [(s, f, w) for s, f, w in zip(sizes, found, wanted, strict=True) if f != w]
  assert wrong == []


def test_what_cannot_be_resized_is_said():
  with pytest.raises(ValueError, match="1 x 201 is too long"):
    tiling.smart_resize((1, 201), 28, 1, 10**6)
  with pytest.raises(ValueError, match="image_grid_pinpoints is empty"):
    tiling.best_resolution((3, 4), [])
