"""Video-LLaVA (arXiv 2311.10122) of transformers: a tower for pictures and one for videos."""

from collections.abc import Mapping
from typing import Any

from bigvlm.hub import llava
from bigvlm.hub.system import System

_VISION = llava.CLIP_L | dict(image_size=224)


def video_llava(cfg: Mapping[str, Any]) -> System:
  """`VideoLlavaForConditionalGeneration`; frames keep their class token, whatever pictures do."""
  tower = llava.vision(cfg, default=_VISION)
  connector = dict(
    kind="mlp",
    front=tower.front,
    skip=tower.skip,
    video="video",
    video_front=int(tower.encoder.get("cls", False)),
    **llava.projector(cfg),
  )
  found = llava.system(
    cfg,
    tower,
    connector,
    names={"image": "image_tower", "video": "video_tower"},
    media="towers",
    image_token=llava.token(cfg, "image", 32_000),
    video_token=llava.token(cfg, "video", 32_001),
  )
  if "cls" in tower.encoder:
    found.model["encoders"]["video"]["keep_cls"] = True
  return found
