"""Names to things: look-up, option checks and "did you mean", once for all rooms.

A room that holds one method a file makes a :class:`Registry` of its package; a new method is a new
file there and no other change. It imports nothing else of ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# A name here, or the last parts of one -> what other programs call it.
_CALLED_ELSEWHERE = {
    "learning_rate": "lr base_lr peak_lr max_lr",
    "weight_decay": "wd",
    "warmup_steps": "warmup num_warmup_steps lr_warmup_steps",
    "b1": "beta1 beta_1 betas",
    "b2": "beta2 beta_2",
    "eps": "epsilon",
    "clip": "grad_clip clip_grad clip_grad_norm max_grad_norm gradient_clip_val",
    "schedule": "scheduler lr_scheduler lr_schedule",
    "optim": "optimizer opt",
    "global_batch_size": "bs batch batch_size",
    "total_steps": "steps num_steps max_steps train_steps num_train_steps iterations "
    "epoch epochs num_epochs max_epochs num_train_epochs",
    "num_micro_batches": "accum_freq accum_steps grad_accum grad_accum_steps accumulation_steps "
    "gradient_accumulation_steps",
    "seed": "random_seed rng_seed",
    "compute_dtype": "dtype amp bf16 fp16 precision",
    "ema_decay": "ema ema_rate",
    "depth": "num_layers n_layers layers",
    "width": "hidden_size hidden_dim d_model",
    "num_heads": "heads n_heads num_attention_heads",
    "remat": "grad_checkpointing gradient_checkpointing",
    "init_from": "pretrained weights",
    "model.preset": "arch architecture backbone model_name",
    "data.name": "dataset dataset_name train_data",
    "data.workers": "num_workers dataloader_num_workers",
    "image_size": "img_size input_size resolution",
    "log_every_steps": "log_every logging_steps",
    "checkpoint.every_steps": "save_every save_steps save_frequency",
    "evaluate.every_steps": "eval_every eval_steps val_frequency",
}
_CALLED_HERE = {word: name for name, words in _CALLED_ELSEWHERE.items() for word in words.split()}

# A list of more names than this is cut where a command can show it whole.
_MANY = 16


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """The known name that is most like another one, or means the same; empty where none is near.

    Args:
      name: what was asked for; ``"optim.lr"`` means what ``"lr"`` does.
      known: what there is.
      cutoff: how alike a name must be, in [0, 1].
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return meant(name, known) or next(iter(near), "")


def meant(name: str, known: Iterable[str]) -> str:
    """The known name for what other programs call so; empty if there is none.

    Args:
      name: what was asked for; of ``"optim.lr"`` the last part counts.
      known: what there is; of ``"optim.clip.name"`` the section ``"optim.clip"``, too.
    """
    here = _CALLED_HERE.get(name.rpartition(".")[2])
    known = set(known)
    if here is None or name in known:
        return ""
    parts = [each.split(".") for each in known]
    names = {".".join(each[: n + 1]) for each in parts for n in range(len(each))}
    same = [each for each in names if f".{each}".endswith(f".{here}")]
    return min(same, key=lambda each: (each.count("."), each), default="")


def hint(name: str, known: Iterable[str], *, cutoff: float = 0.5, listed_by: str = "") -> str:
    """The end of an error about an unknown name.

    Args:
      name: what was asked for.
      known: what there is.
      cutoff: how alike a name must be to be offered, in [0, 1].
      listed_by: the command that lists all; with it a long list is cut.

    Returns:
      ``"; did you mean 'x'?"``, or ``"; known: a, b, c"`` where nothing is near.
    """
    known = sorted(known)
    if near := nearest(name, known, cutoff=cutoff):
        return f"; did you mean {near!r}?"
    if listed_by and len(known) > _MANY:
        some = difflib.get_close_matches(name, known, n=4, cutoff=0.0)
        rest = len(known) - len(some)
        return f"; known: {', '.join(some)} and {rest} more (`{listed_by}` lists them)"
    return f"; known: {', '.join(known) or 'none'}"


