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
