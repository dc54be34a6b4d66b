"""Loss and gradients of one step against the reference's, for decoders.

Usage: python -m tests.parity.gradients NAME SEED ...
"""

import copy
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from bigvlm.ckpt import transfer
from bigvlm.hub import decoding
from bigvlm.objectives import lm
from tests.parity import reference

BOUND = 1e-4
_ANSWER = 3  # Tokens at the end of every row that are learnt.


def answers(inputs: dict[str, np.ndarray]) -> np.ndarray:
  """Labels int64 [B, T] as transformers takes them: the last tokens of a row, else -100.

  Of an encoder-decoder the tokens that its decoder reads, which says again what it has just read.
  """
  if "decoder_input_ids" in inputs:
    return np.where(inputs["decoder_attention_mask"] > 0, inputs["decoder_input_ids"], -100)
  mask = inputs["attention_mask"]
  last = (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] <= _ANSWER) & (mask > 0)
  return np.where(last, inputs["input_ids"], -100)


def theirs(
  made: tuple[Any, dict, dict], labels: np.ndarray, old: bool, exact: bool = False
) -> tuple[float, dict]:
  """The reference's loss, and its gradients under the names of a checkpoint's tensors.

  `exact` computes them in float64.
  """
  if exact:
    with reference.wide_softmax():
      return _theirs((copy.deepcopy(made[0]).double(), *made[1:]), labels, old)
  return _theirs(made, labels, old)


def _theirs(made: tuple[Any, dict, dict], labels: np.ndarray, old: bool) -> tuple[float, dict]:
  import torch

  model, inputs, options = made
  model = copy.deepcopy(model)
  given = reference.tensors(inputs | dict(labels=labels), next(model.parameters()).dtype)
  if getattr(model.config, "additional_vocab_size", 0):  # Its own loss forgets those.
    labels = given.pop("labels")[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(model(**given).logits[:, :-1].flatten(0, 1), labels)
  else:
    loss = model(**given).loss
  loss.backward()
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
  with tempfile.TemporaryDirectory() as folder:
    reference.save((model, inputs, options), pathlib.Path(folder), old=old)
    return float(loss.detach()), load_file(pathlib.Path(folder) / "model.safetensors")


def resampled(model: Any, inputs: dict[str, np.ndarray]) -> bool:
  """Whether pictures are of another size than the position table, which is then made anew."""
  batch = decoding.BATCHES[model.system.inputs](model, inputs, False)
  return model.params_for(batch) is not model.params


def ours(model: Any, inputs: dict[str, np.ndarray], labels: np.ndarray) -> tuple[float, dict]:
  """The same of a `HubModel`."""
  batch = decoding.BATCHES[model.system.inputs](model, inputs, False)
  wanted = labels
  if batch.target is None:
    wanted = np.concatenate([labels[:, 1:], np.full_like(labels[:, :1], -100)], axis=1)
  weights = (wanted != -100).astype(np.float32)
  batch = batch.replace(labels=np.where(wanted < 0, 0, wanted).astype(np.int32), weights=weights)
  objective = lm.PrefixLM(normalize="token")

  def loss(params: Any) -> jax.Array:
    return objective(model.module.apply({"params": params}, batch), batch)[0]

  value, grads = jax.jit(jax.value_and_grad(loss))(model.params)
  found = transfer.export(model.system.map, grads, model.origin)
  for name in model.origin.carried:  # What no forward pass reads has no gradient in the reference.
    found[model.origin.names[name]] = np.zeros_like(found[model.origin.names[name]])
  return float(value), found


def errors(made: tuple[Any, dict, dict], model: Any, old: bool) -> dict[str, float]:
  """Relative error of the loss, and the largest of any gradient with the name of its tensor.

  A gradient is measured against its largest entry, or a thousandth of the largest of all: some are
  zero but for rounding, e.g. those of key biases. Where the reference in float32 is further away
  than the bound, its float64 says who is right.
  """
  inputs = made[1]
  labels = answers(inputs)
  mine = ours(model, inputs, labels)
  off = _errors(mine, theirs(made, labels, old))
  if not max(off.values()) <= BOUND:
    off = _errors(mine, theirs(made, labels, old, exact=True))
  return off


def _errors(mine: tuple[float, dict], reference: tuple[float, dict]) -> dict[str, float]:
  (found, grads), (loss, wanted) = mine, reference
  floor = 1e-3 * max(np.abs(g).max() for g in wanted.values())
  off = {
    k: float(np.abs(grads[k] - g).max() / max(np.abs(g).max(), floor)) for k, g in wanted.items()
  }
  worst = max(off, key=off.get)
  return {"loss": abs(found - loss) / abs(loss), f"gradients ({worst})": off[worst]}


def main() -> int:
  import bigvlm
  from tests.parity.recipes import RECIPES

  bad = 0
  for name, seed in zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True):
    made, old = RECIPES[name](seed), seed % 2 == 1
    with tempfile.TemporaryDirectory() as folder:
      reference.save(made, pathlib.Path(folder), old=old)
      found = errors(made, bigvlm.load(folder), old)
    bad += any(not e <= BOUND for e in found.values())
    print(name, seed, ", ".join(f"{k} {e:.1e}" for k, e in found.items()), flush=True)
  return 1 if bad else 0


if __name__ == "__main__":
  raise SystemExit(main())
