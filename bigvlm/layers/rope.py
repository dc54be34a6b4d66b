"""Rotary position embedding (RoFormer, arXiv 2104.09864, section 3.4; half-split layout).

A part of the head may stay as it is, the frequencies may be stretched for longer texts, and the
features may be shared out among several axes of positions.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SHARES = ("on", "again", "turns")


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Beyond the plain embedding: which features turn, with which position and how fast.

  Attributes:
    dim: features of a head that turn, its first; 0 = all.
    sections: pairs of features for each axis of the positions; () = there is one axis.
    share: how the axes get their frequencies: "on" = one row of them is cut into the sections
      (M-RoPE, arXiv 2409.12191), "again" = every axis starts from the fastest, "turns" = they are
      dealt out one by one (Pixtral, arXiv 2410.07073).
    kind: how frequencies are stretched: "", "llama3" (arXiv 2407.21783), "yarn" (arXiv
      2309.00071), "dynamic" (by as much as the last position is beyond `length`; code of
      transformers) or "longrope" (arXiv 2402.13753).
    factor: by which the slow ones are divided.
    low, high: turns over the `length` positions below which a frequency is slow, and above which
      it stays as it is.
    length: positions that the model was trained for before it was stretched.
    truncate: of "yarn": the border features are whole numbers.
    gain: factor on cosine and sine.
    short, long: of "longrope": what each frequency is divided by, where the last position is within
      `length` and where it is beyond.
  """

  dim: int = 0
  sections: tuple[int, ...] = ()
  share: str = "on"
  kind: str = ""
  factor: float = 1.0
  low: float = 1.0
  high: float = 1.0
  length: int = 0
  truncate: bool = True
  gain: float = 1.0
  short: tuple[float, ...] = ()
  long: tuple[float, ...] = ()


PLAIN = Rotary()


def rotary(given: Mapping[str, Any]) -> Rotary:
  """A `Rotary` from the fields of a config.

  Raises:
    ValueError: an unknown field, kind or share.
  """
  known = Rotary.__dataclass_fields__
  for key in given:
    _check("field of rotary", key, known)
  found = Rotary(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
  _check("rotary.kind", found.kind, ("", *_STRETCH))
  _check("rotary.share", found.share, SHARES)
  return found


def _check(what: str, found: str, known: Iterable[str]) -> None:
  if found not in known:
    raise ValueError(f"unknown {what} {found!r}; known: {', '.join(map(repr, known))}")


class Turns(NamedTuple):
  """Angle of pair i of a head = position[axes[i]] * freq[i]; `freq` float32 [P], `axes` int [P]."""

  freq: np.ndarray
  axes: np.ndarray


def turns(dim: int, base: float, scale: float = 1.0, how: Rotary = PLAIN) -> Turns:
  """Frequencies and axes of the pairs of a head of `dim` features.

  Raises:
    ValueError: sections, or divisors of "longrope", that are not as many as pairs that turn.
  """
  dim = how.dim or dim
  count, axes = len(how.sections), np.repeat(np.arange(len(how.sections)), how.sections)
  if how.sections and len(axes) != dim // 2:
    raise ValueError(f"rotary sections {how.sections} are not the {dim // 2} pairs of the head")
  # On the host, rounded once: XLA's power is off by several units in the last place.
  steps = np.arange(0, dim, 2)
  if count and how.share == "again":
    steps = np.concatenate([np.arange(n) * 2 * count for n in how.sections])
  elif count and how.share == "turns":
    steps = np.concatenate([(np.arange(n) * count + a) * 2 for a, n in enumerate(how.sections)])
  freq = base ** (-steps / dim)
  if how.kind == "longrope" and {len(how.short), len(how.long)} != {len(freq)}:
    sizes = f"{len(how.short)} short and {len(how.long)} long"
    raise ValueError(f"rotary has {sizes} divisors for the {len(freq)} pairs of the head")
  if how.kind:
    freq = _STRETCH[how.kind](freq, base, dim, how)
  return Turns((freq / scale).astype(np.float32), axes if count else np.zeros(len(freq), int))


def _llama3(freq: np.ndarray, base: float, dim: int, how: Rotary) -> np.ndarray:
  rounds = how.length * freq / (2 * math.pi)
  keep = np.clip((rounds - how.low) / (how.high - how.low), 0, 1)
  return freq * (keep + (1 - keep) / how.factor)


def _yarn(freq: np.ndarray, base: float, dim: int, how: Rotary) -> np.ndarray:
  # The features that make `high` and `low` rounds; in between the two blend.
  first, last = (
    dim * math.log(how.length / (rounds * 2 * math.pi)) / (2 * math.log(base))
    for rounds in (how.high, how.low)
  )
  if how.truncate:
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, dim - 1)
  last += 1e-3 * (first == last)
  slow = np.clip((np.arange(len(freq)) - first) / (last - first), 0, 1)
  return freq * (1 - slow + slow / how.factor)


def _by_positions(freq: np.ndarray, base: float, dim: int, how: Rotary) -> np.ndarray:
  return freq  # What the positions do to it is known when they are: `tables`.


_STRETCH = {
  "dynamic": _by_positions,
  "llama3": _llama3,
  "longrope": _by_positions,
  "yarn": _yarn,
}


def tables(
  positions: jax.Array, dim: int, base: float, scale: float = 1.0, how: Rotary = PLAIN
) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine tables, float32 [B, L, P] for the P pairs that turn.

  Args:
    positions: int [B, L], or [B, L, A] for A axes; [B, L] stands for as many equal ones.
    dim: features of a head. base: of the frequencies.
    scale: divides the frequencies: position interpolation (arXiv 2306.15595).
    how: see `Rotary`.
  """
  freq, axes = turns(dim, base, scale, how)
  x = positions.astype(jnp.float32)
  if how.kind == "dynamic":
    over = how.factor * jnp.maximum(jnp.max(x) + 1, how.length) / how.length - (how.factor - 1)
    pairs = how.dim or dim
    freq = freq * over ** (-np.arange(0, pairs, 2, dtype=np.float32) / (pairs - 2))
  elif how.kind == "longrope":
    short, long = (np.asarray(freq / divisor, np.float32) for divisor in (how.short, how.long))
    freq = jnp.where(jnp.max(x) + 1 > how.length, long, short)
  angle = (x[..., None] if x.ndim == 2 else x[..., axes]) * freq
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return (cos, sin) if how.gain == 1.0 else (cos * how.gain, sin * how.gain)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Rotates heads x [B, L, H, dim]: feature i of the P pairs with i + P; x's dtype.

  Features behind the 2 P that turn stay as they are.
  """
  cos, sin = cos[:, :, None], sin[:, :, None]
  pairs = cos.shape[-1]
  a, b = (x[..., i : i + pairs].astype(jnp.float32) for i in (0, pairs))
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
  return turned if 2 * pairs == x.shape[-1] else jnp.concatenate([turned, x[..., 2 * pairs :]], -1)
