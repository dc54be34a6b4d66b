"""Rotary embeddings: parts of a head, several axes of positions, longer texts."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.layers import rope

DIM, BASE = 16, 100.0
PLAIN = BASE ** (-np.arange(0, DIM, 2) / DIM)


def angles(positions, how, dim=DIM):
  cos, sin = rope.tables(jnp.asarray(positions), dim, BASE, 1.0, how)
  return np.arctan2(sin, cos)


@pytest.mark.parametrize(
  "share, freq",
  [
    ("on", PLAIN),
    ("again", np.concatenate([BASE ** (-np.arange(0, DIM, 4) / DIM)] * 2)),
    ("turns", np.concatenate([PLAIN[::2], PLAIN[1::2]])),
  ],
)
def test_axes_have_their_own_pairs_and_share_the_frequencies(share, freq):
  how = rope.Rotary(sections=(4, 4), share=share)
  positions = np.random.default_rng(0).integers(0, 3, (2, 5, 2))
  want = np.concatenate([positions[..., :1] * freq[:4], positions[..., 1:] * freq[4:]], -1)
  np.testing.assert_allclose(angles(positions, how), want, atol=1e-5)


def test_equal_axes_are_one_axis():
  positions = np.arange(7)[None]
  three = np.repeat(positions[..., None], 3, axis=-1)
  how = rope.Rotary(sections=(2, 3, 3))
  for given in (positions, three):
    np.testing.assert_allclose(angles(given, how), angles(positions, rope.PLAIN), atol=1e-6)


def test_sections_that_are_not_the_head_are_refused():
  with pytest.raises(ValueError, match=r"\(2, 3\).*8 pairs"):
    rope.turns(DIM, BASE, 1.0, rope.Rotary(sections=(2, 3)))


def test_a_part_of_the_head_stays_as_it_is():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 2, DIM)), jnp.float32)
  part = rope.tables(jnp.arange(3)[None], DIM, BASE, 1.0, rope.Rotary(dim=6))
  small = rope.tables(jnp.arange(3)[None], 6, BASE)
  y = rope.rotate(x, *part)
  np.testing.assert_array_equal(y[..., 6:], x[..., 6:])
  np.testing.assert_allclose(y[..., :6], rope.rotate(x[..., :6], *small), atol=1e-6)


def test_llama3_keeps_fast_frequencies_and_divides_slow_ones():
  how = rope.Rotary(kind="llama3", factor=8.0, low=1.0, high=4.0, length=64)
  freq = rope.turns(DIM, BASE, 1.0, how).freq
  rounds = 64 * PLAIN / (2 * math.pi)
  np.testing.assert_allclose(freq[rounds > 4], PLAIN[rounds > 4], rtol=1e-6)
  np.testing.assert_allclose(freq[rounds < 1], PLAIN[rounds < 1] / 8, rtol=1e-6)
  between = (rounds > 1) & (rounds < 4)
  assert between.any()
  assert ((freq < PLAIN) & (freq > PLAIN / 8))[between].all()


def test_yarn_keeps_fast_frequencies_divides_slow_ones_and_scales():
  how = rope.Rotary(kind="yarn", factor=4.0, low=1.0, high=8.0, length=64, gain=1.2)
  freq = rope.turns(DIM, BASE, 1.0, how).freq
  assert freq[0] == pytest.approx(PLAIN[0]) and freq[-1] == pytest.approx(PLAIN[-1] / 4)
  ratio = freq / PLAIN
  assert (np.diff(ratio) < 1e-6).all() and len(np.unique(ratio.round(4))) > 2
  cos, sin = rope.tables(jnp.arange(3)[None], DIM, BASE, 1.0, how)
  np.testing.assert_allclose(cos**2 + sin**2, 1.44, rtol=1e-5)


def test_longrope_has_divisors_for_short_texts_and_for_long_ones():
  short, long = np.linspace(1, 2, DIM // 2), np.linspace(2, 9, DIM // 2)
  how = rope.rotary(dict(kind="longrope", length=4, short=list(short), long=list(long)))
  for last, divisors in ((3, short), (4, long)):
    positions = np.array([[0, 1, last]])
    want = positions[..., None] * PLAIN / divisors
    turn = np.exp(1j * angles(positions, how))
    np.testing.assert_allclose(turn, np.exp(1j * want), atol=1e-5)


def test_divisors_that_are_not_the_head_are_refused():
  with pytest.raises(ValueError, match="3 short and 0 long divisors for the 8 pairs"):
    rope.turns(DIM, BASE, 1.0, rope.Rotary(kind="longrope", length=4, short=(1.0,) * 3))


@pytest.mark.parametrize(
  "given, message",
  [
    (dict(dims=3), "unknown field of rotary 'dims'.*'dim'"),
    (dict(kind="ntk"), "unknown rotary.kind 'ntk'.*'yarn'"),
    (dict(share="none"), "unknown rotary.share 'none'.*'again'"),
  ],
)
def test_a_config_that_says_something_else_is_refused(given, message):
  with pytest.raises(ValueError, match=message):
    rope.rotary(given)
