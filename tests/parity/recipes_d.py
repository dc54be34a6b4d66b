"""Random DeepSeek-VLs of the reference, with one encoder and with two, and stretched Llamas."""

from typing import Any

import numpy as np

from tests.parity import common
from tests.parity.recipes_decoders import _options, _prompts, _vision
from tests.parity.recipes_t import _lm, _sizes

# From what save_pretrained writes to the names of the files on the hub.
_OLD_NAMES = ((r"^model\.vision_model\.(?!vision_model\.)", "model.vision_model.vision_model."),)
# To those of the model without a head.
_BODY_NAMES = ((r"^model\.", ""),)


def _model(seed: int, config: Any, cls: Any, fine: int = 0) -> tuple[Any, dict, dict]:
  import torch

  config._attn_implementation = "eager"
  model = common.randomise(cls(config), seed)
  with torch.no_grad():  # Small, so that the layers have a say in what comes next.
    model.get_input_embeddings().weight *= 0.1
  rng = np.random.default_rng(seed)
  side = config.vision_config.image_size // config.vision_config.patch_size
  vocab, size = config.text_config.vocab_size, config.vision_config.image_size
  ids, mask, _ = _prompts(seed, vocab, config.image_token_id, side**2)
  inputs = dict(input_ids=ids, attention_mask=mask)
  inputs["pixel_values"] = common.pixels(rng, 4, 3, size, size)
  if fine:
    inputs["high_res_pixel_values"] = common.pixels(rng, 4, 3, fine, fine)
  outputs = ("logits", "image_features")
  return model, inputs, _options(inputs, outputs=outputs, old_names=_OLD_NAMES)


def _parts(seed: int) -> dict[str, Any]:
  """Text and SigLIP, with an even seed one whose pooling head nobody reads."""
  more = dict(rms_norm_eps=1e-5) if seed % 2 else dict(head_dim=14)
  text = _sizes(seed, model_type="llama", **more)
  vision = _vision(seed, 3 + seed % 2) | dict(hidden_act="gelu", vision_use_head=seed % 2 == 0)
  token = text["vocab_size"] - 3
  return dict(text_config=text, vision_config=vision, image_token_id=token)


def deepseek_vl(seed: int) -> tuple[Any, dict, dict]:
  """DeepSeek-VL; with an odd seed its embeddings are tied."""
  import transformers

  config = transformers.DeepseekVLConfig(**_parts(seed), tie_word_embeddings=seed % 2 == 1)
  made = _model(seed, config, transformers.DeepseekVLForConditionalGeneration)
  return *made[:2], made[2] | (dict(old_names=_BODY_NAMES) if seed % 2 else {})


def deepseek_vl_hybrid(seed: int) -> tuple[Any, dict, dict]:
  """The hybrid: windows that do not divide the grid; with an odd seed no biases in SAM's q, k, v.

  The first layer that sees everything is the second or the first.
  """
  import transformers

  odd = seed % 2
  fine = dict(
    model_type="sam_vision_model",
    hidden_size=40 + 8 * odd,
    output_channels=12 + 4 * odd,
    num_hidden_layers=4 - odd,
    num_attention_heads=4,
    image_size=42 if odd else 40,
    patch_size=6 if odd else 5,
    window_size=3 - odd,
    global_attn_indexes=[0, 2] if odd else [1, 3],
    qkv_bias=not odd,
    mlp_dim=None if odd else 72,
    mlp_ratio=1.5,
  )
  config = transformers.DeepseekVLHybridConfig(
    **_parts(seed), high_res_vision_config=fine, tie_word_embeddings=False
  )
  cls = transformers.DeepseekVLHybridForConditionalGeneration
  return _model(seed, config, cls, fine["image_size"])


def llama_dynamic(seed: int) -> tuple[Any, dict, dict]:
  """Llama whose frequencies depend on how far a text goes beyond what it was trained for."""
  import transformers

  rope = dict(rope_type="dynamic", factor=2.0 + seed % 2, rope_theta=500.0)
  sizes = _sizes(seed, rope_parameters=rope, head_dim=14, max_position_embeddings=12)
  made = _lm(seed, transformers.LlamaConfig(**sizes), transformers.LlamaForCausalLM)
  # The reference remembers the longest text it was given, and so does not generate here.
  return *made[:2], made[2] | dict(generate=0)


RECIPES = {
  "deepseek_vl": deepseek_vl,
  "deepseek_vl_hybrid": deepseek_vl_hybrid,
  "llama_dynamic": llama_dynamic,
}
