"""Scenes of real handwritten digits: a random-access source that renders them on demand.

The 1,797 scans of 8x8 pixels are scikit-learn's copy of the UCI set "Optical Recognition of
Handwritten Digits" (test part). They are split by scan, so that no scan of a test scene is ever
in a training scene. A scene has one to six digits of varying size and ink on a varying
background. Example i depends on (seed, split, i) alone.

Coordinates of boxes are y0 x0 y1 x1 in [0, 1] of the canvas; a digit's box is tight around its
ink. PaliGemma's text forms are used (see `Digits`).
"""

import functools
import gzip
import importlib.util
import os
from typing import NamedTuple

import numpy as np

from bigvlm.processing import boxes as box_text
from bigvlm.processing import masks
from bigvlm.utils import names

TASKS = ("caption", "which", "count", "largest", "detect", "detect_all", "segment")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
TEST_SCANS = 300
# A pixel belongs to the digit when its ink (0..1, after scaling up) is above this.
INK = 0.35
_CROP = 64  # the mask codec's crop


class Scans(NamedTuple):
  """The scans: `pixels` float32 [n, 8, 8] in [0, 1], `labels` int64 [n], `test` bool [n]."""

  pixels: np.ndarray
  labels: np.ndarray
  test: np.ndarray


class Scene(NamedTuple):
  """One picture: `image` uint8 [H, W, 3], and per digit `labels` [n], `boxes` int [n, 4] in
  pixels (y0, x0, y1, x1), `scans` [n], in order from left to right."""

  image: np.ndarray
  labels: np.ndarray
  boxes: np.ndarray
  scans: np.ndarray


@functools.cache
def load_scans() -> Scans:
  """Reads the scans from scikit-learn's files (without importing it, which takes a second)."""
  spec = importlib.util.find_spec("sklearn")
  if spec is None or spec.origin is None:
    raise ImportError("the digits source needs scikit-learn: pip install scikit-learn")
  path = os.path.join(os.path.dirname(spec.origin), "datasets", "data", "digits.csv.gz")
  with gzip.open(path, "rt") as f:
    table = np.loadtxt(f, delimiter=",", dtype=np.float32)
  test = np.zeros(len(table), bool)
  test[np.random.RandomState(0).permutation(len(table))[:TEST_SCANS]] = True
  return Scans(table[:, :64].reshape(-1, 8, 8) / 16, table[:, 64].astype(np.int64), test)


@functools.cache
def _stretch(out: int, size: int) -> np.ndarray:
  """Linear interpolation of `size` samples to `out` (half-pixel centres), float32 [out, size]."""
  at = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
  return np.maximum(0, 1 - abs(at[:, None] - np.arange(size))).astype(np.float32)


@functools.cache
def _crop(scan: int) -> np.ndarray:
  """The scan cut to its ink and strengthened, float32 [h, w] in [0, 1]."""
  pixels = load_scans().pixels[scan]
  rows = np.flatnonzero(pixels.max(1) >= 0.2)
  columns = np.flatnonzero(pixels.max(0) >= 0.2)
  return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def ink(scan: int, height: int, width: int) -> np.ndarray:
  """How much ink each pixel of the digit's box has, float32 [height, width] in [0, 1]."""
  crop = _crop(scan)
  grown = _stretch(height, crop.shape[0]) @ crop @ _stretch(width, crop.shape[1]).T
  return np.clip(grown * 1.25, 0, 1)


def crop_masks(scans=None) -> np.ndarray:
  """Masks of the digits' boxes as the codec sees them, float32 [n, 64, 64] of 0 and 1."""
  scans = range(len(load_scans().labels)) if scans is None else scans
  return np.stack([(ink(i, _CROP, _CROP) > INK) for i in scans]).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _codes(path: str, mtime: float) -> np.ndarray:
  """Codes of all scans' masks under the codec at `path`, int64 [1797, 16]."""
  del mtime  # a part of the cache's key: a codec that was trained anew is read anew
  return masks.encode(masks.load(path), crop_masks())


@functools.cache
def _noise() -> np.ndarray:
  return np.random.default_rng(0).standard_normal((512, 512, 3), np.float32)


