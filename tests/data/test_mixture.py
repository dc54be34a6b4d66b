"""Mixtures: proportions, names, errors."""

import numpy as np
import pytest

from bigvlm.data import mixture, sources


def memory(n: int, name: str = "m") -> sources.Memory:
  return sources.Memory([dict(n=i) for i in range(n)], name)


@pytest.mark.parametrize(
  "weights", [(1,), (1, 1), (0.7, 0.2, 0.1), (1, 1.005), (3, 1e-3), (1 / 3, 1 / 7, 2, 0.01, 5)]
)
def test_proportions_are_exact_over_any_window(weights):
  parts = mixture.integer_parts(weights)
  n = 100_000
  picks = np.array([mixture.locate(k, parts)[0] for k in range(n)])
  share = np.array(weights) / sum(weights)
  for begin, end in [(0, n), (0, 1000), (12_345, 13_345), (54_321, 99_999)]:
    counts = np.bincount(picks[begin:end], minlength=len(weights))
    slack = 2 + 1e-5 * (end - begin)
    np.testing.assert_array_less(np.abs(counts - share * (end - begin)), slack)
  counts = np.bincount(picks, minlength=len(weights))
  np.testing.assert_allclose(counts / n, share, rtol=0.01, atol=2 / n)


def test_each_source_gives_its_draws_in_order_without_gaps():
  parts = mixture.integer_parts((0.5, 0.3, 0.2))
  seen = {0: [], 1: [], 2: []}
  for k in range(2000):
    source, draw = mixture.locate(k, parts)
    seen[source].append(draw)
  for draws in seen.values():
    assert draws == list(range(len(draws)))


def test_far_positions_are_as_quick_and_exact():
  parts = mixture.integer_parts((0.7, 0.3))
  far = 10**14
  picks = [mixture.locate(far + k, parts) for k in range(1000)]
  assert sum(source for source, _ in picks) in (299, 300, 301)
  assert all(abs(draw - (0.7, 0.3)[source] * far) < 1000 for source, draw in picks)


def test_weights_become_small_integers():
  assert mixture.integer_parts((0.7, 0.2, 0.1)) == (7, 2, 1)
  assert mixture.integer_parts((2.0, 2.0)) == (1, 1)
  assert min(mixture.integer_parts([1 / p for p in (3, 7, 11, 13, 17, 19, 23, 29)] + [1e-9])) == 1


def test_make():
  cfg = dict(
    sources=[
      dict(kind="memory", examples=[dict(n=0)] * 4, weight=3.0),
      dict(kind="memory", examples=[dict(n=0)], ops=(dict(op="keep", fields=("n",)),)),
      dict(kind="memory", examples=[dict(n=0)], name="own"),
    ]
  )
  mixed = mixture.make(cfg)
  assert mixed.names == ["memory", "memory#2", "own"]
  assert mixed.parts == (3, 1, 1) and len(mixed) == 6
  assert len(mixed.chains[1].ops) == 1
  assert mixture.make(mixed) is mixed


@pytest.mark.parametrize(
  "make,text",
  [
    (lambda: mixture.make(dict(sources=())), "data.sources is empty"),
    (lambda: mixture.make(dict(sources=("memory",))), "holds a str; want dict"),
    (lambda: mixture.Mixture([memory(3)], [0.0]), "source 'm': weight=0.0 must be above 0"),
    (lambda: mixture.Mixture([memory(3)], [float("nan")]), "weight=nan must be above 0"),
    (lambda: mixture.Mixture([memory(0, "none")]), "source 'none' has no examples"),
    (lambda: mixture.Mixture([memory(1)], [1, 2]), "1 sources, 2 weights"),
  ],
)
def test_errors(make, text):
  with pytest.raises(ValueError, match=text):
    make()
