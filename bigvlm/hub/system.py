"""What a checkpoint directory describes: a model of ours, its map and its conventions."""

import dataclasses
from collections.abc import Callable
from typing import Any

from bigvlm.ckpt.rules import CkptMap
from bigvlm.ckpt.sources import Source


@dataclasses.dataclass(frozen=True)
class System:
  """A checkpoint's model. A family file makes one from `config.json`.

  Attributes:
    model: `config.model`.
    map: tensors <-> parameters.
    image_size: (height, width) that the position table is for; None = no images.
    text_len: positions of a text tower's table; any length for other models.
    inputs: how the inputs of transformers become a batch, a key of `hub.inputs.KINDS`.
    options: of those inputs: token ids, mask conventions.
    refine: (system, tensors) -> system, where the config leaves open what the tensors tell.
  """

  model: dict[str, Any]
  map: CkptMap
  inputs: str
  image_size: tuple[int, int] | None = None
  text_len: int = 16
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  refine: Callable[["System", Source], "System"] | None = None
