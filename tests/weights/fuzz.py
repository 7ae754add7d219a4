"""Files of tensors, changed in every way that a stranger could think of.

:func:`inputs` gives any number of them, the same ones for the same seed. Each is a folder's files
and the one to open, made by a mutation that knows its format (a header's fields, an archive's
members, a pickle's instructions) or by one that knows bytes only.
"""

import io
import json
import pathlib
import pickle
import pickletools
import random
import struct
import zipfile

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"
DEEP = "[" * 5000 + "]" * 5000
INTEGERS = (
    -1,
    0,
    1,
    2,
    3,
    7,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63,
    2**64,
    -(2**63),
    10**30,
)
JUNK = (None, True, "", "x", "../x", -1, 0.5, float("1e308"), [], {}, [[]], {"a": 1}, "\x00", 2**70)


def tensors():
    rng = np.random.default_rng(0)
    return {
        "text_model.a": rng.standard_normal((3, 4)).astype(np.float32),
        "vision_model.b": rng.standard_normal((2, 2, 2)).astype(np.float16),
        "logit_scale": np.float32(2.5).reshape(()),
        "empty": np.zeros((0, 3), np.float32),
    }


# Seeds: one small whole file of each kind.


def safetensors_seed():
    names = {"float32": "F32", "float16": "F16"}
    header, data = {}, b""
    for name, array in tensors().items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": names[str(array.dtype)], "shape": list(array.shape)}
        header[name]["data_offsets"] = offsets
        data += array.tobytes()
    return header, data


def with_header(header, data, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length % 2**64) + text + data


def npz_seed(compressed=False):
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **tensors())
    return file.getvalue()


def torch_seed():
    return (GOLDEN / "open_clip" / "open_clip_pytorch_model.bin").read_bytes()


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(content, deflate=()):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            kind = zipfile.ZIP_DEFLATED if name in deflate else zipfile.ZIP_STORED
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=kind)
    return file.getvalue()


# Mutations of bytes.


def bytes_changed(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        if not data:
            break
        at = rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 400)),
                         max(0, len(data) - 1 - rng.randrange(400))))  # fmt: skip
        match rng.randrange(8):
            case 0:
                del data[at:]
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3:
                data[at : at + 4] = struct.pack("<I", rng.choice(INTEGERS) % 2**32)
            case 4:
                data[at : at + 8] = struct.pack("<Q", rng.choice(INTEGERS) % 2**64)
            case 5:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
            case 6:
                del data[at : at + rng.choice((1, 4, 64))]
            case 7:
                other = rng.randrange(len(data))
                data[at : at + 32] = data[other : other + 32]
    return bytes(data)


# Mutations that know the format.


def safetensors(rng):
    header, data = safetensors_seed()
    name = rng.choice(list(header))
    entry = header[name]
    length = None
    match rng.randrange(12):
        case 0:
            entry["shape"] = [rng.choice(INTEGERS) for _ in range(rng.randrange(12))]
        case 1:
            entry["data_offsets"] = [rng.choice((*INTEGERS, len(data))) for _ in range(2)]
        case 2:  # over another tensor
            entry["data_offsets"] = list(header[rng.choice(list(header))]["data_offsets"])
        case 3:
            entry["dtype"] = rng.choice(("F64", "BF16", "I64", "F8_E4M3", "U8", "C64", "", 3, None))
        case 4:
            entry[rng.choice(list(entry))] = rng.choice(JUNK)
        case 5:
            header[name] = rng.choice(JUNK)
        case 6:
            length = rng.choice(INTEGERS)
        case 7:
            del entry[rng.choice(list(entry))]
        case 8:
            header["__metadata__"] = rng.choice((*JUNK, {"format": "pt"}, {"x": 3}))
        case 9:
            data = data[: rng.randrange(len(data))] if rng.random() < 0.5 else data + bytes(9)
        case 10:
            header = rng.choice((DEEP, "[]", "null", '{"a"', "\ufeff{}", "{} x")).encode()
        case 11:
            header = json.dumps(header).replace(name, rng.choice(("logit_scale", "", "\\u0000")), 1)
            header = header.encode()
    return {"x.safetensors": with_header(header, data, length)}


def npy(descr, shape, order="False", version=b"\x01\x00", data=b"", extra=""):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {extra}}}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text) % 65536) + text.encode() + data


