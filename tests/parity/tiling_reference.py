"""What the reference's own functions make of 200 odd image sizes. Needs transformers.

`golden(seed)` gives int arrays by name: `sizes` [200, 2] and, for each case of `CASES`, [200, k].
"""

import importlib
from typing import Any

import numpy as np

COUNT = 200
# Name -> settings. `tests/processing/test_tiling.py` calls `bigvlm.processing.tiling` with them.
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SQUARES = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]
CASES: dict[str, dict[str, Any]] = {
  "next": dict(grids=GRIDS, side=24, tile=336),
  "onevision": dict(grids=SQUARES, side=27, tile=384, most=9),
  "onevision_small": dict(grids=SQUARES, side=14, tile=384, most=2),
  "internvl": dict(tile=448, least=1, most=12),
  "internvl_least": dict(tile=60, least=3, most=7),
  "idefics3": dict(edge=4 * 364, tile=364),
  "smolvlm": dict(edge=2048, tile=512),
  "idefics3_huge": dict(edge=5000, tile=364),
  "idefics2": dict(least=378, most=980),
  "qwen2_vl": dict(factor=28, least=56 * 56, most=28 * 28 * 1280),
  "qwen2_vl_small": dict(factor=28, least=200_000, most=300_000),
  "mllama": dict(tile=560, most=4),
  "mllama_many": dict(tile=50, most=6),
  "pixtral": dict(edge=1024, patch=16),
  "deepseek": dict(side=384, least=14),
  "fuyu": dict(box=(1080, 1920), patch=30),
}


def sizes(seed: int) -> np.ndarray:
  """int [200, 2]: heights and widths, odd in both meanings."""
  rng = np.random.default_rng(seed)
  found = np.exp(rng.uniform(np.log(20), np.log(5000), (COUNT, 2))).astype(int)
  found[::7, 1] = found[::7, 0] * 2  # Exact ratios, for ties.
  found[3::11] = found[3::11, :1]
  found[5::13] = found[5::13] // 336 * 336 + 336
  ratio = found.max(axis=1) / found.min(axis=1)
  found[ratio > 150] = found[ratio > 150].max(axis=1, keepdims=True)
  return found


def _module(name: str, file: str) -> Any:
  return importlib.import_module(f"transformers.models.{name}.{file}_{name}")


def _next(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  from transformers import LlavaNextProcessor, LlavaOnevisionProcessor
  from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

  best = select_best_resolution(size, case["grids"])
  fitted = get_patch_output_size(np.zeros((3, *size), np.bool_), best, "channels_first")
  cls = LlavaOnevisionProcessor if "most" in case else LlavaNextProcessor
  made = cls.__new__(cls)
  made.vision_aspect_ratio = f"anyres_max_{case.get('most')}"
  grid = [side // case["tile"] for side in best]
  features, rows = made._get_unpadded_features(*size, case["side"], case["side"], *grid)
  return *best, *fitted, features, rows


def _internvl(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  module = _module("got_ocr2", "image_processing_pil")
  tile = (case["tile"], case["tile"])
  return module.get_optimal_tiled_canvas(tuple(size), tile, case["least"], case["most"])[::-1]


def _idefics3(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  module = _module("idefics3", "image_processing_pil")
  made = module.Idefics3ImageProcessorPil()
  resized = module.get_resize_output_image_size(np.zeros((3, *size), np.bool_), case["edge"])
  found = []
  made.resize = lambda image, size, resample=None: found.append((size.height, size.width))
  made.resize_for_vision_encoder(np.zeros((3, *resized), np.bool_), case["tile"])
  made.resize = lambda image, *a, **k: image
  edge = {"longest_edge": case["tile"]}
  _, rows, columns = made.split_images(np.zeros((3, *found[0]), np.bool_), edge)
  return *resized, *found[0], rows, columns


def _idefics2(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  from transformers.image_utils import SizeDict

  module = _module("idefics2", "image_processing_pil")
  edges = SizeDict(shortest_edge=case["least"], longest_edge=case["most"])
  return module.get_resize_output_image_size(np.zeros((3, *size), np.bool_), edges)


def _qwen2_vl(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  module = _module("qwen2_vl", "image_processing_pil")
  return module.smart_resize(*size, case["factor"], case["least"], case["most"])


def _mllama(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  module = _module("mllama", "image_processing_pil")
  tile = case["tile"]
  box = module.get_optimal_tiled_canvas(*size, case["most"], tile)
  fitted = module.get_image_size_fit_to_canvas(*size, *box, tile)
  number = module.get_all_supported_aspect_ratios(case["most"]).index(
    (box[0] // tile, box[1] // tile)
  )
  return box[0] // tile, box[1] // tile, *fitted, number + 1


def _pixtral(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  module = _module("pixtral", "image_processing_pil")
  x = np.zeros((3, *size), np.bool_)
  return module.get_resize_output_image_size(x, case["edge"], case["patch"], "channels_first")


def _deepseek(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  module = _module("deepseek_vl", "image_processing_pil")
  found = []
  real = module.np_resize
  module.np_resize = lambda image, size, **kwargs: found.append(size)
  try:
    side = dict(height=case["side"], width=case["side"])
    made = module.DeepseekVLImageProcessorPil()
    made.resize(np.zeros((3, *size), np.bool_), module.SizeDict(**side), case["least"])
  finally:
    module.np_resize = real
  return found[0]


def _fuyu(size: list[int], case: dict[str, Any]) -> tuple[int, ...]:
  import transformers
  from transformers.image_utils import SizeDict

  box, patch = (dict(zip(("height", "width"), s, strict=True)) for s in (case["box"], [30, 30]))
  made = transformers.FuyuImageProcessorPil(size=box, patch_size=patch)
  x = np.zeros((3, *size), np.uint8)
  h, w = made.resize(x, SizeDict(**box)).shape[1:]
  shape = [[min(b, -(-s // 30) * 30) // 30 for s, b in zip((h, w), case["box"], strict=True)]]
  return h, w, *shape[0]


_CALLS = dict(
  next=_next, onevision=_next, internvl=_internvl, idefics3=_idefics3, smolvlm=_idefics3,
  idefics2=_idefics2, qwen2_vl=_qwen2_vl, mllama=_mllama, pixtral=_pixtral, deepseek=_deepseek,
  fuyu=_fuyu,
)  # fmt: skip


def golden(seed: int) -> dict[str, np.ndarray]:
  """`sizes` and what every case makes of each."""
  every = sizes(seed)
  found = {"sizes": every.astype(np.int32)}
  for name, case in CASES.items():
    kind = max((k for k in _CALLS if name.startswith(k)), key=len)
    rows = [[int(n) for n in _CALLS[kind](size, case)] for size in every.tolist()]
    found[name] = np.array(rows, np.int32)
  return found
