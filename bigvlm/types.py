"""The structs that hold bigvlm together; no logic beyond `to_batch`.

Letters: B batch rows, I media slots, N patches, S rows of soft tokens, T text
positions, K positions that are read (whose logits are wanted), L decoder
length, D width, V vocabulary. All index arrays are int32 and are made on the
host; nothing data-dependent is computed under jit.
"""

from typing import Any, NamedTuple

import jax
from flax import struct

Array = jax.Array


@struct.dataclass
class Media:
  """Input of one encoder: whole pictures in `pixels`, or `patches` of pictures of any shape.

  Attributes:
    pixels: [B, I, H, W, 3], uint8 (0..255; the encoder normalises it) or float
      that is normalised already; or None.
    item: int32 [B, I] or, of patches, [B, N]: the picture each belongs to, unique in
      the row; 0 = padding. Tiles or frames of one item share its number.
    patches: [B, N, T * P * P * 3], frames (where a patch has several), rows, columns and channels
      of each patch, dtypes as of `pixels`; or None.
    pos: int32 [B, N, 2 or more], row and column of each patch in its picture's grid, 0 of padding;
      or what else the encoder says; or, of pixels, facts about each slot, [B, I, ...].
  """

  pixels: Array | None
  item: Array
  patches: Array | None = None
  pos: Array | None = None


@struct.dataclass
class Features:
  """What an encoder gives: `x` [B, I, N, D], `item` int32 [B, I, N], `pooled` [B, I, D] or None."""

  x: Array
  item: Array
  pooled: Array | None = None


@struct.dataclass
class Soft:
  """What a connector gives: rows `x` [B, S, D] of `item` int32 [B, S] (0 = padding).

  `hidden` [B, I, L, D'] is what it had before its last map, of those that show it.
  """

  x: Array
  item: Array
  hidden: Array | None = None


@struct.dataclass
class MaskSpec:
  """Who sees whom, as three int32 [B, L] vectors (see `bigvlm.layers.masks`).

  Attributes:
    segment: example of each position within the row; 0 = padding, negative = padding that
      looks (see `layers.masks.visible`).
    block: cumulative sum of `mask_ar` within the example: a query sees keys of
      its own and earlier blocks. All 0 = bidirectional, 0,1,2.. = causal.
    order: index within the example; windows are measured in it.
  """

  segment: Array
  block: Array
  order: Array


@struct.dataclass
class Text:
  """Token side of a batch.

  Attributes:
    tokens: int32 [B, T]; placeholders of media hold an in-vocabulary pad id.
    mask: MaskSpec over the T positions.
    positions: int32 [B, T], rope or table positions.
    media_index: int32 [B, T], row of `Soft.x` that replaces the embedding; -1 = text.
    read: int32 [B, K], positions whose logits are wanted.
    see: int32 [B, T, 2 * R], what each position sees of a memory by cross-attention: R ranges
      (first, last) of `Memory.label`, mostly one; (1, 0) is empty. None = all.
  """

  tokens: Array
  mask: MaskSpec
  positions: Array
  media_index: Array
  read: Array
  see: Array | None = None


@struct.dataclass
class Memory:
  """What cross-attention reads.

  Attributes:
    x: [B, S, D].
    label: int32 [B, S] of each row; 0 = padding. Of an encoder's output it is the segment, and a
      token sees the rows of its own; of media it is their item, see `Text.see`.
  """

  x: Array
  label: Array


@struct.dataclass
class Fused:
  """What the decoder reads: `x` [B, L, D], `positions` [B, L], `mask`, `read` [B, K].

  `memory` is what its cross-attention reads, or None; `see` is that of `Text`.
  """

  x: Array
  positions: Array
  mask: MaskSpec
  read: Array
  memory: Memory | None = None
  see: Array | None = None


@struct.dataclass
class Cache:
  """Decoding state.

  Attributes:
    layers: pytree of key/value buffers, one entry a layer.
    mask: MaskSpec of the key columns, [B, S].
    index: int32 scalar, next column to write (shared by all rows).
    pos: int32 [B], next position of each row.
    label: int32 [B, M], of the memory whose keys and values the layers hold (see `Memory`); None
      without cross-attention.
    see: int32 [B, 2 * R], what the next tokens of each row see of it (see `Text`).
  """

  layers: Any
  mask: MaskSpec
  index: Array
  pos: Array
  label: Array | None = None
  see: Array | None = None


