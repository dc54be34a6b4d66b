"""Random encoder-decoders of the reference: T5, T5 1.1 (FLAN-T5, UL2), mT5, UMT5, and encoders."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.parity import common


def _sizes(seed: int) -> dict[str, Any]:
  odd = seed % 2
  return dict(
    vocab_size=99 + 12 * odd,
    d_model=80 if odd else 48,
    d_kv=10 if odd else 14,
    d_ff=72 + 8 * odd,
    # The reference cannot generate with more layers in the decoder than in the encoder.
    num_layers=2 if odd else 3,
    num_decoder_layers=None if odd else 2,
    num_heads=6 if odd else 4,
    relative_attention_num_buckets=12 if odd else 32,
    relative_attention_max_distance=20 if odd else 128,
    decoder_start_token_id=0,
  )


def _inputs(seed: int, vocab: int) -> dict[str, np.ndarray]:
  """Encoder inputs longer than the near buckets, padded on one side or the other."""
  rng = np.random.default_rng(seed)
  rows, length, new = 3, 29 + seed % 3, 7
  side = "left" if seed % 2 else "right"
  return dict(
    input_ids=rng.integers(2, vocab, (rows, length)),
    attention_mask=common.padding(rng, rows, length, side),
    decoder_input_ids=np.concatenate(
      [np.zeros((rows, 1), np.int64), rng.integers(2, vocab, (rows, new))], axis=1
    ),
    decoder_attention_mask=common.padding(rng, rows, new + 1, "right"),
  )


def _make(seed: int, config: Any, cls: Any, *, untied: bool) -> tuple[Any, dict, dict]:
  import torch

  config._attn_implementation = "eager"
  model = cls(config)
  if untied:
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    model.all_tied_weights_keys.pop("lm_head.weight")
  model = common.randomise(model, seed)
  with torch.no_grad():
    if not untied:  # Else the decoder would mostly repeat what it reads.
      model.shared.weight.mul_(0.1)
    for name, p in model.named_parameters():
      if name.endswith("Attention.q.weight"):  # As at the start of training: queries have no scale.
        p.mul_(config.d_kv**-0.5)
  inputs = _inputs(seed, config.vocab_size)
  options = {"mask": inputs["decoder_attention_mask"] > 0, "generate": 9, "outputs": ["logits"]}
  return model, inputs, options


def t5(seed: int) -> tuple[Any, dict, dict]:
  """T5 1.0: relu, logits of scaled hidden states from the embeddings."""
  import transformers

  config = transformers.T5Config(**_sizes(seed), feed_forward_proj="relu")
  return _make(seed, config, transformers.T5ForConditionalGeneration, untied=False)


def t5_v1_1(seed: int) -> tuple[Any, dict, dict]:
  """T5 1.1, FLAN-T5 and, with silu, UL2: gated, logits from a head of its own."""
  import transformers

  gate = "gated-silu" if seed % 2 else "gated-gelu"
  config = transformers.T5Config(**_sizes(seed), feed_forward_proj=gate, tie_word_embeddings=False)
  return _make(seed, config, transformers.T5ForConditionalGeneration, untied=True)


def t5_v1_1_tied(seed: int) -> tuple[Any, dict, dict]:
  """Gated, logits of unscaled hidden states from the embeddings."""
  import transformers

  config = transformers.T5Config(
    **_sizes(seed), feed_forward_proj="gated-gelu", tie_word_embeddings=False
  )
  return _make(seed, config, transformers.T5ForConditionalGeneration, untied=False)


def mt5(seed: int) -> tuple[Any, dict, dict]:
  """mT5: gated, never scaled; from a head of its own as published, or tied."""
  import transformers

  config = transformers.MT5Config(**_sizes(seed))
  return _make(seed, config, transformers.MT5ForConditionalGeneration, untied=seed % 2 == 0)


def umt5(seed: int) -> tuple[Any, dict, dict]:
  """UMT5: a relative bias in every layer; from a head of its own as published, or tied."""
  import transformers

  config = transformers.UMT5Config(**_sizes(seed))
  return _make(seed, config, transformers.UMT5ForConditionalGeneration, untied=seed % 2 == 0)


def _encoder(family: str, **fields: Any) -> Callable[[int], tuple[Any, dict, dict]]:
  """The encoder of a family alone; padding, whose rows the reference computes too, counts."""

  def make(seed: int) -> tuple[Any, dict, dict]:
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(**_sizes(seed), **fields)
    config._attn_implementation = "eager"
    model = common.randomise(getattr(transformers, f"{family}EncoderModel")(config), seed)
    with torch.no_grad():
      for name, p in model.named_parameters():
        if name.endswith("Attention.q.weight"):
          p.mul_(config.d_kv**-0.5)
    given = _inputs(seed, config.vocab_size)
    inputs = {k: given[k] for k in ("input_ids", "attention_mask")}
    return model, inputs, {"outputs": ["last_hidden_state"]}

  return make


RECIPES = {
  "t5": t5,
  "t5_v1_1": t5_v1_1,
  "t5_v1_1_tied": t5_v1_1_tied,
  "mt5": mt5,
  "umt5": umt5,
  "t5_encoder": _encoder("T5", feed_forward_proj="relu"),
  "mt5_encoder": _encoder("MT5"),
  "umt5_encoder": _encoder("UMT5"),
}
