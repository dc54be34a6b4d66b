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

import tests.parity.torchvision_ops  # noqa: F401
from bigvlm.ckpt import transfer
from bigvlm.hub import decoding
from bigvlm.objectives import lm
from tests.parity import reference

_BOUND = 1e-4
_NEARBY = 4  # Runs of the reference that say how far its own float32 is off.
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


def exactly(made: tuple[Any, dict, dict], labels: np.ndarray, old: bool) -> tuple[float, dict]:
  """`theirs` in float64."""
  with reference.wide_softmax():
    return theirs((copy.deepcopy(made[0]).double(), *made[1:]), labels, old)


def nearby(
  made: tuple[Any, dict, dict], labels: np.ndarray, old: bool, seed: int
) -> tuple[float, dict]:
  """`theirs` of weights that are, at random, one float32 up or down."""
  import torch

  model = copy.deepcopy(made[0])
  rng = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in model.parameters():
      ends = torch.randint(0, 2, p.shape, generator=rng).to(p.dtype) * 2 - 1
      p.copy_(torch.nextafter(p, ends * torch.inf))
  return theirs((model, *made[1:]), labels, old)


def theirs(made: tuple[Any, dict, dict], labels: np.ndarray, old: bool) -> tuple[float, dict]:
  """The reference's loss, and its gradients under the names of a checkpoint's tensors."""
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


def errors(
  made: tuple[Any, dict, dict], model: Any, old: bool
) -> tuple[dict[str, float], list[str]]:
  """Relative errors, of the loss and the largest of any gradient, and what is beyond its bound.

  A gradient is measured against its largest entry, or a thousandth of the largest of all: some are
  zero but for rounding, e.g. those of key biases. Where that is beyond the bound, the reference's
  float64 says what is right, and its float32 how well that can be known: a gate's one number is
  a sum of thousands that cancel. The bound of a tensor is then three times the reference's own
  error, the largest of some runs (`nearby`), if that is more.
  """
  labels = answers(made[1])
  mine = ours(model, made[1], labels)
  off = _errors(mine, theirs(made, labels, old))
  bounds = dict.fromkeys(off, _BOUND)
  if any(not e <= _BOUND for e in off.values()):
    exact = exactly(made, labels, old)
    off = _errors(mine, exact)
    noise = [_errors(nearby(made, labels, old, seed), exact) for seed in range(_NEARBY)]
    bounds = {k: max(_BOUND, *(3 * run[k] for run in noise)) for k in off}
  loss = off.pop("loss")
  failed = [f"loss: {loss:.1e}"] if not loss <= bounds["loss"] else []
  failed += [
    f"gradient of {k}: {e:.1e}, bound {bounds[k]:.1e}" for k, e in off.items() if not e <= bounds[k]
  ]
  return dict(loss=loss, gradients=float(np.max(list(off.values())))), failed


def _errors(mine: tuple[float, dict], reference: tuple[float, dict]) -> dict[str, float]:
  """Of the loss, under that name, and of every tensor's gradient."""
  (found, grads), (loss, wanted) = mine, reference
  floor = 1e-3 * max(np.abs(g).max() for g in wanted.values())
  return dict(loss=abs(found - loss) / abs(loss)) | {
    k: float(np.abs(grads[k] - g).max() / max(np.abs(g).max(), floor)) for k, g in wanted.items()
  }


def main() -> int:
  import bigvlm
  from tests.parity.recipes import RECIPES

  bad = 0
  for name, seed in zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True):
    made, old = RECIPES[name](seed), seed % 2 == 1
    with tempfile.TemporaryDirectory() as folder:
      reference.save(made, pathlib.Path(folder), old=old)
      model = bigvlm.load(folder)
      if resampled(model, made[1]):
        print(name, seed, "position table made anew: no gradients to compare", flush=True)
        continue
      found, failed = errors(made, model, old)
    bad += bool(failed)
    row = [*(f"{k} {e:.1e}" for k, e in found.items()), *failed]
    print(name, seed, ", ".join(row), flush=True)
  return 1 if bad else 0


if __name__ == "__main__":
  raise SystemExit(main())
