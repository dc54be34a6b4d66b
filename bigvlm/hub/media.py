"""Pictures of transformers' inputs into the rows of a batch, by their placeholders.

A reader turns the inputs into `Picture`s in reading order; `place` hands them to the rows whose
placeholders they fill. How many places a picture takes is the connector's to say
(`Connector.rows`), so that the same code serves tiles, packed patches and videos.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bigvlm.types import Item, Media

_PATCHES = 64  # Rows of packed patches are padded to a multiple of this.


def bucket(count: int, least: int = 1) -> int:
  """The length that `count` slots or patches are padded to, so that few shapes are compiled.

  1, 2, 3, 4, 6, 8, 12, 16, ... slots; patches by multiples of `least`, from 1024 on of a power of
  two that wastes at most an eighth.
  """
  # Patches are many: an eighth more of them is a bucket.
  step = max(least, 2 ** max(count.bit_length() - (2 if least == 1 else 4), 0))
  return max(-(-count // step) * step, least)


class Picture(NamedTuple):
  """One picture or video of the inputs.

  Attributes:
    media: encoder name -> its slots [I, H, W, 3] or its patches [N, P * P * 3].
    item: what the host knows of it; `place` fills in the slot.
    token: id of its placeholders.
    pos: encoder name -> int [N, k], places of its patches, or facts [I, ...] about its slots.
    extra: arrays [I, ...] of its slots for the connector: those of a batch go into `Batch.extra`,
      [B, I, ...], 0 where there is no picture.
  """

  media: dict[str, np.ndarray]
  item: Item
  token: int
  pos: dict[str, np.ndarray] = {}
  extra: dict[str, np.ndarray] = {}


class Placed(NamedTuple):
  """Where pictures went.

  Attributes:
    media: encoder name -> Media of the batch; {} without pictures.
    index: int32 [B, T], the row of the connector's output at each position; -1 = text.
    where: of every picture, in reading order: its row of the batch and its rows of the connector's
      output, those that no placeholder stands for too.
    extra: what the connector wants to know beside the features, for `Batch.extra`.
  """

  media: dict[str, Media]
  index: np.ndarray
  where: list[tuple[int, np.ndarray]]
  extra: dict[str, np.ndarray] = {}


def place(model: Any, tokens: np.ndarray, pictures: Sequence[Picture]) -> Placed:
  """Hands the pictures to the rows of a batch.

  Args:
    model: `HubModel`.
    tokens: int [B, T], with the placeholders' ids.
    pictures: in reading order (for each placeholder by itself).

  Raises:
    ValueError: placeholders and pictures that do not match; names the row.
  """
  connector = model.module.connector
  index = np.full(tokens.shape, -1, np.int32)
  kinds = {p.token for p in pictures} | set(placeholders(model))
  holes = {kind: (tokens == kind).sum(axis=1) for kind in kinds}
  sizes = [len(connector.rows([p.item])[0]) for p in pictures]
  rows: list[list[int]] = [[] for _ in tokens]
  for kind in sorted(kinds):
    _assign(rows, holes[kind], [(n, sizes[n]) for n, p in enumerate(pictures) if p.token == kind])
  if not pictures:
    return Placed({}, index, [])
  media, starts = {}, {}
  where = {}
  for name in pictures[0].media:
    media[name], starts[name] = _gather(name, pictures, rows)
  items_of = []
  for row, mine in enumerate(rows):
    # Slots are counted in the first encoder that a picture has some of.
    firsts = [next(name for name, x in pictures[n].media.items() if len(x)) for n in mine]
    items = [
      pictures[n].item._replace(slot=starts[name][row][k])
      for k, (n, name) in enumerate(zip(mine, firsts, strict=True))
    ]
    items_of.append(items)
    if not mine:
      continue
    found = connector.rows(items)
    whole = connector.rows([item._replace(keep=None) for item in items])
    where |= {n: (row, f) for n, f in zip(mine, whole, strict=True)}
    for kind in kinds:
      own = [f for f, n in zip(found, mine, strict=True) if pictures[n].token == kind]
      if own:
        index[row, tokens[row] == kind] = np.concatenate(own)
  extra = {}
  for name in pictures[0].extra:
    extra[name] = _slots(name, pictures, rows, next(iter(media.values())).item.shape[1])
  if hasattr(connector, "extra"):
    extra |= connector.extra(items_of, next(iter(media.values())).item.shape[1])
  return Placed(media, index, [where[n] for n in range(len(pictures))], extra)


def placeholders(model: Any) -> tuple[int, ...]:
  """Ids that stand for media: `image_token` and `video_token` of a system."""
  options = model.system.options
  return tuple(options[k] for k in ("image_token", "video_token") if options.get(k) is not None)


def _assign(rows: list[list[int]], holes: np.ndarray, pictures: list[tuple[int, int]]) -> None:
  """Adds to every row the (number, size) pictures that fill its holes, in order."""
  left = iter(pictures)
  for row, wanted in enumerate(holes.tolist()):
    have = 0
    while have < wanted:
      number, size = next(left, (None, 0))
      if number is None:
        there = f"the {len(pictures)} images leave {wanted - have} empty"
        raise ValueError(
          f"input_ids row {row} has {wanted} image placeholders, but "
          f"{there if pictures else 'there are no pixel_values'}"
        )
      rows[row].append(number)
      have += size
    if have != wanted:
      sizes = " + ".join(str(size) for n, size in pictures if n in rows[row])
      raise ValueError(
        f"input_ids row {row} has {wanted} image placeholders, but its images take {sizes}"
      )
  more = list(left)
  if more:
    row, filled = int(np.flatnonzero(holes).max(initial=0)), len(pictures) - len(more)
    raise ValueError(
      f"there are {len(pictures)} images, but input_ids has placeholders for {filled}, the last of "
      f"them in row {row}"
    )


def _gather(
  name: str, pictures: Sequence[Picture], rows: list[list[int]]
) -> tuple[Media, list[list[int]]]:
  """Media of one encoder, and for every row where each of its pictures starts."""
  lengths = [len(p.media[name]) for p in pictures]
  most = max((sum(lengths[n] for n in mine) for mine in rows), default=1)
  facts, packed = name in pictures[0].pos, pictures[0].media[name].ndim == 2
  most = bucket(most, _PATCHES if packed else 1)
  shapes = {p.media[name].shape[1:] for p in pictures}
  if len(shapes) > 1:
    raise ValueError(f"the pictures have different sizes: {sorted(shapes)}")
  x = np.zeros((len(rows), most, *shapes.pop()), np.float32)
  item = np.zeros((len(rows), most), np.int32)
  shape = pictures[0].pos[name].shape[1:] if facts else ()
  pos = np.zeros((len(rows), most, *shape), np.int32) if facts else None
  starts = []
  for row, mine in enumerate(rows):
    starts.append([])
    at = 0
    for number, n in enumerate(mine, start=1):
      span = slice(at, at + lengths[n])
      x[row, span], item[row, span] = pictures[n].media[name], number
      if facts:
        pos[row, span] = pictures[n].pos[name]
      starts[-1].append(at)
      at += lengths[n]
  return (Media(None, item, x, pos) if packed else Media(x, item, None, pos)), starts


def waste(media: Mapping[str, Media]) -> dict[str, float]:
  """Encoder name -> the part of its slots or patches that is padding."""
  return {name: float((m.item == 0).mean()) for name, m in media.items()}


def _slots(name: str, pictures: Sequence[Picture], rows: list[list[int]], slots: int) -> np.ndarray:
  """`Picture.extra[name]` of all, [B, slots, ...]."""
  first = pictures[0].extra[name]
  out = np.zeros((len(rows), slots, *first.shape[1:]), first.dtype)
  for row, mine in enumerate(rows):
    values = [pictures[n].extra[name] for n in mine]
    if values:
      found = np.concatenate(values)
      out[row, : len(found)] = found
  return out


def channels_last(pixels: np.ndarray, name: str = "pixel_values") -> np.ndarray:
  """[n, 3, H, W] -> float32 [n, H, W, 3].

  Raises:
    ValueError: another shape.
  """
  if pixels.ndim != 4 or pixels.shape[1] != 3:
    raise ValueError(f"{name} must be [n, 3, H, W], not {list(pixels.shape)}")
  return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1), dtype=np.float32)


def images(model: Any, given: Mapping[str, np.ndarray]) -> list[Picture]:
  """`pixel_values` [n, 3, H, W]: every one a picture of one slot."""
  if "pixel_values" not in given:
    return []
  x = channels_last(given["pixel_values"])
  item = Item(0, (1, *model.module.encoders["image"].grid(*x.shape[1:3])), size=x.shape[1:3])
  return [Picture({"image": one[None]}, item, model.system.options["image_token"]) for one in x]


class Reader(NamedTuple):
  """How a kind of media is read: the inputs it takes, and (model, inputs) -> pictures."""

  inputs: tuple[str, ...]
  read: Callable[[Any, Mapping[str, np.ndarray]], list[Picture]]


# Readers of no file of their own; all of them are in `hub.readers`.
READERS: dict[str, Reader] = {"images": Reader(("pixel_values",), images)}
