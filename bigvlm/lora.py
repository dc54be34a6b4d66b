"""Low-rank adapters (LoRA, arXiv 2106.09685).

An adapter is leaves beside the `kernel` of a `dense.Linear`, and the layer uses them when they are
there: y = kernel x + lora_scale * lora_b lora_a dropout(x).

    lora_a       float32 [*stack, *in, rank]
    lora_b       float32 [*stack, rank, *out]    zero at the start
    lora_scale   float32 [*stack]                alpha / rank; never trained
    lora_dropout float32 [*stack]                only where there is a dropout; never trained

The rest of the tree is untouched, so that a model without adapters is what it was, bit for bit.
Files with the names of PEFT: `save_peft` and `load_peft`.
"""

import math
import pathlib
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bigvlm.utils import tree as tree_lib

A, B, SCALE, DROPOUT = "lora_a", "lora_b", "lora_scale", "lora_dropout"
# What trains unless a stage says otherwise.
TRAINED = (r".*/lora_[ab]",)
_LEAF = re.compile(r"(?:(.*)/)?(lora_(?:a|b|scale|dropout))")
_STACKED = re.compile(r"(?:.*/)?g\d+/b\d+/.*")
# Kernels of more than two axes: how many of them are inputs.
_INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "patch": 3}


def is_leaf(name: str) -> bool:
  """Whether a parameter belongs to an adapter."""
  return _LEAF.fullmatch(name) is not None


def is_constant(name: str) -> bool:
  """Whether a parameter is the scale or the dropout of an adapter, which no training changes."""
  return is_leaf(name) and name.rsplit("/", 1)[-1] in (SCALE, DROPOUT)


def modules(params: Any) -> list[str]:
  """Names of the modules with an adapter."""
  return [n.rpartition("/")[0] for n in tree_lib.names(params) if n.rsplit("/", 1)[-1] == A]


def refuse(params: Any, what: str) -> None:
  """Raises ValueError where there are adapters, which `what` has no place for."""
  found = modules(params)
  if found:
    raise ValueError(
      f"{what} has no place for the LoRA adapter of {found[0]} (and {len(found) - 1} more): merge "
      "them (bigvlm.lora.merge), or write them alone (bigvlm.lora.save_peft)"
    )


def axes(module: str, rank: int) -> tuple[int, int]:
  """How many of the `rank` axes of a module's kernel are layers (0 or 1), and how many inputs.

  Raises:
    ValueError: the kernel is none of a linear layer.
  """
  stack = 1 if _STACKED.fullmatch(module) else 0
  if rank - stack == 2:
    return stack, 1
  inputs = _INPUTS.get(module.rsplit("/", 1)[-1], 0)
  if not 0 < inputs < rank - stack:
    raise ValueError(f"{module}/kernel, of {rank} axes, is no linear layer that takes an adapter")
  return stack, inputs


def find(params: Any, targets: Iterable[str], what: str = "targets") -> list[str]:
  """The modules with a kernel whose name (or whose kernel's name) a pattern matches whole.

  Raises:
    ValueError: a pattern that matches none (tells the nearest names); a kernel of no linear layer.
  """
  shapes = tree_lib.flatten(params)
  known = [n.removesuffix("/kernel") for n in shapes if n.endswith("/kernel")]
  hit: set[str] = set()
  for pattern in (targets,) if isinstance(targets, str) else tuple(targets):
    try:
      regex = re.compile(pattern)
    except re.error as e:
      raise ValueError(f"{what}: {pattern!r} is no regular expression: {e}") from None
    found = [n for n in known if regex.fullmatch(n) or regex.fullmatch(f"{n}/kernel")]
    if not found:
      tree_lib.match(known, [pattern], what)  # Says which names are near.
    hit.update(found)
  if not hit:
    raise ValueError(f"{what} is empty: name modules such as '.*/attn/[qv]'")
  for name in hit:
    axes(name, shapes[f"{name}/kernel"].ndim)
  return [n for n in known if n in hit]


