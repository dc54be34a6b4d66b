"""Published vision-language models and their sizes.

A size is that of the parameters that a forward pass reads: the reference's, without layers after
the one whose features are taken and norms and heads behind it. Tied embeddings count once.
"""

from typing import Any

from tests.parity import published_others as others
from tests.parity import published_projected as projected

# The reference's on its meta device, more where a file has a head of its own, less what is unread.
_COUNTS: dict[str, int] = {
  "blip2:opt_2.7b": 3_744_761_856,
  "blip2:opt_6.7b": 7_752_869_376,
  "blip2:flan_t5_xl": 3_876_648_448 + 65_798_144,
  "blip2:flan_t5_xxl": 12_098_000_384 + 131_596_288,
  "blip2:itm_vit_g": 1_172_032_258,
  "deepseek_vl:1.3b": 1_962_640_384,
  "deepseek_vl:7b": 7_331_390_721,
  "fuyu:8b": 9_408_238_592,
  "idefics:9b": 8_929_679_632 - 2_560,
  "idefics:80b": 79_967_843_624 - 2_560,
  "idefics2:8b": 8_402_768_112,
  "idefics3:8b_llama3": 8_462_086_384,
  "idefics3:smolvlm_256m": 256_484_928,
  "idefics3:smolvlm_500m": 507_482_304,
  "idefics3:smolvlm_2.2b": 2_246_272_880,
  "instructblip:vicuna_7b": 7_913_726_720,
  "instructblip:vicuna_13b": 14_192_093_952,
  "instructblip:flan_t5_xl": 3_957_170_944 + 65_798_144,
  "instructblip:flan_t5_xxl": 12_178_522_880 + 131_596_288,
  "instructblipvideo:vicuna_7b": 7_913_726_720,
  "instructblipvideo:vicuna_13b": 14_192_093_952,
  "instructblipvideo:flan_t5_xl": 3_957_170_944 + 65_798_144,
  "instructblipvideo:flan_t5_xxl": 12_178_522_880 + 131_596_288,
  "internvl:2.5_1b": 938_193_024,
  "internvl:2.5_2b": 2_205_754_368,
  "internvl:2.5_4b": 3_712_637_952,
  "internvl:2.5_8b": 8_075_365_376,
  "internvl:2.5_26b": 25_514_186_112,
  "internvl:2.5_38b": 38_388_164_992,
  "internvl:2.5_78b": 78_408_318_336,
  "llava:1.5_7b": 7_063_427_072 - 12_598_272,
  "llava:1.5_13b": 13_351_494_656 - 12_598_272,
  "llava:bakllava_7b": 7_566_743_552 - 12_598_272,
  "llava:interleave_qwen_0.5b": 893_674_656 - 2_304,
  "llava:interleave_qwen_7b": 8_030_804_000 - 2_304,
  "llava_next:v1.6_mistral_7b": 7_566_747_648 - 12_598_272,
  "llava_next:v1.6_vicuna_7b": 7_063_431_168 - 12_598_272,
  "llava_next:v1.6_vicuna_13b": 13_351_499_776 - 12_598_272,
  "llava_next:v1.6_34b": 34_752_083_968 - 12_598_272,
  "llava_next:llama3_8b": 8_355_276_800 - 12_598_272,
  "llava_next_video:7b": 7_063_431_168 - 12_598_272,
  "llava_next_video:7b_32k": 7_566_747_648 - 12_598_272,
  "llava_next_video:34b": 34_752_083_968 - 12_598_272,
  "llava_onevision:qwen2_0.5b": 893_675_552 - 2_304,
  "llava_onevision:qwen2_7b": 8_030_807_584 - 2_304,
  "llava_onevision:qwen2_72b": 73_181_570_592 - 2_304,
  "mistral3:small_3.1_24b": 24_011_545_600,
  "mllama:11b": 10_670_220_835,
  "mllama:90b": 88_593_355_323,
  "pixtral:12b": 12_682_739_712,
  "qwen2_5_vl:3b": 3_754_622_976,
  "qwen2_5_vl:7b": 8_292_166_656,
  "qwen2_5_vl:32b": 33_452_718_336,
  "qwen2_5_vl:72b": 73_410_777_344,
  "qwen2_vl:2b": 2_208_985_600,
  "qwen2_vl:7b": 8_291_375_616,
  "qwen2_vl:72b": 73_405_560_320,
  "smolvlm:2_256m": 256_484_928,
  "smolvlm:2_500m": 507_482_304,
  "smolvlm:2_2.2b": 2_246_784_880,
  "video_llama_3:2b": 1_959_993_584,
  "video_llama_3:7b": 8_044_744_944,
  "video_llava:7b": 7_366_279_168 - 25_196_544,
  "vipllava:7b": 7_080_214_528 - 12_598_272,
  "vipllava:13b": 13_372_476_416 - 12_598_272,
}
# Only their files tell that the head is not the embedding table.
HEADED = tuple(name for name in _COUNTS if "flan_t5" in name)
_FAMILIES = dict(
  blip2=projected.BLIP2,
  deepseek_vl=others.DEEPSEEK_VL,
  fuyu=others.FUYU,
  idefics=others.IDEFICS,
  idefics2=projected.IDEFICS2,
  idefics3=projected.IDEFICS3,
  instructblip=projected.INSTRUCTBLIP,
  instructblipvideo=projected.INSTRUCTBLIPVIDEO,
  internvl=projected.INTERNVL,
  llava=projected.LLAVA,
  llava_next=projected.LLAVA_NEXT,
  llava_next_video=projected.LLAVA_NEXT_VIDEO,
  llava_onevision=projected.LLAVA_ONEVISION,
  mistral3=others.MISTRAL3,
  mllama=others.MLLAMA,
  pixtral=projected.PIXTRAL,
  qwen2_5_vl=others.QWEN2_5_VL,
  qwen2_vl=others.QWEN2_VL,
  smolvlm=projected.SMOLVLM,
  video_llama_3=others.VIDEO_LLAMA_3,
  video_llava=projected.VIDEO_LLAVA,
  vipllava=projected.VIPLLAVA,
)
# Zoo name -> (config.json, number of parameters)
SIZES: dict[str, tuple[dict[str, Any], int]] = {
  f"{family}:{size}": (config, _COUNTS[f"{family}:{size}"])
  for family, sizes in _FAMILIES.items()
  for size, config in sizes.items()
}