def npz(rng):
    content = members(npz_seed())
    name = rng.choice(list(content))
    shape = f"({', '.join(str(rng.choice(INTEGERS)) for _ in range(rng.randrange(1, 4)))},)"
    match rng.randrange(10):
        case 0:
            content[name] = npy("'<f4'", shape, data=bytes(48))
        case 1:
            descr = rng.choice(("'|O'", "'|V2'", "'<U9999'", "[('a', '<f4')]", "'<f4'", "'|V0'",
                                "'>f8'", "'<M8[s]'", "3", "'garbage'"))  # fmt: skip
            content[name] = npy(descr, "(3, 4)", data=bytes(96))
        case 2:
            content[name] = npy("'<f4'", rng.choice((DEEP, "__import__('os').mkdir('executed')",
            "()",
                                                     "'ab'", "(1.5,)", "(True,)")))  # fmt: skip
        case 3:
            content[name] = npy("'<f4'", "(12,)", version=rng.choice((b"\x02\x00", b"\x03\x00",
                                                                      b"\x09\x09")))  # fmt: skip
        case 4:
            content[name] = content[name][: rng.randrange(len(content[name]))]
        case 5:  # a bomb: megabytes of zeros from a few kilobytes
            count = 5 * 10**6
            content = {"bomb.npy": npy("'<f4'", f"({count},)", data=bytes(4 * count))}
            return {"x.npz": zipped(content, deflate=content)}
        case 6:
            content[rng.choice(("../../x.npy", "/etc/x.npy", "", "a/b.npy"))] = content[name]
        case 7:
            return {"x.npz": zipped(content, deflate=list(content)[:2])}
        case 8:
            return {"x.npz": bytes_changed(npz_seed(compressed=True), rng)}
        case 9:
            content[name] = bytes_changed(content[name], rng)
    return {"x.npz": zipped(content)}


def instructions(rng):
    """A random program of a pickle, of instructions that are likely to do harm."""
    out = bytearray(b"\x80\x02")
    names = ("torch\nSize", "collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2",
             "torch\nFloatStorage", "os\nsystem", "builtins\neval", "builtins\ngetattr",
             "__torch__.a\nB", "torch._utils\n_rebuild_parameter", "builtins\nbytearray",
             "torch.jit._pickle\nbuild_intlist", "collections\nOrderedDict.fromkeys")  # fmt: skip
    choices = (
        lambda: b"c" + rng.choice(names).encode() + b"\n",
        lambda: b"(",
        lambda: rng.choice((b"t", b"l", b"d", b")", b"]", b"}", b"N", b"\x85", b"\x86", b"\x87")),
        lambda: rng.choice((b"R", b"b", b"\x81", b"o", b"Q", b"s", b"u", b"e", b"a", b"0", b"2")),
        lambda: b"X" + struct.pack("<I", 3) + b"abc",
        lambda: b"J" + struct.pack("<I", rng.choice(INTEGERS) % 2**32),
        lambda: b"q" + bytes([rng.randrange(4)]),
        lambda: b"h" + bytes([rng.randrange(4)]),
        lambda: b"r" + struct.pack("<I", rng.choice((5, 2**20, 2**31 - 1, 2**32 - 1))),
        lambda: b"X" + struct.pack("<I", 2**31),
        lambda: b"\x8e" + struct.pack("<Q", rng.choice((4, 2**40, 2**63))),
        lambda: b"\x96" + struct.pack("<Q", rng.choice((4, 2**40, 2**62))),
        lambda: b"\x8a\x09" + rng.randbytes(9),
        lambda: b"\x82\x01",
        lambda: b"\x93",
        lambda: b"Vos\nVsystem\n\x93",
    )
    for _ in range(rng.choice((3, 10, 60))):
        out += rng.choice(choices)()
    return bytes(out + b".")


def doubled(rng):
    """Programs of some hundred bytes that mean 2^40 of something."""
    start, pair, end = rng.choice(
        ((b"N", b"2\x86", b"."), (b"]", b"2\x86", b"\x85."), (b")", b"2\x86", b"N\x86.")),
    )
    program = b"\x80\x02" + start + pair * 40
    match rng.randrange(4):
        case 0:  # as the key of a dict
            return b"\x80\x02}" + start + pair * 40 + b"Ns."
        case 1:  # as an address
            return program + b"Q."
        case 2:  # a dict within a dict, twice each
            levels = b"".join(
                b"q" + bytes([i]) + b"0}(X\x01\x00\x00\x00ah" + bytes([i])
                + b"X\x01\x00\x00\x00bh" + bytes([i]) + b"u" for i in range(40)
            )  # fmt: skip
            return b"\x80\x02}" + levels + b"."
        case _:
            return program + end


