"""Golden CIDEr-D of toy captions, by pycocoevalcap without its tokenizer (which needs Java).

pip install pycocoevalcap      # 1.2 made the fixture; nothing else needs it
python tests/parity/make_cider.py
"""

import json
import pathlib
import random

FILE = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "cider.json"
NOUNS = "dog cat man woman bus beach table park pizza horse".split()
VERBS = "runs sits stands eats waits plays".split()
PLACES = "on the grass|near a tree|in the rain|beside the red car|under blue sky|at night".split(
  "|"
)


def caption(rng):
  """A caption of lower-case words, which every tokenizer cuts at its spaces."""
  words = [rng.choice(("a", "the", "two")), rng.choice(NOUNS), rng.choice(VERBS)]
  words += rng.sample(PLACES, rng.randint(0, 3)) + rng.choices(NOUNS, k=rng.randint(0, 2))
  return " ".join(words)


def main():
  """Writes the fixture."""
  from pycocoevalcap.cider import cider

  rng, rows = random.Random(0), []
  for n in range(50):
    targets = [caption(rng) for _ in range(rng.randint(1, 5))]
    answer = rng.choice(targets) if n % 3 == 0 else caption(rng)
    answer = f"{answer} {answer}" if n % 7 == 0 else answer
    rows.append(dict(answer="" if n == 5 else answer, targets=targets))
  scorer = cider.Cider()
  mean, each = scorer.compute_score(
    {n: row["targets"] for n, row in enumerate(rows)},
    {n: [row["answer"]] for n, row in enumerate(rows)},
  )
  for row, value in zip(rows, each, strict=True):
    row["cider_d"] = float(value)
  FILE.write_text(json.dumps(dict(mean=float(mean), rows=rows), indent=1) + "\n")
  print(f"{FILE.name}: {len(rows)} captions, mean {mean:.6f}")


if __name__ == "__main__":
  main()
