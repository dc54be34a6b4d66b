"""Vision towers inside of vision-language models, read at one layer or at several."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bigvlm.ckpt.rules import Rule
from bigvlm.hub import clip
from bigvlm.utils import names


class Tower(NamedTuple):
  """A tower whose tokens a connector reads.

  Attributes:
    encoder: its config; without the layers, norms and heads that nobody reads.
    image_size: (height, width).
    rules: of a file of the tower alone, without its prefix, and without one for the parameters.
    unread: regexes, without prefixes, of the tensors that are in such a file and not read.
    front: tokens in front of the patches that come out.
    skip: tokens, from the first on, that are to be left out.
  """

  encoder: dict[str, Any]
  image_size: tuple[int, int]
  rules: tuple[Rule, ...]
  unread: tuple[str, ...]
  front: int = 0
  skip: int = 0

  def carry(self, prefix: str) -> tuple[str, ...]:
    """`unread` with a prefix, for `CkptMap.carry`."""
    return tuple(re.escape(prefix) + pattern for pattern in self.unread)


# `model_type` of a vision config -> its reader, and the rules of its files.
TOWERS: dict[str, tuple[Callable, tuple[Rule, ...]]] = {
  "clip_vision_model": (clip.clip_vision, clip.CLIP_VISION),
  "siglip_vision_model": (clip.siglip_vision, clip.SIGLIP_VISION),
}


def tower(
  cfg: Mapping[str, Any],
  layer: int | Sequence[int] = -1,
  select: str = "full",
  default: str = "clip_vision_model",
) -> Tower:
  """The tower of a `vision_config`.

  Args:
    cfg: the config. default: its `model_type` when it names none.
    layer: `vision_feature_layer`: the hidden states that are read, 0 = the embeddings, -1 = those
      after the last layer (without the last norm); of several one after the other.
    select: `vision_feature_select_strategy`, "default" leaves the first token out, "full" does not.

  Raises:
    ValueError: a tower that is not in the table, or a layer that it does not have.
  """
  kind = cfg.get("model_type") or default
  read, rules = names.lookup("vision_config.model_type", kind, TOWERS)
  encoder, image_size = read(cfg)
  depth = encoder["depth"]
  several = not isinstance(layer, int)
  taps = tuple(_state(n, depth) for n in (layer if several else (layer,)))
  if not taps:
    raise ValueError("vision_feature_layer in config.json is empty")
  if select not in ("default", "full"):
    raise ValueError(names.unknown("vision_feature_select_strategy", select, ("default", "full")))
  encoder |= dict(depth=max(taps), final_norm="none", pool="none")
  if several:
    encoder["taps"] = taps
  cls = bool(encoder.get("cls"))
  if cls:
    encoder["keep_cls"] = select == "full"
  later = "|".join(str(n) for n in range(max(taps), depth))
  unread = (rf"encoder\.layers\.({later})\..*",) if later else ()
  unread += (r"post_layernorm\..*", r"head\..*", r"embeddings\.position_ids")
  front = int(cls and select == "full")
  return Tower(encoder, image_size, rules, unread, front, int(select == "default" and not cls))


def _state(layer: int, depth: int) -> int:
  """How many layers are run for a hidden state."""
  count = layer + depth + 1 if layer < 0 else layer
  if not 0 <= count <= depth:
    raise ValueError(f"config.json: vision_feature_layer {layer} of a tower of {depth} layers")
  return count
