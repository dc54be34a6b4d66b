"""How the media of every kind of system are read from transformers' inputs: the table."""

from typing import Any

from bigvlm.hub import (
  asked_media,
  flat_media,
  media,
  packed_media,
  padded_media,
  paired_media,
  tile_media,
)
from bigvlm.utils import names

# `options["media"]` of a system -> its reader.
READERS: dict[str, media.Reader] = (
  media.READERS
  | packed_media.READERS
  | padded_media.READERS
  | flat_media.READERS
  | asked_media.READERS
  | tile_media.READERS
  | {
    "paired": media.Reader(tuple(paired_media.INPUTS.values()), paired_media.paired),
  }
)


def reader(model: Any) -> media.Reader:
  """The reader of a model's media.

  Raises:
    ValueError: `options["media"]` is not in the table.
  """
  return names.lookup("media", model.system.options.get("media", "images"), READERS)
