"""Small image and text functions, and the table that configs name them by.

Each is an ordinary function of a value: `ops.resize(image, 224)`. In a config the same thing is
`dict(op="resize", size=224)`: `make` turns that into an `Op` that reads and writes a field of an
example and is called as `op(example, rng)`. Images are uint8 [H, W, 3] unless said otherwise.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bigvlm.processing import image as images
from bigvlm.processing import prompt, tasks, tf_resize
from bigvlm.processing import tokenizer as tokenizers
from bigvlm.utils import names

METHODS = {
  "nearest": Image.Resampling.NEAREST,
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
  "lanczos": Image.Resampling.LANCZOS,
}
BACKENDS = (*images.BACKENDS, "tf")
Size = int | Sequence[int]


def pair(size: Size) -> tuple[int, int]:
  """(height, width) of a size given as one int (a square) or two."""
  out = (size, size) if isinstance(size, (int, np.integer)) else tuple(size)
  if len(out) != 2 or min(out) < 1:
    raise ValueError(f"an image size is an int or (height, width), each at least 1, not {size}")
  return int(out[0]), int(out[1])


# --- images ---------------------------------------------------------------------------------------


def resize(
  image: np.ndarray,
  size: Size,
  method: str = "bilinear",
  antialias: bool = True,
  backend: str = "pil",
) -> np.ndarray:
  """Resizes to exactly `size`; the aspect ratio is not kept.

  Args:
    image: uint8 [H, W, 3] or [H, W], or float32 [H, W].
    size: int or (height, width).
    method: "nearest", "bilinear", "bicubic" or "lanczos". With `antialias` the filter widens when
      the image shrinks (Pillow's numerics, close to TF's and torchvision's antialias=True).
    antialias: False samples the source at the centres of the new pixels ("nearest", "bilinear"
      and "bicubic" only).
    backend: "pil"; "opencv" for speed: "bilinear" alone, within a few grey levels of Pillow; "tf"
      for the pixels that big_vision trains on, "bilinear" alone: see `tf_resize`.

  Returns:
    The same dtype, [h, w, 3] or [h, w].
  """
  height, width = pair(size)
  filt = names.lookup("resize method", method, METHODS)
  if image.shape[:2] == (height, width):
    return image
  if backend in ("opencv", "tf"):
    if method != "bilinear":
      raise ValueError(f"backend={backend!r} resizes by method='bilinear' only, not {method!r}")
    make = tf_resize.resize_as if backend == "tf" else _resize_opencv
    return make(image, (height, width), antialias)
  if backend != "pil":
    raise ValueError(names.unknown("image backend", backend, BACKENDS))
  source = Image.fromarray(image)
  if antialias or method == "nearest":
    return np.array(source.resize((width, height), filt))
  if method == "lanczos":
    raise ValueError("method='lanczos' has no form with antialias=False")
  step_y, step_x = image.shape[0] / height, image.shape[1] / width
  data = (step_x, 0, 0, 0, step_y, 0)
  return np.array(source.transform((width, height), Image.Transform.AFFINE, data, filt))


def _resize_opencv(image: np.ndarray, size: tuple[int, int], antialias: bool) -> np.ndarray:
  """OpenCV has no antialiased bilinear filter, so a shrunk image is sampled 2 x 2 a pixel.

  Measured against Pillow on photographs at 500 x 375 -> 224: mean difference equal to
  INTER_AREA's at a quarter of its time. Above a factor of 3, four samples would miss pixels.
  """
  import cv2

  height, width = size
  scale = max(image.shape[0] / height, image.shape[1] / width)
  if not antialias or scale <= 1:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
  if scale <= 3:
    image = cv2.resize(image, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def resize_small(
  image: np.ndarray, size: int, method: str = "bilinear", antialias: bool = True
) -> np.ndarray:
  """Resizes so that the smaller side is `size`; the aspect ratio is kept."""
  height, width = image.shape[:2]
  scale = size / min(height, width)
  new = (max(1, round(height * scale)), max(1, round(width * scale)))
  return resize(image, new, method, antialias)


def central_crop(image: np.ndarray, size: Size) -> np.ndarray:
  """The middle `size` of an image; ValueError when it is smaller than that."""
  height, width = _fits(image, size, "central_crop")
  top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  return np.ascontiguousarray(image[top : top + height, left : left + width])


def random_crop(image: np.ndarray, size: Size, *, rng: np.random.Generator) -> np.ndarray:
  """A `size` part of an image at a random place; ValueError when it is smaller than that."""
  height, width = _fits(image, size, "random_crop")
  top = int(rng.integers(0, image.shape[0] - height + 1))
  left = int(rng.integers(0, image.shape[1] - width + 1))
  return np.ascontiguousarray(image[top : top + height, left : left + width])


def _fits(image: np.ndarray, size: Size, what: str) -> tuple[int, int]:
  height, width = pair(size)
  if image.shape[0] < height or image.shape[1] < width:
    raise ValueError(
      f"{what} of {height} x {width} from an image of {image.shape[0]} x {image.shape[1]}; "
      "resize it first"
    )
  return height, width


def inception_crop(
  image: np.ndarray,
  size: Size | None = None,
  area: Sequence[float] = (0.05, 1.0),
  aspect: Sequence[float] = (3 / 4, 4 / 3),
  method: str = "bilinear",
  antialias: bool = True,
  *,
  rng: np.random.Generator,
) -> np.ndarray:
  """A random part of random area and aspect ratio, resized (GoogLeNet, arXiv 1409.4842).

  Args:
    image: uint8 [H, W, 3].
    size: resized to this; None keeps the part as it is (the processor resizes it).
    area: least and greatest share of the picture.
    aspect: least and greatest width / height.
    method, antialias: see `resize`.
    rng: source of randomness.
  """
  height, width = image.shape[:2]
  h, w = height, width
  for _ in range(10):
    part = rng.uniform(*area) * height * width
    ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
    tried_w, tried_h = round(math.sqrt(part * ratio)), round(math.sqrt(part / ratio))
    if 0 < tried_w <= width and 0 < tried_h <= height:
      h, w = tried_h, tried_w
      break
  top = int(rng.integers(0, height - h + 1))
  left = int(rng.integers(0, width - w + 1))
  image = np.ascontiguousarray(image[top : top + h, left : left + w])
  return image if size is None else resize(image, size, method, antialias)


def flip_lr(image: np.ndarray, p: float = 1.0, *, rng: np.random.Generator | None = None):
  """Mirrors left and right with probability `p` (always, without `rng`)."""
  if rng is not None and rng.random() >= p:
    return image
  return np.ascontiguousarray(image[:, ::-1])


def value_range(
  image: np.ndarray,
  vmin: float = -1.0,
  vmax: float = 1.0,
  in_min: float = 0.0,
  in_max: float = 255.0,
  clip: bool = False,
) -> np.ndarray:
  """Maps [in_min, in_max] linearly to [vmin, vmax], float32.

  For use outside training: a model's encoder does this itself, on the device, from uint8.
  """
  out = (image.astype(np.float32) - in_min) / (in_max - in_min) * (vmax - vmin) + vmin
  return np.clip(out, vmin, vmax) if clip else out


# --- text -----------------------------------------------------------------------------------------


def lower(text):
  """Lower case, of a string or of each of a list."""
  return text.lower() if isinstance(text, str) else [one.lower() for one in text]


def choice(value, *, rng: np.random.Generator):
  """One item of a list, at random (several captions of a picture); a string stays as it is."""
  if isinstance(value, str):
    return value
  if not len(value):
    raise images.BadExample("no item to choose from")
  return value[int(rng.integers(len(value)))]


def tokenise(text: str, tokenizer, length: int = 0, pad: int | None = None, eos: bool = False):
  """Ids of a text: a list, or int32 [length] when `length` is given (cut or padded to it).

  Args:
    text: any string.
    tokenizer: a tokeniser, or the dict that `tokenizer.make` takes.
    length: 0 = as long as it is.
    pad: id of padding; None = the tokeniser's.
    eos: adds EOS; it stays when the text is cut.
  """
  ids = tokenizer.encode(text)
  if length:
    ids = ids[: length - 1] if eos else ids[:length]
  ids = [*ids, tokenizer.eos] if eos else ids
  if not length:
    return ids
  out = np.full(length, (tokenizer.pad or 0) if pad is None else pad, np.int32)
  out[: len(ids)] = ids
  return out


# --- whole examples -------------------------------------------------------------------------------


def keep(example: Mapping[str, Any], *fields: str) -> dict[str, Any]:
  """The example with these fields alone (and its `id`)."""
  for field in fields:
    if field not in example:
      raise ValueError(names.unknown("field of an example", field, example))
  return {k: v for k, v in example.items() if k in fields or k == "id"}


def pack_prefix_suffix(
  example: Mapping[str, Any], tokenizer, text_len: int, image_tokens: int = 0, read_len: int = 0
) -> dict[str, Any]:
  """The example with the arrays of `prompt.pack` for its `prefix` and `suffix` added."""
  packed = prompt.pack(
    tokenizer.encode(example["prefix"]),
    tokenizer.encode(example["suffix"]),
    image_tokens=image_tokens,
    text_len=text_len,
    bos=tokenizer.bos,
    eos=tokenizer.eos,
    sep=tokenizer.newline,
    pad=tokenizer.pad or 0,
    read_len=read_len,
  )
  return {**example, **packed.arrays}


def mask_concat(
  example: Mapping[str, Any],
  fields: Sequence[str],
  mask_ar: Sequence[int],
  mask_loss: Sequence[int],
  length: int,
  pad: int = 0,
) -> dict[str, Any]:
  """The example with `prompt.mask_concat` of the id lists in `fields` added."""
  parts = [example[f] for f in fields]
  return {
    **example,
    **prompt.mask_concat(parts, mask_ar=mask_ar, mask_loss=mask_loss, length=length, pad=pad),
  }


# --- the table ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
  """How a function is used on examples: the field it reads (None = the whole example), its kind.

  One that reads a picture is called for each of several, with randomness of its own.
  """

  fn: Callable
  field: str | None
  geometric: bool = False  # moves pixels, so boxes and locations in the text would be wrong
  out: str | None = None  # field that is written, when it is another one


OPS = {
  "decode": Entry(images.decode, "image"),
  "resize": Entry(resize, "image"),
  "resize_small": Entry(resize_small, "image"),
  "value_range": Entry(value_range, "image"),
  "inception_crop": Entry(inception_crop, "image", geometric=True),
  "random_crop": Entry(random_crop, "image", geometric=True),
  "central_crop": Entry(central_crop, "image", geometric=True),
  "flip_lr": Entry(flip_lr, "image", geometric=True),
  "lower": Entry(lower, "suffix"),
  "choice": Entry(choice, "suffix"),
  "tokenise": Entry(tokenise, "text", out="tokens"),
  "pack_prefix_suffix": Entry(pack_prefix_suffix, None),
  "mask_concat": Entry(mask_concat, None),
  "keep": Entry(keep, None),
  "template": Entry(tasks.template, None),
  "letter_choices": Entry(tasks.letter_choices, None),
  "draw_box": Entry(tasks.draw_box, None),
  "frames": Entry(tasks.frames, "image"),
  "read_mask": Entry(tasks.read_mask, "mask"),
}


class Op:
  """A function of the table with its arguments, called as `op(example, rng) -> example`.

  Args:
    name: key of OPS.
    field, out: field that is read and field that is written, instead of the table's.
    **kwargs: arguments of the function.

  Raises:
    ValueError: unknown name, unknown or missing argument.
  """

  def __init__(self, name: str, field: str | None = None, out: str | None = None, **kwargs: Any):
    entry = names.lookup("preprocessing op", name, OPS)
    self.name = name
    self._fn, self._geometric = entry.fn, entry.geometric
    self.field = field or entry.field
    self.out = out or entry.out or self.field
    self._args = tuple(kwargs.pop("fields")) if name == "keep" and "fields" in kwargs else ()
    self._check(kwargs)
    if isinstance(kwargs.get("tokenizer"), Mapping):
      kwargs["tokenizer"] = tokenizers.make(kwargs["tokenizer"])
    self._kwargs = kwargs
    self._random = "rng" in inspect.signature(entry.fn).parameters

  def _check(self, kwargs: Mapping[str, Any]) -> None:
    parameters = list(inspect.signature(self._fn).parameters.values())[1:]
    known = [p.name for p in parameters if p.kind != p.VAR_POSITIONAL and p.name != "rng"]
    for key in kwargs:
      if key not in known:
        raise ValueError(names.unknown(f"argument of op {self.name!r}", key, known))
    for p in parameters:
      if p.name in known and p.default is p.empty and p.name not in kwargs:
        raise ValueError(f"op {self.name!r} needs the argument {p.name!r}")

  def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    kwargs = {**self._kwargs, "rng": rng} if self._random else self._kwargs
    if self.field is None:
      return dict(self._fn(example, *self._args, **kwargs))
    if self.field not in example:
      raise ValueError(
        names.unknown(f"field for op {self.name!r} of example {example.get('id')}",
                      self.field, example)
      )  # fmt: skip
    value = example[self.field]
    if self._geometric:
      self._check_places(example)
    record = str(example.get("id", ""))
    if self.name == "decode" and "record" not in kwargs:
      kwargs = {**kwargs, "record": record}
    each = self.field == "image" and self.name != "frames"

    def apply(one):
      if each and self.name != "decode" and not isinstance(one, np.ndarray):
        one = images.decode(one, record=record)
      return self._fn(one, **kwargs)

    several = each and isinstance(value, (list, tuple))
    return {**example, self.out: [apply(one) for one in value] if several else apply(value)}

  def _check_places(self, example: Mapping[str, Any]) -> None:
    """Moving the pixels of an example that says where things are would make it silently wrong."""
    if len(example.get("boxes", ())) or "mask" in example:
      where = "boxes" if "boxes" in example else "mask"
    else:
      where = next((f for f in ("prefix", "suffix") if "<loc" in str(example.get(f, ""))), None)
    if where is not None:
      raise ValueError(
        f"op {self.name!r} moves pixels, but example {example.get('id')} has places in its field "
        f"{where!r}; drop the op from this source, or the field with dict(op='keep', fields=...)"
      )

  def __repr__(self) -> str:
    return f"Op({self.name!r}, {self._kwargs})"


def make(cfg: Mapping[str, Any] | Callable) -> Callable:
  """`dict(op=name, ...)` -> Op; a callable `(example, rng) -> example` is taken as it is."""
  if callable(cfg) and not isinstance(cfg, Mapping):
    return cfg
  cfg = dict(cfg)
  if "op" not in cfg:
    raise ValueError(f"a preprocessing step is dict(op=NAME, ...), not {cfg}")
  return Op(cfg.pop("op"), **cfg)


@dataclasses.dataclass(frozen=True)
class Chain:
  """Ops one after another, called as `chain(example, rng) -> example`."""

  ops: tuple[Callable, ...] = ()

  def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    out = dict(example)
    for op in self.ops:
      out = op(out, rng)
    return out


def chain(cfgs: Sequence[Mapping[str, Any] | Callable]) -> Chain:
  """Builds a Chain of a list of configs."""
  return Chain(tuple(make(c) for c in cfgs))
