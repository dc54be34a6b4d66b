"""InstructBLIP (arXiv 2305.06500) of transformers, for images and for videos."""

from collections.abc import Mapping
from typing import Any

from bigvlm.hub import blip2
from bigvlm.hub.system import System

_SHARED = blip2.shared_rules("qformer.embeddings", "qformer.embeddings.layernorm")


def image(cfg: Mapping[str, Any]) -> System:
  """`InstructBlipForConditionalGeneration`: BLIP-2 whose queries see the instruction."""
  return blip2.generator(cfg, _SHARED, text=True, media="asked")


def video(cfg: Mapping[str, Any]) -> System:
  """`InstructBlipVideoForConditionalGeneration`: every frame is read by itself."""
  return blip2.generator(
    cfg, _SHARED, text=True, token="video_token", frames=4, media="asked_frames"
  )
