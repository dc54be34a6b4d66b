"""Token ids of a prefix and a suffix -> the fixed-length arrays that a model reads.

Pure functions of lists of ids. One row is

    [image placeholders] BOS prefix SEP | suffix EOS | padding

with full attention left of the first bar and causal attention right of it (PaliGemma,
arXiv 2407.07726, section 3.1). big_vision pads a row to `text_len + 1` and feeds all but the
last token; here the last target may likewise lie one past the row's end.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
  """`arrays`: the fields of one row; `cut`: True when the suffix did not fit."""

  arrays: dict[str, np.ndarray]
  cut: bool


def pack(
  prefix: Sequence[int],
  suffix: Sequence[int] | None,
  *,
  image_tokens: int,
  text_len: int,
  bos: int,
  eos: int,
  sep: Sequence[int],
  pad: int = 0,
  read_len: int = 0,
  missing: int = 0,
) -> Packed:
  """Packs one row of T = image_tokens + text_len positions.

  Args:
    prefix: ids of the prefix, without BOS.
    suffix: ids of the suffix, without EOS. None = a prompt to be continued: nothing after SEP,
      one read position (the last of the prompt) and K = 1.
    image_tokens: number of placeholders in front.
    text_len: positions after the image.
    bos, eos, pad: ids; `pad` also stands at the placeholders.
    sep: ids of the separator (a newline).
    read_len: K, number of positions whose logits are wanted; 0 = text_len.
    missing: how many of the placeholders, the last ones, stand for pictures that are not there:
      nobody sees them (segment 0), and the text is numbered as if they were not there either.

  Returns:
    Packed with `tokens segment block order positions media_index` int32 [T], `read labels`
    int32 [K], `weights` float32 [K]. A suffix that does not fit is cut, without EOS.

  Raises:
    ValueError: when the prefix leaves no position for a suffix.
  """
  head = [bos, *prefix, *sep]
  room = text_len + 1 - len(head)  # targets; the last one needs no position of its own
  if suffix is None:
    if len(head) > text_len:
      raise ValueError(_too_long(len(head), text_len))
    wanted, tail, k = [], [], 1
  else:
    if room < 1:
      raise ValueError(_too_long(len(head), text_len))
    k = read_len or text_len
    wanted = [*suffix, eos]
    tail = wanted[: min(room, k)]
  t = image_tokens + text_len
  start = image_tokens + len(head)
  used = min(start + len(tail), t)

  tokens = np.full(t, pad, np.int32)
  tokens[image_tokens:used] = (head + tail)[: used - image_tokens]
  order = np.arange(t, dtype=np.int32)
  segment = (order < used).astype(np.int32)
  block = np.clip(order - (start - 1), 0, max(used - start, 0)).astype(np.int32)
  media_index = np.where(order < image_tokens, order, -1).astype(np.int32)
  if missing:
    segment[image_tokens - missing : image_tokens] = 0
    order[image_tokens:] -= missing
  read = np.zeros(k, np.int32)
  labels = np.zeros(k, np.int32)
  weights = np.zeros(k, np.float32)
  if suffix is None:
    read[0] = start - 1
  else:
    n = len(tail)
    read[:n] = np.arange(start - 1, start - 1 + n)
    labels[:n] = tail
    weights[:n] = 1.0
  arrays = dict(
    tokens=tokens,
    segment=segment,
    block=block,
    order=order,
    positions=order.copy(),
    media_index=media_index,
    read=read,
    labels=labels,
    weights=weights,
  )
  return Packed(arrays, cut=len(tail) < len(wanted))


def pack_pair(
  prefix: Sequence[int],
  suffix: Sequence[int] | None,
  *,
  image_tokens: int,
  text_len: int,
  target_len: int,
  eos: int,
  pad: int = 0,
) -> Packed:
  """Packs one row of an encoder-decoder (PaLI, arXiv 2209.06794, section 3.1; T5).

  The encoder reads [image placeholders] prefix EOS, all of it by all of it; the decoder reads the
  start token, which is `pad` as in T5, and the suffix, and predicts the suffix and EOS.

  Args:
    prefix: ids, without EOS.
    suffix: ids, without EOS. None = a prompt: the decoder reads its start token alone, K = 1.
    image_tokens: number of placeholders in front.
    text_len: positions of the encoder after the image.
    target_len: positions of the decoder, and K.
    eos, pad: ids; `pad` also stands at the placeholders.

  Returns:
    Packed with the encoder's `tokens segment block order positions media_index` int32 [T] for
    T = image_tokens + text_len, `read` int32 [1] (of no use), the decoder's `target_tokens` ...
    `target_read` int32 [K], `labels` int32 [K], `weights` float32 [K]. A suffix that does not fit
    is cut, without EOS.

  Raises:
    ValueError: when the prefix does not fit.
  """
  head = [*prefix, eos]
  if len(head) > text_len:
    raise ValueError(
      f"the prefix takes {len(head)} tokens with EOS, but text_len={text_len}; shorten it or raise "
      "processor.text_len"
    )
  wanted = [] if suffix is None else [*suffix, eos]
  k = 1 if suffix is None else target_len
  kept = wanted[:k]
  source = _stream([pad] * image_tokens + head, image_tokens + text_len, pad, image_tokens)
  target = _stream([pad, *kept[:-1]], k, pad, 0)
  target["block"] = target["order"].copy()
  labels, weights = np.zeros(k, np.int32), np.zeros(k, np.float32)
  labels[: len(kept)] = kept
  weights[: len(kept)] = 1.0
  arrays = dict(
    **source,
    read=np.zeros(1, np.int32),
    **{f"target_{name}": x for name, x in target.items()},
    target_read=np.arange(k, dtype=np.int32),
    labels=labels,
    weights=weights,
  )
  return Packed(arrays, cut=len(kept) < len(wanted))


def _stream(ids: Sequence[int], length: int, pad: int, image_tokens: int) -> dict[str, np.ndarray]:
  """Ids, padded to `length`, that see each other; the first `image_tokens` stand for a picture."""
  order = np.arange(length, dtype=np.int32)
  tokens = np.full(length, pad, np.int32)
  tokens[: len(ids)] = ids
  return dict(
    tokens=tokens,
    segment=(order < len(ids)).astype(np.int32),
    block=np.zeros(length, np.int32),
    order=order,
    positions=order.copy(),
    media_index=np.where(order < image_tokens, order, -1).astype(np.int32),
  )


def _too_long(length: int, text_len: int) -> str:
  return (
    f"the prefix takes {length} tokens with BOS and separator, which leaves no room for an answer "
    f"in text_len={text_len}; shorten it or raise processor.text_len"
  )


def pack_text(
  ids: Sequence[int], *, text_len: int, eos: int, pad: int = 0
) -> dict[str, np.ndarray]:
  """One row of a bidirectional text tower: ids EOS, padded to `text_len`; EOS stays when cut.

  Padding is attended to and the last position is read, as SigLIP does (arXiv 2303.15343).
  Fields and dtypes as `pack`, with T = text_len and K = 1.
  """
  tokens = np.full(text_len, pad, np.int32)
  kept = [*ids[: text_len - 1], eos]
  tokens[: len(kept)] = kept
  order = np.arange(text_len, dtype=np.int32)
  return dict(
    tokens=tokens,
    segment=np.ones(text_len, np.int32),
    block=np.zeros(text_len, np.int32),
    order=order,
    positions=order.copy(),
    media_index=np.full(text_len, -1, np.int32),
    read=np.array([text_len - 1], np.int32),
    labels=np.zeros(1, np.int32),
    weights=np.ones(1, np.float32),
  )


def mask_concat(
  parts: Sequence[Sequence[int]],
  *,
  mask_ar: Sequence[int],
  mask_loss: Sequence[int],
  length: int,
  pad: int = 0,
) -> dict[str, np.ndarray]:
  """Joins token lists and writes one attention and one loss flag a token, as big_vision does.

  Args:
    parts: lists of ids, e.g. (prefix, separator, suffix).
    mask_ar: per part, 1 where each token starts a new attention block (causal).
    mask_loss: per part, 1 where tokens are to be predicted.
    length: the result is cut or padded to this.
    pad: id of padding.

  Returns:
    `tokens mask_ar mask_loss mask_input` int32 [length]; `mask_input` is 1 on real tokens. On
    padding `mask_ar` is 1 and `mask_loss` 0.
  """
  if not len(parts) == len(mask_ar) == len(mask_loss):
    raise ValueError(
      f"mask_concat got {len(parts)} parts, {len(mask_ar)} mask_ar and {len(mask_loss)} mask_loss"
    )
  out = dict(
    tokens=np.full(length, pad, np.int32),
    mask_ar=np.ones(length, np.int32),
    mask_loss=np.zeros(length, np.int32),
    mask_input=np.zeros(length, np.int32),
  )
  at = 0
  for part, ar, loss in zip(parts, mask_ar, mask_loss, strict=True):
    end = min(at + len(part), length)
    out["tokens"][at:end] = part[: end - at]
    out["mask_ar"][at:end] = ar
    out["mask_loss"][at:end] = loss
    out["mask_input"][at:end] = 1
    at = end
  return out
