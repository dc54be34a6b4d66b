"""Rotary embeddings in `config.json`, in both styles: `rope_parameters`, and `rope_theta` with
`rope_scaling`, in which version 4 kept what stretches them."""

import math
from collections.abc import Mapping
from typing import Any

from bigvlm.utils import names

_KINDS = ("default", "dynamic", "linear", "llama3", "longrope", "yarn")


def rotary(
  cfg: Mapping[str, Any],
  head_dim: int,
  *,
  theta: float = 10_000.0,
  part: float | None = None,
  length: int = 2048,
  layers: int = 1,
) -> dict[str, Any]:
  """Fields `rope_base`, `rope_scales` and `rotary` of a decoder.

  Args:
    cfg: the text config.
    head_dim: features of a head.
    part: of which turn, where the config does not say; None = all, whatever it says.
    theta: base, where the config does not say. length: the class's `max_position_embeddings`.
    layers: of a period of the decoder.

  Raises:
    ValueError: a kind of scaling that is not known, a field of it that is missing.
  """
  given = cfg.get("rope_scaling") or cfg.get("rope_parameters") or {}
  kind = given.get("rope_type") or given.get("type") or "default"
  if kind == "mrope":  # Several axes, as `mrope_section` says, and nothing else.
    kind = "default"
  if kind not in _KINDS:
    raise ValueError(names.unknown("rope_type in config.json", kind, _KINDS))
  base = given.get("rope_theta") or cfg.get("rope_theta") or theta
  how: dict[str, Any] = {}
  if part is not None:
    part = given.get("partial_rotary_factor", cfg.get("partial_rotary_factor", part))
  if part is not None and int(head_dim * part) != head_dim:
    how["dim"] = int(head_dim * part)
  if given.get("mrope_section"):
    how["sections"] = tuple(given["mrope_section"])
  trained = given.get("original_max_position_embeddings")
  longest = cfg.get("max_position_embeddings", length)
  trained = cfg.get("original_max_position_embeddings") or trained or longest
  scale = float(_need(given, "factor")) if kind == "linear" else 1.0
  if kind == "llama3":
    low, high = (_need(given, f"{name}_freq_factor") for name in ("low", "high"))
    factor = float(_need(given, "factor"))
    how |= dict(kind=kind, factor=factor, low=float(low), high=float(high), length=trained)
  elif kind == "yarn":
    how |= _yarn(given, trained, longest)
  elif kind == "longrope":
    how |= _longrope(given, trained, longest)
  elif kind == "dynamic":
    how |= dict(kind=kind, factor=float(_need(given, "factor")), length=longest)
  return dict(rope_base=float(base), rope_scales=(scale,) * layers, rotary=how)


def _need(given: Mapping[str, Any], name: str) -> Any:
  if given.get(name) is None:
    raise ValueError(f"config.json: the rotary scaling {dict(given)} lacks {name}")
  return given[name]


def _longrope(given: Mapping[str, Any], trained: int, longest: int) -> dict[str, Any]:
  factor, gain = float(given.get("factor") or longest / trained), given.get("attention_factor")
  if gain is None:
    gain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
  short, long = (tuple(map(float, _need(given, f"{name}_factor"))) for name in ("short", "long"))
  return dict(kind="longrope", length=trained, gain=float(gain), short=short, long=long)


def _yarn(given: Mapping[str, Any], trained: int, longest: int) -> dict[str, Any]:
  factor = float(given.get("factor") or longest / trained)

  def gain(strength: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0

  found = given.get("attention_factor")
  if found is None:
    over, under = given.get("mscale"), given.get("mscale_all_dim")
    found = gain(over) / gain(under) if over and under else gain(1.0)
  return dict(
    kind="yarn",
    factor=factor,
    low=float(given.get("beta_slow") or 1),
    high=float(given.get("beta_fast") or 32),
    length=trained,
    truncate=bool(given.get("truncate", True)),
    gain=float(found),
  )


def back(facts: Mapping[str, Any], decoder: str = "model.decoder") -> list[dict[str, Any]]:
  """The `rope_parameters` that are read as a decoder's rotary embedding.

  Args:
    facts: of the model, see `hub.describe.facts`. decoder: their prefix.

  Returns:
    One, or none for a decoder without one base for all of its layers.
  """
  names = "kind factor low high length dim sections gain truncate short long".split()
  how = {name: facts.get(f"{decoder}.rotary.{name}") for name in names}
  bases, scales = ({*facts.get(f"{decoder}.rope_{name}", ())} for name in ("bases", "scales"))
  if len(bases) != 1 or len(scales) != 1:
    return []
  out = dict(rope_type=how["kind"] or "default", rope_theta=bases.pop())
  if scales != {1.0}:
    out |= dict(rope_type="linear", factor=scales.pop())
  if how["kind"] in ("llama3", "yarn"):
    ends = dict(llama3=("low_freq_factor", "high_freq_factor"), yarn=("beta_slow", "beta_fast"))
    low, high = ends[how["kind"]]
    out |= {low: how["low"], high: how["high"], "original_max_position_embeddings": how["length"]}
  if how["kind"] == "yarn":
    out |= dict(attention_factor=how["gain"], truncate=how["truncate"])
  elif how["kind"] == "longrope":
    out |= {f"{name}_factor": list(how[name]) for name in ("short", "long")}
    out |= dict(attention_factor=how["gain"], original_max_position_embeddings=how["length"])
  if how["factor"] is not None:
    out["factor"] = how["factor"]
  if how["dim"]:
    out["partial_rotary_factor"] = how["dim"] / facts[f"{decoder}.head_dim"]
  if how["sections"]:
    out["mrope_section"] = list(how["sections"])
  return [out]
