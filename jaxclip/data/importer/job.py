"""Writes a TFDS data set from pictures and captions in other forms.

The source is read as a stream, records are checked on several threads and written in the order of
the source. Memory does not grow with the number of records. The data set comes into being in
``DIR.importing`` and is renamed to ``DIR`` when it is whole: at no time is there half of one at
``DIR``. An import that was interrupted goes on when it is called again, to the same bytes.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from jaxclip.data import schema
from jaxclip.data.importer import images, output_folder, tags
from jaxclip.data.importer.items import Cursor, Item, KnowsClasses, Reader, SourceError, read_image
from jaxclip.data.importer.options import Options, Summary
from jaxclip.data.importer.progress import Progress
from jaxclip.data.importer.readers import open_reader
from jaxclip.data.importer.store import SKIPPED_FILE, State, Store
from jaxclip.data.loader import num_cpus
from jaxclip.data.record import BadRecord, Record, decode_foreign_texts

_COMMIT_SECONDS = 10.0
_NOT_UTF8 = "not UTF-8; if it is a table in another encoding, say which: --encoding cp1252"
# Change when the same request would give other bytes.
_FORMAT_VERSION = 1


def import_records(
    source: str | os.PathLike[str],
    to: str | os.PathLike[str],
    options: Options | None = None,
    *,
    num_threads: int = 0,
    overwrite: bool = False,
    progress: bool = False,
    commit_seconds: float = _COMMIT_SECONDS,
) -> Summary:
    """Write a TFDS data set from other records; see the module docstring.

    Args:
      source: see :func:`jaxclip.data.importer.readers.open_reader`.
      to: folder of the data set; new, empty, or of the same import, finished or not.
      options: how; None = all defaults.
      num_threads: threads that check pictures; 0 = one for each CPU.
      overwrite: replace another data set or another unfinished import.
      progress: show a bar on stderr.
      commit_seconds: how much work, in seconds, may be lost when the import is killed.

    Returns:
      A summary.

    Raises:
      FileNotFoundError: the source is not there.
      FileExistsError: the folder holds something else.
      ValueError: the source is none we know, or holds no usable record.
    """
    if num_threads < 0:
        raise ValueError(f"threads={num_threads} must be 0, for one a CPU, or more")
    _check_tfds()
    target = pathlib.Path(os.path.abspath(to))
    options = options or Options()
    if not options.name:
        options = dataclasses.replace(options, name=_name_of(target))
    reader = open_reader(
        source, options.format, options.image_column, options.text_column, options.encoding
    )
    request = _request(source, options, reader)
    unfinished = target.with_name(target.name + output_folder.UNFINISHED)
    if overwrite:
        if unfinished.is_dir() and output_folder.request_of(unfinished) != request:
            shutil.rmtree(unfinished)
    else:
        done = output_folder.finished(target, request)
        if done is not None:
            return done
        output_folder.check_unfinished(unfinished, request)
    output_folder.check_replaceable(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    store = Store(unfinished, request, options.shard_mb << 20)
    with _left_as_it_should_be(store):
        with Progress(progress) as bar:
            _run(store, reader, options, num_threads or num_cpus(), commit_seconds, bar)
        summary = _finish(store, target, options)
    output_folder.move(unfinished, target)
    return summary


@contextlib.contextmanager
def _left_as_it_should_be(store: Store) -> Iterator[None]:
    """Closes an unfinished data set, and removes it where nothing of it would be of use; where the
    disk is full the error says how to go on."""
    try:
        yield
    except SourceError:
        if not store.state.shards:
            shutil.rmtree(store.folder)  # nothing of it would be of use once the source is mended
        raise
    except (OSError, sqlite3.OperationalError) as error:
        if not _is_full(error):
            raise
        raise OSError(
            f"no room for {store.folder} ({error}); make some, and the same command goes on where "
            "it stopped"
        ) from error
    finally:
        store.close()


def _is_full(error: OSError | sqlite3.OperationalError) -> bool:
    """Whether an error says that a disk, a quota or a limit is used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "full" in str(error)


