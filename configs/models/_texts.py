"""Text models that vision-language models are built on, as decoder slots, by published size."""


def decoder(width, hidden, depth, heads, kv_heads=0, head_dim=0, **more):
  """A decoder of Llama's kind.

  Args:
    width, hidden, depth, heads: sizes. kv_heads: 0 = as many as heads. head_dim: 0 = width / heads.
    **more: further fields of the decoder.
  """
  return dict(
    kind="decoder",
    width=width,
    hidden=hidden,
    depth=depth,
    heads=heads,
    kv_heads=kv_heads or heads,
    head_dim=head_dim or width // heads,
    **dict(tied=False, embed_scale=False, norm="rms_plain", act="silu") | more,
  )


def _stretched(factor):
  return dict(rotary=dict(kind="llama3", factor=factor, low=1.0, high=4.0, length=8192))


_1 = dict(vocab=32_000)
_2 = dict(vocab=32_000, eps=1e-5)
_3 = dict(vocab=128_256, eps=1e-5, rope_base=500_000.0)
LLAMA = {
  "1_7b": decoder(4096, 11_008, 32, 32, **_1),
  "1_13b": decoder(5120, 13_824, 40, 40, **_1),
  "1_30b": decoder(6656, 17_920, 60, 52, **_1),
  "1_65b": decoder(8192, 22_016, 80, 64, **_1),
  "2_7b": decoder(4096, 11_008, 32, 32, **_2),
  "2_13b": decoder(5120, 13_824, 40, 40, **_2),
  "2_70b": decoder(8192, 28_672, 80, 64, 8, **_2),
  "3_8b": decoder(4096, 14_336, 32, 32, 8, **_3),
  "3_70b": decoder(8192, 28_672, 80, 64, 8, **_3),
  "3.1_8b": decoder(4096, 14_336, 32, 32, 8, **_3, **_stretched(8.0)),
  "3.1_70b": decoder(8192, 28_672, 80, 64, 8, **_3, **_stretched(8.0)),
  "3.1_405b": decoder(16_384, 53_248, 126, 128, 8, **_3, **_stretched(8.0)),
  "3.2_1b": decoder(2048, 8192, 16, 32, 8, tied=True, **_3, **_stretched(32.0)),
  "3.2_3b": decoder(3072, 8192, 28, 24, 8, tied=True, **_3, **_stretched(32.0)),
}
# LLaVA's tables have rows for its placeholders: a multiple of 64.
VICUNA = {size: LLAMA[f"2_{size}"] | dict(vocab=32_064) for size in ("7b", "13b")}
_MISTRAL = dict(vocab=32_000, eps=1e-5)
_LARGE = dict(vocab=131_072, head_dim=128, eps=1e-5)
MISTRAL = {
  "7b_v0.1": decoder(4096, 14_336, 32, 32, 8, windows=(4096,), **_MISTRAL),
  "7b_v0.2": decoder(4096, 14_336, 32, 32, 8, rope_base=1e6, **_MISTRAL),
  "7b_v0.3": decoder(4096, 14_336, 32, 32, 8, rope_base=1e6, **_MISTRAL | dict(vocab=32_768)),
  "nemo_12b": decoder(5120, 14_336, 40, 32, 8, rope_base=1e6, **_LARGE),
  "small_24b": decoder(5120, 32_768, 40, 32, 8, rope_base=1e8, **_LARGE),
}
_QWEN = dict(rope_base=1e6, bias=True, out_bias=False, mlp_bias=False)
_SMALL = dict(vocab=151_936, tied=True, **_QWEN)
_BIG = dict(vocab=152_064, **_QWEN)
QWEN2 = {
  "0.5b": decoder(896, 4864, 24, 14, 2, **_SMALL),
  "1.5b": decoder(1536, 8960, 28, 12, 2, **_SMALL),
  "7b": decoder(3584, 18_944, 28, 28, 4, **_BIG),
  "72b": decoder(8192, 29_568, 80, 64, 8, eps=1e-5, **_BIG),
  "2.5_3b": decoder(2048, 11_008, 36, 16, 2, **_SMALL),
  "2.5_14b": decoder(5120, 13_824, 48, 40, 8, eps=1e-5, **_BIG),
  "2.5_32b": decoder(5120, 27_648, 64, 40, 8, eps=1e-5, **_BIG),
}
QWEN2 |= {f"2.5_{size}": QWEN2[size] for size in ("0.5b", "1.5b", "7b", "72b")}
YI_34B = decoder(7168, 20_480, 60, 56, 8, vocab=64_064, rope_base=5e6, eps=1e-5)


def opt(width, depth, heads, **more):
  """An OPT: learned positions, of which the first two are never taken."""
  fields = dict(tied=True, norm="layer", act="relu", eps=1e-5, gated=False, bias=True)
  fields |= dict(vocab=50_272, posemb=2050, posemb_offset=2, rope_base=0.0)
  return decoder(width, 4 * width, depth, heads, **fields | more)


OPT = {
  "125m": opt(768, 12, 12),
  "350m": opt(1024, 24, 16, embed_dim=512, norm_after=True, final_norm=False),
  "1.3b": opt(2048, 24, 32),
  "2.7b": opt(2560, 32, 32),
  "6.7b": opt(4096, 32, 32),
  "13b": opt(5120, 40, 40),
  "30b": opt(7168, 48, 56),
  "66b": opt(9216, 64, 72),
}
_LAYER_NORM = dict(norm="layer", eps=1e-5, gated=False, bias=True, rotary=dict(dim=32))
_PHI = dict(vocab=51_200, act="gelu_tanh", parallel=True, head_bias=True, **_LAYER_NORM)
PHI = {
  "1": decoder(2048, 8192, 24, 32, **_PHI),
  "1.5": decoder(2048, 8192, 24, 32, **_PHI),
  "2": decoder(2560, 10_240, 32, 32, **_PHI),
}
PERSIMMON = {
  "8b": decoder(4096, 16_384, 36, 64, vocab=262_144, act="relu2", qk_norm=True, **_LAYER_NORM)
}
_FLAN = dict(kind="encdec", decoder_depth=24, scale_logits=False)
FLAN_T5 = {size: dict(variant=f"t5_v1_1_{size}", **_FLAN) for size in ("xl", "xxl")}
