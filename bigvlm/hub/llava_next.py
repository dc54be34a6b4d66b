"""LLaVA-NeXT with tiles of any resolution, LLaVA-NeXT-Video and LLaVA-OneVision (arXiv 2408.03326)
of transformers."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from bigvlm.hub import fields, llava, towers
from bigvlm.hub.system import System

_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONEVISION_PINPOINTS = list(itertools.product(range(384, 2305, 384), repeat=2))
_ONEVISION_VISION = dict(
  model_type="siglip_vision_model",
  hidden_size=1152,
  intermediate_size=4304,
  patch_size=14,
  image_size=384,
  num_hidden_layers=26,
  num_attention_heads=16,
  vision_use_head=False,
)


def _tiled(
  cfg: Mapping[str, Any],
  tower: towers.Tower,
  connector: Mapping[str, Any],
  pinpoints: list,
  **more: Any,
) -> System:
  """A system whose pictures have an overview and tiles.

  Raises:
    ValueError: tokens that form no square of patches, or resolutions that are no whole tiles.
  """
  if tower.front or tower.skip:
    raise ValueError(
      "config.json: vision_feature_select_strategy must leave the patches and nothing else: "
      "'default' for a tower with a class token, 'full' for one without"
    )
  height, width = tower.image_size
  found = cfg.get("image_grid_pinpoints")
  points = [tuple(p) for p in (pinpoints if found is None else found)]
  for h, w in points:
    if height != width or h % height or w % width:
      raise ValueError(
        f"config.json: image_grid_pinpoints has {h} x {w}, not tiles of {height} x {width}"
      )
  connector = dict(kind="tiles", **llava.projector(cfg), **connector)
  return llava.system(cfg, tower, connector, media="tiles", pinpoints=points, **more)


def llava_next(cfg: Mapping[str, Any]) -> System:
  """`LlavaNextForConditionalGeneration`."""
  image = llava.token(cfg, "image", 32_000)
  return _tiled(cfg, llava.vision(cfg), {}, _PINPOINTS, image_token=image)


def llava_next_video(cfg: Mapping[str, Any]) -> System:
  """`LlavaNextVideoForConditionalGeneration`: frames are pooled in front of the projector.

  Raises:
    ValueError: also frames pooled by a convolution.
  """
  f = fields.fields(cfg, spatial_pool_mode="average", spatial_pool_stride=2)
  if f.spatial_pool_mode not in ("average", "max"):
    raise ValueError(
      f"config.json: spatial_pool_mode is {f.spatial_pool_mode!r}; 'average' and 'max' are read"
    )
  connector = dict(frames=f.spatial_pool_mode, stride=f.spatial_pool_stride)
  return _tiled(
    cfg,
    llava.vision(cfg),
    connector,
    _PINPOINTS,
    ties=True,
    image_token=llava.token(cfg, "image", 32_001),
    video_token=llava.token(cfg, "video", 32_000),
  )


def llava_onevision(cfg: Mapping[str, Any]) -> System:
  """`LlavaOnevisionForConditionalGeneration`.

  Raises:
    ValueError: also a `vision_aspect_ratio` that is not anyres_max_N.
  """
  f = fields.fields(cfg, vision_aspect_ratio="anyres_max_9")
  most = re.fullmatch(r"anyres_max_(\d+)", f.vision_aspect_ratio)
  if not most:
    raise ValueError(
      f"config.json: vision_aspect_ratio is {f.vision_aspect_ratio!r}, not anyres_max_N"
    )
  connector = dict(most=int(most[1]), frames="bilinear", video_newline=True)
  return _tiled(
    cfg,
    llava.vision(cfg, -1, "full", _ONEVISION_VISION),
    connector,
    _ONEVISION_PINPOINTS,
    text="qwen2",
    ties=True,
    image_token=llava.token(cfg, "image", 151_646),
    video_token=llava.token(cfg, "video", 151_647),
  )
