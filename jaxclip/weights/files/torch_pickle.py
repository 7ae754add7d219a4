"""Pickles of torch's files, run by a machine that knows tensors only.

A pickle is a program. This machine is Python's own in Python, less most of its instructions: it
builds dicts, lists, tuples and descriptions of tensors, and calls nothing that is not in a table
here. What a short program could blow up (memo slots, shared tuples as keys, copies of long lists)
is refused, too: a program may take :data:`MOST_STEPS`, and each takes as long as any other.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxclip.weights.files._base import LARGEST_RANK, FileError

# Bytes of a program; a tensor takes some 150.
LARGEST = 16 * 2**20
# Steps of a program: its instructions, and each value that one of them copies. Those of tensors
# have four bytes each; the longest program of one byte each would fill gigabytes.
MOST_STEPS = LARGEST // 3
# Characters of a key and bits of a number: what is longer costs each time that it is looked at.
_LONGEST_KEY, _WIDEST_NUMBER = 4096, 4096

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip
# Instructions that build values of the kinds above; none makes sets, instances or bytearrays.
_ALLOWED = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE",
    "BINBYTES", "SHORT_BINBYTES", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "GET", "BINGET",
    "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
)  # fmt: skip
_KEYS = (str, int, float, bytes, type(None))


class Storage(NamedTuple):
    """Numbers of a tensor, by the archive's name for them."""

    dtype: np.dtype[Any]
    key: str


class Described(NamedTuple):
    """A tensor as the pickle describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Module:
    """An object of a TorchScript archive: attributes and nothing else."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


class Dict(OrderedDict):
    """``collections.OrderedDict`` that begins empty, as torch writes it, or with a few pairs."""

    def __init__(self, pairs: Any = ()):
        super().__init__()
        if not isinstance(pairs, (list, tuple)) or len(pairs) > 10_000:
            raise FileError("a pickle makes an OrderedDict of something else than a few pairs")
        for pair in pairs:
            key, value = pair
            _check_key(key)
            self[key] = value


class Inert:
    """What a trainer keeps beside the tensors (its options, their path): never looked at."""

    def __init__(self, *arguments: Any):
        del arguments


def load(data: bytes, path: str) -> Any:
    """Run a program.

    Args:
      data: the pickle.
      path: for errors.

    Returns:
      What it built: dicts, lists, tuples, numbers, strings, :class:`Described`, :class:`Module`.

    Raises:
      FileError: it asks for anything else, or is damaged.
    """
    if len(data) > LARGEST:
        raise FileError(f"{path}: its data.pkl has {len(data)} bytes; the most are {LARGEST}")
    try:
        return _Machine(io.BytesIO(data), path).load()
    except FileError as error:
        raise FileError(str(error) if path in str(error) else f"{path}: {error}") from error
    except Exception as error:  # whatever a broken program makes of itself
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise FileError(f"{path}: its data.pkl can't be read: {what}") from error


# Python's unpickler in Python; its name has an underscore, but its table of instructions is what
# subclasses have been made of since it exists.
_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class _Machine(_Unpickler):
    """Python's unpickler in Python, with the instructions of :data:`_ALLOWED`."""

    dispatch: dict[int, Callable[[Any], None]] = {}  # noqa: RUF012

    def __init__(self, file: io.BytesIO, path: str):
        super().__init__(file)
        self._path = path
        self.steps = 0

    def take(self, steps: int) -> None:
        """Count steps."""
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise FileError(f"{self._path}: its data.pkl takes more than {MOST_STEPS} steps")

    def find_class(self, module: str, name: str) -> Any:
        found = _named(module, name)
        if found is None:
            raise FileError(
                f"{self._path} asks for {module[:80]}.{name[:80]}: only tensors are read, nothing "
                "is run; save its state dict, best as safetensors"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 3 or not isinstance(pid[0], str):
            raise FileError(f"{self._path} refers to a {type(pid).__name__}, which is no storage")
        place, kind, key = pid[:3]
        if place != "storage" or not isinstance(kind, str) or not isinstance(key, str):
            raise FileError(f"{self._path} refers to {place[:80]!r}, which is no storage")
        if kind not in _STORAGES:
            raise FileError(f"{self._path} has a storage of kind {kind[:40]!r}")
        _check_key(key)
        return Storage(np.dtype(_STORAGES[kind]), key)

    def refuse(self) -> None:
        raise FileError(f"{self._path}: its data.pkl has an instruction that tensors need not")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not callable(function) or not isinstance(arguments, tuple):
            raise FileError(f"{self._path}: its data.pkl calls what is no function")
        self.take(len(arguments))
        if function is Dict and arguments and isinstance(arguments[0], (list, tuple)):
            self.take(len(arguments[0]))
        self.stack[-1] = function(*arguments)

    def new_object(self) -> None:
        arguments, kind = self.stack.pop(), self.stack[-1]
        if kind is Inert:
            arguments = ()
        if kind not in (Module, Dict, Inert) or arguments != ():
            raise FileError(f"{self._path}: its data.pkl makes an object that is no module")
        self.stack[-1] = kind()

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (Dict, Inert)):  # torch hangs _metadata on the dict
            return
        if not isinstance(target, Module) or not isinstance(state, dict):
            raise FileError(f"{self._path}: its data.pkl fills an object that is no module")
        self.take(len(state))
        target.attributes.update({str(key): value for key, value in state.items()})

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set(self.stack[-1], key, value)

    def set_items(self) -> None:
        items = self.pop_mark()
        for index in range(0, len(items) - 1, 2):
            _set(self.stack[-1], items[index], items[index + 1])

    def make_dict(self) -> None:
        items = self.pop_mark()
        made: dict[Any, Any] = {}
        for index in range(0, len(items) - 1, 2):
            _set(made, items[index], items[index + 1])
        self.append(made)