def check_options(options: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse an option that a thing does not have.

    Args:
      options: names of the given options.
      known: names of those it has.
      what: what they are options of, for the error: ``"objective 'slip'"``.

    Raises:
      ValueError: an unknown option; the message names the nearest.
    """
    known = list(known)
    for option in options:
        if option not in known:
            raise ValueError(f"unknown option {option!r} of {what}{hint(option, known)}")


REQUIRED: Any = inspect.Parameter.empty


def option_defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    """Options of a dataclass (its fields) or of a function (its parameters) with their defaults.

    Args:
      factory: the dataclass or function; of ``**options`` nothing is known, they are left out.

    Returns:
      Defaults by name, :data:`REQUIRED` where there is none.
    """
    if dataclasses.is_dataclass(factory):
        fields = [field for field in dataclasses.fields(factory) if field.init]
        return {field.name: _default(field) for field in fields}
    parameters = inspect.signature(factory).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is not each.VAR_KEYWORD}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def option_names(factory: Callable[..., Any]) -> list[str]:
    """Names of the options of a dataclass (its fields) or of a function (its parameters)."""
    return list(option_defaults(factory))


def dependent(default: Any, *, on: str, values: tuple[Any, ...] = (), way: str = "") -> Any:
    """The default of a dataclass's option that another option may leave without effect.

    ::

        pool: str = "cls"
        num_queries: int = dependent(256, on="pool", values=("queries",))
        num_experts: int = 0
        expert_blocks: int = dependent(0, on="num_experts")

    Whoever sets ``num_queries`` with another ``pool`` is told so, once, when a run starts
    (:mod:`jaxclip.config_unused`); it is no error.

    Args:
      default: the option's default.
      on: the option it depends on, or a property of the dataclass.
      values: with which values of that one it has an effect; none: with any true one.
      way: what the warning says behind the colon; "": to set ``on``, or that it is for ``values``.
    """
    return dataclasses.field(default=default, metadata={_DEPENDS: (on, values, way)})


def without_effect(thing: Any, names: Iterable[str], section: str) -> dict[str, list[str]]:
    """Which options another one leaves without effect, as :func:`dependent` declares it.

    Args:
      thing: an instance of a dataclass.
      names: of the options that somebody set; others are not looked at.
      section: where they stand in a configuration, ``"model.image"``.

    Returns:
      What would make them count -> the names for which that holds, in the dataclass's order.
    """
    found: dict[str, list[str]] = {}
    names = set(names)
    for field in dataclasses.fields(thing):
        if field.name not in names or _DEPENDS not in field.metadata:
            continue
        on, values, way = field.metadata[_DEPENDS]
        value = getattr(thing, on)
        if value in values if values else value:
            continue
        either = " or ".join(map(repr, values))
        way = way or (f"that is for {section}.{on}={either}" if values else f"set {section}.{on}")
        found.setdefault(way, []).append(field.name)
    return found


_DEPENDS = "depends on"


def check_numbers(thing: Any, what: str) -> None:
    """Refuse options of a dataclass that are no numbers where the default is one.

    Args:
      thing: an instance; fields with a default that is a bool, an int or a float are looked at.
      what: what it is, for the error: ``"evaluator 'gallery'"``.

    Raises:
      ValueError: a value of another type; ints pass as floats.
    """
    for field in dataclasses.fields(thing):
        kind, value = type(field.default), getattr(thing, field.name)
        if kind not in (bool, int, float) or type(value) is kind:
            continue
        if not (kind is float and type(value) is int):
            raise ValueError(
                f"{field.name}={value!r} of {what} must be {kind.__name__}, as {field.default!r}"
            )


class Registry:
    """Things of one kind by name.

    A name stands for the file of the package that has it: ``slip`` for ``slip.py``, and in it for
    the public member of that name, letter case and underscores aside (``SLIP``, ``ClipRefine``). A
    file is imported when its name is asked for. Files whose name starts with ``_`` are no entries.
    A user's own thing needs no file here: its name is ``"package.module:Member"``, or it is put in
    with :meth:`register`.
    """

    def __init__(
        self, kind: str, package: str = "", *, exclude: Iterable[str] = (), listed_by: str = ""
    ):
        """
        Args:
          kind: what the things are, for errors: ``"objective"``.
          package: the package whose files are entries; none if all are registered by hand.
          exclude: names of files of the package that hold no entry.
          listed_by: the command that lists all names, for errors.
        """
        self.kind = kind
        self._package = package
        self._exclude = frozenset(exclude)
        self._listed_by = listed_by
        self._registered: dict[str, Any] = {}

    def register(self, name: str, thing: Any) -> Any:
        """Put a thing in under a name, in place of what had that name; returns the thing."""
        self._registered[name] = thing
        return thing

    def names(self) -> list[str]:
        """All names, sorted; imports no entry."""
        found = set(self._registered)
        if self._package:
            path = importlib.import_module(self._package).__path__
            found |= {m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_")}
        return sorted(found - self._exclude)

    def get(self, name: str) -> Any:
        """The thing of a name.

        Raises:
          ValueError: there is none; the message names the nearest.
        """
        if not isinstance(name, str):
            raise ValueError(f"a name of {self.kind} is a string, got {name!r}")
        if name in self._registered:
            return self._registered[name]
        if ":" in name:
            return outside(self.kind, name)
        if name not in self.names():
            near = hint(name, self.names(), listed_by=self._listed_by)
            raise ValueError(f"unknown {self.kind} {name!r}{near}")
        return _member(importlib.import_module(f"{self._package}.{name}"), name)

    def build(self, config: Mapping[str, Any] | str) -> Any:
        """Call the thing of ``config["name"]`` with the other keys as its options.

        Args:
          config: ``{"name": "slip", "scale": 1.0}``, or the name alone.

        Raises:
          ValueError: no name, an unknown name or an unknown option.
        """
        if not isinstance(config, (str, Mapping)):
            raise ValueError(f"{self.kind} {config!r} is neither a name nor a dict with a 'name'")
        options = {"name": config} if isinstance(config, str) else dict(config)
        if "name" not in options:
            raise ValueError(f"{self.kind} without a 'name'; known: {', '.join(self.names())}")
        name = options.pop("name")
        thing = self.get(name)
        check_options(options, option_names(thing), f"{self.kind} {name!r}")
        return thing(**options)


def outside(kind: str, name: str) -> Any:
    """What ``"package.module:Member"`` names.

    Raises:
      ValueError: it can't be imported, whatever the module fails with.
    """
    module, _, member = name.partition(":")
    try:
        return getattr(importlib.import_module(module), member)
    except Exception as error:  # the code of somebody else, which may do anything
        way = ""
        if isinstance(error, ModuleNotFoundError):
            way = "; install it, or put its folder on PYTHONPATH"
        elif not isinstance(error, (ImportError, AttributeError, ValueError)):
            way = f" ({type(error).__name__} in it; correct it)"
        raise ValueError(f"{kind} {name!r} can't be imported: {error}{way}") from error


def _member(module: Any, name: str) -> Any:
    wanted = name.replace("_", "").lower()
    for key, value in vars(module).items():
        if key.replace("_", "").lower() == wanted and not inspect.ismodule(value):
            return value
    raise ValueError(f"{module.__name__} has no public member named {name!r}")
