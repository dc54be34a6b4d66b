"""Published text models: what their `config.json` says, and how many parameters they have.

Tied embeddings count once.
"""

from typing import Any


def text(width: int, hidden: int, depth: int, heads: int, kv: int = 0, **more: Any) -> dict:
  """Sizes of a text model; kv = 0 is as many key as query heads."""
  return dict(
    hidden_size=width,
    intermediate_size=hidden,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    num_key_value_heads=kv or heads,
    **more,
  )


def _scaled(factor: float) -> dict[str, Any]:
  rope = dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
  return dict(
    rope_scaling=rope | dict(original_max_position_embeddings=8192),
    max_position_embeddings=131_072,
  )


_LLAMA2 = dict(rms_norm_eps=1e-5, max_position_embeddings=4096)
_LLAMA3 = dict(
  vocab_size=128_256, rope_theta=500_000.0, rms_norm_eps=1e-5, max_position_embeddings=8192
)
LLAMA = {
  "1_7b": text(4096, 11_008, 32, 32),
  "1_13b": text(5120, 13_824, 40, 40),
  "1_30b": text(6656, 17_920, 60, 52),
  "1_65b": text(8192, 22_016, 80, 64),
  "2_7b": text(4096, 11_008, 32, 32, **_LLAMA2),
  "2_13b": text(5120, 13_824, 40, 40, **_LLAMA2),
  "2_70b": text(8192, 28_672, 80, 64, 8, **_LLAMA2),
  "3_8b": text(4096, 14_336, 32, 32, 8, **_LLAMA3),
  "3_70b": text(8192, 28_672, 80, 64, 8, **_LLAMA3),
  "3.1_8b": text(4096, 14_336, 32, 32, 8, **_LLAMA3 | _scaled(8.0)),
  "3.1_70b": text(8192, 28_672, 80, 64, 8, **_LLAMA3 | _scaled(8.0)),
  "3.1_405b": text(16_384, 53_248, 126, 128, 8, **_LLAMA3 | _scaled(8.0)),
  "3.2_1b": text(
    2048, 8192, 16, 32, 8, head_dim=64, tie_word_embeddings=True, **_LLAMA3 | _scaled(32.0)
  ),
  "3.2_3b": text(
    3072, 8192, 28, 24, 8, head_dim=128, tie_word_embeddings=True, **_LLAMA3 | _scaled(32.0)
  ),
}
_MISTRAL = dict(rms_norm_eps=1e-5, max_position_embeddings=32_768)
_LARGE = dict(vocab_size=131_072, head_dim=128, sliding_window=None, rms_norm_eps=1e-5)
MISTRAL = {
  "7b_v0.1": text(4096, 14_336, 32, 32, 8, sliding_window=4096, rope_theta=1e4, **_MISTRAL),
  "7b_v0.2": text(4096, 14_336, 32, 32, 8, sliding_window=None, rope_theta=1e6, **_MISTRAL),
  "7b_v0.3": text(
    4096, 14_336, 32, 32, 8, sliding_window=None, rope_theta=1e6, vocab_size=32_768, **_MISTRAL
  ),
  "nemo_12b": text(
    5120, 14_336, 40, 32, 8, rope_theta=1e6, max_position_embeddings=131_072, **_LARGE
  ),
  "small_24b": text(
    5120, 32_768, 40, 32, 8, rope_theta=1e8, max_position_embeddings=32_768, **_LARGE
  ),
}
_QWEN = dict(rope_theta=1e6, max_position_embeddings=131_072)
_TIED = dict(tie_word_embeddings=True, vocab_size=151_936)
QWEN2 = {
  "0.5b": text(896, 4864, 24, 14, 2, **_QWEN, **_TIED),
  "1.5b": text(1536, 8960, 28, 12, 2, **_QWEN, **_TIED),
  "7b": text(3584, 18_944, 28, 28, 4, vocab_size=152_064, **_QWEN),
  "72b": text(8192, 29_568, 80, 64, 8, vocab_size=152_064, rms_norm_eps=1e-5, **_QWEN),
}
QWEN2 |= {
  "2.5_0.5b": QWEN2["0.5b"],
  "2.5_1.5b": QWEN2["1.5b"],
  "2.5_3b": text(2048, 11_008, 36, 16, 2, **_QWEN, **_TIED),
  "2.5_7b": QWEN2["7b"],
  "2.5_14b": text(5120, 13_824, 48, 40, 8, vocab_size=152_064, rms_norm_eps=1e-5, **_QWEN),
  "2.5_32b": text(5120, 27_648, 64, 40, 8, vocab_size=152_064, rms_norm_eps=1e-5, **_QWEN),
  "2.5_72b": QWEN2["72b"],
}


