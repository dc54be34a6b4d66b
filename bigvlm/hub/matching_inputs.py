"""Inputs and outputs of models that match texts to images (`models.matching`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bigvlm.hub import inputs
from bigvlm.types import Batch

_FLAG = "use_image_text_matching_head"


def matching(model: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Scores of images with texts.

  With `use_image_text_matching_head` `logits_per_image` [B, 2] is no and yes of every image with
  the text of its row, and `image_embeds` and `text_embeds` are the hidden states of both; with the
  flag off it is the contrastive score of all with all, and they are embeddings [N, Q, D] and
  [M, D]. Without the flag the former, where there are as many texts as images, and embeddings.
  `itc_score` [N, M] is the contrastive score always.

  Raises:
    ValueError: inputs that are missing, unknown or of other shapes.
  """
  given = inputs.take(given, "pixel_values", "input_ids", "attention_mask", _FLAG)
  flag = bool(given[_FLAG]) if _FLAG in given else None
  out: dict[str, np.ndarray] = {}
  media, text = {}, None
  if "pixel_values" in given:
    media = {model.module.connector.source: inputs.media(given["pixel_values"])}
  if "input_ids" in given:
    text = _text(model, given)
  found = model.apply(Batch(text, media))
  heads = {name: np.asarray(x) for name, x in found.heads.items()}
  if flag and "match" not in heads:
    raise ValueError(f"{_FLAG} needs as many rows of input_ids as of pixel_values")
  for name in ("image", "text"):
    if name in heads:
      out[f"{name}_embeds"] = heads[name]
  if len(out) == 2:
    scores = np.einsum("nqd,md->nqm", heads["image"], heads["text"]).max(axis=1)
    logits = heads["match"] if flag is not False and "match" in heads else scores
    out |= dict(itc_score=scores, logits_per_image=logits, logits_per_text=logits.T)
  if flag:
    feats = found.feats[model.module.connector.source].x[:, 0]
    out |= dict(text_embeds=np.asarray(found.hidden), image_embeds=np.asarray(feats))
  return out


def _text(model: Any, given: Mapping[str, np.ndarray]) -> Any:
  """The texts, without the places of the queries in front of them."""
  former, places = model.module.connector, model.system.options["places"]
  tokens, mask = given["input_ids"], given.get("attention_mask")
  if mask is not None and mask.shape != tokens.shape:
    raise ValueError(f"attention_mask is {list(mask.shape)}, but input_ids is {list(tokens.shape)}")
  if tokens.ndim != 2 or tokens.shape[1] <= places:
    raise ValueError(f"input_ids is {list(tokens.shape)}, with {places} places of the queries")
  if mask is not None and not (mask[:, :places] > 0).all():
    raise ValueError(f"attention_mask hides some of the {places} places of the queries")
  tokens = inputs.ids(tokens[:, places:], former.vocab)
  if tokens.shape[1] > former.length:
    raise ValueError(
      f"input_ids has {tokens.shape[1]} tokens, the position table only {former.length}"
    )
  return inputs.text(tokens, None if mask is None else mask[:, places:], 0)


KINDS = {"matching": matching}
