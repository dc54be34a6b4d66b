"""LLaVA-OneVision (arXiv 2408.03326, table 1): captions, knowledge, single images, then several
images and videos; all trains after the first stage, the image tower at a fifth of the learning
rate.

The first stage had one picture of 384 x 384 and no tiles; here the checkpoint's own tiles. Prompts:
ChatML, "<|im_start|>user\\n<image>\\n{question}<|im_end|>\\n<|im_start|>assistant\\n".
"""

from bigvlm.configs.train import _recipe as recipe
from bigvlm.configs.train import llava

# Thousands of examples.
_MIXTURES = dict(
  knowledge=dict(recap=3500, ureader_syndog=1100, chinese_evol_instruct=235),
  single=dict(onevision_single=3200),
  onevision=dict(onevision_multi=560, onevision_video=350, onevision_single=800),
)


def get_config(arg=None):
  """All four stages of the 7B model.

  Args:
    arg: `source` (default llava-hf/llava-onevision-qwen2-7b-ov-hf), `tiny`.
  """
  align = llava.stages("llava_pretrain_558k", "")[0] | dict(batch_size=512)
  whole = dict(
    train=recipe.ALL, lr=1e-5, lr_mults=(("encoders/.*", 0.2),), batch_size=256, epochs=1.0
  )
  return recipe.make(
    arg,
    name="llava_onevision",
    source="llava-hf/llava-onevision-qwen2-7b-ov-hf",
    toy="llava_onevision",
    text_len=8192,
    media_len=37,
    tiny=(160, 10),
    stages=(
      align,
      *(
        dict(
          name=name,
          data=recipe.data(*sizes, weights=tuple(sizes.values())),
          **whole,
          **recipe.SHARED,
        )
        for name, sizes in _MIXTURES.items()
      ),
    ),
  )
