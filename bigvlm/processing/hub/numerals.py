"""Numbers in English words, as SmolVLM's prompts count frames."""

_SMALL = (
  "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
  "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def words(number: int) -> str:
  """0 <= number < 1 000 000, such as "one hundred and twenty-eight"."""
  if number < 20:
    return _SMALL[number]
  if number < 100:
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_SMALL[ones]}" if ones else "")
  unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
  if not number < 1_000_000:
    raise ValueError(f"{number} is too many frames")
  head, rest = divmod(number, unit)
  join = " and " if rest < 100 else ", "
  return f"{words(head)} {name}" + (join + words(rest) if rest else "")
