"""Lets torchvision be imported beside a torch that its compiled library was not built for.

The only wheel of torchvision that every package index has is the one for CUDA. Beside a torch for
CPUs its library does not load, and its Python then fails where it describes two operators that
nobody registered. What transformers takes from it (resizing of video frames) is written in
Python, so the names of those operators are enough. Import this before transformers.
"""

import importlib.util
import pathlib

import torch

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_spec = importlib.util.find_spec("torchvision")
if _spec is not None:
  try:
    torch.ops.load_library(pathlib.Path(_spec.origin).with_name("_C.so"))
  except OSError:
    _names = torch.library.Library("torchvision", "FRAGMENT")  # Kept: its end takes the names back.
    for _name in ("nms", "qnms"):
      _names.define(_name + _BOXES)
