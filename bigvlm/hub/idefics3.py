"""Idefics 3 (arXiv 2408.12637) and SmolVLM (arXiv 2504.05299) of transformers."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import clip, fields, texts, tying
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS

TOWER = rules.under(clip.SIGLIP_VISION, "model.vision_model.", "encoders/image/")
# Files of the model without a head begin one level below.
_RENAME = ((r"^(?=(vision_model|connector|text_model)\.)", "model."),)
_CONNECTOR = rules.linear("model.connector.modality_projection.proj", "connector/linear")


def checkpoint(
  text: Mapping[str, Any], connector: tuple[Rule, ...], default: str = "llama"
) -> CkptMap:
  """The map of a tower, a connector and a text model, as Idefics 2 and 3 name them."""
  return CkptMap(
    (*TOWER, *connector, *texts.beside(text, "model.text_model.", default)),
    _RENAME,
    tied=(("lm_head.weight", "model.text_model.embed_tokens.weight"),),
    carry=(*clip.BUFFERS, *BUFFERS),
  )


def tower(cfg: Mapping[str, Any], **defaults: Any) -> tuple[dict[str, Any], tuple[int, int]]:
  """Encoder config and image size of a vision config of Idefics 2 or 3, with other `defaults`.

  Raises:
    ValueError: an image or patch that is not square.
  """
  # Whatever it calls itself, the reference reads it as its own.
  given = dict(patch_size=32, **defaults) | cfg
  encoder, (height, width) = clip.siglip_vision(given)
  if height != width:
    raise ValueError(f"config.json: image_size {height}x{width} is not square; only such are read")
  side = height // encoder["patch"]
  return encoder | dict(kind="padded", table=(side, side), pool="none"), (height, width)


def _system(cfg: Mapping[str, Any], **options: Any) -> System:
  vision = fields.sub(cfg, "vision_config")
  text = cfg.get("text_config")
  text = dict(rms_norm_eps=1e-5) if text is None else text
  top = fields.fields(cfg, image_token_id=128_257, tie_word_embeddings=False, scale_factor=2)
  encoder, image_size = tower(vision, hidden_size=1152, num_attention_heads=16)
  decoder = texts.body(text) | dict(tied=top.tie_word_embeddings)
  connector = dict(kind="pixel_shuffle", factor=top.scale_factor, bias=False)
  model = dict(kind="vlm", encoders=dict(image=encoder), connector=connector, decoder=decoder)
  # The reference fills rows with the text model's pad id, whatever is written beside it.
  outer = {key: value for key, value in cfg.items() if key != "pad_token_id"}
  options |= dict(image_token=top.image_token_id, media="padded") | texts.special_ids(outer, text)
  ckpt = checkpoint(text, _CONNECTOR)
  return System(model, ckpt, "vlm", image_size, options=options, refine=tying.refine)


def idefics3(cfg: Mapping[str, Any]) -> System:
  """`Idefics3ForConditionalGeneration`."""
  return _system(cfg)


def smolvlm(cfg: Mapping[str, Any]) -> System:
  """`SmolVLMForConditionalGeneration`; the frames of a video are pictures."""
  return _system(cfg, one_image=True)
