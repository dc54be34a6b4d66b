"""Processors of the LLaVA family: LLaVA, NeXT, OneVision, NeXT-Video, Video-LLaVA, VipLLaVA."""

import math

from bigvlm.processing import tiling
from bigvlm.processing.hub.expanding import Expanding


class Llava(Expanding):
  """A token for each patch of an image."""

  VIDEO: str | None = None
  MORE = 0  # Tokens beside the patches (CLS), where the files do not say it.
  STRATEGY: str | None = None

  def __init__(self, parts):
    settings = parts.settings
    image = settings.get("image_token") or "<image>"
    super().__init__(parts, image, settings.get("video_token") or self.VIDEO)
    vision = parts.config.get("vision_config") or {}
    self.patch = settings.get("patch_size") or vision.get("patch_size")
    more = settings.get("num_additional_image_tokens")
    self.more = self.MORE if more is None else more
    self.strategy = settings.get("vision_feature_select_strategy") or self.STRATEGY
    if not self.patch and self.PATCHED:
      raise ValueError("processor_config.json lacks patch_size")

  PATCHED = True

  def grid(self, shape: tuple[int, int]) -> tuple[int, int]:
    """Patches (rows, columns) of pixels of (height, width) `shape`."""
    return shape[0] // self.patch, shape[1] // self.patch

  def taken(self, patches: int) -> int:
    """Tokens of so many patches."""
    return patches + self.more - (self.strategy == "default")

  def place(self, size, pixels, alone):
    rows, columns = self.grid(pixels.shape())
    return self.image_token * self.taken(rows * columns)


class LlavaNext(Llava):
  """Of an image whole and in tiles: the whole, then rows of the tiles with a newline each."""

  def place(self, size, pixels, alone):
    shape = pixels.shape()
    rows, columns = self.grid(shape)
    best, _ = pixels.tiles(size)
    canvas = tiling.unpadded(size, (best[0] // shape[0] * rows, best[1] // shape[1] * columns))
    return self.image_token * (self.taken(rows * columns) + canvas[0] * (canvas[1] + 1))


class LlavaNextVideo(LlavaNext):
  """Frames pooled 2 x 2 beside it."""

  VIDEO = "<video>"

  def video_place(self, clip, number, found):
    rows, columns = self.grid(found["pixel_values_videos"].shape[-2:])
    return self.video_token * (rows * columns // 4 * len(found["pixel_values_videos"][number]))


class VideoLlava(Llava):
  """Every frame with its CLS token."""

  VIDEO = "<video>"
  MORE = 1
  STRATEGY = "default"

  def __init__(self, parts):
    super().__init__(parts)
    self.patch = self.patch or 14

  def video_place(self, clip, number, found):
    pixels = found["pixel_values_videos"]
    rows, columns = self.grid(pixels.shape[-2:])
    return self.video_token * ((rows * columns + self.more) * pixels.shape[1])


class LlavaOnevision(Llava):
  """As `LlavaNext`, at most a number of tiles; one of several images is one tile and a newline."""

  VIDEO = "<video>"
  PATCHED = False

  def __init__(self, parts):
    super().__init__(parts)
    self.tokens = parts.settings.get("num_image_tokens")
    if not self.tokens:
      raise ValueError("processor_config.json lacks num_image_tokens")
    ratio = parts.settings.get("vision_aspect_ratio") or "anyres_max_9"
    if not ratio.startswith("anyres_max_") or not ratio.removeprefix("anyres_max_").isdigit():
      raise ValueError(f"vision_aspect_ratio is {ratio!r}; only anyres_max_N is known")
    self.most = int(ratio.removeprefix("anyres_max_"))

  def place(self, size, pixels, alone):
    less = self.strategy == "default"
    if not alone:
      return self.image_token * (self.tokens + 1 - less)
    side = math.isqrt(self.tokens)
    shape = pixels.shape()
    best, _ = pixels.tiles(size)
    grid = tiling.unpadded(size, (best[0] // shape[0] * side, best[1] // shape[1] * side))
    rows, columns = tiling.pooled(grid, side, self.most)
    return self.image_token * (self.tokens + rows * (columns + 1) - less)

  def video_place(self, clip, number, found):
    side = math.ceil(math.isqrt(self.tokens) / 2)
    return self.video_token * (len(found["pixel_values_videos"][number]) * side * side + 1)
