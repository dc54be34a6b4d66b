"""Transformer layers and the stack of them that every tower and decoder is.

A stack has one parameter tree whatever way it runs: groups `g{n}` of `repeats`
periods, a period of layers `b{j}`, every leaf with a leading [repeats] axis.
`scan` compiles one period; `loop` unrolls it (faster steps on a CPU, slower to
compile). Layers cut apart, `g{n}/{i}/b{j}`, as decoding has them, are unrolled.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from bigvlm.layers import attention, mlp, norms, relpos, rope
from bigvlm.layers.module import Module


@dataclasses.dataclass(frozen=True)
class Kind:
  """What one layer of a pattern has of its own.

  Attributes:
    window: of its self-attention; 0 = unlimited.
    rope_base, rope_scale: of its rotary embedding; base 0 = that of the stack's `LayerSpec`.
    rotary: what else there is to it; None = what the `LayerSpec` says.
    cross: attention to `Ctx.memory` after the self-attention.
    alone: there is no self-attention: such a layer is skipped where there is no memory.
    tanh_gated: what attention and MLP add is multiplied by the tanh of a learned gate (Flamingo).
  """

  window: int = 0
  rope_base: float = 0.0
  rope_scale: float = 1.0
  rotary: rope.Rotary | None = None
  cross: bool = False
  alone: bool = False
  tanh_gated: bool = False


@dataclasses.dataclass(frozen=True)
class Cross:
  """The cross-attention of a stack, and its gates.

  Attributes:
    width: of the memory; 0 = that of the layers.
    qk_norm: a norm of every query and key head; None = as in the self-attention.
    blind: what attention gives a row that sees nothing of the memory: "mean" = the mean of all
      values, "zero", or "all" = what it would give if the row saw everything.
    blind_mlp: whether the MLP of a layer that is `alone` adds anything to such a row.
    gate: numbers in a gate, 1 or the width of the layers. gate_init: what they start as.
  """

  width: int = 0
  qk_norm: bool | None = None
  blind: str = "mean"
  blind_mlp: bool = True
  gate: int = 1
  gate_init: float = 0.0


@dataclasses.dataclass(frozen=True)
class LayerSpec:
  """Fields that all layers of a stack share.

  Attributes:
    width, heads, kv_heads, head_dim, hidden: sizes; `hidden` is the MLP's.
    norm: a key of `norms.NORMS`. eps: its epsilon.
    act, gated: of the MLP.
    bias: of q, k and v; of the output projection and the MLP too unless `out_bias`, `mlp_bias`
      say otherwise.
    query_scale: factor on the queries. query_init: see `attention.Attention`.
    rope_base: 0 = no rotary embedding. rotary: what else there is to it.
    softcap: bound of the attention logits, 0 = none.
    post_norms: a norm after attention and after the MLP as well (Gemma 2).
    norm_after: the norms are not before attention and MLP, but after their sums (the first
      transformer, BERT).
    qk_norm: a norm of every query and key head (Gemma 3). qk_joint: a key of `norms.NORMS`: of that
      kind and over all heads together (InternViT-6B). qk_eps: of those norms; 0 = `eps`.
    parallel: attention and MLP read the same norm and are added together (ViT-22B).
    layer_scale: start of a learned factor [D] after attention and MLP; 0 = none (CaiT, DINOv2).
    cross: of layers with cross-attention or gates.
    relative: (buckets, max_distance, bidirectional) of a `relpos.RelativeBias` of every layer's own
      self-attention, which needs `Ctx.orders` (UMT5); None = none.
    dropout: rate after attention and after the MLP, when training.
    dtype, param_dtype: compute and parameter dtype.
  """

  width: int
  heads: int
  hidden: int
  kv_heads: int
  head_dim: int
  query_scale: float
  norm: str = "layer"
  eps: float = 1e-6
  act: str = "gelu_tanh"
  gated: bool = False
  bias: bool = True
  rope_base: float = 0.0
  softcap: float = 0.0
  post_norms: bool = False
  out_bias: bool | None = None
  mlp_bias: bool | None = None
  qk_norm: bool = False
  layer_scale: float = 0.0
  query_init: float = 1.0
  parallel: bool = False
  rotary: rope.Rotary = rope.PLAIN
  qk_joint: str = ""
  qk_eps: float = 0.0
  cross: Cross = Cross()
  norm_after: bool = False
  relative: tuple[int, int, bool] | None = None
  dropout: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32


@struct.dataclass
class Ctx:
  """What every layer may read.

  Attributes:
    positions: int32 [B, L], [B, L, A] with several rotary axes, or None.
    masks: window -> bool [B, 1, L, S]; empty = everything is visible.
    index: int32 scalar, the cache column to write, or None.
    bias: [1 or B, H, L, S] added to the logits of the self-attention, or None.
    orders: int32 [B, L] and [B, S], `MaskSpec.order` of queries and keys, or None.
    memory: [B, M, D'] for layers with cross-attention; None in a decoding step, whose cache holds
      its keys and values, and where there is none to see.
    memory_mask: bool [B, 1, L, M] or None.
    read: int32 [B, K], the positions whose states leave the stack, or None for all: of the last
      layer the others need keys and values only.
    train: whether dropout is on.
  """

  positions: jax.Array | None = None
  masks: dict[int, jax.Array] = struct.field(default_factory=dict)
  index: jax.Array | None = None
  bias: jax.Array | None = None
  orders: tuple[jax.Array, jax.Array] | None = None
  memory: jax.Array | None = None
  memory_mask: jax.Array | None = None
  read: jax.Array | None = None
  train: bool = struct.field(pytree_node=False, default=False)


def at(x: jax.Array, read: jax.Array | None) -> jax.Array:
  """x [B, L, D] at the positions `read` [B, K]: [B, K, D]; all of it without."""
  return x if read is None else jnp.take_along_axis(x, read[:, :, None], axis=1)


class Layer(Module):
  """Pre-norm transformer layer: x + attention(norm(x)), with `Kind.cross` the same over the memory
  (or, `Kind.alone`, over that only), then x + mlp(norm(x))."""

  spec: LayerSpec
  kind: Kind

  @nn.compact
  def __call__(self, x: jax.Array, ctx: Ctx, cache: dict | None) -> tuple[jax.Array, dict | None]:
    """x [B, L, D], the layer's cache or None -> the same two, x [B, K, D] with `ctx.read`."""
    s, kind = self.spec, self.kind
    dtypes = dict(dtype=s.dtype, param_dtype=s.param_dtype)

    def norm(name: str, y: jax.Array) -> jax.Array:
      return norms.NORMS[s.norm](eps=s.eps, name=name, **dtypes)(y)

    def drop(y: jax.Array) -> jax.Array:
      return nn.Dropout(s.dropout, deterministic=not ctx.train)(y) if s.dropout else y

    def scaled(name: str, y: jax.Array) -> jax.Array:
      if not s.layer_scale:
        return y
      init = nn.initializers.constant(s.layer_scale)
      return y * self.param(name, init, (s.width,), s.param_dtype).astype(y.dtype)

    def gated(name: str, y: jax.Array) -> jax.Array:
      if not kind.tanh_gated:
        return y
      init = nn.initializers.constant(s.cross.gate_init)
      gate = self.param(name, init, (s.cross.gate,), s.param_dtype)
      return y * jnp.tanh(gate.astype(jnp.float32)).astype(y.dtype)

    def attend(name: str, y: jax.Array, memory: jax.Array | None, rope_base: float, **given):
      qk_norm = s.cross.qk_norm if name == "cross" else None
      attn = attention.Attention(
        s.heads,
        s.kv_heads,
        s.head_dim,
        s.query_scale,
        s.bias,
        rope_base,
        s.softcap,
        s.out_bias,
        kind.rope_scale,
        s.qk_joint or (s.norm if (s.qk_norm if qk_norm is None else qk_norm) else ""),
        s.qk_eps or s.eps,
        s.query_init,
        s.rotary if kind.rotary is None else kind.rotary,
        bool(s.qk_joint),
        name=name,
        **dtypes,
      )
      return attn(y, memory, **given)

    own, shared = cache, None
    if cache is not None and kind.cross:
      own, shared = cache.get("self"), cache["cross"]
    memory, mask, sees = ctx.memory, ctx.memory_mask, None
    if kind.alone and memory is None and (shared is None or not shared["k"].shape[1]):
      if not self.is_initializing():
        return at(x, ctx.read), cache
      memory = jnp.zeros((x.shape[0], 1, s.cross.width or s.width), s.dtype)
    h = x
    if not kind.alone:
      h, added = x if s.norm_after else norm("norm1", x), ctx.bias
      if s.relative:
        added = relpos.RelativeBias(s.heads, *s.relative, name="relpos", **dtypes)(*ctx.orders)
      y, own = attend(
        "attn",
        h,
        None,
        kind.rope_base or s.rope_base,
        mask=ctx.masks[kind.window] if ctx.masks else None,
        bias=added,
        positions=ctx.positions,
        cache=own,
        index=ctx.index,
      )
      if s.post_norms:
        y = norm("post_norm1", y)
      x = x + drop(gated("gate1", scaled("scale1", y)))
      if s.norm_after:
        x = norm("norm1", x)
    if kind.cross:
      y = norm("norm_cross", x)
      if mask is not None and s.cross.blind != "mean":
        sees = jnp.any(mask, axis=-1, keepdims=True)  # [B, 1, L, 1]
        mask = mask | ~sees if s.cross.blind == "all" else mask
      y, shared = attend("cross", y, memory, 0.0, mask=mask, cache=shared)
      if sees is not None and s.cross.blind == "zero":
        y = jnp.where(sees[:, 0], y, 0)
      x = x + drop(gated("gate_cross", y))
    x = at(x, ctx.read)
    bias = s.bias if s.mlp_bias is None else s.mlp_bias
    if s.parallel:
      h = at(h, ctx.read)
    else:
      h = x if s.norm_after else norm("norm2", x)
    y = mlp.Mlp(s.hidden, s.act, s.gated, bias, name="mlp", **dtypes)(h)
    if s.post_norms:
      y = norm("post_norm2", y)
    if kind.alone and sees is not None and not s.cross.blind_mlp:
      y = jnp.where(at(sees[:, 0], ctx.read), y, 0)
    x = x + drop(gated("gate2", scaled("scale2", y)))
    if s.norm_after:
      x = norm("norm2", x)
    if cache is None:
      return x, None
    return x, _parts(kind, own, shared)


def _parts(kind: Kind, own: Any, shared: Any) -> Any:
  """The cache of a layer from those of its self-attention and its cross-attention."""
  if not kind.cross:
    return own
  return {"cross": shared} if kind.alone else {"self": own, "cross": shared}


class Period(nn.Module):
  """One period of a pattern of layers, `b0`, `b1`, ..., of the class `layer`."""

  spec: LayerSpec
  kinds: tuple[Kind, ...]
  layer: type[nn.Module] = Layer

  @nn.compact
  def __call__(self, x: jax.Array, ctx: Ctx, cache: dict | None) -> tuple[jax.Array, dict | None]:
    """x [B, L, D], {"b{j}": layer cache} or None -> the same two, x [B, K, D] with `ctx.read`."""
    out = {}
    for j, kind in enumerate(self.kinds):
      name = f"b{j}"
      part = None if cache is None else cache[name]
      own = ctx if j + 1 == len(self.kinds) else ctx.replace(read=None)
      x, out[name] = self.layer(self.spec, kind, name=name)(x, own, part)
    return x, None if cache is None else out


# What the backward pass may keep, by config name; "none" keeps everything.
REMAT = {
  "dots": lambda: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": lambda: jax.checkpoint_policies.nothing_saveable,
}


class Stack(nn.Module):
  """A stack of layers.

  Attributes:
    spec: what all layers share.
    groups: ((pattern, repeats), ...), e.g. (((Kind(4096), Kind()), 13),).
    mode: "loop" or "scan"; the same parameters, the same numbers.
    remat: "none", or a key of `REMAT`.
    layer: class of the layers: (spec, kind) -> a module that is called as `Layer` is, with a `Ctx`.
  """

  spec: LayerSpec
  groups: tuple[tuple[tuple[Kind, ...], int], ...]
  mode: str = "loop"
  remat: str = "none"
  layer: type[nn.Module] = Layer

  @nn.compact
  def __call__(
    self, x: jax.Array, ctx: Ctx, cache: dict | None = None, after: list | None = None
  ) -> tuple[jax.Array, dict | None]:
    """x [B, L, D] and the cache of `init_cache` -> hidden [B, L, D] and the updated cache.

    With `ctx.read` the hidden states are [B, K, D]. Those after every group are appended to the
    list `after`.
    """
    out = {}
    for n, (kinds, repeats) in enumerate(self.groups):
      name = f"g{n}"
      part = None if cache is None else cache[name]
      if self.is_initializing():
        x, out[name] = self._init(kinds, repeats, name)(x, ctx, part)
      else:
        own = ctx if n + 1 == len(self.groups) else ctx.replace(read=None)
        x, out[name] = self._run(kinds, repeats, name, x, own, part)
      if after is not None:
        after.append(x)
    return x, None if cache is None else out

  def _init(self, kinds: tuple[Kind, ...], repeats: int, name: str) -> nn.Module:
    scanned = nn.scan(
      Period,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, 0),
      length=repeats,
    )
    return scanned(self.spec, kinds, self.layer, name=name)

  def _run(self, kinds, repeats, name, x, ctx, cache):
    params, rest = self.variables["params"][name], ctx.replace(read=None)
    apart = "0" in params
    scan = self.mode == "scan" and not apart
    period = Period(self.spec, kinds, self.layer, parent=None)
    keys = None
    if ctx.train and self.has_rng("dropout") and (self.spec.dropout or _adapters_drop(params)):
      keys = jax.random.split(self.make_rng("dropout"), repeats)

    def run(x, ctx, layer, key, part):
      rngs = None if key is None else {"dropout": key}
      return period.apply({"params": layer}, x, ctx, part, rngs=rngs)

    if self.remat != "none":
      run = jax.checkpoint(run, policy=REMAT[self.remat](), prevent_cse=not scan)
    elif not (ctx.train or scan):
      run = jax.jit(run)  # Layers that are alike are traced once: half the time of a first answer.
    if scan:
      x, out = jax.lax.scan(lambda x, own: run(x, rest, *own), x, (params, keys, cache))
      return at(x, ctx.read), out
    layers = [params[str(i)] for i in range(repeats)] if apart else cut(params, repeats)
    out = {}
    for i in range(repeats):
      part = cache
      if cache is not None:  # `init_cache` gives them stacked.
        part = cache[str(i)] if "0" in cache else jax.tree.map(lambda c, i=i: c[i], cache)
      own = ctx if i + 1 == repeats else rest
      x, out[str(i)] = run(x, own, layers[i], None if keys is None else keys[i], part)
    return x, None if cache is None else out


