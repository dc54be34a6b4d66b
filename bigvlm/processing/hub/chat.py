"""Chat templates of checkpoints, rendered where they cannot reach anything.

Templates come with downloaded files, so they run in jinja2's immutable sandbox and see nothing
but plain data. What transformers gives them is there: `raise_exception`, `strftime_now`, `tojson`,
`{% break %}`, `{% continue %}` and `{% generation %}`.
"""

import datetime
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bigvlm.utils import jsons

_REASONING = ("reasoning_content", "thinking", "reasoning")


def find(directory: pathlib.Path) -> str | dict[str, str] | None:
  """The template of a directory, several of them by name, or None.

  `chat_template.jinja` comes before `chat_template.json`, before the entries of
  `processor_config.json` and `tokenizer_config.json`.
  """
  many = {f.stem: f.read_text("utf-8") for f in directory.glob("additional_chat_templates/*.jinja")}
  found: Any = None
  if (directory / "chat_template.jinja").is_file():
    found = (directory / "chat_template.jinja").read_text("utf-8")
  for file in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
    if not found and (directory / file).is_file():
      found = jsons.read(directory / file).get("chat_template")
  if isinstance(found, list):
    found = {entry["name"]: entry["template"] for entry in found}
  if isinstance(found, dict):
    return many | found
  return {**many, "default": found} if many and found else found or many or None


def render(
  template: str | Mapping[str, str] | None,
  messages: Sequence[Mapping[str, Any]],
  variables: Mapping[str, Any],
  *,
  tools: Sequence[Mapping[str, Any]] | None = None,
  documents: Sequence[Mapping[str, Any]] | None = None,
  add_generation_prompt: bool = False,
) -> str:
  """A conversation as the text of a prompt.

  Args:
    template: source of the template, or several of them with one named "default".
    messages: `[{"role": ..., "content": ...}, ...]`; an entry that is None counts as absent.
    variables: what else the template may name: texts of the special tokens.
    tools, documents: JSON schemas and texts, for templates that read them.
    add_generation_prompt: whether the turn of the model is opened at the end.

  Raises:
    ValueError: there is no template, or the template refuses the conversation or is broken.
  """
  import jinja2

  if isinstance(template, Mapping):
    if "default" not in template:
      raise ValueError(f"none of the chat templates is the default: {', '.join(template)}")
    template = template["default"]
  if not template:
    raise ValueError("this checkpoint has no chat template")
  if not messages:
    raise ValueError("the conversation has no message")
  chat = []
  for message in messages:
    if not isinstance(message, Mapping):
      raise ValueError(f"a message is a dictionary with role and content, not {message!r:.60}")
    message = {k: plain(v) for k, v in message.items() if v is not None}
    reasoning = next((message[k] for k in _REASONING if k in message), None)
    if reasoning is not None:
      message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    chat.append(message)
  try:
    return _compiled(template).render(
      messages=chat,
      tools=plain(tools),
      documents=plain(documents),
      add_generation_prompt=add_generation_prompt,
      **plain(variables),
    )
  except (jinja2.TemplateError, TypeError) as e:
    raise ValueError(f"the chat template refused the conversation: {e}") from None


def plain(value: Any) -> Any:
  """A value in nothing but JSON's types; what is none of them becomes its type's name."""
  if value is None or type(value) in (str, int, float, bool):
    return value
  for kind in (bool, str, int, float):
    if isinstance(value, kind):
      return kind(value)
  if isinstance(value, Mapping):
    return {plain(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  return f"<{type(value).__name__}>"


@functools.lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
  import jinja2
  from jinja2 import ext, nodes, sandbox

  class Generation(ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model said; here it is only text."""

    tags = {"generation"}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
      return nodes.Scope(body).set_lineno(line)

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  env = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
  )
  env.filters["tojson"] = tojson
  env.globals["raise_exception"] = raise_exception
  env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
  return env.from_string(source)
