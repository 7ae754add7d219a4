"""Every model that open_clip has a configuration of, at reduced depth, against ours.

    pip install torch open_clip_torch transformers
    python tests/weights/open_clip_models.py            # the table of docs/weights.md
    python tests/weights/open_clip_models.py --write    # writes it there
    python tests/weights/open_clip_models.py --shapes --results FILE    # names and shapes alone

What is supported is found out, not listed: a checkpoint of random weights is either read and
computes the same, or refused with a line that names what is missing.
"""

import argparse
import collections
import contextlib
import copy
import json
import pathlib
import re
import tempfile
import textwrap
from unittest import mock

import jax
import numpy as np
import open_clip
import timm
import torch
import transformers
from safetensors.torch import save_file

from jaxclip import models
from jaxclip.weights import mapping
from jaxclip.weights.checkpoint import open_checkpoint

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "weights.md"
MARKS = ("<!-- open_clip: begin -->", "<!-- open_clip: end -->")
VOCABULARY = 400
# How a model of open_clip says that it gives no tokens.
_NO_TOKENS = (AttributeError, AssertionError, TypeError, NotImplementedError, RuntimeError)
# As the published config.json have it; the defaults of the classes are BERT's.
ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
ROBERTA |= {"layer_norm_eps": 1e-5}
HF_TEXT = {
    "roberta": (transformers.RobertaConfig, {**ROBERTA, "vocab_size": 50_265}),
    "xlm-roberta": (transformers.XLMRobertaConfig, {**ROBERTA, "vocab_size": 250_002}),
    "mt5": (transformers.MT5Config, {}),
    "nllb": (transformers.M2M100Config, {}),
}
HF_SIZES = {
    "num_hidden_layers": 2,
    "num_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "vocab_size": VOCABULARY,
}


def small_timm(create):
    """``timm.create_model`` with few blocks, all other sizes as they are."""

    def make(name, **options):
        fewer = [{"depth": 2}, {"depths": (1, 1, 1, 1)}, {"layers": (1, 1, 1, 1)}, {}]
        if name.startswith(("convnext", "swin")):
            fewer = fewer[1:]
        elif name.startswith(("fastvit_mci3", "fastvit_mci4")):  # they have five stages
            fewer = [{"layers": (1, 1, 1, 1, 1)}, {}]
        elif name.startswith("fastvit"):
            fewer = fewer[2:]
        for change in fewer:
            with contextlib.suppress(TypeError):
                return create(name, **{**options, **change})
        raise AssertionError(name)

    return make


def small_hf(name, **options):
    """A configuration of transformers by a name that would have to be downloaded."""
    del options
    kind = next(k for k in sorted(HF_TEXT, key=len, reverse=True) if k in name)
    wide = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    cls, sizes = HF_TEXT[kind]
    return cls(**{**HF_SIZES, **sizes, **(wide if "large" in name else {})})


