"""Subcommands on models that are there already: ``weights``, ``embed``, ``classify``, ``search``.

Building the parsers imports nothing that is heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from jaxclip.cli_parser import at_least

AddCommand = Callable[..., argparse.ArgumentParser]

_WEIGHTS = """\
Other people's checkpoints (openai/CLIP, open_clip, Hugging Face CLIP and SigLIP, big_vision).

  jaxclip weights info ViT-B-32.pt
  jaxclip weights import --from siglip-base-patch16-224/ --to weights/siglip_b16
  jaxclip weights export --from runs/mine --to mine_hf --format hf
  jaxclip weights wise-ft --before weights/b32 --after runs/tuned --to weights/mixed
  jaxclip weights prune --from runs/mine --to weights/small --keep_heads 0.5 --keep_units 0.5

Nothing in a file is executed, and nothing is overwritten.
"""


def add_weights(commands: Any, add: AddCommand) -> None:
    """Add ``jaxclip weights`` with its actions."""
    parser = commands.add_parser(
        "weights",
        help="look at published weights, bring them in, hand them out",
        description=_WEIGHTS,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    info = add(actions, "info", _info, "show family, architecture, tensors and preprocessing")
    info.add_argument("path", help="file or folder of published weights, or a workdir")
    bring = add(
        actions, "import", _import, "write published weights as a workdir, for init_from and eval"
    )
    bring.add_argument("--from", dest="source", required=True, help="file or folder of weights")
    bring.add_argument("--to", required=True, help="new workdir")
    _add_tokenizer(bring)
    hand = add(actions, "export", _export, "write a workdir as other people's checkpoint")
    hand.add_argument("--from", dest="source", required=True, help="workdir, or published weights")
    hand.add_argument("--to", required=True, help="new folder")
    hand.add_argument(
        "--format",
        required=True,
        choices=("hf", "open_clip", "original", "stablehlo", "onnx"),
        help="whose library loads it; original: the authors' names of EVA-CLIP and Alpha-CLIP; "
        "stablehlo: programs that need JAX alone; onnx: with the extra 'onnx'",
    )
    _add_tokenizer(hand)
    mix = add(actions, "wise-ft", _wise_ft, "mix a model before and after fine-tuning (WiSE-FT)")
    mix.add_argument("--before", required=True, help="workdir, or published weights")
    mix.add_argument("--after", required=True, help="workdir, or published weights")
    mix.add_argument("--alpha", type=float, default=0.5, help="0 = before, 1 = after")
    mix.add_argument("--to", required=True, help="new workdir")
    soup = add(actions, "soup", _soup, "average models of one architecture")
    soup.add_argument("--from", dest="sources", nargs="+", required=True, metavar="PATH",
                      help="workdirs, or published weights")  # fmt: skip
    soup.add_argument("--to", required=True, help="new workdir")
    soup.add_argument(
        "--task",
        default="",
        metavar="'NAME key=value …'",
        help="add models, the best first, as long as this evaluation on held-out data gets no "
        "worse (a greedy soup), such as 'zero_shot data=DIR split=val'; default: the mean of all",
    )
    soup.add_argument("--metric", default="", help="of the task (default: its top-1 or recall)")
    lora = add(actions, "merge-lora", _merge_lora, "write a LoRA run as a plain workdir")
    lora.add_argument("--from", dest="source", required=True, help="workdir of the run")
    lora.add_argument("--to", required=True, help="new workdir")
    _add_prune(add(actions, "prune", _prune, "write a model with fewer heads, units and layers"))


def _add_prune(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="source", required=True, help="workdir, or weights")
    parser.add_argument("--to", required=True, help="new workdir")
    for name, what in (("heads", "heads of a layer"), ("units", "MLP units of a layer"),
                       ("layers", "layers")):  # fmt: skip
        parser.add_argument(
            f"--keep_{name}", type=float, default=1.0, help=f"share of the {what} that stays"
        )
    parser.add_argument("--tower", choices=("image", "text", "both"), default="both",
                        help="which of the two becomes smaller")  # fmt: skip
    parser.add_argument(
        "--score",
        default="magnitude",
        help="what modules are worth: magnitude, hap (the loss's Hessian), mope (what --task "
        "loses without them), or masks (those that objective tinyclip has trained)",
    )
    parser.add_argument("--task", default="", metavar="'NAME key=value …'", help="of mope")
    parser.add_argument("--metric", default="", help="of the task (default: top-1 or recall)")


_EMBED = """\
Embed pictures with the image tower of a model.

  jaxclip embed --weights ViT-B-32.pt --images photos/ --to embeddings/
  jaxclip embed --weights runs/mine --images 'cc12m/{00000..01242}.tar' --to embeddings/
  jaxclip embed --weights runs/mine --images emoji:test_style --to embeddings/

