"""Video preprocessing as a checkpoint's `video_preprocessor_config.json` says it."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from bigvlm.processing import tiling, video
from bigvlm.processing.hub import frames, sizes
from bigvlm.processing.hub.image_table import CLIP, HALF, LANCZOS, both
from bigvlm.processing.hub.images import ImageProcessor
from bigvlm.processing.hub.native import Packed
from bigvlm.processing.video import Clip
from bigvlm.utils import jsons, names

RATE = 24.0  # Frames a second of a video that does not say it, as the reference takes it.


@dataclasses.dataclass(frozen=True)
class VideoProcessor(ImageProcessor):
  """Videos to pixels: every frame as an image, `pixel_values_videos` float32 [N, T, 3, H, W].

  Attributes:
    count, fps: how many frames are taken of a video, or how many a second.
    sample: whether frames are taken; a call that gives `count` or `fps` takes them anyway.
  """

  count: int | None = None
  fps: float | None = None
  sample: bool = False
  output: str = "pixel_values_videos"
  KEYS = ImageProcessor.KEYS | {"do_sample_frames": "sample", "fps": "fps", "num_frames": "count"}
  ONE: ClassVar[bool] = True  # Whether frames are taken by a number or by a rate, not both.

  def replace(self, settings):
    """As of `ImageProcessor`; a call's number of frames comes before the files' rate."""
    bare = self
    if not self.ONE:
      return super().replace(settings)
    if settings.get("fps") is not None and settings.get("num_frames") is None:
      bare = dataclasses.replace(self, count=None)
    elif settings.get("num_frames") is not None and settings.get("fps") is None:
      bare = dataclasses.replace(self, fps=None)
    return super(VideoProcessor, bare).replace(settings)

  def clips(self, videos: Any, metadata: Any = None, asked: bool = False) -> list[Clip]:
    """Reads videos, and takes the frames that are wanted of each.

    Args:
      videos: one, or a list of them (nested or not); see `video.read` for what is a video.
      metadata: for each `{"fps", "total_num_frames", "frames_indices", "duration"}`, or None.
      asked: whether frames are taken also where the files do not say so.
    """
    every = flat(videos)
    if isinstance(metadata, Mapping):
      metadata = [metadata]
    known = [m for part in metadata or () for m in (part if isinstance(part, list) else [part])]
    if known and len(known) != len(every):
      raise ValueError(f"there are {len(every)} videos, but {len(known)} video_metadata")
    sample = self.sample or asked
    found = []
    for n, one in enumerate(every):
      pick = self.pick if sample and not known else None
      clip = video.read(one, pick=pick, record=f"videos[{n}]")
      if known:
        clip = described(clip, known[n])
        clip = clip.sampled(self.pick) if sample else clip
      found.append(clip)
    return found

  def pick(self, total: int, fps: float | None) -> Sequence[int]:
    """Which frames of a video of so many, and of that rate, are taken."""
    return video.rule(self.count, self.fps)(total, fps)

  def pixels(self, clip: Clip) -> np.ndarray:
    """float32 [T, 3, H, W] of a clip."""
    return np.stack([self.finish(self.sized(x)) for x in clip.frames])

  def resized(self, x, size):
    return frames.resize(x, size, self.resample)

  def finish(self, x):
    """As of `ImageProcessor`, in the order of the reference's fused form."""
    if not (self.rescale and self.normalize):
      return super().finish(x)
    mean, std = (np.float32(v) * np.float32(1 / self.factor) for v in (self.mean, self.std))
    return np.ascontiguousarray(((x.astype(np.float32) - mean) / std).transpose(2, 0, 1))

  def clip_batch(self, clips: Sequence[Clip]) -> dict[str, Any]:
    """Arrays of videos."""
    return {self.output: self.joined([self.pixels(clip) for clip in clips])}


@dataclasses.dataclass(frozen=True)
class Middles(VideoProcessor):
  """InternVL: frames from the middles of equal parts of a video.

  Attributes:
    shift: True, or the first frame.
  """

  shift: bool | float = True
  KEYS = VideoProcessor.KEYS | {"initial_shift": "shift"}

  def pick(self, total, fps):
    count = self.count
    if count is None and self.fps is not None:
      if not fps:
        raise ValueError("the video has no frame rate, so that fps cannot be asked of it")
      count = int(total / fps * self.fps)
    if count is None:
      return range(total)
    if count > total:
      raise ValueError(f"cannot take {count} frames of a video of {total}")
    start = total / count / 2 if self.shift is True else float(self.shift)
    return np.arange(start, total, total / count).astype(int)


