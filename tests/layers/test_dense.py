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


def random(**shapes):
  rng = np.random.default_rng(1)
  return {name: jnp.asarray(rng.standard_normal(s), jnp.float32) for name, s in shapes.items()}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
  ("eq", "x", "shape", "out_dims"),
  [("bld,df->blf", (2, 8), (8, 5), 1), ("bld,dhk->blhk", (2, 8), (8, 3, 4), 2)]
  + [("blhk,hkd->bld", (2, 3, 4), (3, 4, 5), 1), ("bd,de->be", (8,), (8, 5), 1)],
)
def test_a_linear_map_reads_its_kernel_turned(eq, x, shape, out_dims, rows):
  layer = dense.Linear(eq, shape, out_dims, bias=True)
  x = jax.random.normal(jax.random.key(0), (rows, *x))
  params = random(kernel=shape, bias=shape[-out_dims:])
  turned = jax.jit(dense.turned)({"a": params})["a"]
  assert turned["turned"].shape == shape[::-1] and "kernel" not in turned
  want = layer.apply({"params": params}, x)
  got = jax.jit(lambda p: layer.apply({"params": p}, x))(turned)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_adapter_stays_beside_a_turned_kernel():
  layer = dense.Linear("bld,df->blf", (8, 5), bias=True)
  x = jax.random.normal(jax.random.key(0), (2, 1, 8))
  params = random(kernel=(8, 5), bias=(5,), lora_a=(8, 2), lora_b=(2, 5), lora_scale=())
  want = layer.apply({"params": params}, x)
  got = layer.apply({"params": dense.turned(params)}, x)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