The folder gets, for every --shard_size pictures, embeddings_00000.npy (float32[n, D] of unit
length) and ids_00000.jsonl, with bad_00000.jsonl for pictures that can't be decoded. Stopped at any
time, the same command goes on with the shards that are missing. Several machines share the work
with --part 0/4, --part 1/4, …
"""

_CLASSIFY = """\
Say what pictures show, by names alone.

  jaxclip classify --weights ViT-B-32.pt --images photos/ --classes 'cat,dog,car'

Prints a line a picture: its id and its likeliest classes with their probabilities.
"""

_SEARCH = """\
Find the pictures that a text describes best.

  jaxclip search --weights ViT-B-32.pt --images photos/ 'a red car in the snow'
  jaxclip search --weights ViT-B-32.pt --embeddings embeddings/ 'a red car in the snow'

Prints a line a picture: cosine and id, best first.
"""


def add_use(commands: Any, add: AddCommand) -> None:
    """Add ``jaxclip embed``, ``classify`` and ``search``."""
    parser = add(commands, "embed", _use("embed"), "embed pictures", description=_EMBED)
    _add_model(parser)
    parser.add_argument(
        "--images",
        required=True,
        help="folder, tars, or a data set and its split, as emoji:test_style",
    )
    parser.add_argument("--to", required=True, help="folder of the embeddings")
    parser.add_argument("--shard_size", type=at_least(1), default=16_384, help="pictures of a file")
    parser.add_argument("--part", default="0/1", help="do every n-th file from the i-th: i/n")
    parser = add(commands, "classify", _use("classify"), "say what pictures show",
                 description=_CLASSIFY)  # fmt: skip
    _add_model(parser)
    _add_pictures(parser)
    parser.add_argument("--classes", required=True, help="names, with commas between")
    parser.add_argument(
        "--templates", default="photo", help="a set of templates, a file, or 'a photo of a {}.'"
    )
    parser.add_argument("--top", type=at_least(1), default=1, help="classes shown of each picture")
    parser = add(commands, "search", _use("search"), "find pictures by a text",
                 description=_SEARCH)  # fmt: skip
    _add_model(parser)
    _add_pictures(parser)
    parser.add_argument("text", help="what to look for")
    parser.add_argument("--top", type=at_least(1), default=10, help="pictures shown")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help="workdir, or published weights")
    parser.add_argument("--batch_size", type=at_least(1), default=128,
                        help="pictures or texts at once")  # fmt: skip
    _add_tokenizer(parser)


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", help="folder, tars, or a data set and its split, as emoji:test_style"
    )
    parser.add_argument("--embeddings", help="folder of `jaxclip embed`, in place of --images")


def _use(name: str) -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        from jaxclip.inference import command

        return int(getattr(command, f"run_{name}")(args))

    return run


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", default="", help="file or folder of the vocabulary, if none came with them"
    )


def _info(args: argparse.Namespace) -> int:
    from jaxclip.inference import convert

    print(convert.describe(args.path))
    return 0


def _import(args: argparse.Namespace) -> int:
    from jaxclip.inference import convert

    print(convert.import_weights(args.source, args.to, tokenizer_path=args.tokenizer))
    return 0


def _export(args: argparse.Namespace) -> int:
    from jaxclip.inference import convert

    print(
        convert.export_weights(
            args.source, args.to, form=args.format, tokenizer_path=args.tokenizer
        )
    )
    return 0


def _wise_ft(args: argparse.Namespace) -> int:
    from jaxclip.inference import mix

    print(mix.wise_ft(args.before, args.after, args.to, args.alpha))
    return 0


def _soup(args: argparse.Namespace) -> int:
    from jaxclip.inference import mix

    print(mix.soup(args.sources, args.to, task=args.task, metric=args.metric))
    return 0


def _merge_lora(args: argparse.Namespace) -> int:
    from jaxclip.inference import mix

    print(mix.merge_lora(args.source, args.to))
    return 0


def _prune(args: argparse.Namespace) -> int:
    from jaxclip.inference import prune

    print(
        prune.prune(
            args.source,
            args.to,
            score=args.score,
            heads=args.keep_heads,
            units=args.keep_units,
            layers=args.keep_layers,
            tower=args.tower,
            task=args.task,
            metric=args.metric,
        )
    )
    return 0
