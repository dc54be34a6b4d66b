"""A competitor that does nothing, and a peer that cannot start."""

import sys

from benchmarks import contest


def make():
  if "--serve=bigvlm" not in sys.argv:
    raise ImportError("no such peer")
  print("words of a library on stdout")
  return (lambda: None), dict(rows=2, tflop=1e-9, versions={})


contest.serve(make, tiny=True)
