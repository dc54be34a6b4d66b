"""Image processors that lay an image into a square: LLaVA's padding, DeepSeek-VL."""

import dataclasses
from collections.abc import Mapping, Sequence

from PIL import Image

from bigvlm.processing import tiling
from bigvlm.processing.hub import images, sizes
from bigvlm.processing.hub.images import ImageProcessor


@dataclasses.dataclass(frozen=True)
class Padded(ImageProcessor):
  """LLaVA: with `pad` an image first becomes a square, in the colour of the mean."""

  pad: bool = False
  KEYS = ImageProcessor.KEYS | {"do_pad": "pad"}

  def sized(self, x):
    return super().sized(sizes.square(x, self.mean) if self.pad else x)


@dataclasses.dataclass(frozen=True)
class Framed(ImageProcessor):
  """DeepSeek-VL: the longer side becomes the size, the rest has the colour of the mean.

  Attributes:
    least: smallest side. pad: whether there is a rest. frame: colour of the rest, 0..1; it is the
      files' mean, also where a call has another one.
  """

  least: int = 14
  pad: bool = True
  frame: Sequence[float] = images.HALF
  KEYS = ImageProcessor.KEYS | {"do_pad": "pad", "min_size": "least"}

  def settled(self):
    return dataclasses.replace(self, frame=self.mean)

  def sized(self, x):
    if self.resize:
      height, width = sizes.box(self.size, self.name)
      if height != width:
        raise ValueError(f"{self.name}: height and width must be the same, not {self.size}")
      x = self.resized(x, tiling.largest_side(x.shape[:2], height, self.least))
    return sizes.square(x, self.frame) if self.pad else x


@dataclasses.dataclass(frozen=True)
class TwoFrames(Framed):
  """DeepSeek-VL hybrid: the same twice, the smaller one resized from the larger one.

  `high_res_pixel_values` float32 [N, 3, H, W] beside `pixel_values`.
  """

  high_size: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {"height": 1024, "width": 1024}
  )
  high_resample: int = int(Image.Resampling.BICUBIC)
  high_mean: Sequence[float] = images.HALF
  high_std: Sequence[float] = images.HALF
  high_frame: Sequence[float] = images.HALF
  KEYS = Framed.KEYS | {
    "high_res_image_mean": "high_mean",
    "high_res_image_std": "high_std",
    "high_res_resample": "high_resample",
    "high_res_size": "high_size",
  }

  def settled(self):
    return dataclasses.replace(self, frame=self.mean, high_frame=self.high_mean)

  def batch(self, groups):
    large = dataclasses.replace(
      self,
      size=self.high_size,
      resample=self.high_resample,
      mean=self.high_mean,
      std=self.high_std,
      frame=self.high_frame,
    )
    found, high = [], []
    for x in (x for group in groups for x in group):
      if self.resize:
        x = large.sized(x)
      high.append(large.finish(x))
      found.append(self.finish(self.sized(x) if self.resize else x))
    return {
      "pixel_values": self.joined(found),
      "high_res_pixel_values": self.joined(high),
    }