def period(layers: Sequence[Any]) -> tuple[Any, ...]:
  """The shortest beginning that the layers repeat; its last repetition may be cut short."""
  count = len(layers)
  fits = (p for p in range(1, count) if all(layers[i] == layers[i % p] for i in range(count)))
  return tuple(layers[: next(fits, count)])


def periodic(kinds: tuple[Kind, ...], depth: int) -> tuple:
  """Groups of a stack of `depth` layers of a period; the last one may be cut short.

  Layers that repeat nothing, but are alike in long runs, are a group a run.
  """
  if len(kinds) == depth:
    runs = tuple(((kind,), len(list(run))) for kind, run in itertools.groupby(kinds))
    if 2 * len(runs) <= depth:
      return runs
  whole, rest = divmod(depth, len(kinds))
  groups = ((kinds, whole),) * (whole > 0)
  return (*groups, (kinds[:rest], 1)) if rest else groups


def cut(stacked: Any, repeats: int) -> list[Any]:
  """Cuts a tree of [repeats, ...] leaves into `repeats` trees, with a cheap gradient."""
  # `lax.split` and not indexing: its transpose is one concatenation, while each x[i] would add a
  # full-size zero-padded gradient.
  leaves, treedef = jax.tree.flatten(stacked)
  parts = [jax.lax.split(leaf, (1,) * repeats) for leaf in leaves]
  parts = [[jnp.squeeze(p, 0) for p in ps] for ps in parts]
  return [treedef.unflatten(layer) for layer in zip(*parts, strict=True)]


def _adapters_drop(layers: Any) -> bool:
  """Whether some low-rank adapter of the layers has a dropout (see `bigvlm.lora`)."""
  paths = jax.tree_util.tree_leaves_with_path(layers)
  return any(getattr(path[-1], "key", "") == "lora_dropout" for path, _ in paths)


def init_cache(
  spec: LayerSpec, groups: tuple, batch: int, length: int, dtype: jnp.dtype, memory: int = 0
) -> dict:
  """Zeroed key/value buffers [repeats, B, length, kv_heads, head_dim].

  A layer with cross-attention has {"self", "cross"}, or "cross" alone, of length `memory`; prefill
  puts others in their place, so that a length of 0 will do.
  """

  def pair(repeats, length):
    shape = (repeats, batch, length, spec.kv_heads, spec.head_dim)
    return {n: jnp.zeros(shape, dtype) for n in ("k", "v")}

  def layer(kind, repeats):
    return _parts(kind, pair(repeats, length), pair(repeats, memory) if kind.cross else None)

  return {
    f"g{n}": {f"b{j}": layer(kind, repeats) for j, kind in enumerate(kinds)}
    for n, (kinds, repeats) in enumerate(groups)
  }
