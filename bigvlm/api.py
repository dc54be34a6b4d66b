"""The human side of a model: images and strings in, strings and arrays out.

The command line, the evaluators and notebooks all go through `Model`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bigvlm import beam, build, generate
from bigvlm.parallel import mesh as meshes
from bigvlm.types import to_batch

_BLANK = np.zeros((8, 8, 3), np.uint8)  # What stands for the side that is not asked for.


class Model:
  """A module with its parameters and its processor.

  In a run of several processes each passes its own examples and gets its own
  results back; all of them must make the same calls.

  Attributes:
    config: resolved config (`model`, `processor`, `dtype`).
    module: the Linen module. params: its parameters.
    processor: host-side processor; its `decode` turns ids into text.
    mesh: the mesh batches are cut over.
  """

  def __init__(
    self, config: Mapping[str, Any], module: nn.Module, params: Any, processor: Any, mesh: Mesh
  ):
    self.config = config
    self.module = module
    self.params = params
    self.processor = processor
    self.mesh = mesh
    self._cut: tuple[Any, tuple[nn.Module, Any]] | None = None

  def generate(
    self,
    images: Sequence[Any],
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    beams: int = 0,
    length_penalty: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
  ) -> list[str]:
    """Answers a prompt about each image.

    Args:
      images: encoded bytes, uint8 arrays [H, W, 3], PIL images or paths.
      prompts: as many strings.
      max_new_tokens: most tokens of an answer.
      temperature: 0 = greedy.
      beams: > 0 searches with so many hypotheses instead (`bigvlm.beam`); with a `length_penalty`
        only when asked.
      seed: of the sampling.
      batch_size: rows at a time, over all processes.

    Raises:
      ValueError: unequal numbers of images and prompts, a model without a decoder, or a search
        that samples.
    """
    self._needs("decoder", "generate")
    rows = [self.processor.prompt(e) for e in _examples(images, prefix=prompts)]
    module, params = self._decoding
    how = dict(max_new_tokens=max_new_tokens, eos=self.processor.tokenizer.eos)
    if beams and temperature:
      raise ValueError("beams do not sample; leave temperature alone")
    answers = []
    for n, (arrays, real) in enumerate(self._batches(rows, batch_size)):
      rng, batch = jax.random.fold_in(jax.random.key(seed), n), to_batch(arrays)
      if beams:
        search = dict(how, beams=beams, length_penalty=length_penalty)
        tokens = beam.search(module, params, batch, **search).tokens
      else:
        tokens = generate.generate(module, params, batch, rng, temperature=temperature, **how)
      ids = self._local(tokens)[:real]
      answers.extend(self.processor.decode(row) for row in ids)
    return answers

  def score(
    self,
    images: Sequence[Any],
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = 32,
  ) -> np.ndarray:
    """float32 [N]: log p(answer and end | image, prompt), summed over tokens."""
    self._needs("decoder", "score")
    rng = np.random.default_rng(0)
    examples = _examples(images, prefix=prompts, suffix=answers)
    return self._map(_log_prob, [self.processor(e, rng) for e in examples], batch_size)

  def embed_image(self, images: Sequence[Any], *, batch_size: int = 64) -> np.ndarray:
    """float32 [N, D], L2-normalised."""
    self._needs("text", "embed_image")
    rng = np.random.default_rng(0)
    rows = [self.processor(e, rng) for e in _examples(images, text=[""] * len(images))]
    return self._map(_embed_image, rows, batch_size)

  def embed_text(self, texts: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
    """float32 [N, D], L2-normalised."""
    self._needs("text", "embed_text")
    rng = np.random.default_rng(0)
    rows = [self.processor(e, rng) for e in _examples([_BLANK] * len(texts), text=texts)]
    return self._map(_embed_text, rows, batch_size)

  @property
  def _decoding(self) -> tuple[nn.Module, Any]:
    """The module of decoding, and the parameters cut for it; kept while they last."""
    if self._cut is None or self._cut[0] is not self.params:
      module = build.model(self.config["model"], dtype=self.config["dtype"], layers="scan")
      self._cut = (self.params, (module, generate.unstack(self.params)))
    return self._cut[1]

  def _needs(self, slot: str, call: str) -> None:
    if not hasattr(self.module, slot):
      kind = self.config["model"]["kind"]
      raise ValueError(f"{call} needs a model with a {slot} tower; model.kind is {kind!r}")

  def _map(self, fn: Callable, rows: list[dict], batch_size: int) -> np.ndarray:
    out = []
    for arrays, real in self._batches(rows, batch_size):
      out.append(self._local(fn(self.module, self.params, arrays))[:real])
    return np.concatenate(out) if out else np.zeros((0,), np.float32)

  def _batches(self, rows: list[dict], batch_size: int) -> Iterator[tuple[dict, int]]:
    """Global batches of this process's rows, all of one shape, with the number of real rows.

    Every process gets the same number of batches; what a process lacks is filled up.
    """
    processes = jax.process_count()
    most = len(rows)
    if processes > 1:
      most = int(np.max(multihost_utils.process_allgather(np.int32(len(rows)))))
    parts = meshes.batch_size(self.mesh) // processes
    local = -(-min(batch_size // processes or 1, max(most, 1)) // parts) * parts
    for start in range(0, most, local):
      part = rows[start : start + local]
      filler = part[-1] if part else self._filler()
      full = part + [filler] * (local - len(part))
      arrays = {k: np.stack([row[k] for row in full]) for k in filler}
      yield meshes.put_global(arrays, self.mesh), len(part)

  def _filler(self) -> dict:
    """A row for a process that has none left."""
    blank = {"image": _BLANK, "prefix": "", "suffix": "", "text": ""}
    return self.processor.prompt(blank)

  def _local(self, x: jax.Array) -> np.ndarray:
    """This process's rows of a global array that is cut over its first axis."""
    if jax.process_count() == 1:
      return np.asarray(x)
    whole = multihost_utils.process_allgather(x, tiled=True)
    rows = whole.shape[0] // jax.process_count()
    return whole[jax.process_index() * rows :][:rows]


def _examples(images: Sequence[Any], **texts: Sequence[str]) -> list[dict]:
  for name, values in texts.items():
    if len(values) != len(images):
      raise ValueError(f"{len(images)} images but {len(values)} values of {name!r}")
  return [
    {"id": str(i), "image": image} | {name: values[i] for name, values in texts.items()}
    for i, image in enumerate(images)
  ]


@functools.partial(jax.jit, static_argnums=0)
def _log_prob(module: nn.Module, params: Any, arrays: dict) -> jax.Array:
  batch = to_batch(arrays)
  logp = jax.nn.log_softmax(module.apply({"params": params}, batch).logits)
  chosen = jnp.take_along_axis(logp, batch.labels[:, :, None], axis=-1)[:, :, 0]
  return jnp.sum(chosen * batch.weights, axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _embed_image(module: nn.Module, params: Any, arrays: dict) -> jax.Array:
  batch = to_batch(arrays).replace(text=None)
  return module.apply({"params": params}, batch).heads["image"]


@functools.partial(jax.jit, static_argnums=0)
def _embed_text(module: nn.Module, params: Any, arrays: dict) -> jax.Array:
  batch = to_batch(arrays).replace(media={})
  return module.apply({"params": params}, batch).heads["text"]
