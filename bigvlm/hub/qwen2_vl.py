"""Qwen2-VL (arXiv 2409.12191) of transformers, and what its successors share with it."""

from collections.abc import Mapping
from typing import Any

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule
from bigvlm.hub import fields, texts, tying
from bigvlm.hub.system import System
from bigvlm.hub.text import BUFFERS
from bigvlm.utils import names

_LAYER = (
  *rules.norm("norm1", "norm1"),
  *rules.joint("attn.qkv.", "attn", "attn.proj"),
  *rules.norm("norm2", "norm2"),
)
_MLP = rules.mlp("mlp.", "mlp")
_GATED = rules.gated("mlp", "mlp")
_WORDS = texts.TEXTS["qwen2"]
# Other layouts to the hub's.
_RENAME = (
  (r"^model\.visual\.", "visual."),
  (r"^model\.language_model\.", "model."),
  (r"^language_model\.(?!model\.|lm_head\.)", "model."),
)


def ckpt_map(gated: bool) -> CkptMap:
  """The map of a Qwen2-VL whose vision layers have an MLP of either kind."""
  layer = (*_LAYER, *(_GATED if gated else _MLP))
  return CkptMap(
    (
      Rule(
        "visual.patch_embed.proj.weight", "encoders/image/patch/kernel", "o c t p q -> t p q c o"
      ),
      *rules.under(layer, "visual.blocks.{i}.", "encoders/image/blocks/*/"),
      *rules.norm("visual.merger.ln_q", "connector/norm"),
      *rules.mlp("visual.merger.mlp.", "connector/mlp", "0", "2"),
      *_WORDS.rules,
    ),
    _RENAME,
    _WORDS.tied,
    BUFFERS,
  )


_MAP = ckpt_map(gated=False)


def axial(cfg: Mapping[str, Any]) -> float:
  """Base of the rotary embedding of a vision config.

  Raises:
    ValueError: another kind of it.
  """
  given = cfg.get("rope_parameters") or cfg.get("rope_scaling") or {}
  kind = given.get("rope_type") or given.get("type") or "axial"
  if kind not in ("axial", "default"):
    raise ValueError(names.unknown("rope_type of vision_config in config.json", kind, ("axial",)))
  return float(given.get("rope_theta") or cfg.get("rope_theta") or 10_000.0)


def vision(cfg: Mapping[str, Any], f: Any) -> dict[str, Any]:
  """What the encoders of Qwen2-VL and its successors have in common.

  Args:
    cfg: the vision config.
    f: its `depth`, `num_heads`, `hidden_act`, `spatial_merge_size` and `temporal_patch_size`.

  Raises:
    ValueError: images of other than three channels.
  """
  channels = cfg.get("in_channels", cfg.get("in_chans", 3))
  return dict(
    kind="packed",
    depth=cfg.get("num_hidden_layers", f.depth),
    heads=cfg.get("num_attention_heads", f.num_heads),
    patch=fields.patch(cfg | {"num_channels": channels}, 14),
    frames=fields.size(f.temporal_patch_size)[0],
    block=f.spatial_merge_size,
    act=fields.activation(f.hidden_act),
    eps=1e-6,
    rope_base=axial(cfg),
  )


def text(cfg: Mapping[str, Any]) -> dict[str, Any]:
  """Decoder config of a `Qwen2VLTextConfig`: Qwen2 with positions on three axes."""
  f = fields.fields(
    cfg, hidden_size=8192, num_attention_heads=64, num_key_value_heads=8, head_dim=None
  )
  if f.head_dim not in (None, f.hidden_size // f.num_attention_heads):
    raise ValueError(f"config.json: head_dim {f.head_dim} is not hidden_size / num_attention_heads")
  defaults = dict(
    vocab_size=152_064,
    hidden_size=8192,
    intermediate_size=29_568,
    num_hidden_layers=80,
    num_attention_heads=64,
    max_position_embeddings=32_768,
    rms_norm_eps=1e-5,
    rope_theta=1_000_000.0,
    max_window_layers=80,
  )
  heads = dict(num_key_value_heads=f.num_key_value_heads or f.num_attention_heads)
  decoder = _WORDS.decoder(defaults | cfg | heads)
  decoder["rotary"] = dict(sections=(16, 24, 24)) | decoder["rotary"]
  return decoder


def system(
  cfg: Mapping[str, Any], encoder: dict[str, Any], found: CkptMap, **options: Any
) -> System:
  """The system around an encoder; the text model's fields may be those of the config itself."""
  inner = cfg.get("text_config")
  inner = {k: v for k, v in cfg.items() if k != "model_type"} if inner is None else inner
  top = fields.fields(
    cfg, tie_word_embeddings=False, image_token_id=151_655, video_token_id=151_656
  )
  tied = bool(top.tie_word_embeddings or inner.get("tie_word_embeddings"))
  model = dict(
    kind="vlm",
    encoders=dict(image=encoder),
    connector=dict(
      kind="merger",
      merge=encoder["block"],
      norm=encoder["norm"],
      hidden=encoder["width"] * encoder["block"] ** 2,
    ),
    decoder=text(inner) | dict(tied=tied),
  )
  ends, outer = fields.ends(inner, 151_645), fields.ends(cfg)
  options |= dict(
    media="grids",
    image_token=top.image_token_id,
    video_token=top.video_token_id,
    positions="mrope",
    eos=outer["eos"] or ends["eos"],
    pad=ends["pad"] if outer["pad"] is None else outer["pad"],
  )
  side = encoder["patch"] * encoder["block"]
  return System(model, found, "vlm", (side, side), options=options, refine=tying.refine)


def qwen2_vl(cfg: Mapping[str, Any]) -> System:
  """`Qwen2VLForConditionalGeneration`."""
  given = fields.sub(cfg, "vision_config")
  f = fields.fields(
    given,
    depth=32,
    embed_dim=1280,
    hidden_size=3584,
    hidden_act="quick_gelu",
    mlp_ratio=4,
    num_heads=16,
    spatial_merge_size=2,
    temporal_patch_size=2,
  )
  encoder = vision(given, f) | dict(
    width=f.embed_dim, hidden=int(f.embed_dim * f.mlp_ratio), norm="layer"
  )
  found = system(cfg, encoder, _MAP)
  width = found.model["decoder"]["width"]
  if f.hidden_size != width:
    raise ValueError(
      f"config.json: vision_config.hidden_size {f.hidden_size} is not the text's {width}"
    )
  return found
