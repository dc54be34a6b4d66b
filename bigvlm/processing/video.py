"""Videos as frames: from files (PyAV, the extra `video`), GIFs, folders and lists of images.

`read` gives a `Clip`; it decodes no more frames than are wanted. Which they are is said by a number
of frames, by a rate, or by a rule of one's own.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from bigvlm.processing import image as decoding

ANIMATED = (".gif", ".webp", ".apng")
FILES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
_STILLS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm")
# (number of frames, frames a second or None) -> indices, in order.
Pick = Callable[[int, float | None], Sequence[int]]


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """Frames of a video.

  Attributes:
    frames: uint8 [T, H, W, 3].
    fps: frames a second of the video that they were taken from, None = unknown.
    total: number of its frames.
    picked: which of them these are, None = unknown.
    duration: of the video in seconds, None = unknown.
  """

  frames: np.ndarray
  fps: float | None
  total: int
  picked: tuple[int, ...] | None
  duration: float | None = None

  def __len__(self) -> int:
    return len(self.frames)

  @property
  def whole(self) -> bool:
    """Whether no frame of the video is missing."""
    return len(self.frames) == self.total

  def times(self, fps: float) -> list[float]:
    """Seconds at which the frames are; `fps` where the rate is unknown."""
    picked = self.picked if self.picked is not None else range(len(self.frames))
    return [n / (self.fps or fps) for n in picked]

  def rate(self, fps: float) -> float:
    """Frames a second of these frames; `fps` where the rate is unknown."""
    if self.picked is None or self.fps is None:
      return self.fps or fps
    return len(self.picked) / self.total * self.fps

  def sampled(self, pick: Pick) -> "Clip":
    """The frames that a rule takes of them."""
    chosen = [int(n) for n in pick(len(self.frames), self.fps)]
    return dataclasses.replace(self, frames=self.frames[chosen], picked=tuple(chosen))


def evenly(total: int, count: int) -> list[int]:
  """Indices of `count` frames at even steps, the first one included.

  Raises:
    ValueError: more frames than there are.
  """
  if not 0 < count <= total:
    raise ValueError(f"cannot take {count} frames of a video of {total}")
  return [n * total // count for n in range(count)]


def rule(count: int | None = None, fps: float | None = None) -> Pick:
  """The rule that takes `count` frames, or `fps` a second (at least one); None = all."""
  if count is not None and fps is not None:
    raise ValueError("give a number of frames or a rate (fps), not both")

  def pick(total: int, rate: float | None) -> Sequence[int]:
    if count is None and fps is None:
      return range(total)
    if count is not None:
      return evenly(total, count)
    if not rate:
      raise ValueError("the video has no frame rate, so that fps cannot be asked of it; ask count")
    return evenly(total, min(total, max(1, int(total / rate * fps))))

  return pick


def is_video(x: Any) -> bool:
  """Whether a value is a `Clip`, or the name of a video file, a GIF or a folder."""
  if isinstance(x, Clip):
    return True
  if not isinstance(x, (str, os.PathLike)):
    return False
  path = pathlib.Path(x)
  return path.suffix.lower() in (*FILES, *ANIMATED[:1]) or path.is_dir()


def read(
  source: Any,
  *,
  count: int | None = None,
  fps: float | None = None,
  pick: Pick | None = None,
  rate: float | None = None,
  record: str = "video",
) -> Clip:
  """Reads a video.

  Args:
    source: a file, an animated image, a folder of images (in the order of the numbers in their
      names), uint8 [T, H, W, 3] or [T, 3, H, W], a list of images of one size, or a `Clip`.
    count, fps: how many frames, or how many a second. Without both all are taken.
    pick: a rule of one's own instead.
    rate: frames a second of what does not say it (arrays, lists, folders).
    record: what it is called in messages.

  Raises:
    ValueError: it is no video, or has too few frames, or no frame rate where one is needed.
    ImportError: a video file without PyAV.
  """
  pick = rule(count, fps) if pick is None else pick
  if isinstance(source, Clip):
    return source.sampled(pick) if source.whole else source
  if isinstance(source, np.ndarray):
    return _clip(_array(source, record), rate).sampled(pick)
  if isinstance(source, (list, tuple)):
    return _stills(list(source), rate, pick, record)
  if not isinstance(source, (str, os.PathLike)):
    raise ValueError(f"{record} is {type(source).__name__}, not a video")
  path = pathlib.Path(source)
  if path.is_dir():
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in _STILLS), key=_natural)
    return _stills(list(files), rate, pick, str(path))
  if not path.is_file():
    raise ValueError(f"{record}: there is no {path}")
  return (_animated if path.suffix.lower() in ANIMATED else _decoded)(path, pick)


def _natural(path: pathlib.Path) -> list[Any]:
  return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", path.name) if p]


def _clip(frames: np.ndarray, fps: float | None) -> Clip:
  total = len(frames)
  return Clip(frames, fps, total, tuple(range(total)), None if fps is None else total / fps)


def _array(x: np.ndarray, record: str) -> np.ndarray:
  if x.dtype != np.uint8 or x.ndim != 4 or not x.size:
    raise ValueError(f"{record} is {x.dtype} {list(x.shape)}; a video is uint8 [T, H, W, 3]")
  if x.shape[-1] not in (1, 3) and x.shape[1] in (1, 3):
    x = np.moveaxis(x, 1, -1)
  if x.shape[-1] not in (1, 3):
    raise ValueError(f"{record} of shape {list(x.shape)} is no video; want [T, H, W, 3]")
  return np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


def _stills(sources: list[Any], rate: float | None, pick: Pick, record: str) -> Clip:
  if not sources:
    raise ValueError(f"{record} has no frames")
  chosen = [int(n) for n in pick(len(sources), rate)]
  frames = [_frame(sources[n], f"{record}[{n}]") for n in chosen]
  shapes = sorted({x.shape[:2] for x in frames})
  if len(shapes) > 1:
    raise ValueError(f"the frames of {record} have different sizes: {shapes}")
  duration = None if rate is None else len(sources) / rate
  return Clip(np.stack(frames), rate, len(sources), tuple(chosen), duration)


def _frame(source: Any, record: str) -> np.ndarray:
  if isinstance(source, Image.Image):
    return np.asarray(source.convert("RGB"))
  if isinstance(source, np.ndarray):
    return _array(source[None], record)[0]
  return decoding.decode(source, record=record)


def _animated(path: pathlib.Path, pick: Pick) -> Clip:
  try:
    with Image.open(path) as file:
      lengths = [frame.info.get("duration", 0) for frame in ImageSequence.Iterator(file)]
      total, seconds = len(lengths), math.fsum(lengths) / 1000
      fps = total / seconds if seconds else None
      chosen = [int(n) for n in pick(total, fps)]
      frames = []
      for n in chosen:
        file.seek(n)
        frames.append(np.asarray(file.convert("RGB")))
  except OSError as e:
    raise ValueError(f"{path} is no video: {e}") from None
  return Clip(np.stack(frames), fps, total, tuple(chosen), seconds or None)


def _decoded(path: pathlib.Path, pick: Pick) -> Clip:
  try:
    import av
  except ImportError:
    raise ImportError(
      f"{path}: reading video files needs PyAV, which the extra `video` installs "
      "(pip install 'bigvlm[video]')"
    ) from None
  try:
    with av.open(str(path)) as file:
      if not file.streams.video:
        raise ValueError(f"{path} has no video stream")
      stream = file.streams.video[0]
      fps = float(stream.average_rate) if stream.average_rate else None
      total = stream.frames or _count(av, path)
      chosen = [int(n) for n in pick(total, fps)]
      found: dict[int, np.ndarray] = {}
      wanted = set(chosen)
      for n, frame in enumerate(file.decode(stream)):
        if n in wanted:
          found[n] = frame.to_ndarray(format="rgb24")
        if n >= max(wanted):
          break
  except av.error.FFmpegError as e:
    raise ValueError(f"{path} is no video: {e}") from None
  if not found:
    raise ValueError(f"{path} has no frames")
  # Containers count a few frames more than can be decoded: the last one stands for those.
  last = max(found)
  frames = np.stack([found.get(n, found[last]) for n in chosen])
  return Clip(frames, fps, total, tuple(chosen), total / fps if fps else None)


def _count(av: Any, path: pathlib.Path) -> int:
  """Frames of a file whose container does not say it."""
  with av.open(str(path)) as file:
    return sum(1 for _ in file.decode(video=0))
