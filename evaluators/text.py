"""Normalisation of answers as the official VQA evaluation does it, and words as of captions.

Sources: VQA v2 evaluation tools (visualqa.org), `processPunctuation` and `processDigitArticle`; the
quirks are kept, because published numbers have them. Stanford's PTBTokenizer with the settings and
the dropped marks of coco-caption, `ptbtokenizer.py`.
"""

import re

_PUNCTUATION = tuple(';/[]"{}()=+\\_-><@`,?!')
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The official look-behind is mistyped (`(?!<=\d)`, a look-ahead for the text "<=" and a digit): it
# never applies, so that any point is removed that no digit follows.
_POINT = re.compile(r"\.(?!\d)")
_ARTICLES = ("a", "an", "the")
_NUMBERS = {
  "none": "0",
  **{
    word: str(n)
    for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
  },
}

# One apostrophe: written without it in answers.
_ONE = """
  ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd
  how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock
  oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll someone's
  something'd something'll that's there'd there're there's they'd they'll they're they've 'twas
  wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
  who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
# Two: either one may be missing, as the official table has them, but not both.
_TWO = """
  couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
  something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
""".split()


def _contractions() -> dict[str, str]:
  table = {word.replace("'", ""): word for word in _ONE}
  for word in _TWO:
    head, middle, tail = word.split("'")
    table[f"{head}{middle}'{tail}"] = word
    table[f"{head}'{middle}{tail}"] = word
  # Three apostrophes, and a line that is the wrong way round in the official table.
  table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've")
  table |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
  table["somebody'd"] = "somebodyd"
  return table


_CONTRACTIONS = _contractions()


def clean(text: str) -> str:
  """What is always done: line breaks and tabs become spaces, ends are stripped."""
  return text.replace("\n", " ").replace("\t", " ").strip()


def normalise(text: str) -> str:
  """Punctuation, case, numbers as words, articles and contractions, as the official tools do."""
  out = text
  inside_number = _COMMA_IN_NUMBER.search(text) is not None
  for mark in _PUNCTUATION:
    # The tests are on the original text, for each mark.
    apart = f"{mark} " in text or f" {mark}" in text
    out = out.replace(mark, "" if apart or inside_number else " ")
  out = _POINT.sub("", out)
  words = [_NUMBERS.get(word, word) for word in out.lower().split()]
  return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


_MARKS = r"!-/:-@\[-`{-~\u2010-\u2027\u3001\u3002\uff01-\uff0f\uff1a-\uff1f\u00ab\u00bb"
_RUN = rf"[^\s{_MARKS}]+"
_WORDS = re.compile(
  r"\d+(?:[.,:]\d+)+"  # 3.5, 1,000 and 10:30
  r"|(?:[a-z]\.){2,}|(?:mr|mrs|ms|dr|st|jr|sr|prof|vs|etc)\."
  rf"|{_RUN}(?:['\-]{_RUN})*"  # half-eaten; what an apostrophe joins is cut below
  r"|\.{2,}|-{2,}|\S"
)
_CUT = re.compile(r"(?<=.)(n't|'(?:s|m|d|ll|re|ve))$")
_JOINED = {
  word.replace(" ", ""): word.split()
  for word in ("can not", "gim me", "gon na", "got ta", "lem me", "wan na")
}
_DROPPED = frozenset(
  "` ' \" `` '' ( ) { } . .. ... ? ! , : - -- ; \u2013 \u2014 \u2018 \u201c \u201d \u2026".split()
)


def caption_words(caption: str) -> list[str]:
  """Words of a caption in lower case, without punctuation ("py-ptb").

  A Penn Treebank tokenizer of our own in the place of Stanford's, which needs Java: words with
  hyphens stay whole, `don't` is `do n't`, `man's` is `man 's`.
  """
  words = []
  for word in _WORDS.findall(caption.lower().replace("\u2019", "'")):
    words += _JOINED.get(word) or _CUT.sub(r" \1", word).split()
  return [word for word in words if word not in _DROPPED]
