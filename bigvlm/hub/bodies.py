"""Models without a head, as `LlamaModel` and its like write them: the last hidden states."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bigvlm.hub import decoding
from bigvlm.hub.system import System


def body(read: Callable[[Mapping[str, Any]], System]) -> Callable[[Mapping[str, Any]], System]:
  """The reader of a model's body, from that of the model with a head.

  Files of a text model lack the prefix that the whole model's names have; both are read. The maps
  of models with media read both by themselves.
  """

  def reader(cfg: Mapping[str, Any]) -> System:
    """The system of a body.

    Raises:
      ValueError: hidden states that another map leads out of, and those of the model's reader.
    """
    system = read(cfg)
    if system.model["decoder"].get("embed_dim"):
      raise ValueError("config.json: word_embed_proj_dim is read only of a model with a head")
    headless = system.model["decoder"] | dict(tied=True)
    headless |= dict(head_bias=False) if "head_bias" in headless else {}
    found = system.map
    if system.inputs == "lm":
      found = dataclasses.replace(found, rename=((r"^(?!model\.)", "model."),))
    return dataclasses.replace(
      system,
      model=system.model | {"decoder": headless},
      map=found,
      inputs="body",
      options=system.options | {"batch": system.inputs},
    )

  return reader


def forward(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`last_hidden_state` [B, L, D] of a text, of an encoder-decoder at positions of the decoder."""
  batch = decoding.BATCHES[model.system.options["batch"]](model, given, False)
  return {"last_hidden_state": np.asarray(model.apply(batch).hidden)}


KINDS = {"body": forward}
