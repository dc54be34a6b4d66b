"""Qwen2.5-VL (arXiv 2502.13923) of transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.hub import fields, qwen2_vl
from bigvlm.hub.system import System
from bigvlm.layers import blocks

_MAP = qwen2_vl.ckpt_map(gated=True)


def qwen2_5_vl(cfg: Mapping[str, Any]) -> System:
  """`Qwen2_5_VLForConditionalGeneration`.

  Raises:
    ValueError: windows that are smaller than a merged patch, or an encoder that does not end in the
      width of the text model.
  """
  given = fields.sub(cfg, "vision_config")
  f = fields.fields(
    given,
    depth=32,
    hidden_size=3584,
    hidden_act="silu",
    intermediate_size=3420,
    num_heads=16,
    spatial_merge_size=2,
    temporal_patch_size=2,
    tokens_per_second=4,
    window_size=112,
    out_hidden_size=3584,
    fullatt_block_indexes=(7, 15, 23, 31),
  )
  encoder = qwen2_vl.vision(given, f)
  merged = f.window_size // f.spatial_merge_size // encoder["patch"]
  if merged < 1:
    raise ValueError(f"config.json: window_size {f.window_size} holds no square of merged patches")
  side = merged * f.spatial_merge_size
  sides = [0 if i in f.fullatt_block_indexes else side for i in range(encoder["depth"])]
  encoder |= dict(
    width=f.hidden_size,
    hidden=f.intermediate_size,
    norm="rms_plain",
    gated=True,
    windows=blocks.period(sides),
  )
  found = qwen2_vl.system(cfg, encoder, _MAP, tokens_per_second=f.tokens_per_second)
  width = found.model["decoder"]["width"]
  if f.out_hidden_size != width:
    raise ValueError(
      f"config.json: vision_config.out_hidden_size {f.out_hidden_size} is not the text's {width}"
    )
  return found