@dataclasses.dataclass(frozen=True)
class PackedVideo(VideoProcessor, Packed):
  """Qwen2-VL: `pixel_values_videos` float32 [all patches, ...] and `video_grid_thw` int64 [N, 3].

  VideoLLaMA3 has `video_merge_sizes` int64 [N] and `video_compression_mask` bool [all tokens].

  Attributes:
    least_frames, most_frames: of a video, when they are taken by a rate.
    share: whether a video's frames share the pixels of `budget` tokens (Qwen2-VL's own code).
    compress: VideoLLaMA3: whether tokens that hardly differ from those before are left out.
  """

  least_frames: int = 4
  most_frames: int = 768
  share: bool = False
  budget: int = 128_000
  compress: bool = True
  KEYS = Packed.KEYS | VideoProcessor.KEYS | {
    "cap_pixels_per_frame": "share",
    "max_frames": "most_frames",
    "max_video_tokens": "budget",
    "min_frames": "least_frames",
    "use_token_compression": "compress",
  }  # fmt: skip
  DIFFERENCE: ClassVar[float] = 0.1

  def pick(self, total, fps):
    count, step = self.count, self.temporal
    if count is not None:
      count = round(count / step) * step
    elif self.fps is not None:
      if not fps:
        raise ValueError("the video has no frame rate, so that fps cannot be asked of it")
      most = math.floor(min(self.most_frames, total) / step) * step
      count = min(max(total / fps * self.fps, self.least_frames), most, total)
      count = math.floor(count / step) * step
    if count is None:
      return range(total)
    if not 0 < count <= total:
      raise ValueError(f"cannot take {count} frames of a video of {total}")
    return np.arange(0, total, total / count).astype(int)

  def target_of(self, clip: Clip) -> tuple[int, int]:
    """(height, width) that the frames become."""
    size = clip.frames.shape[1:3]
    if not self.resize:
      return size
    least = self.least if self.least is not None else self.size["shortest_edge"]
    most = self.most if self.most is not None else self.size["longest_edge"]
    if self.merges:
      most = most // len(clip)
    elif self.share:
      factor = self.patch * self.merge
      pixels = int(self.budget * factor * factor * 0.9) * self.temporal // len(clip)
      most = max(min(most, pixels), int(least * 1.05))
    return tiling.smart_resize(size, self.patch * self.merge, least, most)

  def clip_batch(self, clips):
    found, grids, masks = [], [], []
    for clip in clips:
      size = self.target_of(clip)
      x = np.stack([self.finish(self.resized(f, size) if self.resize else f) for f in clip.frames])
      x = np.concatenate([x, np.repeat(x[-1:], -len(x) % self.temporal, axis=0)])
      grids.append((len(x) // self.temporal, size[0] // self.patch, size[1] // self.patch))
      found.append(self.packed(x))
      masks.append(self.kept(found[-1], grids[-1][0]))
    out = {self.output: np.concatenate(found), "video_grid_thw": np.array(grids, np.int64)}
    if self.merges:
      out["video_merge_sizes"] = np.full(len(grids), self.merge, np.int64)
      out["video_compression_mask"] = np.concatenate([m.reshape(-1) for m in masks])
    return out

  def kept(self, patches: np.ndarray, frames: int) -> np.ndarray:
    """bool [T, tokens of a frame]: those that differ from the frame before; at least one each."""
    tokens = patches.reshape(frames, -1, patches.shape[1] * self.merge**2)
    mask = np.ones(tokens.shape[:2], bool)
    if self.compress and frames > 1:
      differ = np.abs(tokens[1:] - tokens[:-1]).mean(axis=-1) * 255
      mask[1:] = differ > self.DIFFERENCE
      mask[~mask.any(axis=1), 0] = True
    return mask


@dataclasses.dataclass(frozen=True)
class Squares(VideoProcessor):
  """SmolVLM: frames resized twice, to a longest edge and to one tile, in the places of images.

  `pixel_values` float32 [N, T, 3, H, W] and `pixel_attention_mask` int64 [N, T, H, W].
  """

  tile: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"longest_edge": 364})
  pad: bool = True
  output: str = "pixel_values"
  KEYS = VideoProcessor.KEYS | {"do_pad": "pad", "max_image_size": "tile"}
  ONE: ClassVar[bool] = False
  SKIPPED: ClassVar[int] = 1  # Seconds at each end of a long video.

  def sized(self, x):
    if not self.resize:
      return x
    if self.size.get("longest_edge"):
      edge = min(self.size["longest_edge"], tiling.LIMIT)
      x = self.resized(x, tiling.longest_edge(x.shape[:2], edge, 10**9))
    else:
      x = self.resized(x, sizes.box(self.size, self.name))
    return self.resized(x, (self.tile["longest_edge"],) * 2)

  def pick(self, total, fps):
    if not fps or self.fps is None or self.count is None:
      raise ValueError("taking frames of a video needs its frame rate, num_frames and fps")
    duration = total / fps
    wanted = max(1, min(int(round(self.fps * duration)), self.count))
    start, end = 0, total - 1
    if duration - 2 * self.SKIPPED > self.count * self.fps:
      start, end = int(self.SKIPPED * fps), min(int(total - self.SKIPPED * fps), total - 1)
    if start >= end:
      start, end = 0, total - 1
    return np.unique(np.linspace(start, end, wanted, dtype=int))

  def clip_batch(self, clips):
    pixels, mask = sizes.stacked([self.pixels(clip) for clip in clips])
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


