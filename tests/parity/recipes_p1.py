"""Random LLaVAs of the reference and their relatives."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.parity import common

# From what save_pretrained writes to the names of the files on the hub.
_OLD_NAMES = ((r"^(vision|image|video)_tower\.", r"\1_tower.vision_model."),)
# To those of the modules, which some files have.
_MODULE_NAMES = (
  (r"^language_model\.lm_head\.", "lm_head."),
  (r"^language_model\.model\.", "language_model."),
  (r"^(?!lm_head\.)", "model."),
)
_PAD, _BOS = 0, 2
_PATCH = 3  # Of the towers whose pictures are many slots.


def _text(seed: int, kind: str, **more: Any) -> dict[str, Any]:
  """Sizes of a text model; kv heads are fewer, heads do not divide the width."""
  odd = seed % 2
  rng = np.random.default_rng(seed)
  vocab = 113 + 14 * odd
  sizes = dict(
    model_type=kind,
    vocab_size=vocab,
    hidden_size=80 if odd else 72,
    intermediate_size=104 + 8 * odd,
    num_hidden_layers=3 - odd,
    num_attention_heads=4,
    num_key_value_heads=1 + odd,
    rms_norm_eps=1e-5 if odd else 1e-6,
    eos_token_id=[1, *(int(i) for i in rng.choice(np.arange(3, vocab - 2), 8, replace=False))],
    pad_token_id=_PAD,
    bos_token_id=_BOS,
  )
  if kind != "qwen2":  # Which has no such field.
    sizes["head_dim"] = 14 + 8 * odd
  if kind == "mistral":
    sizes["sliding_window"] = None if odd else 5
  return sizes | more


def _vision(seed: int, kind: str, side: int, **more: Any) -> dict[str, Any]:
  """A tower of `side` x `side` patches."""
  patch = 4 + seed % 2
  sizes = dict(
    model_type=f"{kind}_vision_model",
    hidden_size=48,
    intermediate_size=88,
    num_hidden_layers=3 + seed % 2,
    num_attention_heads=4,
    image_size=side * patch,
    patch_size=patch,
  )
  if kind == "siglip":
    sizes["vision_use_head"] = bool(seed % 2)
  return sizes | more


def _model(seed: int, config: Any, cls: Any) -> Any:
  """Every parameter random; small embeddings, so that the layers have a say in what comes next."""
  import torch

  config._attn_implementation = "eager"
  model = common.randomise(cls(config), seed)
  with torch.no_grad():
    model.get_input_embeddings().weight *= 0.1
  return model


def _prompts(
  seed: int, vocab: int, rows: Sequence[Sequence[tuple[int, int]]]
) -> tuple[np.ndarray, np.ndarray]:
  """Ids and mask [B, T] of rows with runs of (placeholder, length) and words between them.

  Padded on the left, with an odd seed on the left and the right in turn.
  """
  rng = np.random.default_rng(seed)
  bodies = []
  for n, runs in enumerate(rows):
    words = [rng.integers(3, vocab - 2, 2 + (n + k) % 3) for k in range(len(runs) + 1)]
    parts = [words[0]]
    for (token, length), more in zip(runs, words[1:], strict=True):
      parts += [np.full(length, token), more]
    bodies.append(np.concatenate([*parts, rng.integers(3, vocab - 2, 2 + n)]))
  length = max(map(len, bodies)) + seed % 2
  ids = np.full((len(rows), length), _PAD, np.int64)
  mask = np.zeros_like(ids)
  for row, body in enumerate(bodies):
    start = 0 if seed % 2 and row % 2 == 0 else length - len(body)
    ids[row, start : start + len(body)], mask[row, start : start + len(body)] = body, 1
  return ids, mask


def _made(
  seed: int, model: Any, rows: Sequence[Sequence[tuple[int, int]]], media: dict[str, np.ndarray]
) -> tuple[Any, dict, dict]:
  ids, mask = _prompts(seed, model.config.text_config.vocab_size, rows)
  inputs = dict(input_ids=ids, attention_mask=mask) | media
  prompts = dict(inputs)  # The reference goes on behind the padding, which nobody wants.
  for key in ("input_ids", "attention_mask"):
    pairs = zip(inputs[key], mask, strict=True)
    prompts[key] = np.stack([np.roll(row, m[::-1].argmax()) for row, m in pairs])
  outputs = ("logits", "image_features", "video_features")
  options = dict(outputs=outputs, mask=mask > 0, generate=7, prompts=prompts, old_names=_OLD_NAMES)
  return model, inputs, options


def _ids(text: dict[str, Any]) -> dict[str, Any]:
  """Fields that a composite config repeats."""
  return dict(pad_token_id=_PAD, eos_token_id=text["eos_token_id"])


def _llava(seed: int, text: str, vision: str = "clip", **more: Any) -> tuple[Any, dict, dict]:
  """Four pictures: one, two, none and one in a prompt."""
  import transformers

  inner = _text(seed, text)
  image = inner["vocab_size"] - 2
  config = transformers.LlavaConfig(
    vision_config=_vision(seed, vision, 3),
    text_config=inner,
    image_token_index=image,
    **_ids(inner),
    **more,
  )
  model = _model(seed, config, transformers.LlavaForConditionalGeneration)
  return _plain(seed, model, image)


def _plain(seed: int, model: Any, image: int) -> tuple[Any, dict, dict]:
  rng = np.random.default_rng(seed + 7)
  size = model.config.vision_config.image_size
  pixels = common.pixels(rng, 4, 3, size, size)
  n = _lengths(model, "image", pixel_values=pixels)[0]
  rows = [[(image, n)], [(image, n)] * 2, [], [(image, n)]]
  return _made(seed, model, rows, dict(pixel_values=pixels))


def _lengths(model: Any, kind: str, **given: np.ndarray) -> list[int]:
  """Tokens of every picture or video, by the reference."""
  import torch

  given = {k: torch.from_numpy(v) for k, v in given.items()}
  with torch.no_grad():
    found = getattr(model.model, f"get_{kind}_features")(**given).pooler_output
  return [len(x) for x in found]


def llava(seed: int) -> tuple[Any, dict, dict]:
  """LLaVA 1.5; with an odd seed a projector without biases and another activation."""
  more = dict(multimodal_projector_bias=False, projector_hidden_act="silu") if seed % 2 else {}
  return _llava(seed, "llama", **more)


def bakllava(seed: int) -> tuple[Any, dict, dict]:
  """Mistral below CLIP; with an odd seed class tokens too, and the last layer."""
  more = dict(vision_feature_select_strategy="full", vision_feature_layer=-1) if seed % 2 else {}
  model, inputs, options = _llava(seed, "mistral", **more)
  return model, inputs, options | dict(old_names=_MODULE_NAMES)


def llava_siglip(seed: int) -> tuple[Any, dict, dict]:
  """Qwen2 below SigLIP, all patches; with an odd seed without the first, and two layers."""
  more: dict[str, Any] = dict(vision_feature_select_strategy="full")
  if seed % 2:
    more = dict(vision_feature_layer=[-2, 1])
  return _llava(seed, "qwen2", "siglip", **more)


def llava_tied(seed: int) -> tuple[Any, dict, dict]:
  """Embeddings that the text config ties; with an even seed Gemma 2, whose soft-cap of the logits
  goes with its own head."""
  import transformers

  if seed % 2:
    inner = _text(seed, "qwen2", tie_word_embeddings=True)
  else:
    inner = _text(seed, "gemma2", sliding_window=7, final_logit_softcapping=3.0)
  image = inner["vocab_size"] - 2
  config = transformers.LlavaConfig(
    vision_config=_vision(seed, "clip", 3),
    text_config=inner,
    image_token_index=image,
    **_ids(inner),
  )
  model = _model(seed, config, transformers.LlavaForConditionalGeneration)
  return _plain(seed, model, image)


def vipllava(seed: int) -> tuple[Any, dict, dict]:
  """ViP-LLaVA: layers out of order; with an odd seed the embeddings and one layer twice."""
  import transformers

  inner = _text(seed, "llama")
  image = inner["vocab_size"] - 2
  config = transformers.VipLlavaConfig(
    vision_config=_vision(seed, "clip", 3),
    text_config=inner,
    image_token_index=image,
    vision_feature_layer=[-2, 0, -1, 1, -2] if seed % 2 else [-1, -2, 1],
    projector_layernorm_eps=1e-3,
    **_ids(inner),
  )
  model = _model(seed, config, transformers.VipLlavaForConditionalGeneration)
  return _plain(seed, model, image)


def _pinpoints(size: int, most: int) -> list[list[int]]:
  shapes = [(h, w) for h in range(1, most + 1) for w in range(1, most + 1) if 1 < h * w <= most + 1]
  return [[h * size, w * size] for h, w in shapes]


def _tiles(
  rng: np.random.Generator, config: Any, sizes: Sequence[tuple[int, int]], whole: Sequence[bool]
) -> np.ndarray:
  """Pixels float32 [n, P, 3, H, W] of pictures, filled up with zeros."""
  from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

  side, points = config.vision_config.image_size, config.image_grid_pinpoints
  counts = [image_size_to_num_patches(size, points, side) for size in sizes]
  counts = [1 if alone else n for n, alone in zip(counts, whole, strict=True)]
  x = np.zeros((len(sizes), max(counts), 3, side, side), np.float32)
  for n, count in enumerate(counts):
    x[n, :count] = common.pixels(rng, count, 3, side, side)
  return x


def _tiled(
  seed: int, model: Any, sizes: Sequence[tuple[int, int]], numbers: Sequence[int] | None = None
) -> tuple[Any, dict, dict]:
  """Pictures of any size: one, two and one in a prompt; then, with videos, a video and both."""
  rng = np.random.default_rng(seed + 7)
  config = model.config
  whole = [False] * len(sizes)
  given: dict[str, np.ndarray] = {}
  if numbers is not None:
    whole = [n != 1 for n in numbers for _ in range(n)]
    given["batch_num_images"] = np.array(numbers)
  given["image_sizes"] = np.array(sizes)
  given["pixel_values"] = _tiles(rng, config, sizes, whole)
  image = [(config.image_token_id, n) for n in _lengths(model, "image", **given)]
  if getattr(config, "video_token_id", None) is None:
    return _made(seed, model, [image[:1], image[1:3], [], image[3:]], given)
  side = config.vision_config.image_size
  frames = common.pixels(rng, 2, 3 - seed % 2, 3, side, side)
  lengths = _lengths(model, "video", pixel_values_videos=frames)
  video = [(config.video_token_id, n) for n in lengths]
  rows = [image[:1], image[1:3], video[:1], [video[1], *image[3:]]]
  return _made(seed, model, rows, given | dict(pixel_values_videos=frames))


def _next(seed: int, kind: str, text: str, vision: str, side: int, **more: Any) -> Any:
  """A model of the kind."""
  import transformers

  inner = _text(seed, text)
  vocab = inner["vocab_size"]
  tower = _vision(seed, vision, side, image_size=side * _PATCH, patch_size=_PATCH)
  config = getattr(transformers, f"{kind}Config")(
    vision_config=tower,
    text_config=inner,
    image_token_index=vocab - 2,
    **_ids(inner),
    **more,
  )
  return _model(seed, config, getattr(transformers, f"{kind}ForConditionalGeneration"))


def llava_next(seed: int) -> tuple[Any, dict, dict]:
  """LLaVA-NeXT: wide, tall, square and odd pictures; with an odd seed two layers of SigLIP."""
  side, odd = 3 + seed % 2, seed % 2
  more: dict[str, Any] = dict(image_grid_pinpoints=_pinpoints(side * _PATCH, 3))
  if odd:
    more |= dict(vision_feature_layer=[-1, -3], vision_feature_select_strategy="full")
  vision = "siglip" if odd else "clip"
  model = _next(seed, "LlavaNext", "mistral" if odd else "llama", vision, side, **more)
  sizes = [(48, 64), (13, 60), (30, 30), (99, 7)]
  if odd:
    sizes = [(31, 47), (90, 23), (17, 101), (40, 41)]
  return _tiled(seed, model, sizes)


def llava_next_video(seed: int) -> tuple[Any, dict, dict]:
  """LLaVA-NeXT-Video: frames pooled by average, with an odd seed by maximum and by 3."""
  side, odd = 5 - seed % 2, seed % 2
  vocab = _text(seed, "llama")["vocab_size"]
  more: dict[str, Any] = dict(
    image_grid_pinpoints=_pinpoints(side * _PATCH, 2), video_token_index=vocab - 1
  )
  if odd:
    more |= dict(spatial_pool_mode="max", spatial_pool_stride=3)
  model = _next(seed, "LlavaNextVideo", "llama", "clip", side, **more)
  return _tiled(seed, model, [(25, 60), (70, 33), (21, 21), (19, 88)])


def _onevision(seed: int) -> Any:
  side, odd = 3 + seed % 2, seed % 2
  vocab = _text(seed, "qwen2")["vocab_size"]
  size = side * _PATCH
  points = [[h * size, w * size] for h in (1, 2, 3) for w in (1, 2, 3)]
  return _next(
    seed,
    "LlavaOnevision",
    "qwen2",
    "siglip",
    side,
    image_grid_pinpoints=points,
    video_token_index=vocab - 1,
    vision_aspect_ratio=f"anyres_max_{2 + odd}",
  )


def llava_onevision(seed: int) -> tuple[Any, dict, dict]:
  """LLaVA-OneVision: pictures scaled down and not; two in a prompt have no tiles; videos."""
  sizes = [(70, 61), (13, 60), (30, 30), (12, 13)]
  return _tiled(seed, _onevision(seed), sizes, (1, 2, 1))


def llava_onevision_tiles(seed: int) -> tuple[Any, dict, dict]:
  """The same where nothing says how many pictures a prompt has: all of them have tiles."""
  return _tiled(seed, _onevision(seed), [(33, 71), (90, 90), (5, 44), (51, 28)])


def video_llava(seed: int) -> tuple[Any, dict, dict]:
  """Video-LLaVA: pictures and videos of towers of their own; with an odd seed class tokens too."""
  odd = seed % 2
  vocab = _text(seed, "llama")["vocab_size"]
  more: dict[str, Any] = dict(video_token_index=vocab - 1)
  if odd:
    more |= dict(vision_feature_select_strategy="full", vision_feature_layer=[-1, -2])
  model = _next(seed, "VideoLlava", "llama", "clip", 3, **more)
  rng = np.random.default_rng(seed + 7)
  config = model.config
  side = config.vision_config.image_size
  given = dict(
    pixel_values=common.pixels(rng, 3, 3, side, side),
    pixel_values_videos=common.pixels(rng, 2, 2 + odd, 3, side, side),
  )
  n = _lengths(model, "image", pixel_values=given["pixel_values"])[0]
  m = _lengths(model, "video", pixel_values_videos=given["pixel_values_videos"])[0]
  image, video = (config.image_token_id, n), (config.video_token_id, m * (2 + odd))
  return _made(seed, model, [[image, image], [video], [], [video, image]], given)


def without_head(made: tuple[Any, dict, dict]) -> tuple[Any, dict, dict]:
  """The model of a recipe without its head, and its inputs without padding, whose hidden states are
  nobody's."""
  model, inputs, options = made
  inputs = {k: v for k, v in inputs.items() if k != "attention_mask"}
  options = dict(outputs=("last_hidden_state",), old_names=options.get("old_names", ()))
  return model.model, inputs, options


def llava_body(seed: int) -> tuple[Any, dict, dict]:
  """LLaVA and its relatives without their heads, one after the other."""
  makers = (llava, vipllava, llava_next, llava_next_video, llava_onevision, video_llava)
  return without_head(makers[seed % len(makers)](seed))


RECIPES = {
  "llava": llava,
  "llava_body": llava_body,
  "bakllava": bakllava,
  "llava_siglip": llava_siglip,
  "llava_tied": llava_tied,
  "vipllava": vipllava,
  "llava_next": llava_next,
  "llava_next_video": llava_next_video,
  "llava_onevision": llava_onevision,
  "llava_onevision_tiles": llava_onevision_tiles,
  "video_llava": video_llava,
}
