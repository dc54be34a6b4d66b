"""The losses as their papers write them, in float64 NumPy: the fixture `references`."""

import types

import numpy as np
import pytest


@pytest.fixture(scope="session")
def references():
  """Functions of this file by name."""
  return types.SimpleNamespace(embeddings=embeddings, sigmoid=sigmoid, softmax=softmax, lm=lm)


def embeddings(n: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Two sets of unit vectors float64 [n, width], pairs related."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, width))
  y = 0.5 * x + rng.normal(size=(n, width))
  return tuple(a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))


def sigmoid(x, y, scale, bias, valid):
  """(loss, dx, dy, dscale, dbias)."""
  keep = np.flatnonzero(valid)
  z = 2 * np.eye(len(keep)) - 1
  dots = x[keep] @ y[keep].T
  u = -z * (scale * dots + bias)
  g = -z / (1 + np.exp(-u)) / len(keep)
  return np.logaddexp(0, u).sum() / len(keep), *_scatter(g, x, y, scale, keep), g.sum()


def softmax(x, y, scale, valid):
  """(loss, dx, dy, dscale)."""
  keep = np.flatnonzero(valid)
  e = np.exp(scale * (x[keep] @ y[keep].T))
  rows, cols = e / e.sum(1, keepdims=True), e / e.sum(0, keepdims=True)
  loss = -np.log(np.diag(rows) * np.diag(cols)).sum() / (2 * len(keep))
  g = ((rows + cols) / 2 - np.eye(len(keep))) / len(keep)
  return loss, *_scatter(g, x, y, scale, keep)


def _scatter(g, x, y, scale, keep):
  dx, dy = np.zeros_like(x), np.zeros_like(y)
  dx[keep], dy[keep] = scale * g @ y[keep], scale * g.T @ x[keep]
  return dx, dy, (g * (x[keep] @ y[keep].T)).sum()


def lm(logits, labels, weights, smoothing, z_loss, normalize):
  """(loss, dlogits [B, K, V], nll [B, K])."""
  vocab = logits.shape[-1]
  lse = np.log(np.exp(logits).sum(-1, keepdims=True))
  one = np.eye(vocab)[labels]
  target = one * (1 - smoothing) + (1 - one) * smoothing / (vocab - 1)
  each = -(target * (logits - lse)).sum(-1) + z_loss * lse[..., 0] ** 2
  rows = weights.sum(1, keepdims=True)
  if normalize == "token":
    coef = weights / weights.sum()
  else:
    coef = np.where(rows > 0, weights / np.maximum(rows, 1e-30), 0) / (rows > 0).sum()
  p = np.exp(logits - lse)
  g = coef[..., None] * (p - target + 2 * z_loss * lse * p)
  return (coef * each).sum(), g, -(one * (logits - lse)).sum(-1)
