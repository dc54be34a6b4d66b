"""Matrix products with one dtype policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.layers import dense


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_products_with_the_table(rows, dtype):
  x = jax.random.normal(jax.random.key(0), (rows, 1, 8)).astype(dtype)
  table = jax.random.normal(jax.random.key(1), (5, 8)).astype(dtype)
  got = jax.jit(dense.scores)(x, table)
  assert got.dtype == jnp.float32 and got.shape == (rows, 1, 5)
  want = np.einsum("bkd,vd->bkv", *(np.asarray(a, np.float64) for a in (x, table)))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_a_row_are_those_it_has_among_others(dtype):
  x = jax.random.normal(jax.random.key(0), (3, 1, 8)).astype(dtype)
  table = jax.random.normal(jax.random.key(1), (5, 8))  # In float32, whatever is computed in.
  many = jax.jit(dense.scores)(x, table)
  single = jnp.concatenate([jax.jit(dense.scores)(row[None], table) for row in x])
  np.testing.assert_allclose(single, many, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("eq", "a", "b"),
  [
    ("bld,dhk->blhk", (2, 3, 4), (4, 5, 6)),
    ("blkgh,bskh->bklgs", (2, 3, 4, 5, 6), (2, 7, 4, 6)),
    ("bklgs,bskh->bklgh", (2, 4, 3, 5, 7), (2, 7, 4, 6)),
    ("bhwnc,wkc->bnhwk", (2, 3, 4, 5, 6), (4, 7, 6)),
    ("vd,bkd->bkv", (5, 4), (2, 3, 4)),
    ("blf,bld->df", (2, 3, 4), (2, 3, 5)),
  ],
)
def test_a_product_is_that_of_its_equation(eq, a, b):
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal(a), rng.standard_normal(b)
  for dtype in (jnp.float32, jnp.bfloat16):
    x, y = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    got = dense.product(eq, x, y)
    assert got.dtype == jnp.float32
    want = np.einsum(eq, *(np.asarray(z, np.float64) for z in (x, y)))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    # Which operand goes first decides whether the result has to be transposed.
    theirs = jax.make_jaxpr(lambda x, y: jnp.einsum(eq, x, y, preferred_element_type="float32"))
    ours = jax.make_jaxpr(lambda x, y: dense.product(eq, x, y))
    assert str(ours(x, y)).count("transpose[") <= str(theirs(x, y)).count("transpose[")


def test_a_product_sums_over_no_index_of_one_operand():
  with pytest.raises(ValueError, match="bld,de->be: an index is neither in the other operand nor"):
    dense.product("bld,de->be", jnp.ones((2, 3, 4)), jnp.ones((4, 5)))


def random(**shapes):
  rng = np.random.default_rng(1)
  return {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in shapes.items()}


@pytest.mark.parametrize(("rows", "dtype"), [(1, "float32"), (3, "float32"), (1, "bfloat16")])
@pytest.mark.parametrize(
  ("eq", "x", "shape", "out_dims"),
  [("bld,df->blf", (2, 8), (8, 5), 1), ("bld,dhk->blhk", (2, 8), (8, 3, 4), 2)]
  + [("blhk,hkd->bld", (2, 3, 4), (3, 4, 5), 1), ("bd,de->be", (8,), (8, 5), 1)]
  + [("blhk,hkd->bld", (1, 3, 4), (3, 4, 5), 1), ("bld,dhk->blhk", (1, 8), (8, 3, 4), 2)],
)
def test_a_linear_map_reads_its_kernel_turned(eq, x, shape, out_dims, rows, dtype):
  layer = dense.Linear(eq, shape, out_dims, bias=True, dtype=dtype, param_dtype=dtype)
  x = jax.random.normal(jax.random.key(0), (rows, *x)).astype(dtype)
  params = jax.tree.map(lambda p: p.astype(dtype), random(kernel=shape, bias=shape[-out_dims:]))
  turned = jax.jit(dense.turned)({"a": params})["a"]
  assert turned["turned"].shape == shape[::-1] and "kernel" not in turned
  want = layer.apply({"params": params}, x)
  got = jax.jit(lambda p: layer.apply({"params": p}, x))(turned)
  assert got.dtype == want.dtype and got.shape == want.shape
  near = 1e-5 if dtype == "float32" else 1e-2  # A rounding to bfloat16 that falls the other way.
  np.testing.assert_allclose(*(np.asarray(y, np.float32) for y in (got, want)), near, near)


def test_an_adapter_stays_beside_a_turned_kernel():
  layer = dense.Linear("bld,df->blf", (8, 5), bias=True)
  x = jax.random.normal(jax.random.key(0), (2, 1, 8))
  params = random(kernel=(8, 5), bias=(5,), lora_a=(8, 2), lora_b=(2, 5), lora_scale=())
  want = layer.apply({"params": params}, x)
  got = layer.apply({"params": dense.turned(params)}, x)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
