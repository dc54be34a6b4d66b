"""The `bigvlm` command: each subcommand is a few lines over the library.

`bigvlm train` is itself the training process: nothing is forked, so signals and
exit codes are those of the run.
"""

import argparse
import importlib
import json
import math
import os
import sys
import textwrap
import traceback

import bigvlm
from bigvlm.utils import jaxcache, log, names

_TRAIN = """\
examples:
  bigvlm train configs/quickstart.py                  all stages, into workdir/quickstart
  bigvlm train quickstart:tiny --workdir=/tmp/try     a config that comes with bigvlm, by name;
                                                      what follows the colon is its argument
  bigvlm train my.py:res=448 --stages=1:              from the second stage on (also 2, :2, NAME)
  bigvlm train my.py --config.seed=7 --config.stages[0].lr=1e-3
  bigvlm train my.py --config.stages.transfer.lr=1e-4 --config.stages.transfer.evals.vqa.every=100

The same command with the same --workdir goes on where the last run stopped; a finished run
only writes its summary again. The workdir holds config.json, metrics.jsonl, tensorboard/,
checkpoints/, summary.json and report.md.

on several hosts, unless Slurm or a TPU pod says it: --coordinator=HOST:PORT --num_processes=N
--process_id=I

exit codes: 0 finished, or all saved after SIGTERM; 2 bad input; 3 and 4 losses that are not
finite (nonfinite.policy, and no rollback left)

environment:
  BIGVLM_CACHE   where compiled programs are kept (default ~/.cache/bigvlm; off: nowhere)
  BIGVLM_DEBUG=1 shows the traceback of an error that is otherwise one line
"""

_EVAL = """\
examples:
  bigvlm eval workdir/quickstart                   the evaluators of the last finished stage
  bigvlm eval workdir/quickstart --stage=transfer
The metrics go to stdout as one JSON object.
"""

_PREDICT = """\
examples:
  bigvlm predict workdir/quickstart --image my.png --prompt "detect 7"
  bigvlm predict workdir/quickstart --image my.png --prompt "segment 3" --out drawn.png
  bigvlm predict workdir/quickstart --image a.png b.png --prompt caption
  bigvlm predict google/paligemma-3b-mix-224 --image a.png --prompt "segment cat" --codec vae.npz
A checkpoint is a hub id or a directory; what it needs to read pictures and text lies beside its
weights. --codec decodes the masks of its answers (a run's config names its own).
The answers go to stdout, one line an image. Boxes and masks of an answer are drawn into --out,
by default NAME.answer.png beside the picture.
"""

_CONVERT = """\
examples:
  bigvlm convert google/paligemma-3b-pt-224 my_copy           from the hub to a directory
  bigvlm convert checkpoint_dir other_dir --dtype=bfloat16    with floating tensors cast
  bigvlm convert model_dir model.npz                          big_vision's names, where it has them
  bigvlm convert workdir/mine out --like google/paligemma-3b-pt-224   what was fine-tuned
  bigvlm convert workdir/mine out --adapter                   its LoRA adapters alone, for PEFT
Names, shapes and dtypes of the tensors are those of SRC unless --dtype says otherwise; tensors
that no forward pass reads go along. DST is a directory, or a file that ends in .npz (its big_vision
config goes beside it). The workdir of a run is written in the form of the checkpoint that --like
names, by default the one that a stage of its config started from; LoRA adapters are merged.
"""

_INFO = """\
examples:
  bigvlm info                               the names there are
  bigvlm info siglip:variant=L/16,res=256   parameters by part, and every tensor; from shapes
                                            alone, so nothing is allocated
  bigvlm info configs/quickstart.py         the same for the model of each stage of a config
  bigvlm info google/siglip-base-patch16-224   a checkpoint (also a directory): what it is, and
                                            which of its tensors became which parameter
  bigvlm info transfers/paligemma:task=vqav2 --train --mesh fsdp=8
                                            what training holds on each of 8 devices; with
                                            --compile also what a step needs (takes minutes)
"""


