"""AIMv2 in the layout of Apple's own code, made from fixtures in that of transformers."""

import json
import pathlib
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigvlm

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "hub"
# Names of transformers -> names of apple/ml-aim.
NAMES = (
  (r"^vision_model\.", "image_encoder."),
  (r"^text_model\.", "text_encoder."),
  (r"encoder\.layers\.", "trunk.blocks."),
  (r"rms_norm([12])\.", r"norm_\1."),
  (r"attention\.out_proj", "attn.proj"),
  (r"ffn\.gate_proj", "mlp.fc1"),
  (r"ffn\.down_proj", "mlp.fc2"),
  (r"ffn\.up_proj", "mlp.fc3"),
  (r"embeddings\.patch_embed\.", "preprocessor.patchifier.proj."),
  (r"embeddings\.rms_norm\.", "preprocessor.patchifier.norm."),
  (r"embeddings\.token_embedding", "preprocessor.text_embedding"),
  (r"^(|image_encoder\.)embeddings\.position_embedding\.weight", r"\1preprocessor.pos_embed"),
  (r"embeddings\.position_embedding\.weight", "preprocessor.positional_embedding"),
  (r"^(|image_encoder\.|text_encoder\.)rms_norm\.", r"\1trunk.post_trunk_norm."),
  (r"head\.([kv])_proj", r"head.\1"),
  (r"head\.output_proj", "head.linear"),
  (r"^visual_projection", "image_projector"),
  (r"^text_projection", "text_projector"),
  (r"^logit_scale", "log_logit_scale"),
)


def tensors(found):
  """The tensors of a fixture as Apple's code stores them."""
  out = {}
  for key in found:
    for kind in ("weight", "bias"):
      if key.endswith(f"attention.q_proj.{kind}"):
        parts = [found[key.replace("q_proj", f"{n}_proj")] for n in "qkv"]
        name = re.sub(r"attention\.q_proj", "attn.qkv", key)
        out[name] = np.concatenate(parts)
    if not re.search(r"attention\.[qkv]_proj", key):
      out[key] = found[key]
  renamed = {}
  for key, x in out.items():
    for pattern, replacement in NAMES:
      key = re.sub(pattern, replacement, key)
    renamed[key] = x[None] if key.endswith("preprocessor.pos_embed") else x
  return renamed


def config(cfg):
  """A `config.json` as Apple's code writes it."""

  def part(given):
    dropped = ("model_type", "mlp_bias", "use_head", "is_native", "max_position_embeddings")
    out = {k: v for k, v in given.items() if k not in dropped}
    if "max_position_embeddings" in given:
      out["max_context_length"] = given["max_position_embeddings"]
    return out | dict(use_bias=given.get("mlp_bias", False), projection_dropout=0.0)

  out = cfg | dict(architectures=["AIMv2Model"], model_type="aimv2")
  out["auto_map"] = {"AutoModel": "modeling_aimv2.AIMv2Model"}
  parts = [name for name in ("vision_config", "text_config") if name in cfg]
  return out | {name: part(cfg[name]) for name in parts} if parts else part(out)


@pytest.fixture
def written(request, tmp_path):
  folder = FOLDER / request.param
  source = tmp_path / "in"
  source.mkdir()
  stored = tensors(load_file(folder / "model.safetensors"))
  save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
  cfg = config(json.loads((folder / "config.json").read_text()))
  (source / "config.json").write_text(json.dumps(cfg))
  with np.load(folder / "io.npz") as z:
    return source, dict(z), stored


# With every bias and a head; without tables; dual encoders with a table and without.
@pytest.mark.parametrize(
  "written", ["aimv2_vision-0", "aimv2_native-1", "aimv2-0", "aimv2-1"], indirect=True
)
def test_the_numbers_are_those_of_the_same_weights(written, tmp_path):
  source, io, stored = written
  model = bigvlm.load(source)
  out = model.forward_hf({k[3:]: v for k, v in io.items() if k.startswith("in_")})
  for key in (k[4:] for k in io if k.startswith("out_")):
    wanted = io[f"out_{key}"]
    assert np.abs(out[key] - wanted).max() <= 1e-5 * np.abs(wanted).max(), key
  model.save_hf(tmp_path / "out")
  back = load_file(tmp_path / "out" / "model.safetensors")
  assert {k: v.tobytes() for k, v in back.items()} == {k: v.tobytes() for k, v in stored.items()}
  assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in stored.items()}


@pytest.mark.parametrize("written", ["aimv2-1"], indirect=True)
def test_the_text_tower_is_causal_without_a_mask_too(written):
  """As in Apple's code; transformers has it only with one."""
  source, io, _ = written
  ids = io["in_input_ids"][:1]
  model = bigvlm.load(source)
  with_mask = model.forward_hf(dict(input_ids=ids, attention_mask=np.ones_like(ids)))
  without = model.forward_hf(dict(input_ids=ids))
  np.testing.assert_array_equal(with_mask["text_embeds"], without["text_embeds"])


def test_tensors_of_transformers_under_a_config_of_apple(tmp_path):
  """What some published repositories hold."""
  folder = FOLDER / "aimv2_native-1"
  cfg = json.loads((folder / "config.json").read_text())
  cfg = {k: v for k, v in cfg.items() if k not in ("use_head", "is_native")}
  (tmp_path / "config.json").write_text(json.dumps(cfg | dict(architectures=["AIMv2Model"])))
  (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
  with np.load(folder / "io.npz") as z:
    out = bigvlm.load(tmp_path).forward_hf({k[3:]: z[k] for k in z if k.startswith("in_")})
    wanted = z["out_last_hidden_state"]
  assert np.abs(out["last_hidden_state"] - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("written", ["aimv2_vision-0"], indirect=True)
def test_more_queries_are_refused(written):
  source, _, _ = written
  cfg = json.loads((source / "config.json").read_text())
  (source / "config.json").write_text(json.dumps(cfg | dict(num_queries=2)))
  with pytest.raises(ValueError, match="num_queries is 2"):
    bigvlm.load(source)
