"""Random text models of the reference: Llama, Mistral, Qwen2, OPT, Phi, Persimmon."""

from typing import Any

import numpy as np

from tests.parity import common
from tests.parity.recipes_decoders import _mask, _options

_EOS = 24  # As many ids end a row, so that rows end at different steps.


def _ends(rng: np.random.Generator, vocab: int) -> list[int]:
  return [1, *(int(i) for i in rng.choice(np.arange(3, vocab), _EOS - 1, replace=False))]


def _sizes(seed: int, **more: Any) -> dict[str, Any]:
  """Sizes of a text model; kv heads are fewer than heads."""
  odd = seed % 2
  vocab = 113 + 14 * odd
  return (
    dict(
      vocab_size=vocab,
      hidden_size=80 if odd else 72,
      intermediate_size=60 + 8 * odd,
      num_hidden_layers=3 - odd,
      num_attention_heads=4,
      num_key_value_heads=1 + odd,
      eos_token_id=_ends(np.random.default_rng(seed), vocab),
      pad_token_id=0,
      bos_token_id=1,
    )
    | more
  )


def _lm(seed: int, config: Any, cls: Any, small: float = 0.1) -> tuple[Any, dict, dict]:
  """A model with embeddings that are `small`, so that the layers have a say in what comes next."""
  import torch

  config._attn_implementation = "eager"
  model = common.randomise(cls(config), seed)
  with torch.no_grad():
    model.get_input_embeddings().weight *= small
  rng = np.random.default_rng(seed)
  mask = _mask(seed, 3, 15 + seed % 2, 4)
  ids = np.where(mask > 0, rng.integers(3, config.vocab_size, mask.shape), config.pad_token_id)
  inputs = dict(input_ids=ids, attention_mask=mask)
  return model, inputs, _options(inputs)


def llama(seed: int) -> tuple[Any, dict, dict]:
  """Llama with stretched positions; with an odd seed biases everywhere and tied embeddings."""
  import transformers

  more: dict[str, Any] = dict(head_dim=14)
  rope: dict[str, Any] = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0)
  rope |= dict(high_freq_factor=4.0, original_max_position_embeddings=16, rope_theta=500.0)
  if seed % 2:
    rope = dict(rope_type="linear", factor=3.0, rope_theta=5_000.0)
    more = dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-5)
  config = transformers.LlamaConfig(**_sizes(seed, rope_parameters=rope, **more))
  return _lm(seed, config, transformers.LlamaForCausalLM)


def llama_yarn(seed: int) -> tuple[Any, dict, dict]:
  """Llama with positions stretched the way of YaRN, with what it leaves to defaults and without."""
  import transformers

  rope: dict[str, Any] = dict(rope_type="yarn", factor=4.0, rope_theta=100.0)
  rope |= dict(original_max_position_embeddings=32)
  if seed % 2:
    rope |= dict(beta_fast=8.0, beta_slow=0.5, attention_factor=1.3, truncate=False)
  config = transformers.LlamaConfig(**_sizes(seed, rope_parameters=rope, head_dim=30))
  return _lm(seed, config, transformers.LlamaForCausalLM)


def llama_longrope(seed: int) -> tuple[Any, dict, dict]:
  """Llama with other frequencies for long texts, which the prompts are, or become; or are not."""
  import transformers

  length = (64, 18, 9)[seed % 3]
  rope: dict[str, Any] = dict(rope_type="longrope", original_max_position_embeddings=length)
  rope |= dict(short_factor=[1.0 + 0.05 * i for i in range(9)], rope_theta=500.0)
  rope |= dict(long_factor=[1.0 + 0.4 * i for i in range(9)])
  if seed % 2:
    rope |= dict(attention_factor=1.2)
  sizes = _sizes(seed, rope_parameters=rope, head_dim=18, max_position_embeddings=256)
  return _lm(seed, transformers.LlamaConfig(**sizes), transformers.LlamaForCausalLM)


def llama_rules(seed: int) -> tuple[Any, dict, dict]:
  """Llama whose `generation_config.json` says more of what may come next than which ids end."""
  model, inputs, options = llama(seed)
  rules: dict[str, Any] = dict(repetition_penalty=1.7, suppress_tokens=[5, 9, 13], min_new_tokens=4)
  if seed % 2:
    length = inputs["input_ids"].shape[1]
    rules = dict(
      repetition_penalty=0.6, begin_suppress_tokens=list(range(60)), forced_eos_token_id=1
    )
    rules |= dict(min_length=length + 3, bad_words_ids=[[7], [11]])
  model.generation_config.update(**rules)
  return model, inputs, options


def text_body(seed: int) -> tuple[Any, dict, dict]:
  """The text models without their heads, one after the other."""
  import transformers

  made = (llama, mistral, qwen2, phi, persimmon, opt)[seed % 6]
  model, inputs, _ = made(seed - seed % 2)
  name = type(model).__name__.removesuffix("ForCausalLM") + "Model"
  body = common.randomise(getattr(transformers, name)(model.config), seed)
  return body, inputs, {"outputs": ["last_hidden_state"]}


def mistral(seed: int) -> tuple[Any, dict, dict]:
  """Mistral: a window shorter than the text, or none."""
  import transformers

  window = dict(sliding_window=None if seed % 2 else 4)
  config = transformers.MistralConfig(**_sizes(seed, head_dim=22, **window))
  return _lm(seed, config, transformers.MistralForCausalLM)


