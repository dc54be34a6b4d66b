"""VideoLLaMA 3 (arXiv 2501.13106): the tower for any resolution, alignment of all, tasks, videos.

Learning rates are 1e-5 of the tower and 1e-3 of the connector, then 2e-6 and 1e-5 with 1e-5 of the
text model (uncertain); batches and the mixtures' weights are the house's.
Prompts: ChatML; frames of a video as "Time 0.0s:<tokens>,".
"""

from bigvlm.configs.train import _recipe as recipe

_MIXTURES = dict(
  align=("detailed_captions", "charts", "documents", "grounding", "text"),
  tasks=("image_qa", "general_video_captions"),
  videos=("general_video", "streaming_video", "grounded_video", "image", "text"),
)


def get_config(arg=None):
  """All four stages of the 7B model.

  Args:
    arg: `source` (default lkhl/VideoLLaMA3-7B-Image-HF), `tiny`.
  """
  shared = recipe.SHARED | dict(batch_size=256, epochs=1.0)
  tower = dict(
    name="tower",
    data=recipe.data("vl3_syn7m", "llava_pretrain_558k", "documents", "scene_text"),
    train=("encoders/.*", "connector/.*"),
    fresh=recipe.CONNECTOR,
    lr=1e-3,
    lr_mults=(("encoders/.*", 0.01),),
  )
  whole = shared | dict(train=recipe.ALL, lr=1e-5, lr_mults=(("encoders/.*", 0.2),))
  return recipe.make(
    arg,
    name="video_llama_3",
    source="lkhl/VideoLLaMA3-7B-Image-HF",
    toy="video_llama_3",
    text_len=16_384,
    media_len=40_960,
    tiny=(128, 64),
    stages=(
      shared | tower,
      *(whole | dict(name=n, data=recipe.data(*names)) for n, names in _MIXTURES.items()),
    ),
  )