@struct.dataclass
class Decoded:
  """Decoder output: hidden states `x` after the final norm, and the updated cache.

  They are [B, L, D] of all positions, with a cache [B, K, D] of those of `Fused.read`.
  """

  x: Array
  cache: Cache | None = None


@struct.dataclass
class Batch:
  """One batch for any model and objective.

  Attributes:
    text: Text or None (a model without text).
    media: encoder name -> Media.
    labels: int32 [B, K], token wanted at each read position.
    weights: float32 [B, K], 0 where the loss must not look. A row of a bad
      record is all 0.
    extra: anything an objective of its own needs, by name.
    target: what the decoder of an encoder-decoder reads, from its start token on; `text` and media
      are then the encoder's, and `labels` belong to `target.read`.
  """

  text: Text | None
  media: dict[str, Media]
  labels: Array | None = None
  weights: Array | None = None
  extra: dict[str, Any] = struct.field(default_factory=dict)
  target: Text | None = None


@struct.dataclass
class Outputs:
  """Model output.

  Attributes:
    logits: float32 [B, K, V] at the read positions, or None.
    hidden: final hidden states, as `Decoded.x` has them, or None.
    heads: named outputs: a two-tower model gives `image` [B, D], `text`
      [B, D] (L2-normalised), `scale` and `bias` (scalars).
    cache: the cache, when one was given.
    feats: encoder name -> Features.
    soft: what the connector gave, or None.
  """

  logits: Array | None = None
  hidden: Array | None = None
  heads: dict[str, Any] = struct.field(default_factory=dict)
  cache: Cache | None = None
  feats: dict[str, Features] = struct.field(default_factory=dict)
  soft: Soft | None = None


class Item(NamedTuple):
  """Host-side facts about one picture or video of a row.

  Attributes:
    slot: its first slot or, of packed patches, the place of its first patch.
    grid: patches (t, h, w) of one slot, or of the packed span.
    tiles: (rows, columns) of slots that it was cut into.
    size: (height, width) of the picture itself, in pixels; 0 where nobody needs it.
    video: whether it is a video of t frames, for connectors that treat those in another way.
    merge: side of the squares of patches that the encoder made one of.
    keep: numbers of its tokens that stay, ascending; None = all.
  """

  slot: int
  grid: tuple[int, int, int]
  tiles: tuple[int, int] = (1, 1)
  size: tuple[int, int] = (0, 0)
  video: bool = False
  merge: int = 1
  keep: tuple[int, ...] | None = None


def to_batch(arrays: dict[str, Array]) -> Batch:
  """Builds a `Batch` from the flat arrays of a processor (see `processing.processor`).

  Keys `NAME` + `NAME_item` are media of encoder NAME for every key that ends in `_item`, with their
  `NAME_pos` where there is one; values of three axes are patches. `tokens segment block order
  positions media_index read` and perhaps `see` are the text, the same with `target_` in front the
  target; `labels weights` what is wanted; what is left goes to `extra`.
  """
  rest = dict(arrays)
  media = {}
  for key in sorted(k for k in arrays if k.endswith("_item")):
    name = key.removesuffix("_item")
    values, item, pos = rest.pop(name), rest.pop(key), rest.pop(f"{name}_pos", None)
    whole = values.ndim != 3
    media[name] = Media(values, item, None, pos) if whole else Media(None, item, values, pos)

  def text(prefix: str) -> Text | None:
    if prefix + "tokens" not in rest:
      return None
    names = ("tokens", "segment", "block", "order", "positions", "media_index", "read")
    tokens, segment, block, order, *others = (rest.pop(prefix + name) for name in names)
    see = rest.pop(prefix + "see", None)
    return Text(tokens, MaskSpec(segment, block, order), *others, see)

  texts = text(""), text("target_")
  labels, weights = rest.pop("labels", None), rest.pop("weights", None)
  return Batch(texts[0], media, labels, weights, rest, texts[1])
