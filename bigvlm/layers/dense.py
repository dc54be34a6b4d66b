"""Matrix products with one dtype policy, and the linear layers built on them.

Every product takes its operands in the compute dtype and accumulates in
float32. That is what a TPU or GPU does anyway; on a CPU a bfloat16 product that
accumulates in bfloat16 runs at half the speed or less.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.layers.module import Module


def product(eq: str, a: jax.Array, b: jax.Array) -> jax.Array:
  """`jnp.einsum(eq, a, b)` accumulated in float32, a float32 array; the equations are `einsum`'s.

  jnp.einsum looks for the best order of contraction at every call, which takes longer than all else
  that tracing a product does.
  """
  swapped, numbers, order = _plan(eq)
  y = jax.lax.dot_general(*((b, a) if swapped else (a, b)), numbers, None, jnp.float32)
  return y if order is None else jax.lax.transpose(y, order)


@functools.cache
def _plan(eq: str) -> tuple[bool, tuple, tuple[int, ...] | None]:
  """How `product` computes an equation, with no transpose if one order of the operands needs none.

  Returns:
    Whether the second operand goes first, the dimension numbers of `dot_general`, and how its
    result is transposed (None = it is not).

  Raises:
    ValueError: an index of one operand alone that the output lacks.
  """
  sides, out = eq.split("->")
  names = sides.split(",")
  both = set(names[0]) & set(names[1])
  if not set(sides) - {","} <= both | set(out):
    raise ValueError(f"{eq}: an index is neither in the other operand nor in the output")
  batch = [c for c in out if c in both]
  summed = sorted(both - set(batch))
  for swapped in (False, True):
    pair = names[::-1] if swapped else names
    made = "".join(batch) + "".join(c for side in pair for c in side if c not in both)
    axes = [tuple(tuple(side.index(c) for c in some) for side in pair) for some in (summed, batch)]
    if made == out:
      return swapped, tuple(axes), None
  return True, tuple(axes), tuple(made.index(c) for c in out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(eq: str, a: jax.Array, b: jax.Array, out_dtype: jnp.dtype | None = None) -> jax.Array:
  """`jnp.einsum(eq, a, b)` in a's dtype, accumulated in float32, forward and backward.

  Args:
    eq: two-operand equation in which every index of an operand also stands in
      the other operand or in the output.
    a: activations; their dtype is the dtype of the product.
    b: activations or a parameter of any float dtype; it is cast to a's dtype and
      its gradient comes back in its own dtype, without a rounding in between.
    out_dtype: dtype of the result, by default a's.
  """
  return product(eq, a, b.astype(a.dtype)).astype(out_dtype or a.dtype)


def _einsum_fwd(eq, a, b, out_dtype):
  return product(eq, a, b.astype(a.dtype)).astype(out_dtype or a.dtype), (a, b)


def _einsum_bwd(eq, out_dtype, saved, g):
  a, b = saved
  sides, out = eq.split("->")
  left, right = sides.split(",")
  g = g.astype(a.dtype)
  da = product(f"{out},{right}->{left}", g, b.astype(a.dtype))
  # A product over the leading axes of both costs a CPU a transposed copy of its first operand: let
  # that be the smaller one (the barrier keeps XLA from turning the two round again).
  if a.size <= g.size:
    db = product(f"{left},{out}->{right}", a, g)
  else:
    turned = "".join(sorted(right, key=lambda i: i not in out))
    db = jax.lax.optimization_barrier(product(f"{out},{left}->{turned}", g, a))
    db = jax.lax.transpose(db, tuple(turned.index(c) for c in right))
  return da.astype(a.dtype), db.astype(b.dtype)


einsum.defvjp(_einsum_fwd, _einsum_bwd)


def scores(x: jax.Array, table: jax.Array) -> jax.Array:
  """Products of x [B, K, D] with the rows of a table [V, D]: float32 [B, K, V]."""
  rows = x.shape[0] * x.shape[1]
  if x.dtype == jnp.bfloat16 and rows == 1:
    return _alone(x[0, 0], table.astype(x.dtype))[None, None]
  if x.dtype != jnp.float32 or not 1 < rows <= 16:
    return einsum("bkd,vd->bkv", x, table, jnp.float32)
  return _few("bkd,dv->bkv", x, table.astype(x.dtype))


def _alone(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Products of a single row x [*in] with a kernel [*out, *in]: float32 [*out].

  In bfloat16 XLA on a CPU makes such a product in float32, with a widened copy of the kernel; as a
  sum it is as fast as the kernel can be read. The barrier keeps a loop from making that copy first.
  """
  x, kernel = jax.lax.optimization_barrier((x, kernel))
  y = kernel.astype(jnp.float32) * x.astype(jnp.float32)
  return jnp.sum(y, axis=tuple(range(-x.ndim, 0)))