def small_config(name):
    """open_clip's configuration with two blocks a tower and few tokens."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    if isinstance(vision.get("layers"), list):
        vision["layers"] = [1, 1, 1, 1]
    elif not vision.get("timm_model_name"):
        vision["layers"] = 2
    if not text.get("hf_model_name"):
        text |= {"layers": 2, "vocab_size": VOCABULARY}
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"layers": 2}
        config["multimodal_cfg"]["vocab_size"] = VOCABULARY
    return config


def build(name):
    """A model of open_clip with random weights, and its configuration."""
    config = small_config(name)
    made = {k: v for k, v in config.items() if k != "custom_text"}
    made["text_cfg"] = {**made["text_cfg"], "hf_model_pretrained": False}
    cls = open_clip.model.CLIP
    if "multimodal_cfg" in config:
        cls = open_clip.coca_model.CoCa
    elif config.get("custom_text") or "hf_model_name" in config["text_cfg"]:
        cls = open_clip.model.CustomTextCLIP
    torch.manual_seed(0)
    with (
        mock.patch.object(timm, "create_model", small_timm(timm.create_model)),
        mock.patch.object(transformers.AutoConfig, "from_pretrained", small_hf),
    ):
        model = cls(**made).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "gamma" in key:
                parameter.copy_(0.3 + 0.1 * torch.randn_like(parameter))
            elif "head" in key and parameter.ndim == 2:  # EVA's start a thousand times smaller
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[1] ** -0.5)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for key, buffer in model.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    return model, config


def open_shapes(name, folder):
    """As :func:`compare`, of a model without numbers: ``({}, family)`` or the line that refuses it.

    Whether every tensor has a place, and its shape; nothing is computed.
    """
    with torch.device("meta"):
        model, config = build(name)
    header, end = {}, 0
    for key, tensor in model.state_dict().items():
        start, end = end, end + 4 * tensor.numel()
        header[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "open_clip_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # a hole
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    try:
        return {}, open_checkpoint(folder).family
    except (mapping.MappingError, ValueError) as error:
        return str(error), None


def inputs(model, config):
    rng = np.random.default_rng(0)
    size = config["vision_cfg"].get("image_size", 224)
    size = size[0] if isinstance(size, (list, tuple)) else size
    trunk = getattr(model.visual, "trunk", None)
    if hasattr(getattr(trunk, "patch_embed", None), "img_size"):
        # timm's tower has the size of its name.
        size = trunk.patch_embed.img_size[0]
    images = rng.standard_normal((1, size, size, 3)).astype(np.float32)
    text = config["text_cfg"]
    length = text.get("context_length", 77)
    tokens = rng.integers(3, VOCABULARY - 1, (2, length)).astype(np.int32)
    if "roberta" in str(text.get("hf_model_name")):
        tokens[0, length // 2 :] = 1
    elif text.get("pool_type", "argmax") in ("argmax", "eos"):
        ends = text["eos_id"] if text.get("pool_type") == "eos" else VOCABULARY - 1
        tokens[0, length // 2], tokens[0, length // 2 + 1 :] = ends, text.get("pad_id", 0)
        tokens[1, -1] = ends
    return images, tokens


def theirs(model, images, tokens):
    """Unit embeddings, tokens after the last norm (or None) and logits."""
    pictures, texts = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(tokens).long()
    found = {}
    with torch.no_grad():
        found["image"] = model.encode_image(pictures, normalize=True)
        found["text"] = model.encode_text(texts, normalize=True)
        bias = getattr(model, "logit_bias", None)
        logits = model.logit_scale.exp() * found["image"] @ found["text"].T
        found["logits"] = logits if bias is None else logits + bias
        with contextlib.suppress(*_NO_TOKENS):
            out = model.forward_intermediates(
                image=pictures, image_indices=1, normalize_intermediates=True,
                intermediates_only=True, image_output_fmt="NLC",
            )  # fmt: skip
            found["image_tokens"] = out["image_intermediates"][-1]
        with contextlib.suppress(*_NO_TOKENS):
            if hasattr(model, "text_decoder"):
                raise NotImplementedError  # what CoCa's text tower hands on has no norm behind it
            out = model.forward_intermediates(
                text=texts, text_indices=1, normalize_intermediates=True, intermediates_only=True
            )
            found["text_tokens"] = out["text_intermediates"][-1]
    return {key: value.numpy() for key, value in found.items()}


def ours(opened, images, tokens):
    model, params = models.build(opened.sizes), opened.read()

    @jax.jit
    def run(params, images, tokens):
        image, text = model.image_features(params, images), model.text_features(params, tokens)
        logits = jax.numpy.exp(params["logit_scale"]) * image.embedding @ text.embedding.T
        text_tokens = text.tokens
        if opened.sizes.text.pool == "cls":  # as the decoder takes them; theirs are normed here
            text_tokens = model.text.normed(params["text"], text_tokens)
        return {
            "image": image.embedding,
            "text": text.embedding,
            "logits": logits + params.get("logit_bias", 0.0),
            "image_tokens": image.tokens,
            "text_tokens": text_tokens,
        }

    return run(params, images, tokens)


def write(model, config, folder):
    tensors = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))


def compare(name, folder):
    """``(largest differences by output, family)``, or the line that refuses it and None."""
    model, config = build(name)
    write(model, config, pathlib.Path(folder))
    try:
        opened = open_checkpoint(folder)
    except (mapping.MappingError, ValueError) as error:
        return str(error), None
    images, tokens = inputs(model, config)
    expected, found = theirs(model, images, tokens), ours(opened, images, tokens)
    differences = {}
    for key, value in expected.items():
        mine = np.asarray(found[key])
        if mine.shape == value.shape:
            differences[key] = float(np.abs(mine - value).max())
    return differences, opened.family


def run(names, kept, at_most=None, look=compare):
    """Results by name; those that the file ``kept`` holds are not made again.

    Args:
      names: of open_clip's models.
      kept: a JSON file, or None.
      at_most: how many are made.
      look: :func:`compare`, or :func:`open_shapes`.
    """
    results = json.loads(kept.read_text()) if kept and kept.is_file() else {}
    for name in [name for name in names if name not in results][:at_most]:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = look(name, pathlib.Path(folder))
        print(name, *results[name], flush=True)
        jax.clear_caches()
        if kept:
            kept.write_text(json.dumps(results))
    return {name: results[name] for name in open_clip.list_models() if name in results}


def table(results):
    """Markdown of what is compared and what is refused."""
    groups, refused = collections.defaultdict(list), collections.defaultdict(list)
    shaped = collections.defaultdict(list)
    for name, (result, family) in results.items():
        if family is not None and not result:
            shaped[family].append(name)
        elif family is None:
            reason = re.sub(r".*?(: no family that is known here has |can't be told: )", "", result)
            refused[reason.splitlines()[0]].append(name)
        else:
            groups[family].append((name, result))
    lines = [
        "| family | models of open_clip | embeddings | tokens | logits |",
        "|---|---|---|---|---|",
    ]
    for family, found in sorted(groups.items()):
        worst = collections.defaultdict(float)
        for _, result in found:
            for key, value in result.items():
                kind = {"logits": "logits"}.get(key, "tokens" if "tokens" in key else "embeddings")
                worst[kind] = max(worst[kind], value)
        listed = ", ".join(f"`{name}`" for name, _ in found)
        numbers = " | ".join(f"{worst[k]:.1e}" for k in ("embeddings", "tokens", "logits"))
        lines.append(f"| `{family}` | {listed} | {numbers} |")
    lines += [
        "",
        f"{sum(map(len, groups.values()))} of {len(results)} are compared. Refused, with what is "
        "missing:",
        "",
    ]
    for reason, found in sorted(refused.items()):
        lines.append(_item(f"{reason}: {', '.join(f'`{name}`' for name in found)}"))
    if shaped:
        lines += ["", "Names and shapes of all tensors alone:", ""]
        lines += [
            _item(f"`{family}`: {', '.join(f'`{name}`' for name in found)}")
            for family, found in sorted(shaped.items())
        ]
    left = [name for name in open_clip.list_models() if name not in results]
    if left:
        lines += ["", f"Not run for this table: {', '.join(f'`{name}`' for name in left)}."]
    return "\n".join(lines)


def _item(text):
    """An item of a list, in lines that are no longer than the page's."""
    return textwrap.fill(f"- {text}", 112, subsequent_indent="  ", break_on_hyphens=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/weights.md")
    parser.add_argument("--only", default="", help="a pattern of names")
    parser.add_argument("--results", type=pathlib.Path, help="a file that keeps what was seen")
    parser.add_argument("--at_most", type=int, help="models of this run")
    parser.add_argument("--shapes", action="store_true", help="names and shapes alone")
    options = parser.parse_args()
    chosen = [n for n in open_clip.list_models() if re.search(options.only, n)]
    text = table(
        run(chosen, options.results, options.at_most, open_shapes if options.shapes else compare)
    )
    print(text)
    if options.write:
        content = DOCS.read_text()
        before, rest = content.split(MARKS[0])
        after = rest.split(MARKS[1])[1]
        DOCS.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")
