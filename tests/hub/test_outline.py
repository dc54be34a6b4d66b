"""What is told of a checkpoint on the hub without its weights, against a hub on loopback."""

import collections
import http.server
import json
import pathlib
import re
import threading

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, hf_api
from safetensors.numpy import load_file, save_file

from bigvlm import cli
from bigvlm.hub import files, headers, info, load

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "fixtures" / "hub"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"


class Hub(http.server.BaseHTTPRequestHandler):
  """Repositories as folders: their list of files, and the files by range."""

  protocol_version = "HTTP/1.1"
  root: pathlib.Path
  sent: collections.Counter  # Bytes of each file.

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = self.path.partition("?")[0].removeprefix("/")
    if found := re.fullmatch(r"api/models/(\w+/[\w-]+)(?:/revision/\w+)?", path):
      folder = self.root / found[1]
      rows = [dict(rfilename=f.name) for f in sorted(folder.iterdir())]
      return self.answer(json.dumps(dict(id=found[1], sha=COMMIT, siblings=rows)).encode())
    if found := re.fullmatch(r"api/models/(\w+/[\w-]+)/tree/.*", path):
      there = sorted((self.root / found[1]).iterdir())
      rows = [dict(type="file", path=f.name, size=f.stat().st_size, oid=f.name) for f in there]
      return self.answer(json.dumps(rows).encode())
    found = re.fullmatch(r"(\w+/[\w-]+)/resolve/(\w+)/([\w.-]+)", path)
    file = self.root / found[1] / found[3] if found else self.root / "nothing"
    if not file.is_file():
      return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
    more = {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
    data, status = file.read_bytes(), 200
    if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
      first, last = int(span[1]), int(span[2] or len(data))
      more["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
      data, status = data[first : last + 1], 206
    if self.command == "GET":
      self.sent[file.name] += len(data)
    return self.answer(data, status, more)

  def answer(self, data, status=200, more=None):
    self.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **(more or {})}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command == "GET":
      self.wfile.write(data)

  def log_message(self, *args):
    pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """(folder of repositories, bytes that were sent of each file); an empty cache."""
  root = tmp_path / "hub"
  root.mkdir()
  handler = type("Handler", (Hub,), dict(root=root, sent=collections.Counter()))
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  address = f"http://127.0.0.1:{server.server_port}"
  monkeypatch.setattr(constants, "ENDPOINT", address)
  template = address + "/{repo_id}/resolve/{revision}/{filename}"
  monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(hf_api.api, "endpoint", address)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
    monkeypatch.delenv(name, raising=False)
  yield root, handler.sent
  server.shutdown()
  server.server_close()
  thread.join()


def publish(root, name, fixture, *, big=0):
  """Puts a fixture on the hub, `big` bytes of padding in its weights; returns its local path."""
  folder = root / name
  folder.mkdir(parents=True)
  for file in ("config.json", "tokenizer.json"):
    (folder / file).write_text("{}")
  (folder / "config.json").write_bytes((FOLDER / fixture / "config.json").read_bytes())
  tensors = load_file(FOLDER / fixture / WEIGHTS)
  if big:
    tensors["vision_model.embeddings.position_ids"] = np.zeros((1, big // 8), np.int64)
  save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
  return folder


def table(text):
  """What `info` prints, without the line that names the place."""
  return text.split("\n")[1:]


def test_info_fetches_headers_alone(hub, capsys):
  root, sent = hub
  folder = publish(root, "someone/siglip-tiny", "siglip-0", big=1 << 21)
  assert cli.main(["info", "someone/siglip-tiny"]) == 0
  shown = capsys.readouterr().out
  assert table(shown.rstrip("\n")) == table(info.info(str(folder)))
  assert "two_tower" in shown.split("\n")[0] and "someone/siglip-tiny@" in shown
  assert sent["config.json"] and not sent["tokenizer.json"]
  assert sent[WEIGHTS] < 200_000 < (folder / WEIGHTS).stat().st_size
  assert not list(pathlib.Path(constants.HF_HUB_CACHE).rglob(WEIGHTS))


def test_shards_by_their_index(hub):
  root, sent = hub
  folder = publish(root, "someone/siglip-tiny", "siglip-0")
  tensors = load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  files.write_tensors(tensors, folder, shard=sum(x.nbytes for x in tensors.values()) // 2)
  assert len(list(folder.glob("*.safetensors"))) > 1
  assert table(info.info("someone/siglip-tiny")) == table(info.info(str(folder)))
  assert not list(pathlib.Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_what_is_in_the_cache_is_not_asked_for_again(hub, monkeypatch):
  root, sent = hub
  publish(root, "someone/siglip-tiny", "siglip-0")
  huggingface_hub.snapshot_download("someone/siglip-tiny")
  sent.clear()
  there = info.info("someone/siglip-tiny")
  assert not sent[WEIGHTS]
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  assert info.info("hf:someone/siglip-tiny").split("\n")[1:] == table(there)


def test_offline_without_weights_is_one_line(hub, monkeypatch):
  root, _ = hub
  publish(root, "someone/siglip-tiny", "siglip-0")
  load.outline("someone/siglip-tiny")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(ValueError, match=r"weights of someone/siglip-tiny are not in the local cac"):
    load.outline("someone/siglip-tiny")
  with pytest.raises(ValueError, match="fetching it from the hub failed"):
    load.outline("someone/else")


@pytest.mark.parametrize("tied", [True, False])
def test_whether_a_head_is_its_own_is_told_by_a_sample(hub, tied):
  """The config leaves it open; the files hold both tensors."""
  root, sent = hub
  folder = publish(root, "someone/mt5-tiny", "mt5-0")
  tensors = load_file(folder / WEIGHTS)
  assert not np.array_equal(tensors["lm_head.weight"], tensors["shared.weight"])
  if tied:
    tensors["lm_head.weight"] = tensors["shared.weight"].copy()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
  system, source, _ = load.outline("someone/mt5-tiny")
  assert isinstance(source, headers.Headers)
  assert system.model["decoder"]["tied"] is tied
  assert system.model == load.describe(folder)[0].model


def test_without_safetensors_all_is_fetched(hub):
  root, _ = hub
  folder = publish(root, "someone/pickled", "siglip-0")
  (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
  with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors"):
    load.outline("someone/pickled")
  assert not list(pathlib.Path(constants.HF_HUB_CACHE).rglob("*.bin"))


def test_the_texts_of_a_processor_on_request(hub):
  root, sent = hub
  publish(root, "someone/siglip-tiny", "siglip-0")
  assert (load.outline("someone/siglip-tiny", texts=True)[2] / "tokenizer.json").is_file()