def _run(
    store: Store,
    reader: Reader,
    options: Options,
    num_threads: int,
    commit_seconds: float,
    bar: Progress,
) -> None:
    """Read, check and write what is left."""
    state = store.state
    if state.done:
        return
    if not state.records() and not store.label_names() and isinstance(reader, KnowsClasses):
        for name in reader.class_names():
            store.label_id(name)  # so that the numbers are those of the source
    began = committed = time.monotonic()
    before = state.seconds
    for cursor, outcome in _checked(reader, state.cursor, options, num_threads):
        _take(store, outcome, options)
        state.cursor = cursor
        bar.update(reader.fraction(), sum(state.records().values()), sum(state.skipped.values()))
        if time.monotonic() - committed >= commit_seconds:
            state.seconds = before + time.monotonic() - began
            store.commit()
            committed = time.monotonic()
    state.seconds = before + time.monotonic() - began
    store.commit()


def _checked(
    reader: Reader, start: Cursor, options: Options, num_threads: int
) -> Iterator[tuple[Cursor, Item | BadRecord]]:
    """Items with their pictures checked, in the order of the source."""

    def check(item: Item) -> Item | BadRecord:
        data = read_image(item.image)
        if not isinstance(data, BadRecord):
            data = images.prepare(
                data,
                max_pixels=options.max_pixels,
                max_aspect=options.max_aspect,
                min_side=options.min_side,
                max_side=options.max_side,
            )
        if isinstance(data, BadRecord):
            return dataclasses.replace(data, key=item.key)
        return dataclasses.replace(item, image=data)

    Waiting = tuple[Cursor, Future[Item | BadRecord] | BadRecord]
    waiting: collections.deque[Waiting] = collections.deque()

    def first() -> tuple[Cursor, Item | BadRecord]:
        cursor, outcome = waiting.popleft()
        return cursor, outcome if isinstance(outcome, BadRecord) else outcome.result()

    with ThreadPoolExecutor(num_threads, thread_name_prefix="jaxclip-import") as pool:
        try:
            for cursor, item in reader.items(start):
                waiting.append(
                    (cursor, item if isinstance(item, BadRecord) else pool.submit(check, item))
                )
                # So many are in memory at once.
                if len(waiting) > 4 * num_threads:
                    yield first()
            while waiting:
                yield first()
        finally:
            pool.shutdown(cancel_futures=True)


def _take(store: Store, outcome: Item | BadRecord, options: Options) -> None:
    """Write a record, or note why not."""
    if isinstance(outcome, BadRecord):
        store.skip(outcome.reason, outcome.detail, outcome.key)
        return
    if options.languages:
        others = [tag for tag in tags.tags_of(outcome) if isinstance(tag, str)]
        outcome = tags.in_languages(outcome, options.languages.lower().split(","))
        if others and not outcome.texts:
            detail = f"no caption in {options.languages}, but in {', '.join(dict.fromkeys(others))}"
            store.skip("empty_caption", detail, outcome.key)
            return
    texts, bad = decode_foreign_texts(outcome.texts)
    texts = tuple(dict.fromkeys(" ".join(text.split()) for text in texts))
    # A picture of a class needs no caption; the name of the class, if it has one, is one.
    is_named = isinstance(outcome.label, str)
    if not texts and not outcome.texts and is_named:
        texts = (str(outcome.label),)
    if not texts and (outcome.texts or outcome.label in (None, -1)):
        written = [text.decode("utf-8", "replace").strip() for text in outcome.texts]
        missing = next((f"{text!r} stands for no caption" for text in written if text), "")
        detail = _NOT_UTF8 if bad else missing
        store.skip("bad_utf8" if bad else "empty_caption", detail, outcome.key)
        return
    label = schema.NO_LABEL
    if outcome.label is not None:
        named = isinstance(outcome.label, str)
        if store.state.named_labels is None:
            store.state.named_labels = named
        if named != store.state.named_labels:
            kinds = ("number", "name") if named else ("name", "number")
            detail = f"label {outcome.label!r} is a {kinds[1]}, those before were {kinds[0]}s"
            store.skip("bad_row", detail, outcome.key)
            return
    key = next(
        (each for each in (outcome.key, outcome.alias) if each and store.is_new_key(each)), ""
    )
    if not key:
        store.skip("duplicate_key", "", outcome.key)
        return
    if isinstance(outcome.label, str):
        label = store.label_id(outcome.label)
    elif outcome.label is not None:
        label = outcome.label
    store.state.lost_captions += len([text for text in outcome.texts if not text.strip()]) + bad
    assert isinstance(outcome.image, bytes)
    values = tags.meta_of(outcome, texts)
    meta = json.dumps(values, ensure_ascii=False, sort_keys=True) if values else ""
    record = Record(outcome.image, texts, label, key, meta)
    store.write(outcome.split or _split_of(key, options.val_fraction), record)


