"""DeepSeek-VL (arXiv 2403.05525) of transformers: SigLIP and Llama; in the hybrid SAM as well."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import clip, fields, paligemma, sam, texts, tying
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS
from bigvlm.utils import names

_HYBRID = (
  *rules.under(sam.RULES, "high_res_vision_model.vision_encoder.", "encoders/fine/"),
  *sam.neck("high_res_vision_neck", "encoders/fine/tap_neck"),
  *(
    Rule(f"high_res_vision_proj.conv{n}.weight", f"connector/conv{n}/kernel", sam.CONV)
    for n in (1, 2)
  ),
  Rule("high_res_vision_alpha", "connector/alpha"),
  *rules.linear("aligner.vision_proj", "connector/coarse"),
  *rules.linear("aligner.high_res_vision_proj", "connector/fine"),
  *rules.linear("aligner.proj", "connector/out"),
)
_MLP = rules.mlp("aligner.", "connector/projector/mlp", "linear1", "linear2")
_TOWER = rules.under(clip.SIGLIP_VISION, "vision_model.vision_model.", "encoders/image/")


def _map(text: Mapping[str, Any], connector: tuple[Rule, ...]) -> CkptMap:
  return CkptMap(
    (
      *rules.under((*_TOWER, *connector), "model.", ""),
      *texts.beside(text, "model.language_model."),
    ),
    rename=(
      # Files of the model without a head begin one level below.
      (r"^(?=aligner\.|language_model\.|(high_res_)?vision_)", "model."),
      (r"^model\.vision_model\.(?!vision_model\.)", "model.vision_model.vision_model."),
    ),
    tied=(("lm_head.weight", "model.language_model.embed_tokens.weight"),),
    carry=(r"model\.vision_model\.vision_model\.head\..*", *clip.BUFFERS, *BUFFERS),
  )


def _system(cfg: Mapping[str, Any], fine: Mapping[str, Any] | None) -> System:
  text = fields.sub(cfg, "text_config")
  encoder, image_size = paligemma.tower(fields.sub(cfg, "vision_config"), {})
  top = fields.fields(cfg, image_token_id=100_015, tie_word_embeddings=True)
  decoder = texts.body(text) | dict(tied=top.tie_word_embeddings)
  encoders, connector = dict(image=encoder), dict(kind="mlp")
  options = dict(image_token=top.image_token_id) | texts.special_ids(cfg, text)
  if fine is not None:
    encoders["fine"] = sam.encoder(fine)
    connector = dict(kind="hybrid", channels=encoders["fine"]["out_dim"])
    options["media"] = "paired"
  model = dict(kind="vlm", encoders=encoders, connector=connector, decoder=decoder)
  rule = _MLP if fine is None else _HYBRID
  return System(model, _map(text, rule), "vlm", image_size, options=options, refine=tying.refine)


def deepseek_vl(cfg: Mapping[str, Any]) -> System:
  """`DeepseekVLForConditionalGeneration`."""
  return _system(cfg, None)


def hybrid(cfg: Mapping[str, Any]) -> System:
  """`DeepseekVLHybridForConditionalGeneration`.

  Raises:
    ValueError: a high resolution encoder that is not SAM's.
  """
  fine = fields.sub(cfg, "high_res_vision_config")
  kind = fine.get("model_type", "sam_vision_model")
  if kind != "sam_vision_model":
    raise ValueError(
      names.unknown("high_res_vision_config.model_type", kind, ("sam_vision_model",))
    )
  return _system(cfg, fine)
