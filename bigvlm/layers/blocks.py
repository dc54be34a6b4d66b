"""Transformer layers and the stack of them that every tower and decoder is.

A stack has one parameter tree whatever way it runs: groups `g{n}` of `repeats`
periods, a period of layers `b{j}`, every leaf with a leading [repeats] axis.
`scan` compiles one period; `loop` unrolls it (faster steps on a CPU, slower to
compile) and also takes the layers cut apart, `g{n}/{i}/b{j}`, as decoding does.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from bigvlm.layers import attention, mlp, norms


@dataclasses.dataclass(frozen=True)
class Kind:
  """What one layer of a pattern has of its own: `window` of its self-attention (0 = unlimited)."""

  window: int = 0


@dataclasses.dataclass(frozen=True)
class LayerSpec:
  """Fields that all layers of a stack share.

  Attributes:
    width, heads, kv_heads, head_dim, hidden: sizes; `hidden` is the MLP's.
    norm: "layer" or "rms". eps: its epsilon.
    act, gated, bias: of the MLP; `bias` of the attention too.
    query_scale: factor on the queries.
    rope_base: 0 = no rotary embedding.
    softcap: bound of the attention logits, 0 = none.
    post_norms: a norm after attention and after the MLP as well (Gemma 2).
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
  dropout: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32


@struct.dataclass
class Ctx:
  """What every layer may read.

  Attributes:
    positions: int32 [B, L] or None.
    masks: window -> bool [B, 1, L, S]; empty = everything is visible.
    index: int32 scalar, the cache column to write, or None.
    train: whether dropout is on.
  """

  positions: jax.Array | None = None
  masks: dict[int, jax.Array] = struct.field(default_factory=dict)
  index: jax.Array | None = None
  train: bool = struct.field(pytree_node=False, default=False)


class Layer(nn.Module):
  """Pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

  spec: LayerSpec
  kind: Kind

  @nn.compact
  def __call__(self, x: jax.Array, ctx: Ctx, cache: dict | None) -> tuple[jax.Array, dict | None]:
    """x [B, L, D], the layer's cache or None -> the same two."""
    s = self.spec
    dtypes = dict(dtype=s.dtype, param_dtype=s.param_dtype)

    def norm(name: str, y: jax.Array) -> jax.Array:
      return norms.NORMS[s.norm](eps=s.eps, name=name, **dtypes)(y)

    def drop(y: jax.Array) -> jax.Array:
      return nn.Dropout(s.dropout, deterministic=not ctx.train)(y) if s.dropout else y

    attn = attention.Attention(
      s.heads,
      s.kv_heads,
      s.head_dim,
      s.query_scale,
      s.bias,
      s.rope_base,
      s.softcap,
      name="attn",
      **dtypes,
    )
    mask = ctx.masks[self.kind.window] if ctx.masks else None
    y, cache = attn(
      norm("norm1", x), mask=mask, positions=ctx.positions, cache=cache, index=ctx.index
    )
    if s.post_norms:
      y = norm("post_norm1", y)
    x = x + drop(y)
    y = mlp.Mlp(s.hidden, s.act, s.gated, s.bias, name="mlp", **dtypes)(norm("norm2", x))
    if s.post_norms:
      y = norm("post_norm2", y)
    return x + drop(y), cache


class Period(nn.Module):
  """One period of a pattern of layers, `b0`, `b1`, ..."""

  spec: LayerSpec
  kinds: tuple[Kind, ...]

  @nn.compact
  def __call__(self, x: jax.Array, ctx: Ctx, cache: dict | None) -> tuple[jax.Array, dict | None]:
    """x [B, L, D], {"b{j}": layer cache} or None -> the same two."""
    out = {}
    for j, kind in enumerate(self.kinds):
      name = f"b{j}"
      part = None if cache is None else cache[name]
      x, out[name] = Layer(self.spec, kind, name=name)(x, ctx, part)
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
  """

  spec: LayerSpec
  groups: tuple[tuple[tuple[Kind, ...], int], ...]
  mode: str = "loop"
  remat: str = "none"

  @nn.compact
  def __call__(
    self, x: jax.Array, ctx: Ctx, cache: dict | None = None
  ) -> tuple[jax.Array, dict | None]:
    """x [B, L, D] and the cache of `init_cache` -> hidden [B, L, D] and the updated cache."""
    out = {}
    for n, (kinds, repeats) in enumerate(self.groups):
      name = f"g{n}"
      part = None if cache is None else cache[name]
      if self.is_initializing() or self.mode == "scan":
        x, out[name] = self._scan(name, kinds, repeats)(x, ctx, part)
      else:
        x, out[name] = self._loop(name, kinds, repeats, x, ctx, part)
    return x, None if cache is None else out

  def _scan(self, name: str, kinds: tuple[Kind, ...], repeats: int) -> nn.Module:
    period = Period
    if self.remat != "none":
      period = nn.remat(Period, prevent_cse=False, policy=REMAT[self.remat]())
    scanned = nn.scan(
      period,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=(nn.broadcast, 0),
      length=repeats,
    )
    return scanned(self.spec, kinds, name=name)

  def _loop(self, name, kinds, repeats, x, ctx, cache):
    # `lax.split` and not indexing: its transpose is one concatenation, while each
    # x[i] would add a full-size zero-padded gradient.
    params = self.variables["params"][name]
    if "0" in params:
      layers = [params[str(i)] for i in range(repeats)]
    else:
      layers = cut(params, repeats)
    period = Period(self.spec, kinds, parent=None)
    keys = [None] * repeats
    if ctx.train and self.spec.dropout:
      keys = jax.random.split(self.make_rng("dropout"), repeats)

    def run(layer, key, x, part):
      rngs = None if key is None else {"dropout": key}
      return period.apply({"params": layer}, x, ctx, part, rngs=rngs)

    if self.remat != "none":
      run = jax.checkpoint(run, policy=REMAT[self.remat]())
    out = {}
    for i in range(repeats):
      x, out[str(i)] = run(layers[i], keys[i], x, None if cache is None else cache[str(i)])
    return x, None if cache is None else out


def cut(stacked: Any, repeats: int) -> list[Any]:
  """Cuts a tree of [repeats, ...] leaves into `repeats` trees, with a cheap gradient."""
  leaves, treedef = jax.tree.flatten(stacked)
  parts = [jax.lax.split(leaf, (1,) * repeats) for leaf in leaves]
  parts = [[jnp.squeeze(p, 0) for p in ps] for ps in parts]
  return [treedef.unflatten(layer) for layer in zip(*parts, strict=True)]


def init_cache(
  spec: LayerSpec, groups: tuple, mode: str, batch: int, length: int, dtype: jnp.dtype
) -> dict:
  """Zeroed key/value buffers [B, length, kv_heads, head_dim]; stacked [repeats, ...] for "scan"."""
  shape = (batch, length, spec.kv_heads, spec.head_dim)

  def buffers(kinds, lead=()):
    return {
      f"b{j}": {n: jnp.zeros(lead + shape, dtype) for n in ("k", "v")} for j in range(len(kinds))
    }

  if mode == "scan":
    return {f"g{n}": buffers(kinds, (repeats,)) for n, (kinds, repeats) in enumerate(groups)}
  return {
    f"g{n}": {str(i): buffers(kinds) for i in range(repeats)}
    for n, (kinds, repeats) in enumerate(groups)
  }