def _few(eq: str, x: jax.Array, turned: jax.Array) -> jax.Array:
  """`einsum(eq, x, kernel)` of few rows on a CPU; `turned` is the kernel, its axes reversed.

  In float32 XLA there repacks the second operand of a product of 2 to 16 rows: let that be the
  small one. The barrier keeps it so.
  """
  sides, out = eq.split("->")
  left, right = sides.split(",")
  right = right[::-1]
  ins = [c for c in right if c in left]
  if x.dtype == jnp.bfloat16 and _size(x.shape[: -len(ins)]) == 1:
    y = _alone(x.reshape(turned.shape[: -len(ins) - 1 : -1]).T, turned).T
    return y.astype(x.dtype).reshape((1,) * (len(out) - y.ndim) + y.shape)
  first = "".join(c for c in right + left if c in out)
  y = jax.lax.optimization_barrier(product(f"{right},{left}->{first}", turned, x))
  return jax.lax.transpose(y.astype(x.dtype), tuple(first.index(c) for c in out))


def turned(params: dict) -> dict:
  """The tree with each `kernel` as `turned`, a copy with its axes reversed; `Linear` reads either.

  Under jit; for programs that multiply few rows by each kernel many times (see `_few`).
  """
  out = {}
  for name, leaf in params.items():
    if isinstance(leaf, dict):
      out[name] = turned(leaf)
    elif name == "kernel":
      out["turned"] = jax.lax.optimization_barrier(jnp.transpose(leaf))
    else:
      out[name] = leaf
  return out


def is_turned(params: dict) -> bool:
  """Whether the tree has a kernel that is `turned`."""
  return any(name == "turned" or isinstance(x, dict) and is_turned(x) for name, x in params.items())


class Linear(Module):
  """Linear map over the trailing axes: `kernel` [*in, *out], optional `bias` [*out].

  Attributes:
    eq: einsum of input and kernel, e.g. "bld,dhk->blhk".
    shape: kernel shape.
    out_dims: how many trailing kernel dimensions are outputs.
    bias: whether there is a bias.
    init, bias_init: initialisers; `init` sees the kernel as [in, out].
    dtype: compute dtype. param_dtype: parameter dtype.
  """

  eq: str
  shape: tuple[int, ...]
  out_dims: int = 1
  bias: bool = True
  init: Callable = nn.initializers.xavier_uniform()
  bias_init: Callable = nn.initializers.zeros
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [..., *in] -> [..., *out]."""
    split = len(self.shape) - self.out_dims

    def init(rng, shape, dtype):
      flat = (_size(shape[:split]), _size(shape[split:]))
      return self.init(rng, flat, dtype).reshape(shape)

    x = x.astype(self.dtype)
    if self.has_variable("params", "turned"):
      y = _few(self.eq, x, self.get_variable("params", "turned").astype(self.dtype))
    else:
      y = einsum(self.eq, x, self.param("kernel", init, self.shape, self.param_dtype))
    if self.has_variable("params", "lora_a"):
      y = y + self._adapter(x, split)
    if self.bias:
      bias = self.param("bias", self.bias_init, self.shape[split:], self.param_dtype)
      y = y + bias.astype(self.dtype)
    return y

  def _adapter(self, x: jax.Array, split: int) -> jax.Array:
    """What a low-rank adapter beside the kernel adds: scale * b a dropout(x); see `bigvlm.lora`.

    Raises:
      ValueError: leaves that do not fit the kernel.
    """
    a, b, scale = (self.get_variable("params", f"lora_{name}") for name in ("a", "b", "scale"))
    ins, outs = self.shape[:split], self.shape[split:]
    rank = a.shape[-1]
    if (a.shape, b.shape, scale.shape) != ((*ins, rank), (rank, *outs), ()):
      raise ValueError(
        f"{'/'.join(self.path)}: an adapter of shapes {a.shape}, {b.shape} and {scale.shape} is "
        f"none for a kernel {self.shape} with {split} input axes"
      )
    if self.has_variable("params", "lora_dropout") and self.has_rng("dropout"):
      x = _drop(x, self.get_variable("params", "lora_dropout"), self.make_rng("dropout"))
    sides, out = self.eq.split("->")
    left, right = sides.split(",")
    first, second = right[:split], right[split:]
    r = next(c for c in "rzyxw" if c not in self.eq)
    inner = "".join(c for c in left if c not in first) + r
    low = einsum(f"{left},{first}{r}->{inner}", x, a)
    y = einsum(f"{inner},{r}{second}->{out}", low, b, jnp.float32)
    return (y * scale.astype(jnp.float32)).astype(x.dtype)


def _drop(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
  """Dropout at a rate that is an array [], and so may differ from layer to layer."""
  keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x * (1.0 / (1.0 - rate)).astype(x.dtype), jnp.zeros_like(x))


def _size(shape: tuple[int, ...]) -> int:
  return functools.reduce(lambda a, b: a * b, shape, 1)