_CROP = dict(
  size={"shortest_edge": 224}, crop=both(224), center_crop=True, square=False, **CLIP
)  # fmt: skip
_LEAST = 128 * 28 * 28
_PIXELS = {"shortest_edge": _LEAST, "longest_edge": 28 * 28 * 768}
# Class of the reference -> kind, and what differs from its defaults.
TABLE: dict[str, tuple[type[VideoProcessor], dict[str, Any]]] = {
  "InstructBlipVideoVideoProcessor": (
    VideoProcessor, dict(size=both(384), output="pixel_values", **CLIP)
  ),
  "InternVLVideoProcessor": (Middles, dict(size=both(384), **CLIP)),
  "LlavaNextVideoVideoProcessor": (VideoProcessor, _CROP),
  "LlavaOnevisionVideoProcessor": (VideoProcessor, dict(size=both(384), square=False, **CLIP)),
  "Qwen2VLVideoProcessor": (PackedVideo, dict(size=_PIXELS, square=False, **CLIP)),
  "SmolVLMVideoProcessor": (
    Squares, dict(size={"longest_edge": 4 * 364}, resample=LANCZOS, **HALF)
  ),
  "VideoLlama3VideoProcessor": (
    PackedVideo,
    dict(
      size=_PIXELS, square=False, temporal=1, merge=2, most_frames=180, merges=True, **HALF
    ),
  ),
  "VideoLlavaVideoProcessor": (VideoProcessor, _CROP),
}  # fmt: skip
# `model_type` -> class, for files that do not name one.
MODEL_TYPES = {
  "instructblipvideo": "InstructBlipVideoVideoProcessor",
  "internvl": "InternVLVideoProcessor",
  "llava_next_video": "LlavaNextVideoVideoProcessor",
  "llava_onevision": "LlavaOnevisionVideoProcessor",
  "qwen2_5_vl": "Qwen2VLVideoProcessor",
  "qwen2_vl": "Qwen2VLVideoProcessor",
  "smolvlm": "SmolVLMVideoProcessor",
  "video_llama_3": "VideoLlama3VideoProcessor",
  "video_llava": "VideoLlavaVideoProcessor",
}


def flat(videos: Any) -> list[Any]:
  """The videos of one video, of several, or of lists of them. A list of images is one video."""
  if _one(videos):
    return [videos]
  if isinstance(videos, np.ndarray) and videos.ndim == 5:
    return list(videos)
  if not isinstance(videos, (list, tuple)):
    raise ValueError(f"videos must be a video or a list of videos, not {type(videos).__name__}")
  if videos and not any(isinstance(v, (list, tuple)) or _one(v) for v in videos):
    return [videos]
  return [one for part in videos for one in flat(part)]


def _one(x: Any) -> bool:
  return video.is_video(x) or (isinstance(x, np.ndarray) and x.ndim == 4)


def described(clip: Clip, metadata: Mapping[str, Any]) -> Clip:
  """A clip with what somebody knows of the video that its frames were taken from."""
  picked = metadata.get("frames_indices")
  return Clip(
    clip.frames,
    metadata.get("fps"),
    int(metadata.get("total_num_frames") or len(clip)),
    None if picked is None else tuple(int(n) for n in picked),
    metadata.get("duration"),
  )


def config(directory: pathlib.Path) -> dict[str, Any] | None:
  """The video part of `processor_config.json`, else `video_preprocessor_config.json`, or None.

  Files that are older than video processors have the images' settings for videos too.
  """
  for file in (
    "processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"
  ):  # fmt: skip
    if (directory / file).is_file():
      found = jsons.read(directory / file)
      found = found.get("video_processor") if file == "processor_config.json" else found
      if isinstance(found, dict):
        return found
  return None


def make(cfg: Mapping[str, Any], model_type: str, where: str = "") -> VideoProcessor | None:
  """The processor that a configuration describes; None for a model without videos.

  Raises:
    ValueError: a class that is not in `TABLE`.
  """
  name = cfg.get("video_processor_type") or MODEL_TYPES.get(model_type)
  if name is None:
    return None
  if name not in TABLE:
    raise ValueError(f"{where}: {names.unknown('video processor', name, TABLE)}")
  kind, settings = TABLE[name]
  made = kind(name=name, **settings)
  known = {k: v for k, v in cfg.items() if k in made.KEYS}
  if sampling := cfg.get("video_sampling"):  # SmolVLM's older files.
    known |= {"num_frames": sampling["max_frames"], "fps": sampling["fps"]}
    known["size"] = cfg.get("size", sampling["video_size"])
  return made.replace(known)
