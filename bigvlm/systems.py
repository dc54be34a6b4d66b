"""Every system that comes with bigvlm: what it is, how large, how close to its reference.

`python -m bigvlm.systems` writes `docs/systems.md`, the drawings beside it and `systems.json`,
which `bigvlm systems` shows, from the configs of the zoo and the report of `make parity`.
"""

import importlib
import json
import pathlib
from typing import Any, NamedTuple

import jax

from bigvlm import diagram, zoo

FILE = pathlib.Path(__file__).with_name("systems.json")
_DOCS = pathlib.Path(__file__).resolve().parents[1] / "docs"


class Family(NamedTuple):
  """What no config says of a family of the zoo.

  Attributes:
    title: its name for people. reference: class of transformers, or what else it is compared with.
    recipes: rows of the parity report, by the start of their names.
    can: what its models do beside what their kind tells.
  """

  title: str
  reference: str
  recipes: tuple[str, ...] = ()
  can: tuple[str, ...] = ()


_VQA = ("caption", "vqa")
_VIDEO = (*_VQA, "video")
FAMILIES: dict[str, Family] = {
  "blip2": Family("BLIP-2", "Blip2ForConditionalGeneration", ("blip2",), _VQA),
  "clip": Family("CLIP, MetaCLIP", "CLIPModel", ("clip", "metaclip")),
  "deepseek_vl": Family("DeepSeek-VL", "DeepseekVLForConditionalGeneration", ("deepseek",), _VQA),
  "dinov2": Family("DINOv2", "Dinov2Model", ("dinov2",)),
  "fuyu": Family("Fuyu", "FuyuForCausalLM", ("fuyu",), _VQA),
  "gemma": Family("Gemma 1, 2", "GemmaForCausalLM", ("gemma", "gemma2")),
  "idefics": Family("IDEFICS", "IdeficsForVisionText2Text", ("idefics",), _VQA),
  "idefics2": Family("Idefics2", "Idefics2ForConditionalGeneration", ("idefics2",), _VQA),
  "idefics3": Family("Idefics3, SmolVLM", "Idefics3ForConditionalGeneration", ("idefics3",), _VQA),
  "instructblip": Family(
    "InstructBLIP", "InstructBlipForConditionalGeneration", ("instructblip",), _VQA
  ),
  "instructblipvideo": Family(
    "InstructBLIP for video",
    "InstructBlipVideoForConditionalGeneration",
    ("instructblipvideo", "instructblip_video"),
    _VIDEO,
  ),
  "internvl": Family("InternVL 2.5", "InternVLForConditionalGeneration", ("internvl",), _VIDEO),
  "llama": Family("Llama 1, 2, 3", "LlamaForCausalLM", ("llama",)),
  "llava": Family("LLaVA 1.5", "LlavaForConditionalGeneration", ("llava",), _VQA),
  "llava_next": Family("LLaVA-NeXT", "LlavaNextForConditionalGeneration", ("llava_next",), _VQA),
  "llava_next_video": Family(
    "LLaVA-NeXT-Video", "LlavaNextVideoForConditionalGeneration", ("llava_next_video",), _VIDEO
  ),
  "llava_onevision": Family(
    "LLaVA-OneVision", "LlavaOnevisionForConditionalGeneration", ("llava_onevision",), _VIDEO
  ),
  "mistral": Family("Mistral", "MistralForCausalLM", ("mistral",)),
  "mistral3": Family("Mistral 3", "Mistral3ForConditionalGeneration", ("mistral3",), _VQA),
  "mllama": Family("Llama 3.2 Vision", "MllamaForConditionalGeneration", ("mllama",), _VQA),
  "opt": Family("OPT", "OPTForCausalLM", ("opt",)),
  "pali": Family("PaLI, PaLI-X, PaLI-3", "its parts: ViT, T5", (), _VQA),
  "paligemma": Family(
    "PaliGemma 1, 2",
    "PaliGemmaForConditionalGeneration",
    ("paligemma", "paligemma2"),
    (*_VQA, "boxes", "masks"),
  ),
  "persimmon": Family("Persimmon", "PersimmonForCausalLM", ("persimmon",)),
  "phi": Family("Phi 1, 1.5, 2", "PhiForCausalLM", ("phi",)),
  "pixtral": Family("Pixtral", "LlavaForConditionalGeneration", ("pixtral",), _VQA),
  "qwen2": Family("Qwen 2, 2.5", "Qwen2ForCausalLM", ("qwen2",)),
  "qwen2_5_vl": Family(
    "Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", ("qwen2_5_vl",), (*_VIDEO, "boxes")
  ),
  "qwen2_vl": Family("Qwen2-VL", "Qwen2VLForConditionalGeneration", ("qwen2_vl",), _VIDEO),
  "siglip": Family("SigLIP 1, 2", "SiglipModel", ("siglip", "siglip2")),
  "smolvlm": Family("SmolVLM 2", "SmolVLMForConditionalGeneration", ("smolvlm",), _VIDEO),
  "t5": Family("T5, mT5, UMT5, UL2", "T5ForConditionalGeneration", ("t5", "mt5", "umt5")),
  "video_llama_3": Family(
    "VideoLLaMA 3", "VideoLlama3ForConditionalGeneration", ("video_llama_3",), _VIDEO
  ),
  "video_llava": Family(
    "Video-LLaVA", "VideoLlavaForConditionalGeneration", ("video_llava",), _VIDEO
  ),
  "vipllava": Family("ViP-LLaVA", "VipLlavaForConditionalGeneration", ("vipllava",), _VQA),
  "vit": Family("ViT", "ViTModel", ("vit",)),
}
# Kind of data flow, told by the slots of a config.
KINDS = {
  "text": "a text model alone",
  "encoder": "a vision encoder alone",
  "dual encoder": "an image tower and a text tower, compared",
  "projector": "patches through a projector into the sequence",
  "tiles": "pictures cut into tiles, through a projector into the sequence",
  "resampler": "learned queries look at the patches; what they saw goes into the sequence",
  "cross-attention": "the text looks at the pictures in layers of their own",
  "native resolution": "packed patches of pictures of any shape, into the sequence",
  "encoder-free": "patches straight into the decoder",
  "encoder-decoder": "patches and text encoded together, another text decoded",
}
_CONNECTORS = {
  "tiles": "tiles",
  "pixel_shuffle": "tiles",
  "resampler": "resampler",
  "qformer": "resampler",
  "merger": "native resolution",
}


