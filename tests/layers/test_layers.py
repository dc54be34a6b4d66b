"""Masks, products and attention, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.layers import attention, blocks, dense, masks, norms, rope
from bigvlm.types import MaskSpec


def spec(segment, ar):
  segment = np.array([segment], np.int32)
  return MaskSpec(segment, np.cumsum([ar], axis=1).astype(np.int32), np.arange(len(ar))[None])


@pytest.mark.parametrize(
  "segment, ar, window, want",
  [
    ("1111", "0000", 0, ["1111", "1111", "1111", "1111"]),
    ("1111", "1111", 0, ["1000", "1100", "1110", "1111"]),
    ("1111", "0011", 0, ["1100", "1100", "1110", "1111"]),
    ("11111", "01010", 0, ["10000", "11100", "11100", "11111", "11111"]),
    ("1110", "0011", 0, ["1100", "1100", "1110", "0000"]),
    ("1122", "0101", 0, ["1000", "1100", "0010", "0011"]),
    ("1111", "1111", 2, ["1000", "1100", "0110", "0011"]),
  ],
)
def test_visible(segment, ar, window, want):
  s = spec([int(c) for c in segment], [int(c) for c in ar])
  got = np.array(masks.visible(s, s, window))[0, 0]
  assert ["".join(str(int(v)) for v in row) for row in got] == want


def softmax_attention(q, k, v, mask, cap):
  heads, groups = q.shape[2], k.shape[2]
  k, v = (np.repeat(x, heads // groups, axis=2).astype(np.float64) for x in (k, v))
  logits = np.einsum("blhd,bshd->bhls", q.astype(np.float64), k)
  logits = cap * np.tanh(logits / cap) if cap else logits
  logits = np.where(mask, logits, -np.inf)
  p = np.exp(logits - logits.max(-1, keepdims=True))
  return np.einsum("bhls,bshd->blhd", p / p.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("heads, groups, cap", [(4, 4, 0.0), (6, 2, 0.0), (4, 1, 2.0)])
def test_attend_is_softmax_attention(heads, groups, cap):
  rng = np.random.default_rng(0)
  q = rng.normal(size=(2, 5, heads, 8)).astype(np.float32)
  k, v = (rng.normal(size=(2, 7, groups, 8)).astype(np.float32) for _ in range(2))
  mask = rng.random((2, 1, 5, 7)) < 0.6
  mask[..., 0] = True
  got = attention.attend(q, k, v, mask, cap)
  np.testing.assert_allclose(got, softmax_attention(q, k, v, mask, cap), atol=2e-6)


def test_einsum_in_bf16_accumulates_and_differentiates_in_f32():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(64, 512)), jnp.bfloat16)
  w = jnp.asarray(rng.normal(size=(512, 16)), jnp.float32)
  exact = np.array(x, np.float64) @ np.array(w.astype(jnp.bfloat16), np.float64)
  y = dense.einsum("bd,de->be", x, w)
  assert y.dtype == jnp.bfloat16
  # One rounding of the exact sum, not one per addition.
  np.testing.assert_allclose(np.array(y, np.float64), exact, rtol=2**-8, atol=1e-4)
  grad = jax.grad(lambda w: dense.einsum("bd,de->be", x, w).astype(jnp.float32).sum())(w)
  assert grad.dtype == jnp.float32
  want = np.array(x, np.float64).sum(0)[:, None].repeat(16, 1)
  np.testing.assert_allclose(grad, want, rtol=1e-5, atol=1e-4)


def test_rope_keeps_only_relative_positions():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))

  def dot(i, j):
    a = rope.rotate(q, *rope.tables(jnp.array([[i]]), 16, 10_000.0))
    b = rope.rotate(k, *rope.tables(jnp.array([[j]]), 16, 10_000.0))
    return float((a * b).sum())

  assert dot(3, 1) == pytest.approx(dot(10, 8), abs=1e-4)
  assert dot(3, 1) != pytest.approx(dot(3, 2), abs=1e-2)
  np.testing.assert_allclose(rope.rotate(q, *rope.tables(jnp.array([[0]]), 16, 1e4)), q, atol=1e-6)


def test_norms_compute_in_f32_and_answer_in_the_compute_dtype():
  x = jnp.asarray(1000 + np.random.default_rng(0).normal(size=(4, 256)), jnp.bfloat16)
  for cls, centre in ((norms.LayerNorm, True), (norms.RMSNorm, False)):
    layer = cls(dtype=jnp.bfloat16)
    y = layer.apply(layer.init(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16
    z = np.array(x, np.float64)
    z = z - z.mean(-1, keepdims=True) if centre else z
    want = z / np.sqrt((z**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(np.array(y, np.float64), want, rtol=2**-7, atol=1e-3)


def test_rms_scale_starts_at_zero_and_means_one_plus():
  x = jnp.ones((1, 4)) * 3
  layer = norms.RMSNorm()
  params = layer.init(jax.random.key(0), x)
  assert not params["params"]["scale"].any()
  np.testing.assert_allclose(
    layer.apply({"params": {"scale": jnp.ones(4)}}, x), 2 * np.ones((1, 4))
  )


def stack(mode, remat="none", dropout=0.0):
  s = blocks.LayerSpec(16, 2, 24, 2, 8, 0.3, rope_base=100.0, norm="rms", dropout=dropout)
  groups = (((blocks.Kind(2), blocks.Kind()), 2), ((blocks.Kind(),), 1))
  return blocks.Stack(s, groups, mode, remat)


def stack_inputs():
  s = spec([1] * 6, [1] * 6)
  seen = {w: masks.visible(s, s, w) for w in (0, 2)}
  x = jax.random.normal(jax.random.key(1), (1, 6, 16))
  return x, blocks.Ctx(jnp.arange(6)[None], seen)


@pytest.mark.parametrize("mode, remat", [("scan", "none"), ("scan", "dots"), ("loop", "full")])
def test_a_stack_gives_the_same_numbers_whatever_way_it_runs(mode, remat):
  x, ctx = stack_inputs()
  base, other = stack("loop"), stack(mode, remat)
  params = jax.jit(base.init)(jax.random.key(0), x, ctx)
  same = jax.jit(other.init)(jax.random.key(0), x, ctx)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, same))
  assert params["params"]["g0"]["b1"]["attn"]["q"]["kernel"].shape == (2, 16, 2, 8)

  def loss(module):
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(module.apply(p, x, ctx)[0] ** 3)))

  want, want_grad = loss(base)(params)
  got, got_grad = loss(other)(params)
  assert got == pytest.approx(float(want), rel=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got_grad, want_grad
  )


@pytest.mark.parametrize("mode", ["loop", "scan"])
def test_dropout_acts_only_in_training_and_differs_by_layer_and_key(mode):
  x, ctx = stack_inputs()
  module = stack(mode, dropout=0.5)
  params = module.init(jax.random.key(0), x, ctx)

  def run(key, train):
    ctx_ = ctx.replace(train=train)
    return module.apply(params, x, ctx_, rngs={"dropout": jax.random.key(key)})[0]

  np.testing.assert_array_equal(run(0, False), run(1, False))
  np.testing.assert_array_equal(run(0, True), run(0, True))
  assert jnp.abs(run(0, True) - run(1, True)).max() > 1e-3


@pytest.mark.parametrize("rows", [12, 1])
def test_attention_in_parts_is_attention(monkeypatch, rows):
  rng = np.random.default_rng(3)
  shapes = ((2, 12, 4, 5), (2, 9, 2, 5), (2, 9, 2, 5))
  q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
  mask, bias = rng.random((2, 1, rows, 9)) < 0.7, rng.standard_normal((1, 4, rows, 9))

  def loss(*qkv):
    return jnp.sum(jnp.sin(attention.attend(*qkv, jnp.asarray(mask), 3.0, jnp.asarray(bias))))

  whole = jax.value_and_grad(loss, (0, 1, 2))(q, k, v)
  monkeypatch.setattr(attention, "_MOST", 2 * 4 * 9 * 5)  # Five queries do not divide twelve.
  assert attention._part(12, 2 * 4 * 9) == 4
  parts = jax.value_and_grad(loss, (0, 1, 2))(q, k, v)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)