def _place(rng, heights, widths, canvas: int, gap: int = 1):
  """Finds places for boxes, first box first; int [n, 4] pixels, or None when one does not fit."""
  tries = rng.random((len(heights), 2, 24), np.float32)
  boxes = []
  for h, w, (y, x) in zip(heights, widths, tries, strict=True):
    y, x = (y * (canvas - h + 1)).astype(int), (x * (canvas - w + 1)).astype(int)
    clear = np.ones(24, bool)
    for y0, x0, y1, x1 in boxes:
      clear &= (y >= y1 + gap) | (y + (h + gap) <= y0) | (x >= x1 + gap) | (x + (w + gap) <= x0)
    k = int(clear.argmax())
    if not clear[k]:
      return None
    boxes.append((int(y[k]), int(x[k]), int(y[k]) + h, int(x[k]) + w))
  return np.array(boxes)


class Digits:
  """Random-access source of scenes with a task each.

  Args:
    split: "train" or "test": which scans are used.
    tasks: task name -> weight. Each example asks one of them:
      caption: "caption en" -> the digits from left to right, "7 2 5";
      which: "answer en which digit is at the top left ?" -> "7" (nine areas of the picture);
      count: "answer en how many digits are 7" -> "2";
      largest: "answer en which digit is the largest ?" -> "7";
      detect: "detect 7" -> "<loc>x4 7 ; <loc>x4 7", from left to right;
      detect_all: "detect digits" -> the same for every digit of the picture;
      segment: "segment 7" -> "<loc>x4<seg>x16 7".
    digits: least and most digits of a scene.
    size: least and greatest height of a digit, in pixels of the canvas.
    canvas: side of the picture in pixels.
    seed: scenes of different seeds are unrelated.
    length: number of examples.
    noise: greatest standard deviation of the pixel noise (brightness is 0..1).
    contrast: least difference in brightness of ink and ground.
    repeats: share of scenes (of two digits and more) in which some digit stands twice.
    light_ink: share of scenes with light ink on a dark ground (the others the other way round).
    codec: path of the mask codec (.npz); only `segment` needs it.
    name: name of the source in ids and counters.

  An example has `id`, `image`, `prefix`, `suffix`, `text` (the caption, for contrastive training),
  `kind` (the task), `answer` (= suffix), `label` (the digit that is asked or first, int), `boxes`
  float32 [n, 4] and `labels` [n] of what is asked (all digits, unless the task asks for one),
  and `mask` bool [H, W] of the asked digit (`segment` only).
  """

  def __init__(
    self,
    split: str = "train",
    tasks=None,
    digits=(1, 6),
    size=(14, 28),
    canvas: int = 64,
    seed: int = 0,
    length: int = 1_000_000,
    noise: float = 0.08,
    contrast: float = 0.5,
    light_ink: float = 0.5,
    repeats: float = 0.5,
    codec: str = "",
    name: str = "digits",
  ):
    tasks = dict(tasks or {"caption": 1.0})
    for task in tasks:
      if task not in TASKS:
        raise ValueError(names.unknown("digits task", task, TASKS))
    if split not in ("train", "test"):
      raise ValueError(names.unknown("digits split", split, ("train", "test")))
    if tasks.get("segment") and not codec:
      raise ValueError("digits: the task 'segment' needs codec=, the path of a mask codec (.npz)")
    self.name, self.split, self.seed, self.length = name, split, seed, length
    self.digits, self.size, self.canvas = tuple(digits), tuple(size), canvas
    self.repeats = repeats
    self.noise, self.contrast, self.light_ink, self.codec = noise, contrast, light_ink, codec
    self._tasks = tuple(tasks)
    total = np.cumsum(list(tasks.values()))
    self._until = total / total[-1]
    scans = load_scans()
    chosen = scans.test == (split == "test")
    self._by_label = [np.flatnonzero(chosen & (scans.labels == d)) for d in range(10)]

  def __len__(self) -> int:
    return self.length

  def _rng(self, i: int, stream: int) -> np.random.Generator:
    key = (self.seed, self.split == "test", i, stream)
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))

  def _paint(self, rng, labels, boxes, scans) -> np.ndarray:
    """Draws the digits on a gradient with noise, uint8 [canvas, canvas, 3]."""
    size, contrast = self.canvas, self.contrast
    u, v = rng.random((len(labels) + 1, 4), np.float32), rng.random(10, np.float32)
    # Brightness of ground and ink, at least `contrast` apart; colour varies around it. Drawn as
    # light ink on a dark ground, and turned round for dark ink.
    ground = u[0, 0] * (1 - contrast)
    colours = (u[:, 1:] - 0.5) * 0.3
    colours[0] += ground
    colours[1:] += ground + contrast + u[1:, :1] * (1 - contrast - ground)
    slope = (v[:6].reshape(2, 3) - 0.5) * 0.24
    axis = np.linspace(-1, 1, size, dtype=np.float32)[:, None]
    image = (axis * slope[0] + colours[0])[:, None] + (axis * slope[1])[None]
    for i, (y0, x0, y1, x1) in enumerate(boxes.tolist()):
      alpha = ink(int(scans[i]), y1 - y0, x1 - x0)[..., None]
      area = image[y0:y1, x0:x1]
      area += alpha * (colours[i + 1] - area)
    y, x = (v[7:9] * (512 - size)).astype(int)
    image += _noise()[y : y + size, x : x + size] * (v[6] * np.float32(self.noise))
    image *= 255
    if v[9] >= self.light_ink:
      np.subtract(255, image, out=image)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)

  def scene(self, rng: np.random.Generator) -> Scene:
    """Draws one scene."""
    low, high = self.size
    n = int(rng.integers(self.digits[0], self.digits[1] + 1))
    # Smaller digits in full pictures: what covers more than half of it rarely fits.
    high = max(low, min(high, int(self.canvas * 0.95 / (n + 0.5) ** 0.5)))
    while True:
      labels = rng.integers(0, 10, n)
      u = rng.random((3, n + 1))
      if n > 1 and u[2, n] < self.repeats:  # repeated digits, so that counting is worth asking
        labels[1] = labels[0]
      of = [self._by_label[d] for d in labels]
      scans = np.array([scans[int(r * len(scans))] for scans, r in zip(of, u[0], strict=False)])
      heights = sorted((low + int(r * (high + 1 - low)) for r in u[1, :n]), reverse=True)
      widths = []
      for scan, h, r in zip(scans, heights, u[2], strict=False):
        rows, columns = _crop(int(scan)).shape
        widths.append(min(self.canvas, max(3, round(h * columns / rows * (0.85 + 0.3 * r)))))
      boxes = _place(rng, heights, widths, self.canvas)
      if boxes is not None:
        break
    order = np.argsort(boxes[:, 1] + boxes[:, 3], kind="stable")
    labels, boxes, scans = labels[order], boxes[order], scans[order]
    return Scene(self._paint(rng, labels, boxes, scans), labels, boxes, scans)

  def __getitem__(self, i: int) -> dict:
    i = int(i)
    if not 0 <= i < self.length:
      raise IndexError(f"{self.name}: no example {i}, there are {self.length}")
    asks = self._rng(i, 0)
    task = self._tasks[int(np.searchsorted(self._until, asks.random(), side="right"))]
    for attempt in range(1, 1000):
      scene = self.scene(self._rng(i, attempt))
      asked = getattr(self, f"_{task}")(scene, asks)
      if asked is not None:
        break
    else:
      raise ValueError(f"{self.name}: no scene fits the task {task!r}; allow more digits or sizes")
    example = dict(
      id=f"{self.name}/{self.split}/{i}",
      image=scene.image,
      text=caption(scene),
      kind=task,
      label=int(scene.labels[0]),
      boxes=(scene.boxes / self.canvas).astype(np.float32),
      labels=[str(d) for d in scene.labels],
    )
    example.update(asked)
    example["answer"] = example["suffix"]
    return example

  def _caption(self, scene, rng):
    return dict(prefix="caption en", suffix=caption(scene))

  def _which(self, scene, rng):
    places = _places(scene, self.canvas)
    if not places:
      return None
    place, n = places[int(rng.integers(len(places)))]
    digit = int(scene.labels[n])
    return dict(prefix=f"answer en which digit is at the {place} ?", suffix=str(digit), label=digit)

  def _count(self, scene, rng):
    digit = int(rng.choice(scene.labels) if rng.random() < 0.75 else rng.integers(10))
    count = int((scene.labels == digit).sum())
    return dict(prefix=f"answer en how many digits are {digit}", suffix=str(count), label=digit)

  def _largest(self, scene, rng):
    height = scene.boxes[:, 2] - scene.boxes[:, 0]
    first = int(height.argmax())
    if len(height) > 1 and height[first] < 1.2 * np.sort(height)[-2]:
      return None
    digit = int(scene.labels[first])
    return dict(prefix="answer en which digit is the largest ?", suffix=str(digit), label=digit)

  def _boxes(self, scene, chosen):
    boxes = (scene.boxes[chosen] / self.canvas).astype(np.float32)
    labels = [str(d) for d in scene.labels[chosen]]
    suffix = box_text.detect(list(zip(boxes, labels, strict=True)))
    return dict(suffix=suffix, boxes=boxes, labels=labels)

  def _detect(self, scene, rng):
    digit = int(rng.choice(scene.labels))
    asked = self._boxes(scene, np.flatnonzero(scene.labels == digit))
    return dict(prefix=f"detect {digit}", label=digit, **asked)

  def _detect_all(self, scene, rng):
    return dict(prefix="detect digits", **self._boxes(scene, np.arange(len(scene.labels))))

  def _segment(self, scene, rng):
    once = np.flatnonzero(np.bincount(scene.labels, minlength=10)[scene.labels] == 1)
    if not len(once):
      return None
    n = int(rng.choice(once))
    digit = int(scene.labels[n])
    y0, x0, y1, x1 = (int(v) for v in scene.boxes[n])
    mask = np.zeros((self.canvas, self.canvas), bool)
    mask[y0:y1, x0:x1] = ink(int(scene.scans[n]), y1 - y0, x1 - x0) > INK
    codes = _codes(self.codec, os.stat(self.codec).st_mtime)[scene.scans[n]]
    boxes = (scene.boxes[[n]] / self.canvas).astype(np.float32)
    return dict(
      prefix=f"segment {digit}",
      suffix=box_text.segment([(boxes[0], codes, str(digit))]),
      label=digit,
      boxes=boxes,
      labels=[str(digit)],
      mask=mask,
    )