_SYSTEMS = """\
examples:
  bigvlm systems               every system and published size, with its parameters
  bigvlm systems | grep qwen   some of them
The names are those that bigvlm.load, info and configs take; docs/systems.md has the same with
drawings. Parity: how many of the report's random checkpoints agree with the reference.
"""


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line and exits with 2."""

  def error(self, message):
    log.error(f"{message}; see {self.prog} --help")
    raise SystemExit(2)


def _parser(command: str, usage: str, text: str, examples: str) -> _Parser:
  return _Parser(
    prog=f"bigvlm {command}",
    usage=f"bigvlm {command} {usage}",
    description=text,
    epilog=examples,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def train(argv: list[str]) -> int:
  """Train a model through the stages of a config, or go on with a run."""
  usage = "CONFIG[:ARG] [--workdir DIR] [--stages SLICE] [--config.FIELD=VALUE ...]"
  parser = _parser("train", usage, train.__doc__, _TRAIN)
  parser.add_argument("CONFIG", help="a config file, or the name of one that comes with bigvlm")
  parser.add_argument("--workdir", metavar="DIR", help="default: workdir/<config>[_<argument>]")
  parser.add_argument("--stages", metavar="SLICE", help="which stages to run: 1: or :2 or NAME")
  parser.add_argument("--config.FIELD", metavar="VALUE", help="override a field of the config")
  several = "several hosts, where neither Slurm nor a TPU pod tells: "
  parser.add_argument("--coordinator", metavar="HOST:PORT", help=several + "process 0's address")
  parser.add_argument("--num_processes", metavar="N", help="how many processes there are")
  parser.add_argument("--process_id", metavar="I", help="which of them this is, 0 to N-1")
  if not argv or "-h" in argv or "--help" in argv:
    parser.print_help()
    return 0
  return importlib.import_module("bigvlm.trainers.train").main(argv)


def evaluate(argv: list[str]) -> None:
  """Run the evaluators of a trained stage again."""
  parser = _parser("eval", "WORKDIR [--stage NAME]", evaluate.__doc__, _EVAL)
  parser.add_argument("workdir", metavar="WORKDIR", help="the folder of a run")
  parser.add_argument("--stage", metavar="NAME", help="default: the last finished stage")
  args = parser.parse_args(argv)
  jaxcache.enable()
  metrics = importlib.import_module("bigvlm.trainers.evaluate").run(args.workdir, stage=args.stage)
  print(json.dumps(metrics, indent=2, sort_keys=True))


def predict(argv: list[str]) -> None:
  """Ask a trained model about pictures."""
  usage = "WORKDIR | CHECKPOINT --image FILE [FILE ...] --prompt TEXT [--out FILE]"
  parser = _parser("predict", usage, predict.__doc__, _PREDICT)
  parser.add_argument("workdir", metavar="WORKDIR", help="the folder of a run, or a checkpoint")
  parser.add_argument("--image", metavar="FILE", nargs="+", required=True, help="pictures")
  parser.add_argument("--prompt", metavar="TEXT", required=True, help="the question")
  parser.add_argument("--stage", metavar="NAME", help="default: the last finished stage")
  parser.add_argument("--out", metavar="FILE", help="PNG to draw the answer into")
  parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
  parser.add_argument("--codec", metavar="FILE", help="of masks; default: what the run names")
  args = parser.parse_args(argv)
  if args.out and len(args.image) > 1:
    parser.error("--out draws one picture, and --image names several")
  jaxcache.enable()
  read = importlib.import_module("bigvlm.hub.load")
  if read.is_checkpoint(args.workdir):
    if args.stage:
      parser.error(f"--stage is for the folder of a run; {args.workdir} is a checkpoint")
    model = read.load(args.workdir)
  else:
    model = importlib.import_module("bigvlm.trainers.evaluate").load(args.workdir, args.stage)
  ask = importlib.import_module("bigvlm.trainers.predict").predict
  more = dict(max_new_tokens=args.max_new_tokens, model=model, codec=args.codec)
  for image in args.image:
    ask(args.workdir, image, args.prompt, args.out, **more)


def info(argv: list[str]) -> None:
  """Show what a model consists of, without making it."""
  usage = "[NAME | CONFIG] [--train [--mesh AXIS=N,...] [--compile] [--config.FIELD=VALUE ...]]"
  parser = _parser("info", usage, info.__doc__, _INFO)
  parser.add_argument("name", metavar="NAME", nargs="?", help="a published size or a config")
  parser.add_argument("--train", action="store_true", help="memory of the stages of a CONFIG")
  parser.add_argument("--mesh", metavar="AXIS=N,...", help="data=1,fsdp=8 in place of the config's")
  parser.add_argument("--compile", action="store_true", help="XLA's plan of each step as well")
  args, overrides = parser.parse_known_args(argv)
  if overrides and not (args.train and all(o.startswith("--config.") for o in overrides)):
    parser.error(f"unrecognized arguments: {' '.join(overrides)}")
  if args.train:
    return _memory(args, overrides)
  zoo = importlib.import_module("bigvlm.zoo")
  if not args.name:
    print("\n".join(zoo.names()))
  elif importlib.import_module("bigvlm.hub.load").is_checkpoint(args.name):
    print(importlib.import_module("bigvlm.hub.info").info(args.name))
  else:
    print(zoo.info(args.name))


def systems(argv: list[str]) -> None:
  """List every system: size, kind, what it can do, parity."""
  _parser("systems", "", systems.__doc__, _SYSTEMS).parse_args(argv)
  print(importlib.import_module("bigvlm.systems").table())


def _memory(args: argparse.Namespace, overrides: list[str]) -> None:
  """What training a config holds on each device of a mesh, which need not be there."""
  if not args.name:
    raise ValueError("info --train needs a config")
  mesh = {}
  for part in filter(None, (args.mesh or "").split(",")):
    axis, _, size = part.partition("=")
    if not size.isdigit() or int(size) < 1:
      raise ValueError(f"--mesh wants AXIS=N,... such as data=2,fsdp=8, not {part!r}")
    mesh[axis] = int(size)
  count = math.prod(mesh.values())
  if count > 1:  # Shapes need devices to be cut over, and any will do.
    os.environ["JAX_PLATFORMS"] = "cpu"
    flag = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
  config = importlib.import_module("bigvlm.config")
  memory = importlib.import_module("bigvlm.trainers.memory")
  found, _, _ = config.parse_argv([args.name, *overrides])
  print(memory.table(found, mesh=mesh, compiled=args.compile))


def convert(argv: list[str]) -> None:
  """Read a checkpoint and write it again: another place, dtype or format."""
  usage = "SRC DST [--dtype DTYPE] [--like NAME] [--adapter] [--verify HOW]"
  parser = _parser("convert", usage, convert.__doc__, _CONVERT)
  parser.add_argument("src", metavar="SRC", help="a hub id, a directory or an .npz file")
  parser.add_argument("dst", metavar="DST", help="a directory to write, or a file NAME.npz")
  parser.add_argument("--dtype", help="of the floating tensors, e.g. bfloat16; default: as in SRC")
  parser.add_argument(
    "--verify", default="full", help="digests of SRC: full (default), sample or off"
  )
  parser.add_argument("--like", metavar="NAME", help="whose form the workdir of a run is given")
  parser.add_argument(
    "--adapter", action="store_true", help="a run's LoRA adapters alone, for PEFT"
  )
  args = parser.parse_args(argv)
  read = importlib.import_module("bigvlm.hub.load")
  if args.adapter:
    if not read.is_run(args.src) or args.dtype or args.dst.endswith(".npz"):
      parser.error("--adapter writes the adapters of a run as they are into a directory")
    finetuned = importlib.import_module("bigvlm.trainers.finetuned")
    model = finetuned.load(args.src, like=args.like, adapters=True)
    base = finetuned.base(args.src, args.like)
    importlib.import_module("bigvlm.lora").save_peft(model, args.dst, base=base)
    log.line(f"written: {args.dst}")
    return
  if read.is_run(args.src):
    finetuned = importlib.import_module("bigvlm.trainers.finetuned")
    model = finetuned.load(args.src, like=args.like, dtype=args.dtype)
  else:
    model = read.load(args.src, dtype=args.dtype, verify=args.verify)
  if not args.dst.endswith(".npz"):
    model.save_hf(args.dst)
  else:
    model.save_npz(args.dst)
    # big_vision's files do not say what they are; ours do, in a file beside them.
    described = importlib.import_module("bigvlm.hub.bigvision_files").config(model)
    with open(args.dst.removesuffix(".npz") + ".json", "w", encoding="utf-8") as f:
      json.dump(described, f, indent=2)
  log.line(f"written: {args.dst}")


COMMANDS = {
  "train": train,
  "eval": evaluate,
  "predict": predict,
  "convert": convert,
  "info": info,
  "systems": systems,
}


def _help() -> str:
  rows = "\n".join(f"  {name:9}{fn.__doc__.splitlines()[0]}" for name, fn in COMMANDS.items())
  return textwrap.dedent("""\
    usage: bigvlm COMMAND ...

    {about}

    commands:
    {rows}

    `bigvlm COMMAND --help` explains each, with examples. `bigvlm --version` tells {version}.
    Start with: bigvlm train configs/quickstart.py
    """).format(about=bigvlm.__doc__, rows=rows, version=bigvlm.__version__)


def _expected(error: BaseException) -> bool:
  """Whether our own code raised this on purpose, or the system refused a file.

  An error from deep within a library is a bug of ours, and its traceback is wanted.
  """
  if isinstance(error, OSError):
    return True
  *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
  return innermost.f_globals.get("__name__", "").startswith("bigvlm")


def main(argv: list[str] | None = None) -> int:
  """Runs one command and returns its exit code.

  0 is success and 2 bad input, told in one line. An exception with an `exit_code` of its
  own (a training that met NaN) gives that one.
  """
  argv = list(sys.argv[1:] if argv is None else argv)
  if not argv or argv[0] in ("-h", "--help", "help"):
    print(_help(), end="")
    return 0
  if argv[0] == "--version":
    print(bigvlm.__version__)
    return 0
  try:
    code = names.lookup("command", argv[0], COMMANDS)(argv[1:])
    sys.stdout.flush()
    return code or 0
  except BrokenPipeError:  # Whoever reads our output has seen enough, as with `| head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except KeyboardInterrupt:
    log.line("bigvlm: interrupted")
    return 130
  except Exception as error:
    code = getattr(error, "exit_code", 2 if _expected(error) else None)
    if code is None or log.debug():
      raise
    log.error(str(error))
    return code


if __name__ == "__main__":
  sys.exit(main())