def qwen2(seed: int) -> tuple[Any, dict, dict]:
  """Qwen2: windows in the last layers, or where the list of layers says."""
  import transformers

  window: dict[str, Any] = dict(use_sliding_window=True, sliding_window=5)
  if seed % 2:
    window |= dict(layer_types=["sliding_attention", "full_attention"], tie_word_embeddings=True)
  else:
    window |= dict(max_window_layers=2)
  rope = dict(rope_type="default", rope_theta=1_000_000.0)
  config = transformers.Qwen2Config(**_sizes(seed, rope_parameters=rope, **window))
  return _lm(seed, config, transformers.Qwen2ForCausalLM)


def _own(seed: int, *names: str, **more: Any) -> dict[str, Any]:
  """`_sizes` without the fields that a config does not have."""
  return {k: v for k, v in _sizes(seed, **more).items() if k not in names}


def opt(seed: int) -> tuple[Any, dict, dict]:
  """OPT with a table of positions; with an odd seed narrow embeddings and norms that come after."""
  import transformers

  more: dict[str, Any] = dict(ffn_dim=52, max_position_embeddings=31, pad_token_id=1)
  if seed % 2:
    more |= dict(word_embed_proj_dim=52, do_layer_norm_before=False)
  config = transformers.OPTConfig(
    **_own(seed, "intermediate_size", "num_key_value_heads", bos_token_id=2, **more)
  )
  return _lm(seed, config, transformers.OPTForCausalLM, 1.0)


def opt_bare(seed: int) -> tuple[Any, dict, dict]:
  """OPT without biases and with norms without parameters; or without its last norm."""
  import transformers

  more: dict[str, Any] = dict(ffn_dim=52, max_position_embeddings=28, pad_token_id=1)
  if seed % 2:
    more |= dict(_remove_final_layer_norm=True, activation_function="gelu", enable_bias=False)
    more |= dict(tie_word_embeddings=False)
  else:
    more |= dict(layer_norm_elementwise_affine=False, enable_bias=False)
  config = transformers.OPTConfig(
    **_own(seed, "intermediate_size", "num_key_value_heads", bos_token_id=2, **more)
  )
  return _lm(seed, config, transformers.OPTForCausalLM, 1.0)


def phi(seed: int) -> tuple[Any, dict, dict]:
  """Phi: attention and MLP side by side, a part of every head turns, a bias on the logits."""
  import transformers

  more: dict[str, Any] = dict(qk_layernorm=bool(seed % 2), hidden_size=80)
  if seed % 2:
    more |= dict(rope_parameters=dict(rope_theta=500.0, partial_rotary_factor=0.4))
  if seed % 4 > 1:
    more |= dict(tie_word_embeddings=True)
  config = transformers.PhiConfig(**_sizes(seed, **more))
  return _lm(seed, config, transformers.PhiForCausalLM)


def persimmon(seed: int) -> tuple[Any, dict, dict]:
  """Persimmon: queries, keys and values of a head lie together in the file."""
  import transformers

  more: dict[str, Any] = dict(qk_layernorm=not seed % 2, hidden_size=80 if seed % 2 else 64)
  if seed % 2:
    rope = dict(rope_type="linear", factor=2.0, rope_theta=25_000.0, partial_rotary_factor=0.3)
    more |= dict(rope_parameters=rope, tie_word_embeddings=True)
  config = transformers.PersimmonConfig(**_own(seed, "num_key_value_heads", **more))
  return _lm(seed, config, transformers.PersimmonForCausalLM)


def fuyu(seed: int) -> tuple[Any, dict, dict]:
  """Fuyu: rows of patches with an end token after each; two pictures in a prompt, or none."""
  import transformers

  odd, patch = seed % 2, 5 + seed % 2
  text = _own(seed, "num_key_value_heads", hidden_size=80 if odd else 64)
  vocab = text["vocab_size"]
  token, newline = vocab - 3, vocab - 4
  config = transformers.FuyuConfig(
    text_config=text | dict(model_type="persimmon", qk_layernorm=not odd),
    patch_size=patch,
    image_token_id=token,
    eos_token_id=text["eos_token_id"],
    pad_token_id=0,
  )
  config._attn_implementation = "eager"
  model = common.randomise(transformers.FuyuForCausalLM(config), seed)
  rng = np.random.default_rng(seed)
  pictures = (((2, 3), (1, 4)), ((3, 2),), () if odd else ((2, 2),))
  rows = []
  for row in pictures:
    ids: list[int] = []
    for height, width in row:
      ids += ([token] * width + [newline]) * height + [1]
    rows.append(ids + rng.integers(3, newline, 4 + len(rows)).tolist())
  length = max(map(len, rows)) + 1
  ids, mask = np.zeros((3, length), np.int64), np.zeros((3, length), np.int64)
  for n, row in enumerate(rows):
    start = 1 if odd and n % 2 else length - len(row)
    ids[n, start : start + len(row)], mask[n, start : start + len(row)] = row, 1
  patches = common.pixels(rng, int((ids == token).sum()), 3 * patch**2)
  inputs = dict(input_ids=ids, attention_mask=mask, pixel_values=patches)
  # The reference writes the names of the hub's file; those of its modules are read too.
  old_names = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_embed_tokens\.", "model.vision_embed_tokens."),
  )
  outputs = ("logits", "image_features")
  return model, inputs, _options(inputs, outputs=outputs, old_names=old_names)


RECIPES = {
  "fuyu": fuyu,
  "llama": llama,
  "llama_longrope": llama_longrope,
  "llama_rules": llama_rules,
  "llama_yarn": llama_yarn,
  "mistral": mistral,
  "opt": opt,
  "opt_bare": opt_bare,
  "persimmon": persimmon,
  "phi": phi,
  "qwen2": qwen2,
  "text_body": text_body,
}
