"""Container that gives the encoders of a model their names: `encoders/NAME/...`."""

from collections.abc import Mapping

import flax.linen as nn

from bigvlm.types import Features, Media


class Towers(nn.Module):
  """Encoders by name."""

  encoders: Mapping[str, nn.Module]

  @nn.compact
  def __call__(self, media: Mapping[str, Media], *, train: bool = False) -> dict[str, Features]:
    """Runs every encoder whose media is in the batch; `media` must name known encoders."""
    out = {}
    for name in media:
      if name not in self.encoders:
        raise ValueError(f"no encoder for media {name!r}; encoders: {', '.join(self.encoders)}")
      tower = self.encoders[name].clone(parent=self, name=name)
      out[name] = tower(media[name], train=train)
    return out
