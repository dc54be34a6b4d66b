"""Processors of Qwen2-VL, Qwen2.5-VL and VideoLLaMA3: packed patches."""

import math

import numpy as np

from bigvlm.processing.hub.expanding import Expanding
from bigvlm.processing.hub.videos import RATE


class Qwen2VL(Expanding):
  """A token for every square of patches, of images and videos."""

  TYPES = True

  def __init__(self, parts):
    super().__init__(parts, "<|image_pad|>", "<|video_pad|>")

  def place(self, size, pixels, alone):
    rows, columns = pixels.grid(size)
    return self.image_token * (rows * columns // pixels.merge**2)

  def video_place(self, clip, number, found):
    return self.video_token * (math.prod(found["video_grid_thw"][number]) // self.videos.merge**2)

  def mark(self, token):
    start, end = "<|vision_start|>", "<|vision_end|>"
    there = all(self.tokenizer.id(t) is not None for t in (start, end))
    return f"{start}{token}{end}" if there else token


class Qwen25VL(Qwen2VL):
  """The seconds that a step of a video's grid takes beside them: `second_per_grid_ts` [videos]."""

  def _batch(self, call):
    found = super()._batch(call)
    if call.clips is not None:
      steps = [self.videos.temporal / clip.rate(RATE) for clip in call.clips]
      found["second_per_grid_ts"] = np.array(steps)
    return found


class VideoLlama3(Qwen2VL):
  """The time of every frame in the text; tokens that hardly change are left out."""

  TYPES = False

  def video_place(self, clip, number, found):
    grids, sides = found["video_grid_thw"], found["video_merge_sizes"]
    counts = [math.prod(g) // m**2 for g, m in zip(grids.tolist(), sides.tolist(), strict=True)]
    start = sum(counts[:number])
    mask = found["video_compression_mask"][start : start + counts[number]]
    frames = mask.reshape(len(clip), -1).sum(axis=1)
    times = clip.times(1.0)
    places = [
      f"Time {t:.1f}s:" + self.video_token * int(n) for n, t in zip(frames, times, strict=True)
    ]
    return ",".join(places)

  def mark(self, token):
    return token