def torch(rng):
    content = members(torch_seed())
    pickled = next(name for name in content if name.endswith("data.pkl"))
    numbers = [name for name in content if "/data/" in name]
    match rng.randrange(11):
        case 0:
            content[pickled] = instructions(rng)
        case 1:
            content[pickled] = doubled(rng)
        case 2:
            content[pickled] = bytes_changed(content[pickled], rng)
        case 3:  # another number in the program
            ops = [at for op, argument, at in pickletools.genops(content[pickled])
                   if op.name in ("BININT1", "BININT", "BININT2")]  # fmt: skip
            data, at = bytearray(content[pickled]), rng.choice(ops)
            data[at + 1] = rng.randrange(256)
            content[pickled] = bytes(data)
        case 4:
            name = rng.choice(numbers)
            content[name] = content[name][: rng.randrange(len(content[name]) + 1)]
        case 5:
            return {"x.pt": zipped(content, deflate=[rng.choice(list(content))])}
        case 6:
            del content[rng.choice(list(content))]
        case 7:
            content[rng.choice(("../../evil", "x/data.pkl", pickled.replace("data.pkl",
            "byteorder"),
                                "archive/x.py"))] = rng.choice((b"big", b"x" * 99))  # fmt: skip
        case 8:
            content[pickled] = b"\x80\x02" + b"]" * 10**5 + b"."
        case 9:  # a long name, and a bomb of zeros as the program
            content[pickled] = bytes(20 * 2**20)
            return {"x.pt": zipped(content, deflate=[pickled])}
        case 10:
            content[pickled] = pickle.dumps(rng.choice(JUNK), rng.randrange(6))
    return {"x.pt": zipped(content)}


def legacy(rng):
    """Files of torch before 1.6: pickles one after the other, and whatever else is no archive."""
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), instructions(rng),
             doubled(rng), rng.randbytes(rng.choice((0, 1, 100, 5000))), b"PK\x03\x04" + bytes(40),
             pickle.dumps({"a": 1})]  # fmt: skip
    rng.shuffle(parts)
    name = rng.choice(("x.pt", "x.bin", "x.pth", "x.npz", "x.safetensors"))
    return {name: b"".join(parts[: rng.randrange(1, len(parts))])}


def index(rng):
    header, data = safetensors_seed()
    names = list(header)
    whole = with_header(header, data)
    table = dict.fromkeys(names, "a.safetensors")
    name = rng.choice(names)
    found = {"weight_map": table}
    match rng.randrange(9):
        case 0:
            table[name] = rng.choice(("../a.safetensors", "/etc/passwd", "..", ".", "",
            "b.safetensors",
                                      "~/x", "a.safetensors/", "sub/a.safetensors", "\x00",
                                      "model.safetensors.index.json", "a" * 5000))  # fmt: skip
        case 1:
            table[name] = rng.choice(JUNK)
        case 2:
            table["not there"] = "a.safetensors"
        case 3:
            found = rng.choice(({}, {"weight_map": []}, {"weight_map": None}, {"weight_map": {}}))
        case 4:
            found["metadata"] = rng.choice(JUNK)
        case 5:
            whole = bytes_changed(whole, rng)
        case 6:
            whole = safetensors(rng)["x.safetensors"]
    text = json.dumps(found).encode()
    match rng.randrange(6):
        case 0:
            text = bytes_changed(text, rng)
        case 1:
            text = rng.choice((b"", b"[]", DEEP.encode(), b'{"weight_map": ' + b"9" * 9999 + b"}",
                               b"\xff\xfe", b"null"))  # fmt: skip
    return {"model.safetensors.index.json": text, "a.safetensors": whole}


def plain(rng):
    header, data = safetensors_seed()
    name, whole = rng.choice(
        (
            ("x.safetensors", with_header(header, data)),
            ("x.npz", npz_seed()),
            ("x.pt", torch_seed()),
        )
    )
    return {name: bytes_changed(whole, rng)}


def harmless(rng):
    """Changes after which every tensor is what it was."""
    header, data = safetensors_seed()
    content = members(npz_seed())
    match rng.randrange(4):
        case 0:
            order = list(header.items())
            rng.shuffle(order)
            text = json.dumps({"__metadata__": {"format": "pt", "x": "y"}, **dict(order)})
            return {"x.safetensors": with_header(text.encode() + b" " * rng.randrange(64), data)}
        case 1:
            order = list(content.items())
            rng.shuffle(order)
            return {"x.npz": zipped(dict(order), deflate=rng.sample(list(content), 2))}
        case 2:
            table = {"weight_map": dict.fromkeys(header, "a.safetensors"), "metadata": {"n": 3}}
            return {"x.index.json": json.dumps(table).encode(),
                    "a.safetensors": with_header(header, data)}  # fmt: skip
        case _:
            return {"x.npz": npz_seed(compressed=True)}


KINDS = {
    "safetensors": safetensors, "npz": npz, "torch": torch, "legacy": legacy, "index": index,
    "plain": plain, "harmless": harmless,
}  # fmt: skip


def inputs(count, seed=0):
    """``(kind, files, name of the one to open)``, ``count`` times, kinds in turn."""
    kinds = list(KINDS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        files = KINDS[kind](random.Random(f"{seed}/{number}"))
        yield kind, files, next(iter(files))
