"""DeepSeek-VL (arXiv 2403.05525) of transformers: SigLIP and Llama; in the hybrid SAM as well."""

import re
from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import clip, fields, gemma, paligemma, texts, tying
from bigvlm.hub.system import System
from bigvlm.utils import names

_SAM_LAYER = (
  *rules.norm("layer_norm1", "norm1"),
  *(
    Rule(f"attn.qkv.{kind}", tuple(f"attn/{name}/{leaf}" for name in "qkv"), axes)
    for kind, leaf, axes in (
      ("weight", "kernel", "(h d) i -> i h d"),
      ("bias", "bias", "(h d) -> h d"),
    )
  ),
  *rules.linear("attn.proj", "attn/o", "o (h d) -> h d o"),
  Rule("attn.rel_pos_h", "attn/rows"),
  Rule("attn.rel_pos_w", "attn/columns"),
  *rules.norm("layer_norm2", "norm2"),
  *rules.linear("mlp.lin1", "mlp/up"),
  *rules.linear("mlp.lin2", "mlp/down"),
)
_CONV = "o i p q -> p q i o"


def _neck(src: str, dst: str) -> tuple[Rule, ...]:
  return tuple(
    rule
    for n in (1, 2)
    for rule in (
      Rule(f"{src}.conv{n}.weight", f"{dst}/conv{n}/kernel", _CONV),
      *rules.norm(f"{src}.layer_norm{n}", f"{dst}/norm{n}"),
    )
  )


# SAM's picture encoder, canonical names as in its file.
SAM = (
  Rule("pos_embed", "posemb"),
  *rules.linear("patch_embed.projection", "patch", "o c p q -> p q c o"),
  *rules.under(_SAM_LAYER, "layers.{i}.", "blocks/*/"),
  *_neck("neck", "neck"),
)
_HYBRID = (
  *rules.under(SAM, "high_res_vision_model.vision_encoder.", "encoders/fine/"),
  *_neck("high_res_vision_neck", "encoders/fine/tap_neck"),
  *(
    Rule(f"high_res_vision_proj.conv{n}.weight", f"connector/conv{n}/kernel", _CONV) for n in (1, 2)
  ),
  Rule("high_res_vision_alpha", "connector/alpha"),
  *rules.linear("aligner.vision_proj", "connector/coarse"),
  *rules.linear("aligner.high_res_vision_proj", "connector/fine"),
  *rules.linear("aligner.proj", "connector/out"),
)
_MLP = (
  *rules.linear("aligner.linear1", "connector/projector/mlp/up"),
  *rules.linear("aligner.linear2", "connector/projector/mlp/down"),
)
_TOWER = rules.under(clip.SIGLIP_VISION, "vision_model.vision_model.", "encoders/image/")


def _map(text: Mapping[str, Any], connector: tuple[Rule, ...]) -> CkptMap:
  # The text model's names, but that its head is beside the rest.
  head, rest = "lm_head.", texts.under(text, "")
  body = [r._replace(src=re.sub(r"^model\.", "language_model.", r.src)) for r in rest]
  inner = [r for r in body if not r.src.startswith(head)]
  return CkptMap(
    (
      *rules.under((*_TOWER, *connector, *inner), "model.", ""),
      *(r for r in body if r.src.startswith(head)),
    ),
    rename=(
      # Files of the model without a head begin one level below.
      (r"^(?=aligner\.|language_model\.|(high_res_)?vision_)", "model."),
      (r"^model\.vision_model\.(?!vision_model\.)", "model.vision_model.vision_model."),
    ),
    tied=(("lm_head.weight", "model.language_model.embed_tokens.weight"),),
    carry=(r"model\.vision_model\.vision_model\.head\..*", *clip.BUFFERS, *gemma.BUFFERS),
  )


def sam(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Encoder config of a `SamVisionConfig`, read after its first layer that sees everything too.

  Raises:
    ValueError: pictures that are not square.
  """
  f = fields.fields(
    cfg,
    hidden_size=768,
    output_channels=256,
    num_hidden_layers=12,
    num_attention_heads=12,
    image_size=1024,
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    qkv_bias=True,
    mlp_ratio=4.0,
    use_abs_pos=True,
    use_rel_pos=True,
    window_size=14,
    global_attn_indexes=(2, 5, 8, 11),
    mlp_dim=None,
  )
  (height, width), patch = fields.size(f.image_size), fields.patch(cfg, 16)
  if height != width:
    raise ValueError(f"config.json: SAM's image_size {height}x{width} is not square")
  return dict(
    kind="sam",
    width=f.hidden_size,
    depth=f.num_hidden_layers,
    hidden=int(f.hidden_size * f.mlp_ratio) if f.mlp_dim is None else f.mlp_dim,
    heads=f.num_attention_heads,
    patch=patch,
    table=(height // patch, width // patch),
    window=f.window_size,
    everywhere=tuple(f.global_attn_indexes),
    out_dim=f.output_channels,
    tap=f.global_attn_indexes[0] + 1,
    absolute=f.use_abs_pos,
    relative=f.use_rel_pos,
    act=fields.activation(f.hidden_act),
    eps=f.layer_norm_eps,
    bias=f.qkv_bias,
  )


def _system(cfg: Mapping[str, Any], fine: Mapping[str, Any] | None) -> System:
  text = fields.sub(cfg, "text_config")
  encoder, image_size = paligemma.tower(fields.sub(cfg, "vision_config"), {})
  top = fields.fields(cfg, image_token_id=100_015, tie_word_embeddings=True)
  decoder = texts.body(text) | dict(tied=top.tie_word_embeddings)
  encoders, connector = dict(image=encoder), dict(kind="mlp")
  options = dict(image_token=top.image_token_id) | texts.special_ids(cfg, text)
  if fine is not None:
    encoders["fine"] = sam(fine)
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
