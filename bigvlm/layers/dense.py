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
  out = jnp.einsum(eq, a, b.astype(a.dtype), preferred_element_type=jnp.float32)
  return out.astype(out_dtype or a.dtype)


def _einsum_fwd(eq, a, b, out_dtype):
  return einsum(eq, a, b, out_dtype), (a, b)


def _einsum_bwd(eq, out_dtype, saved, g):
  a, b = saved
  sides, out = eq.split("->")
  left, right = sides.split(",")
  g = g.astype(a.dtype)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  da = product(f"{out},{right}->{left}", g, b.astype(a.dtype))
  # A product over the leading axes of both costs a CPU a transposed copy of its first operand: let
  # that be the smaller one (the barrier keeps XLA from turning the two round again).
  if a.size <= g.size:
    db = product(f"{left},{out}->{right}", a, g)
  else:
    turned = "".join(sorted(right, key=lambda i: i not in out))
    db = jax.lax.optimization_barrier(product(f"{out},{left}->{turned}", g, a))
    db = jnp.einsum(f"{turned}->{right}", db)
  return da.astype(a.dtype), db.astype(b.dtype)


einsum.defvjp(_einsum_fwd, _einsum_bwd)


def scores(x: jax.Array, table: jax.Array) -> jax.Array:
  """Products of x [B, K, D] with the rows of a table [V, D]: float32 [B, K, V]."""
  rows = x.shape[0] * x.shape[1]
  if x.dtype == jnp.bfloat16 and rows == 1:
    # Of a single row XLA on a CPU makes a product in float32, with a copy of the table widened to
    # it; of two it does not. The barrier keeps the table from being turned.
    twice, table = jax.lax.optimization_barrier((jnp.concatenate([x, x], 1), table))
    return einsum("bkd,vd->bkv", twice, table, jnp.float32)[:, :1]
  if x.dtype != jnp.float32 or not 1 < rows <= 16:
    return einsum("bkd,vd->bkv", x, table, jnp.float32)
  return _few("bkd,dv->bkv", x, table.astype(x.dtype))


def _few(eq: str, x: jax.Array, turned: jax.Array) -> jax.Array:
  """`einsum(eq, x, kernel)` of few rows in float32 on a CPU; `turned` is the kernel, axes reversed.

  XLA there repacks the second operand of a product of 2 to 16 rows: let that be the small one. The
  barrier keeps it so.
  """
  sides, out = eq.split("->")
  left, right = sides.split(",")
  right = right[::-1]
  first = "".join(c for c in right + left if c in out)
  y = jnp.einsum(f"{right},{left}->{first}", turned, x)
  return jnp.einsum(f"{first}->{out}", jax.lax.optimization_barrier(y))


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