def add(
  params: Any,
  rank: int,
  targets: Iterable[str],
  *,
  rng: jax.Array,
  alpha: float | None = None,
  dropout: float = 0.0,
  what: str = "targets",
) -> dict:
  """Parameters with adapters that change nothing yet: `lora_b` is zero. Traceable.

  Args:
    params: tree of parameters.
    rank: of the adapters.
    targets: regexes over names of modules (`decoder/blocks/g0/b0/attn/q`) or of their kernels.
    rng: key; a module's adapter depends on it and on the module's name alone.
    alpha: the scale is alpha / rank; None = rank.
    dropout: of what an adapter sees, in training.
    what: where `targets` stand, for errors.

  Raises:
    ValueError: see `find`; a rank, alpha or dropout out of range; a module with an adapter.
  """
  if rank < 1:
    raise ValueError(f"the rank of an adapter is at least 1, not {rank}")
  if not 0.0 <= dropout < 1.0:
    raise ValueError(f"the dropout of an adapter is at least 0 and below 1, not {dropout}")
  alpha = float(rank if alpha is None else alpha)
  if not (alpha > 0.0 and math.isfinite(alpha)):
    raise ValueError(f"the alpha of an adapter is above 0, not {alpha}")
  flat = tree_lib.flatten(params)
  for name in find(params, targets, what):
    if f"{name}/{A}" in flat:
      raise ValueError(f"{name} has an adapter; merge it (bigvlm.lora.merge) before adding another")
    shape = flat[f"{name}/kernel"].shape
    stack, inputs = axes(name, len(shape))
    lead, ins, outs = shape[:stack], shape[stack : stack + inputs], shape[stack + inputs :]
    key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
    # What torch's linear layers, and so PEFT's, start from.
    bound = 1.0 / math.sqrt(math.prod(ins))
    a = jax.random.uniform(key, (*lead, *ins, rank), jnp.float32, -bound, bound)
    leaves = {A: a, B: jnp.zeros((*lead, rank, *outs), jnp.float32)}
    leaves[SCALE] = jnp.full(lead, alpha / rank, jnp.float32)
    if dropout:
      leaves[DROPOUT] = jnp.full(lead, dropout, jnp.float32)
    flat |= {f"{name}/{leaf}": x for leaf, x in leaves.items()}
  return tree_lib.unflatten(flat)


def strip(params: Any) -> dict:
  """Parameters without adapters, as if there had been none."""
  return tree_lib.unflatten({n: x for n, x in tree_lib.flatten(params).items() if not is_leaf(n)})


def merge(params: Any) -> tuple[dict, dict[str, Any]]:
  """Parameters without adapters, whose kernels do what kernel and adapter did together.

  A kernel becomes kernel + scale * a @ b, computed in float32 and rounded once, to its own dtype.

  Returns:
    (parameters, {name: leaf} of the kernels and adapters that were there: what `unmerge` takes).
  """
  flat = tree_lib.flatten(params)
  kept = {n: x for n, x in flat.items() if is_leaf(n)}
  out = {n: x for n, x in flat.items() if n not in kept}
  for name in modules(params):
    kernel = kept[f"{name}/kernel"] = flat[f"{name}/kernel"]
    stack, _ = axes(name, kernel.ndim)
    out[f"{name}/kernel"] = _merged(kernel, *(flat[f"{name}/{n}"] for n in (A, B, SCALE)), stack)
  return tree_lib.unflatten(out), kept


def _merge(kernel, a, b, scale, stack):
  lead, rank = kernel.shape[:stack], a.shape[-1]
  a = a.astype(jnp.float32).reshape(*lead, -1, rank)
  b = b.astype(jnp.float32).reshape(*lead, rank, -1)
  delta = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST) * scale[..., None, None]
  return (kernel.astype(jnp.float32) + delta.reshape(kernel.shape)).astype(kernel.dtype)


_merged = jax.jit(_merge, static_argnums=4)


def unmerge(params: Any, kept: Mapping[str, Any]) -> dict:
  """What `merge` was given, byte for byte, with whatever else changed since in `params`.

  Raises:
    ValueError: `kept` is of another model.
  """
  flat = tree_lib.flatten(params)
  for name, x in kept.items():
    if not is_leaf(name) and (name not in flat or flat[name].shape != x.shape):
      raise ValueError(f"unmerge: these parameters have no {name} {list(x.shape)}")
  return tree_lib.unflatten({**flat, **kept})


def save_peft(model: Any, directory: str | pathlib.Path, *, base: str | None = None) -> None:
  """Writes the adapters alone, as PEFT does: `adapter_config.json`, `adapter_model.safetensors`.

  Args:
    model: a model of `bigvlm.load` with adapters in its parameters, or the workdir of a run.
    directory: made if it is not there.
    base: name or path of the model they belong to; by default what `model` was loaded from.

  Raises:
    ValueError: no adapters, or one of a module that transformers does not have by itself.
  """
  from bigvlm.hub import peft

  peft.save(model, directory, base)


def load_peft(model: Any, directory: str | pathlib.Path, *, verify: str = "full") -> Any:
  """The model with the adapters of a directory that PEFT or `save_peft` wrote.

  Args:
    model: a model of `bigvlm.load`; it stays as it is.
    directory: with `adapter_config.json` and `adapter_model.safetensors`.
    verify: "full", "sample" or "off": digests of what we wrote.

  Raises:
    ValueError: an adapter of another kind or with parts that are not here (DoRA, biases, whole
      modules); tensors that the model has no module for; another shape; a damaged file.
  """
  from bigvlm.hub import peft

  return peft.load(model, directory, verify)
