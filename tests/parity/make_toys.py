"""Writes `bigvlm/hub/toys.json`: what toy checkpoints consist of, from the reference's classes.

Usage: python -m tests.parity.make_toys [NAME ...]

Needs what `processors_fusion` needs. A toy is the configuration of a tiny model and its processor,
as transformers saves them, without defaults; ids are named by their tokens (see `hub.toys`).
"""

import json
import pathlib
import sys
import tempfile
from typing import Any

import tests.parity.torchvision_ops  # noqa: F401
from bigvlm.hub import toys
from tests.parity import human_fusion, processors_fusion, reference

_FILES = (
  "preprocessor_config.json",
  "video_preprocessor_config.json",
  "processor_config.json",
  "tokenizer_config.json",
  "qformer_tokenizer/tokenizer_config.json",
)
_ENDS = dict(bos_token_id="<s>", eos_token_id="</s>", pad_token_id="<pad>")
# Of the tokenizer's settings only those that name tokens of the system.
_TOKENIZER = (
  "extra_special_tokens",
  "image_token",
  "video_token",
  "start_image_token",
  "end_image_token",
  "context_image_token",
)
_START = {"blip2_retrieval": dict(bos_token="[DEC]")}  # Others start with <s>.
# Words that processors look up in the vocabulary, where they are nothing special.
_WORDS = {"fuyu": ("|SPEAKER|", "|NEWLINE|", "<0x04>")}


def _hybrid(processor: Any, tokenizer: Any) -> Any:
  import transformers

  given = human_fusion.CASES["deepseek_vl"].config(processor, tokenizer).to_dict()
  fine = dict(
    hidden_size=32, output_channels=12, num_hidden_layers=2, num_attention_heads=2, image_size=33,
    patch_size=3, window_size=3, global_attn_indexes=[1], mlp_dim=40,
  )  # fmt: skip
  kept = {k: given[k] for k in ("vision_config", "text_config", "image_token_id")}
  return transformers.DeepseekVLHybridConfig(**kept, high_res_vision_config=fine)


def _vipllava(processor: Any, tokenizer: Any) -> Any:
  import transformers

  given = human_fusion.CASES["llava"].config(processor, tokenizer).to_dict()
  kept = {k: given[k] for k in ("vision_config", "text_config", "image_token_index")}
  return transformers.VipLlavaConfig(**kept, vision_feature_layer=[-1, -2, 1])


def _retrieval(processor: Any, tokenizer: Any) -> Any:
  """That of `blip2` for matching, of the same sizes; texts that are written start with [DEC]."""
  import transformers

  tokenizer.add_special_tokens({"bos_token": "[DEC]"})
  given = human_fusion.CASES["blip2"].config(processor, tokenizer).to_dict()
  given["qformer_config"]["use_qformer_text_input"] = True
  kept = {k: v for k, v in given.items() if k.endswith("_config") or k == "image_token_index"}
  return transformers.Blip2Config(**kept, num_query_tokens=3, image_text_hidden_size=24)


# Name -> (maker of the processor, case) of those that only a toy has.
_CASES = {name: (name, case) for name, case in human_fusion.CASES.items()} | {
  "blip2_retrieval": (
    "blip2",
    human_fusion.CASES["blip2"]._replace(config=_retrieval, model="Blip2ForImageTextRetrieval"),
  ),
  "deepseek_vl_hybrid": (
    "deepseek_vl_hybrid",
    human_fusion.Case(_hybrid, "DeepseekVLHybridForConditionalGeneration", (), ()),
  ),
  "vipllava": (
    "llava",
    human_fusion.CASES["llava"]._replace(
      config=_vipllava, model="VipLlavaForConditionalGeneration"
    ),
  ),
}
# The period of layers that published ones have, so that they have the same names; the width that a
# random text model needs to say something when it is frozen.
_TEXT = {
  "blip2": dict(hidden_size=64, word_embed_proj_dim=64),
  "mllama": dict(num_hidden_layers=5, cross_attention_layers=[3]),
}
# Text models without anything beside them.
_ALONE = {
  "text": dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    hidden_size=40,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
  )
}


def make(name: str) -> dict[str, Any]:
  """The files and the tokens of one toy."""
  if name in _ALONE:
    config = {**_ALONE[name], **{k: f"@{v}" for k, v in _ENDS.items()}, "vocab_size": "@vocab"}
    return dict(tokens=[], files={"config.json": config, "tokenizer_config.json": {}})
  maker, case = _CASES[name]
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    processor, _ = processors_fusion.MAKERS[maker](0, path, **case.make)
    tokenizer = processor.tokenizer
    made = case.config(processor, tokenizer)
    made.architectures = [case.model]
    for key, value in _TEXT.get(name, {}).items():
      setattr(made.text_config, key, value)
    config = reference.v4(made.to_dict(), made)
    files = {"config.json": _named(config, tokenizer)}
    for file in _FILES:
      if (path / file).is_file():
        files[file] = json.loads((path / file).read_text())
  for file in files:
    if file.endswith("tokenizer_config.json"):
      files[file] = {k: v for k, v in files[file].items() if k in _TOKENIZER}
  files["tokenizer_config.json"] |= _START.get(name, {})
  special = [str(t) for t in tokenizer.get_added_vocab()]
  special += [t for t in _WORDS.get(name, ()) if t not in special]
  return dict(tokens=[t for t in special if t not in toys.SPECIAL], files=files)


def _named(value: Any, tokenizer: Any, key: str = "") -> Any:
  """A configuration with "@TOKEN" for ids and "@vocab" for the size of the vocabulary."""
  if isinstance(value, dict):
    inner = {k: _named(v, tokenizer, k) for k, v in value.items()}
    # Those of the question's tokens, not of the text's.
    return inner | ({"vocab_size": 400} if value.get("model_type") == "blip_2_qformer" else {})
  if key in _ENDS:
    return f"@{_ENDS[key]}"
  if key == "vocab_size":
    return "@vocab"
  if key.endswith(("_token_id", "_token_index")) and isinstance(value, int):
    return f"@{tokenizer.convert_ids_to_tokens(value)}"
  return value


def main() -> None:
  found = json.loads(toys.FILE.read_text()) if toys.FILE.exists() else {}
  for name in sys.argv[1:] or (*_CASES, *_ALONE):
    found[name] = make(name)
    print(name, len(json.dumps(found[name])))
  toys.FILE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
  main()