def _split_of(key: str, val_fraction: float) -> str:
    digest = hashlib.sha256(b"split\0" + key.encode("utf-8", "replace")).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_fraction * 2.0**64 else "train"


def _finish(store: Store, target: pathlib.Path, options: Options) -> Summary:
    """Turn the unfinished folder into a data set, but for its name. Can be done again."""
    state, folder = store.state, store.folder
    counts = state.records()
    if not counts:
        reasons = ", ".join(f"{reason} {count}" for reason, count in state.skipped.items())
        store.flush()
        with open(folder / SKIPPED_FILE, "rb") as file:
            first = file.readline().decode("ascii").strip()
        shutil.rmtree(folder)
        raise ValueError(
            f"nothing to import: no usable record in {state.request['source']!r} "
            + (f"(skipped: {reasons}; the first: {first})" if first else "(it is empty)")
        )
    if not state.done:
        state.done = True
        store.commit()
    for part, final in store.shard_files(options.name):
        if part.exists():
            os.replace(part, final)
    names = store.label_names() if state.named_labels else []
    summary = Summary(
        str(target), counts, state.captions, sum(shard.payload for shard in state.shards),
        state.skipped, state.lost_captions, len(names), round(state.seconds, 3),
    )  # fmt: skip
    _write_metadata(folder, state, options, names)
    content = {"request": state.request, "summary": dataclasses.asdict(summary)}
    (folder / output_folder.SUMMARY_FILE).write_text(
        json.dumps(content, indent=2) + "\n", encoding="utf-8"
    )
    return summary


def _write_metadata(folder: pathlib.Path, state: State, options: Options, names: list[str]) -> None:
    from jaxclip.data._tfds import tensorflow_datasets

    tfds = tensorflow_datasets()
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=options.name, filetype_suffix="tfrecord"
    )
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in state.shards if shard.split == split],
            num_bytes=sum(shard.payload for shard in state.shards if shard.split == split),
            filename_template=template.replace(split=split),
        )
        for split in sorted(state.records())
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=schema.features(names or None),
        split_infos=splits,
        filename_template=template,
        description=f"Imported from {state.request['source']} by jaxclip data import.",
        disable_shuffling=True,
        check_data=False,
    )


def _check_tfds() -> None:
    """Fail before the work, not after it."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        from jaxclip.data._tfds import tensorflow_datasets

        tensorflow_datasets()


def _name_of(target: pathlib.Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", target.name.lower()).strip("_")
    return name if re.match(r"[a-z]", name) else f"data_{name}".rstrip("_")


def _request(source: str | os.PathLike[str], options: Options, reader: Reader) -> dict[str, Any]:
    return {
        "source": os.path.abspath(source),
        "stamp": reader.stamp(),
        "version": _FORMAT_VERSION,
        **dataclasses.asdict(options),
    }
