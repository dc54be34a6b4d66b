"""A loaded checkpoint: the calls of transformers on the model, and the way back to files."""

import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from bigvlm import api, lora
from bigvlm.ckpt import transfer
from bigvlm.hub import (
  bigvision_files,
  bigvision_inputs,
  bodies,
  decoding,
  encdec_inputs,
  human,
  inputs,
  matching_inputs,
  media,
  save,
)
from bigvlm.hub.system import System
from bigvlm.layers import posemb
from bigvlm.parallel import mesh as meshes
from bigvlm.types import Batch, Outputs

_KINDS = inputs.KINDS | decoding.KINDS | bigvision_inputs.KINDS | matching_inputs.KINDS
_KINDS |= encdec_inputs.KINDS | bodies.KINDS
_GENERATORS = decoding.GENERATORS | bigvision_inputs.GENERATORS


class HubModel(human.Human, api.Model):
  """`api.Model` with the names of transformers on its inputs, outputs and files.

  Its calls are one process's own: among several each has its copy, on its own devices.

  Attributes:
    system: what `config.json` said. origin: what the files had beside the numbers, or None.
    directory: where it was loaded from, or None. json: its `config.json`, or None.
    dtype: the dtype that `load` was asked for, or None for that of the files.
    npz: the file of big_vision that it came from, or None.
    padding: encoder name -> the part of its slots or patches that was padding in the last call.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    module: nn.Module,
    params: Any,
    processor: Any,
    mesh: Any,
    system: System,
    origin: transfer.Origin | None = None,
    directory: pathlib.Path | None = None,
    dtype: str | None = None,
    json: Mapping[str, Any] | None = None,
    npz: bigvision_files.Adapted | None = None,
  ):
    super().__init__(config, module, params, processor, mesh)
    self.system = system
    self.origin = origin
    self.directory = directory
    self.dtype = dtype
    self.json = json
    self.npz = npz
    self.padding: dict[str, float] = {}
    self.loaded_size = system.image_size  # That of config.json; `load(res=)` makes another.

  def forward_hf(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The forward pass of transformers.

    Args:
      given: NumPy arrays as transformers' processor of this model returns them.

    Returns:
      NumPy arrays under transformers' names; logits [B, L, V] of a decoder, `image_embeds`,
      `text_embeds`, `logits_per_image`, `logits_per_text` of a dual encoder, `last_hidden_state`
      and `pooler_output` of an encoder, `logits` of a classifier.

    Raises:
      ValueError: an input this model does not have, or with another shape or range.
    """
    return _KINDS[self.system.inputs](self, inputs.numbers(given))

  def generate_hf(self, given: Mapping[str, Any], *, max_new_tokens: int = 20) -> np.ndarray:
    """What transformers' greedy `generate` appends to every row.

    The end and pad ids are those of `generation_config.json`, else of the config, and so are the
    rules of what may come next (see `choosing.rules`).

    Args:
      given: as for `forward_hf`; rows may be padded on either side.
      max_new_tokens: most ids a row gets, at least 1.

    Returns:
      int32 [B, n], the new ids only; n <= max_new_tokens is where the last row ended, and a row
      that ended before goes on with the pad id.

    Raises:
      ValueError: a model that does not generate, or bad inputs as for `forward_hf`.
    """
    kind = self.system.inputs
    if kind not in _GENERATORS:
      raise ValueError(f"generate_hf needs a model with a decoder; {kind!r} models have none")
    if max_new_tokens < 1:
      raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    return _GENERATORS[kind](self, inputs.numbers(given), max_new_tokens)

  def decoding(self, batch: Batch) -> tuple[nn.Module, Any, Batch]:
    """What `bigvlm.generate` takes for a batch of NumPy arrays: module, parameters, batch."""
    module, params = self._decoding
    self._own_devices()
    self.padding = media.waste(batch.media)
    batch = jax.device_put(batch, meshes.replicated(self.mesh))
    return module, self.params_for(batch, params), batch

  def apply(self, batch: Batch, module: nn.Module | None = None) -> Outputs:
    """The module on a batch of NumPy arrays, at any image size; outputs are float32."""
    self._own_devices()
    self.padding = media.waste(batch.media)
    batch = jax.device_put(batch, meshes.replicated(self.mesh))
    return _apply(module or self.module, self.params_for(batch), batch)

  def _own_devices(self) -> None:
    """Raises ValueError where the model lies on devices of other processes too."""
    if {d.process_index for d in self.mesh.devices.flat} != {jax.process_index()}:
      raise ValueError(
        "this model lies on devices of several processes, but its calls are those of one: load it "
        "in each process without mesh=, or with a mesh of jax.local_devices()"
      )

  def params_for(self, batch: Batch, params: Any = None) -> Any:
    """The parameters (or `params`) with position tables for the image sizes of a batch."""
    params = self.params if params is None else params
    for name, given in batch.media.items():
      encoder = self.module.encoders[name]
      want = encoder.grid(*given.pixels.shape[2:4]) if given.pixels is not None else (1, 1)
      if min(want) < 1:
        height, width = given.pixels.shape[2:4]
        raise ValueError(f"images of {height}x{width} hold no patch of encoder {name!r}")
      if encoder.resizes:
        continue
      have = encoder.grid(*self.system.image_size)
      if have != want and encoder.posemb == "learn":
        if self.system.options.get("flat_table"):  # Of a grid that only the pictures tell.
          if math.prod(have) == math.prod(want):
            continue
          if have[0] != have[1]:
            rows = math.prod(have)
            raise ValueError(f"a position table of {rows} rows cannot become {want[0]}x{want[1]}")
        table = np.asarray(params["encoders"][name]["posemb"])
        table = posemb.resample(table, have, want, encoder.resample)
        tower = params["encoders"][name] | {"posemb": jax.device_put(table)}
        params = params | {"encoders": params["encoders"] | {name: tower}}
    return params

  def save_hf(self, directory: str | pathlib.Path, *, dtype: str | None = None) -> None:
    """Writes a directory that transformers loads: config, safetensors, tokenizer, preprocessor.

    Tensors have the names and dtypes of the files they came from. Every file appears whole or not
    at all; digests of the tensors lie in `digests.json`.

    Args:
      directory: made if it is not there.
      dtype: of the floating tensors; by default as in the files, or what `load` was asked for.

    Raises:
      ValueError: a model that came from no such directory and that transformers has no class for;
        parameters with LoRA adapters.
    """
    lora.refuse(self.params, "save_hf")
    save.save(self, directory, dtype or self.dtype)

  def save_npz(self, file: str | pathlib.Path, *, dtype: str | None = None) -> None:
    """Writes one file that big_vision loads.

    Args:
      file: its path, ending in `.npz`. It appears whole or not at all.
      dtype: of the floating tensors; by default as in the file it came from, or what `load` was
        asked for. Names and layout of the layers are that file's too.

    Raises:
      ValueError: a model that big_vision does not have; parameters with LoRA adapters.
    """
    lora.refuse(self.params, "save_npz")
    bigvision_files.save(self, file, dtype or self.dtype)


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: nn.Module, params: Any, batch: Batch) -> Outputs:
  out = module.apply({"params": params}, batch)
  return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype.kind in "fV" else x, out)
