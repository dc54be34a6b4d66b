"""What a system costs: lines of its config, of its reader and map, and of modules of its own.

Usage: python -m benchmarks.lines

Lines hold code (no comments, no docstrings). Of a file that several systems use each has an equal
share. A module is a slot (encoder, connector) that no system of the heart fills: those of
ViT, SigLIP, CLIP, DINOv2, PaLI, PaliGemma, Gemma and T5 were there before. `own` are the modules
that no other system fills: what it costs to add one to a house that has the rest.
"""

import ast
import importlib
import inspect
import io
import pathlib
import statistics
import tokenize

from benchmarks import common

HEART = ("vit", "siglip", "clip", "dinov2", "pali", "paligemma", "gemma", "t5")
# System -> its config in configs/models, its readers in bigvlm/hub, its size ("": the first).
SYSTEMS = {
  "LLaVA 1, 1.5": ("llava", "llava", "1.5_7b"),
  "BakLLaVA": ("llava", "llava", "bakllava_7b"),
  "LLaVA over SigLIP and Qwen2": ("llava", "llava", "interleave_qwen_7b"),
  "ViP-LLaVA": ("vipllava", "llava", ""),
  "LLaVA-NeXT": ("llava_next", "llava_next", ""),
  "LLaVA-NeXT-Video": ("llava_next_video", "llava_next", ""),
  "LLaVA-OneVision": ("llava_onevision", "llava_next", ""),
  "Video-LLaVA": ("video_llava", "video_llava", ""),
  "InternVL 2.5": ("internvl", "internvl", ""),
  "Idefics3": ("idefics3", "idefics3", ""),
  "SmolVLM": ("smolvlm", "idefics3", ""),
  "Idefics2": ("idefics2", "idefics2", ""),
  "BLIP-2 over OPT": ("blip2", "blip2", "opt_2.7b"),
  "BLIP-2 over Flan-T5": ("blip2", "blip2", "flan_t5_xl"),
  "BLIP-2 for retrieval": ("blip2", "blip2", "itm_vit_g"),
  "InstructBLIP": ("instructblip", "instructblip", ""),
  "InstructBLIP for video": ("instructblipvideo", "instructblip", ""),
  "DeepSeek-VL": ("deepseek_vl", "deepseek_vl", "1.3b"),
  "DeepSeek-VL hybrid": ("deepseek_vl", "deepseek_vl sam", "7b"),
  "IDEFICS": ("idefics", "idefics", ""),
  "Llama 3.2 Vision": ("mllama", "mllama", ""),
  "Qwen2-VL": ("qwen2_vl", "qwen2_vl", ""),
  "Qwen2.5-VL": ("qwen2_5_vl", "qwen2_5_vl", ""),
  "Pixtral": ("pixtral", "pixtral", ""),
  "Mistral 3": ("mistral3", "pixtral", ""),
  "VideoLLaMA 3": ("video_llama_3", "video_llama_3", ""),
  "Llama": ("llama", "llama", ""),
  "Mistral": ("mistral", "llama", ""),
  "Qwen2": ("qwen2", "llama", ""),
  "OPT": ("opt", "opt", ""),
  "Persimmon": ("persimmon", "persimmon", ""),
  "Phi": ("phi", "phi", ""),
  "Fuyu": ("fuyu", "fuyu", ""),
}
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def code(path: pathlib.Path) -> int:
  """Lines of a Python file that hold code."""
  text = path.read_text("utf-8")
  used = set()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.string.strip() and token.type != tokenize.COMMENT:
      used.update(range(token.start[0], token.end[0] + 1))
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
      words = node.body[0]
      used.difference_update(range(words.lineno, words.end_lineno + 1))
  return len(used)


def modules(family: str, size: str) -> set[pathlib.Path]:
  """Files of what fills the slots of a system's config."""
  from bigvlm import build, zoo
  from bigvlm.utils import tree

  cfg = zoo.load_config(f"{family}:{size}" if size else family).model.to_dict()
  tables = (build.ENCODERS, build.TEXTS, build.TEXT_ENCODERS, build.CONNECTORS, build.DECODERS)
  kinds = {v for k, v in tree.flatten(cfg).items() if k.split("/")[-1] == "kind"}
  found = {table[kind] for table in tables for kind in kinds if kind in table}
  return {pathlib.Path(inspect.getsourcefile(one)) for one in found}


def costs() -> dict[str, dict[str, float]]:
  """System -> lines of its `config`, `map` and `module`, and of the modules that are its `own`."""
  heart = set().union(*(modules(one, "") for one in HEART))
  users, parts = {}, {}
  for name, (family, readers, size) in SYSTEMS.items():
    first = importlib.import_module(f"bigvlm.configs.models.{family}").SIZES
    parts[name] = dict(
      config={_ROOT / "configs" / "models" / f"{family}.py"},
      map={_ROOT / "bigvlm" / "hub" / f"{reader}.py" for reader in readers.split()},
      module=modules(family, size or next(iter(first))) - heart,
    )
    for file in set().union(*parts[name].values()):
      users[file] = users.get(file, 0) + 1
  found = {}
  for name, files in parts.items():
    found[name] = {k: sum(code(f) / users[f] for f in v) for k, v in files.items()}
    found[name]["own"] = sum(code(f) for f in files["module"] if users[f] == 1)
  return found


def medians(found: dict[str, dict[str, float]]) -> dict[str, float]:
  """Medians over the systems of the sums of some parts."""
  sums = (("config", "map"), ("config", "map", "own"), ("config", "map", "module"))
  return {
    " + ".join(kinds): statistics.median(sum(row[k] for k in kinds) for row in found.values())
    for kinds in sums
  }


def main() -> None:
  found = costs()
  table = ["| system | config | map | module | of it its own |", "| --- " * 5 + "|"]
  for name, row in found.items():
    common.emit("lines", system=name, **row)
    table.append(f"| {name} | {' | '.join(f'{n:.0f}' for n in row.values())} |")
  for of, median in medians(found).items():
    common.emit("lines_median", of=of, systems=len(found), median=median)
    table.append(f"\nMedian of {of}: {median:.0f}")
  title = "## Lines a system costs\n\n`python -m benchmarks.lines`; what is counted stands there."
  common.write_section("lines", "\n".join([title, "", *table]))


if __name__ == "__main__":
  main()
