"""Whether a model's head is its embedding table, where the config and the file may differ."""

import dataclasses

from bigvlm.ckpt import sources
from bigvlm.ckpt.sources import Source
from bigvlm.hub.system import System


def refine(system: System, source: Source) -> System:
  """The system with a `head` of its own if the file has one that is not the embedding table.

  The reference ties two tensors only when the config says so and a file with both has the same
  numbers in them: many a config of version 4 left it to a part of it to say.
  """
  if not system.model["decoder"].get("tied"):
    return system
  found = {system.map.canonical(key): key for key in source.specs()}
  for alias, table in system.map.tied:
    if {alias, table} <= found.keys() and not sources.same(source, found[alias], found[table]):
      model = system.model | {"decoder": system.model["decoder"] | {"tied": False}}
      return dataclasses.replace(system, model=model)
  return system