_Machine.dispatch = dict.fromkeys(range(256), _Machine.refuse)
for _name in _ALLOWED:
    _code = getattr(pickle, _name)[0]
    _Machine.dispatch[_code] = _Unpickler.dispatch[_code]


def _narrow(instruction: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(machine: _Machine) -> None:
        instruction(machine)
        if machine.stack[-1].bit_length() > _WIDEST_NUMBER:
            raise FileError(f"a pickle has a number of {machine.stack[-1].bit_length()} bits")

    return run


def _counted(instruction: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(machine: _Machine) -> None:
        machine.take(1)
        instruction(machine)

    return run


for _code in (pickle.INT[0], pickle.LONG[0], pickle.LONG4[0]):
    _Machine.dispatch[_code] = _narrow(_Machine.dispatch[_code])
_Machine.dispatch |= {
    pickle.REDUCE[0]: _Machine.reduce,
    pickle.NEWOBJ[0]: _Machine.new_object,
    pickle.BUILD[0]: _Machine.build,
    pickle.SETITEM[0]: _Machine.set_item,
    pickle.SETITEMS[0]: _Machine.set_items,
    pickle.DICT[0]: _Machine.make_dict,
}

_Machine.dispatch = {code: _counted(run) for code, run in _Machine.dispatch.items()}


# Options and states of trainers, by module and name; of the last ones whatever is in the package.
_BESIDE = {
    ("argparse", "Namespace"), ("types", "SimpleNamespace"), ("collections", "defaultdict"),
    ("builtins", "set"), ("__builtin__", "set"), ("builtins", "frozenset"),
    ("__builtin__", "frozenset"), ("numpy", "dtype"), ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"), ("_codecs", "encode"), ("torch", "device"),
    ("torch", "float32"), ("torch", "float16"), ("torch", "bfloat16"), ("typing", "Any"),
    *((module, name) for module in ("pathlib", "pathlib._local")
      for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
}  # fmt: skip
_BESIDE_OF = ("omegaconf.", "ml_collections.", "lightning_fabric.", "pytorch_lightning.")


def _named(module: str, name: str) -> Any:
    """What stands for a name of the program; None for all that is not in the table."""
    if module == "torch" and name in _STORAGES:
        return name
    if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
        return _describe
    if module == "torch._utils" and name == "_rebuild_parameter":
        return _first
    if (module, name) == ("collections", "OrderedDict"):
        return Dict
    if (module, name) == ("torch", "Size"):
        return _short
    if module.startswith("__torch__"):
        return Module
    if module == "torch.jit._pickle" and name.startswith("build_"):
        return _first
    if (module, name) in _BESIDE or module.startswith(_BESIDE_OF):
        return Inert
    return None


def _describe(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Described:
    return Described(storage, offset, _short(shape), _short(stride))


def _short(values: Any = ()) -> tuple[Any, ...]:
    if not isinstance(values, (list, tuple)) or len(values) > LARGEST_RANK:
        raise FileError(f"a pickle has a shape that is none, a {type(values).__name__}")
    return tuple(values)


def _first(value: Any, *rest: Any) -> Any:
    return value


def _set(target: Any, key: Any, value: Any) -> None:
    if isinstance(target, Inert):
        return
    if not isinstance(target, dict):
        raise FileError(f"a pickle sets an item of a {type(target).__name__}")
    _check_key(key)
    target[key] = value


def _check_key(key: Any) -> None:
    if not isinstance(key, _KEYS):
        raise FileError(f"a pickle has a {type(key).__name__} as a key")
    if isinstance(key, (str, bytes)) and len(key) > _LONGEST_KEY:
        raise FileError(f"a pickle has a key of {len(key)} characters; the most are {_LONGEST_KEY}")
