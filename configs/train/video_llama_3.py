"""VideoLLaMA 3 (arXiv 2501.13106): the tower for any resolution, alignment of all, tasks, videos.

Learning rates, warm-up, lengths and mixtures are published (sections 3.2, 3.3); batches and the one
epoch are those of the authors' scripts for the 2B model. The 7B model began with the 2B model's
tower. Frames lose no patches here that are like those before (DiffFP). Prompts: ChatML; frames of a
video as "Time 0.0s:<tokens>,".
"""

from bigvlm.configs.train import _recipe as recipe

# Millions of examples.
_TOWER = dict(scene_short_captions=11.84, scene_text=0.93, documents=2.8)
_MIXTURES = dict(
  align=dict(
    scene_captions=12.56,
    scene_text=4.69,
    documents=2.68,
    charts=0.04,
    grounding=1.0,
    text=6.25,
  ),
  tasks=dict(image_instruct=13.92, text_instruct=2.21, general_video=2.92),
  videos=dict(
    general_video=3.03,
    streaming_video=0.036,
    grounded_video=0.21,
    image_instruct=0.88,
    text_instruct=1.56,
  ),
)


def get_config(arg=None):
  """All four stages of the 7B model.

  Args:
    arg: `source` (default lkhl/VideoLLaMA3-7B-Image-HF), `tiny`.
  """
  shared = recipe.SHARED | dict(batch_size=128, epochs=1.0)
  tower = dict(
    name="tower",
    data=_data(_TOWER),
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
      *(whole | dict(name=name, data=_data(sizes)) for name, sizes in _MIXTURES.items()),
    ),
  )


def _data(sizes):
  return recipe.data(*sizes, weights=tuple(sizes.values()))
