"""InstructBLIP on videos: four frames, the queries of each in front of the text.

Published without training of its own (the weights are InstructBLIP's), so its stage is that of
InstructBLIP; a picture counts as a still video.
"""

from bigvlm.configs.train import instructblip


def get_config(arg=None):
  """The stage of the 7B model.

  Args:
    arg: `source` (default Salesforce/instructblip-vicuna-7b), `tiny`.
  """
  source = "Salesforce/instructblip-vicuna-7b"
  return instructblip.make(arg, "instructblipvideo", source, (64, 4), media_len=4)