def kind(model: dict[str, Any]) -> str:
  """The kind of data flow of a `config.model`, a key of `KINDS`."""
  flows = {"lm": "text", "encoder": "encoder", "two_tower": "dual encoder", "matching": "resampler"}
  if model["kind"] in flows:
    return flows[model["kind"]]
  encoders = {e["kind"] for e in model["encoders"].values()}
  if model.get("fusion", {}).get("kind") == "memory":
    return "cross-attention"
  if "raw" in encoders:
    return "encoder-free"
  connector = model.get("connector", {}).get("kind", "linear")
  if connector in _CONNECTORS:
    return _CONNECTORS[connector]
  if "packed" in encoders:
    return "native resolution"
  return "encoder-decoder" if model["decoder"]["kind"] == "encdec" else "projector"


def sizes(family: str) -> list[str]:
  """Zoo names of the published sizes of a family."""
  found = importlib.import_module(f"bigvlm.configs.models.{family}").SIZES
  return [f"{family}:{size}" for size in found]


def parity(report: str) -> dict[str, bool]:
  """Recipe -> whether it holds, of the text of `docs/parity.md`."""
  rows = [line.strip("| ").split("|") for line in report.splitlines() if line.startswith("| ")]
  return {row[0].strip(): row[-1].strip() == "yes" for row in rows[1:]}


def entry(family: str, held: dict[str, bool]) -> dict[str, Any]:
  """What the list says of a family; counts parameters by `eval_shape`."""
  about, found = FAMILIES[family], {}
  for name in sizes(family):
    cfg = zoo.load_config(name)
    count = sum(leaf.size for leaf in jax.tree.leaves(zoo.abstract_params(cfg)))
    found[name] = dict(parameters=count, checkpoint=cfg.init.source.removeprefix("hf:"))
  rows = [ok for name, ok in held.items() if _of(name, family, about.recipes)]
  flow = kind(zoo.load_config(next(iter(found))).model.to_dict())
  more = {"dual encoder": ("compare",), "encoder": ("embed",)}.get(flow, ("generate",))
  return dict(
    title=about.title,
    kind=flow,
    reference=about.reference,
    parity=f"{sum(rows)}/{len(rows)}" if rows else "",
    can=[*about.can, *more],
    sizes=found,
  )


