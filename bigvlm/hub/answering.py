"""Answers of a decoder, chosen in every way: samples, beams, stop strings, streams."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bigvlm import beam, generate
from bigvlm.hub import decoding
from bigvlm.sampling import Sampling

OnText = Callable[[int, str], None]


class Answer(NamedTuple):
  """One answer.

  Attributes:
    text: without its end token, cut before a stop string.
    ids: the tokens, the end token with them.
    logp: log-probability of each under the model (of a beam: only the sum, as a single number).
  """

  text: str
  ids: list[int]
  logp: list[float]


def answers(
  model: Any,
  batch: Any,
  rng: jax.Array,
  *,
  count: int,
  max_new_tokens: int,
  sampling: Sampling,
  samples: int,
  beams: int,
  length_penalty: float,
  stop: Sequence[str],
  on_text: OnText | None,
  first: int,
) -> list[list[Answer]]:
  """Answers to the first `count` rows of a batch; see `Human.answers`.

  Args:
    model: a `HubModel` with a processor. batch: prompts that read their last position.
    first: number of the batch's first prompt, for `on_text`.

  Raises:
    ValueError: options that do not go together.
  """
  if beams and (samples > 1 or sampling.temperature):
    raise ValueError("beams find one answer and do not sample; leave samples and temperature alone")
  if on_text is not None and (beams or samples > 1):
    raise ValueError("on_text follows one answer a prompt as it is written; not beams or samples")
  eos, pad = decoding.ends(model)
  pad = 0 if pad is None else pad
  # An answer ends where the model does.
  max_new_tokens = decoding.room(model, batch, max_new_tokens)
  module, params, placed = model.decoding(batch)
  how = dict(max_new_tokens=max_new_tokens, eos=eos, pad=pad)
  if beams:
    found = beam.search(module, params, placed, beams=beams, length_penalty=length_penalty, **how)
    rows = zip(np.asarray(found.tokens)[:count], np.asarray(found.score)[:count], strict=True)
    return [[_cut(model, ids, [float(score)], eos, stop)] for ids, score in rows]
  if on_text is not None or (stop and samples == 1):
    whole = model.params_for(batch)
    parts = generate.stream(module, whole, placed, rng, sampling=sampling, apart=params, **how)
    out = _followed(model, parts, count, eos, stop, on_text, first, max_new_tokens)
  else:
    out = generate.decode(module, params, placed, rng, sampling=sampling, samples=samples, **how)
  ids, logp = np.asarray(out.tokens), np.asarray(out.logp)
  flat = [_cut(model, ids[n], logp[n].tolist(), eos, stop) for n in range(count * samples)]
  return [flat[n * samples : (n + 1) * samples] for n in range(count)]


def _followed(
  model: Any,
  parts: Iterator[generate.Generated],
  count: int,
  eos: tuple[int, ...],
  stop: Sequence[str],
  on_text: OnText | None,
  first: int,
  length: int,
) -> generate.Generated:
  """Takes tokens until every row has ended or said a stop string; tells what is new of each."""
  told = [""] * count
  for part in parts:
    ids, open_rows = np.asarray(part.tokens), 0
    for row in range(count):
      text, stopped = _until(_text(model, ids[row], eos), stop)
      going = not (stopped or np.isin(ids[row], eos).any() or ids.shape[1] == length)
      open_rows += going
      text = _sure(text, stop) if going else text
      if on_text is not None and len(text) > len(told[row]):
        on_text(first + row, text[len(told[row]) :])
        told[row] = text
    if not open_rows:
      break
  return part


def _sure(text: str, stop: Sequence[str]) -> str:
  """The text without an end that may yet become another character, or a stop string."""
  text = text.rstrip("\ufffd")
  held = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
  return text[: len(text) - max(held, default=0)]


def _text(model: Any, ids: np.ndarray, eos: tuple[int, ...]) -> str:
  end = np.flatnonzero(np.isin(ids, eos))
  return model.processor.decode(ids[: end[0]] if len(end) else ids)


def _until(text: str, stop: Sequence[str]) -> tuple[str, bool]:
  """The text before the first stop string, and whether there was one."""
  at = min((text.find(s) for s in stop if s in text), default=-1)
  return (text, False) if at < 0 else (text[:at], True)


def _cut(
  model: Any, ids: np.ndarray, logp: list[float], eos: tuple[int, ...], stop: Sequence[str]
) -> Answer:
  text, stopped = _until(_text(model, ids, eos), stop)
  end = np.flatnonzero(np.isin(ids, eos))
  size = end[0] + 1 if len(end) else len(ids)
  if stopped:  # The fewest tokens that say it.
    size = next(n for n in range(1, size + 1) if _until(_text(model, ids[:n], eos), stop)[1])
  return Answer(text, ids[:size].tolist(), logp[:size])