def opt(width: int, depth: int, heads: int, **more: Any) -> dict[str, Any]:
  """Sizes of an OPT."""
  return dict(
    hidden_size=width,
    ffn_dim=4 * width,
    num_hidden_layers=depth,
    num_attention_heads=heads,
    **dict(word_embed_proj_dim=width) | more,
  )


OPT = {
  "125m": opt(768, 12, 12),
  "350m": opt(1024, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
  "1.3b": opt(2048, 24, 32),
  "2.7b": opt(2560, 32, 32),
  "6.7b": opt(4096, 32, 32),
  "13b": opt(5120, 40, 40),
  "30b": opt(7168, 48, 56),
  "66b": opt(9216, 64, 72),
}
_PHI = dict(vocab_size=51_200, partial_rotary_factor=0.5, max_position_embeddings=2048)
PHI = {
  "1": text(2048, 8192, 24, 32, **_PHI),
  "1.5": text(2048, 8192, 24, 32, **_PHI),
  "2": text(2560, 10_240, 32, 32, **_PHI | dict(partial_rotary_factor=0.4)),
}


def _lm(name: str, fields: dict[str, Any]) -> dict[str, Any]:
  return dict(architectures=[f"{name}ForCausalLM"], **fields)


_COUNTS = {
  "llama:1_7b": 6_738_415_616,
  "llama:1_13b": 13_015_864_320,
  "llama:1_30b": 32_528_943_616,
  "llama:1_65b": 65_285_660_672,
  "llama:2_7b": 6_738_415_616,
  "llama:2_13b": 13_015_864_320,
  "llama:2_70b": 68_976_648_192,
  "llama:3_8b": 8_030_261_248,
  "llama:3_70b": 70_553_706_496,
  "llama:3.1_8b": 8_030_261_248,
  "llama:3.1_70b": 70_553_706_496,
  "llama:3.1_405b": 405_853_388_800,
  "llama:3.2_1b": 1_235_814_400,
  "llama:3.2_3b": 3_212_749_824,
  "mistral:7b_v0.1": 7_241_732_096,
  "mistral:7b_v0.2": 7_241_732_096,
  "mistral:7b_v0.3": 7_248_023_552,
  "mistral:nemo_12b": 12_247_782_400,
  "mistral:small_24b": 23_572_403_200,
  "qwen2:0.5b": 494_032_768,
  "qwen2:1.5b": 1_543_714_304,
  "qwen2:7b": 7_615_616_512,
  "qwen2:72b": 72_706_203_648,
  "qwen2:2.5_0.5b": 494_032_768,
  "qwen2:2.5_1.5b": 1_543_714_304,
  "qwen2:2.5_3b": 3_085_938_688,
  "qwen2:2.5_7b": 7_615_616_512,
  "qwen2:2.5_14b": 14_770_033_664,
  "qwen2:2.5_32b": 32_763_876_352,
  "qwen2:2.5_72b": 72_706_203_648,
  "opt:125m": 125_239_296,
  "opt:350m": 331_196_416,
  "opt:1.3b": 1_315_758_080,
  "opt:2.7b": 2_651_596_800,
  "opt:6.7b": 6_658_473_984,
  "opt:13b": 12_853_473_280,
  "opt:30b": 29_974_540_288,
  "opt:66b": 65_719_701_504,
  "phi:1": 1_418_270_720,
  "phi:1.5": 1_418_270_720,
  "phi:2": 2_779_683_840,
  "persimmon:8b": 9_397_175_296,
}
# Zoo name -> (config.json, number of parameters)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
  f"{family}:{size}": (_lm(cls, fields), _COUNTS[f"{family}:{size}"])
  for family, cls, sizes in (
    ("llama", "Llama", LLAMA),
    ("mistral", "Mistral", MISTRAL),
    ("qwen2", "Qwen2", QWEN2),
    ("opt", "OPT", OPT),
    ("phi", "Phi", PHI),
    ("persimmon", "Persimmon", {"8b": {}}),
  )
  for size, fields in sizes.items()
}