def _of(recipe: str, family: str, starts: tuple[str, ...]) -> bool:
  """Whether a row of the report is a family's, and not that of one with a longer name."""
  mine = max((len(s) for s in starts if _starts(recipe, s)), default=0)
  others = (s for name, f in FAMILIES.items() if name != family for s in f.recipes)
  shared = family == "pali"
  return bool(mine) and (
    shared or mine >= max((len(s) for s in others if _starts(recipe, s)), default=0)
  )


def _starts(recipe: str, start: str) -> bool:
  return recipe == start or recipe.startswith(f"{start}_")


def listed() -> dict[str, Any]:
  """The list as it was written last: family -> `entry`."""
  return json.loads(FILE.read_text("utf-8"))


def table() -> str:
  """The list for a terminal, one line a size."""
  rows = [("system", "parameters", "kind", "can", "parity", "reference")]
  for one in listed().values():
    for name, size in one["sizes"].items():
      count = f"{size['parameters'] / 1e9:.3f} B"
      can = " ".join(one["can"])
      rows.append((name, count, one["kind"], can, one["parity"] or "-", one["reference"]))
  widths = [max(len(row[i]) for row in rows) for i in range(5)]
  lines = []
  for row in rows:
    cells = [f"{c:{'>' if i == 1 else '<'}{widths[i]}}" for i, c in enumerate(row[:5])]
    lines.append("  ".join((*cells, row[5])))
  return "\n".join(lines)


def page(found: dict[str, Any]) -> str:
  """docs/systems.md."""
  lines = [
    "# Systems",
    "",
    "Made by `python -m bigvlm.systems` from the configs in `configs/models` and the report of",
    "`make parity`. Parameters are those that a forward pass reads, counted from shapes. Parity:",
    "how many of its random checkpoints agree with the reference in every point of",
    "[parity.md](parity.md). `bigvlm systems` prints the same; [slots.md](slots.md) tells what the",
    "slots are.",
  ]
  for flow, words in KINDS.items():
    some = {name: one for name, one in found.items() if one["kind"] == flow}
    if not some:
      continue
    lines += ["", f"## {flow.capitalize()}: {words}", ""]
    lines += [f"![{flow}](systems/{flow.replace(' ', '_').replace('-', '_')}.svg)", ""]
    lines += ["| system | name | parameters | checkpoint | can | parity | reference |"]
    lines += ["|---|---|--:|---|---|---|---|"]
    for one in some.values():
      for n, (name, size) in enumerate(one["sizes"].items()):
        first = (", ".join(one["can"]), one["parity"] or "-", f"`{one['reference']}`")
        can, held, reference = first if n == 0 else ("", "", "")
        cells = [one["title"] if n == 0 else "", f"`{name}`", f"{size['parameters']:,}"]
        lines.append("| " + " | ".join([*cells, size["checkpoint"], can, held, reference]) + " |")
  return "\n".join(lines) + "\n"


def write() -> None:
  """Writes the list, the page and a drawing of each kind."""
  report = _DOCS / "parity.md"
  held = parity(report.read_text("utf-8"))
  found = {family: entry(family, held) for family in sorted(FAMILIES)}
  FILE.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
  (_DOCS / "systems.md").write_text(page(found), "utf-8")
  folder = _DOCS / "systems"
  folder.mkdir(exist_ok=True)
  for flow in KINDS:
    family = next((name for name, one in found.items() if one["kind"] == flow), None)
    if family:
      name = next(iter(found[family]["sizes"]))
      model = zoo.load_config(name).model.to_dict()
      file = f"{flow.replace(' ', '_').replace('-', '_')}.svg"
      (folder / file).write_text(diagram.svg(model, name), "utf-8")


if __name__ == "__main__":
  write()