def caption(scene: Scene) -> str:
  """The digits of a scene from left to right."""
  return " ".join(str(d) for d in scene.labels)


def _places(scene: Scene, canvas: int) -> list[tuple[str, int]]:
  """Areas that hold the centre of exactly one digit, well inside: [(name, digit number)]."""
  centre = (scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 * 3 / canvas
  margin = 0.09
  out = []
  for r, row in enumerate(ROWS):
    for c, column in enumerate(COLUMNS):
      off = np.maximum(abs(centre - (r + 0.5, c + 0.5)).max(1) - 0.5, -0.5)
      near = np.flatnonzero(off < margin)
      if len(near) == 1 and off[near[0]] < -margin:
        place = column if row == "middle" else row if column == "centre" else f"{row} {column}"
        out.append((place, int(near[0])))
  return out


class Masks:
  """Masks of the digits' boxes, one a scan: what the mask codec learns from.

  Args:
    split: "train" or "test": which scans are used.
    name: name of the source.

  An example has `id` and `mask` float32 [64, 64] of 0 and 1.
  """

  def __init__(self, split: str = "train", name: str = "digit_masks"):
    if split not in ("train", "test"):
      raise ValueError(names.unknown("digits split", split, ("train", "test")))
    self.name = name
    self._scans = np.flatnonzero(load_scans().test == (split == "test"))

  def __len__(self) -> int:
    return len(self._scans)

  def __getitem__(self, i: int) -> dict:
    return dict(id=f"{self.name}/{self._scans[i]}", mask=crop_masks([self._scans[i]])[0])
