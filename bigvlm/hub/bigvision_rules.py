"""Names of the tensors in big_vision's files, as rules.

Reference: google-research/big_vision, `models/vit.py`, `models/proj/image_text/*.py`,
`models/ppp/gemma.py`. Layers are apart (`encoderblock_3/...`) or stacked (`encoderblock/...`).
"""

from bigvlm.ckpt import rules
from bigvlm.ckpt.rules import CkptMap, Rule

# Files may hold the parameters alone, or those of an old optimiser.
_PREFIX = ((r"^opt/target/", "params/"), (r"^(?!params/|opt/)", "params/"))
# Names of the time before 2022: submodules counted together, the position table and the pooling
# head in other places.
_OLD = (
  (r"(/encoderblock(?:_\d+)?)/LayerNorm_2/", r"\1/LayerNorm_1/"),
  (r"(/encoderblock(?:_\d+)?)/MlpBlock_3/", r"\1/MlpBlock_0/"),
  (
    r"(/encoderblock(?:_\d+)?)/MultiHeadDotProductAttention_1/",
    r"\1/MultiHeadDotProductAttention_0/",
  ),
  (r"/Transformer/(?:posembed_input/)?pos_embedding$", "/pos_embedding"),
  (
    r"^(params/(?:img/)?)(probe|(?:LayerNorm_0|MlpBlock_0|MultiHeadDotProductAttention_0)/.*)$",
    r"\1MAPHead_0/\2",
  ),
)
RENAME = (*_PREFIX, *_OLD)
CANONICAL = CkptMap((), RENAME)


def _dense(src: str, dst: str) -> tuple[Rule, ...]:
  return Rule(f"{src}/kernel", f"{dst}/kernel"), Rule(f"{src}/bias", f"{dst}/bias")


def _norm(src: str, dst: str) -> tuple[Rule, ...]:
  return Rule(f"{src}/scale", f"{dst}/scale"), Rule(f"{src}/bias", f"{dst}/bias")


def _attention(src: str, dst: str) -> tuple[Rule, ...]:
  parts = (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o"))
  return tuple(r for a, b in parts for r in _dense(f"{src}/{a}", f"{dst}/{b}"))


def _layers(layer: tuple[Rule, ...], stack: str, one: str, stacked: bool) -> tuple[Rule, ...]:
  """Rules of all layers: rows of the tensors at `stack`, or the tensors at `one`, with `{i}`."""
  if not stacked:
    return rules.under(layer, one, "blocks/*/")
  rows = tuple(Rule(r.src + "[{i}]", r.dst, r.axes, r.cut) for r in layer)
  return rules.under(rows, stack, "blocks/*/")


_BLOCK = (
  *_norm("LayerNorm_0", "norm1"),
  *_attention("MultiHeadDotProductAttention_0", "attn"),
  *_norm("LayerNorm_1", "norm2"),
  *_dense("MlpBlock_0/Dense_0", "mlp/up"),
  *_dense("MlpBlock_0/Dense_1", "mlp/down"),
)
_MAP_HEAD = (
  Rule("MAPHead_0/probe", "pool/probe"),
  *_attention("MAPHead_0/MultiHeadDotProductAttention_0", "pool/attn"),
  *_norm("MAPHead_0/LayerNorm_0", "pool/norm"),
  *_dense("MAPHead_0/MlpBlock_0/Dense_0", "pool/mlp/up"),
  *_dense("MAPHead_0/MlpBlock_0/Dense_1", "pool/mlp/down"),
)
_GEMMA_BLOCK = (
  Rule("pre_attention_norm/scale", "norm1/scale"),
  Rule("attn/attn_vec_einsum/w", "attn/o/kernel"),
  Rule("post_attention_norm/scale", "post_norm1/scale"),
  Rule("pre_ffw_norm/scale", "norm2/scale"),
  Rule("mlp/gating_einsum", ("mlp/gate/kernel", "mlp/up/kernel"), "1 i o -> i o"),
  Rule("mlp/linear", "mlp/down/kernel"),
  Rule("post_ffw_norm/scale", "post_norm2/scale"),
)
_GROUPED = (
  Rule("attn/q_einsum/w", "attn/q/kernel", "h i d -> i h d"),
  Rule("attn/kv_einsum/w", ("attn/k/kernel", "attn/v/kernel"), "1 h i d -> i h d"),
)
_FULL = (Rule("attn/qkv_einsum/w", tuple(f"attn/{n}/kernel" for n in "qkv"), "1 h i d -> i h d"),)


def _trunk(name: str, stacked: bool) -> tuple[Rule, ...]:
  """The layers and the last norm of big_vision's `Encoder` of a name."""
  layers = _layers(_BLOCK, f"{name}/encoderblock/", f"{name}/encoderblock_{{i}}/", stacked)
  return (*layers, *_norm(f"{name}/encoder_norm", "norm"))


def image_rules(stacked: bool, cls_posemb: bool = False, naflex: bool = False) -> tuple[Rule, ...]:
  """Rules of an image tower.

  Args:
    stacked: whether the layers are.
    cls_posemb: the first row of the position table is the class token's (files before 2022).
    naflex: whether it is `naflex_vit`, whose patches come flat, and not `vit`.
  """
  table = ("cls_posemb", "posemb") if cls_posemb else "posemb"
  return (
    Rule("embedding/kernel", "patch/kernel", "(p q c) d -> p q c d" if naflex else ""),
    Rule("embedding/bias", "patch/bias"),
    *_norm("patchln_post", "patch_norm"),
    Rule("pos_embedding", table, cut=1 if cls_posemb else 0),
    Rule("cls", "cls"),
    *_trunk("Transformer", stacked),
    *_MAP_HEAD,
    *_dense("pre_logits", "pre_logits"),
    *_dense("head", "head"),
  )


def text_rules(stacked: bool) -> tuple[Rule, ...]:
  """Rules of a `text_transformer`."""
  return (
    Rule("Embed_0/embedding", "embed/embedding"),
    Rule("pos_embedding", "posemb"),
    *_trunk("Encoder_0", stacked),
    *_MAP_HEAD,
    *_dense("head", "head"),
  )


def gemma_rules(stacked: bool, grouped: bool) -> tuple[Rule, ...]:
  """Rules of Gemma; `grouped`: fewer heads of keys than of queries."""
  layer = (*_GEMMA_BLOCK, *(_GROUPED if grouped else _FULL))
  return (
    Rule("embedder/input_embedding", "embedding"),
    *_layers(layer, "layers/", "layers/{i}/", stacked),
    Rule("final_norm/scale", "norm/scale"),
  )


def two_tower_map(image: tuple[Rule, ...], text: tuple[Rule, ...]) -> CkptMap:
  found = (
    *rules.under(image, "params/img/", "encoders/image/"),
    *rules.under(text, "params/txt/", "text/"),
    Rule("params/t", "t"),
    Rule("params/b", "b"),
  )
  return CkptMap(found, RENAME)


def vit_map(image: tuple[Rule, ...]) -> CkptMap:
  return CkptMap(rules.under(image, "params/", "encoders/image/"), RENAME)


def paligemma_map(image: tuple[Rule, ...], llm: tuple[Rule, ...]) -> CkptMap:
  found = (
    *rules.under(image, "params/img/", "encoders/image/"),
    *_dense("params/img/head", "connector/linear"),
    *rules.under(llm, "params/llm/", "decoder/"),
  )
  return CkptMap(found, RENAME)
