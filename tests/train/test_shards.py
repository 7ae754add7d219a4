"""Reading a checkpoint at an address in part: what is fetched, that it is right, and damage."""

import json
from types import SimpleNamespace

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxclip.data.bucket import Bucket, BucketError
from jaxclip.parallel import make_mesh
from jaxclip.train import checkpoint, manifest, parts, shards, staging, state_io

STEP = "step_00000001"
BLOCK = 4096
ADDRESS = "memory://bucket/run"
W = np.random.default_rng(0).random((64, 500), np.float32)


def sharding(spec=("fsdp",), devices=8):
    return NamedSharding(make_mesh({"fsdp": devices}, devices=jax.devices()[:devices]), P(*spec))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint with digests of small blocks; of several processes it has no common index."""
    folder = tmp_path_factory.mktemp("saved")
    state = {
        "params": {
            "w": jax.device_put(W, sharding()),
            "b": jnp.arange(900.0),
            "zero": jnp.zeros(9),
        },
        "moments": {"w": jax.device_put(1 - W, sharding())},
        "key": jax.random.key(3),
        "step": 1,
    }
    with checkpoint.Checkpointer(folder / "checkpoints") as checkpointer:
        checkpointer.save(1, state)
    path = epath.Path(folder / "checkpoints" / STEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "BLOCK", BLOCK)
        content = manifest.read(path)
        content |= {"blocks": manifest.blocks_of(path), "block_bytes": BLOCK}
        del content["files"]
        manifest.write(path, content)
    return folder


@pytest.fixture(params=["one index", "an index of each part"])
def copy(request, saved, tmp_path):
    """Of the checkpoint at an address, with its manifest alone; ``copy.read`` is what is read."""
    assert manifest.BLOCK != BLOCK, "it was saved with blocks of another size"
    files = fsspec.filesystem("memory")
    files.store.clear()
    path = saved / "checkpoints" / STEP
    content = json.loads((path / "manifest.json").read_text())
    if request.param != "one index":
        kept = {k: v for k, v in content["files"].items()
                if not k.startswith(("state/d/", "state/manifest.ocdbt"))}  # fmt: skip
        assert len(kept) == len(content["files"]) - 2
        content["files"] = kept
    for name in content["files"]:
        Bucket(ADDRESS).write(f"checkpoints/{STEP}/{name}", (path / name).read_bytes())
    text = manifest.text_of(content).encode()
    Bucket(ADDRESS).write(f"checkpoints/{STEP}/manifest.json", text)
    made = staging.Copy(Bucket(ADDRESS), tmp_path / "copy")
    made.fetch_manifest(STEP)
    made.content, made.read = content, []
    ask = made.bucket.read_part

    def noting(name, offset, length):
        made.read.append((name, offset, length))
        return ask(name, offset, length)

    made.bucket.read_part = noting
    yield made
    files.store.clear()


def like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        state,
    )


def fetch(copy, wanted):
    place = shards.fetch(copy, STEP, copy.content, wanted)
    parts.join(place / "state", copy.content["files"])
    return place


def data(copy):
    """Bytes that were read of the files with arrays."""
    return sum(length for name, _, length in copy.read if manifest.is_data(name))


def half_of(array, first, last):
    """As a process sees an array of whose rows its devices hold some."""
    regions = {"device": (slice(first, last), slice(None))}
    here = SimpleNamespace(addressable_devices_indices_map=lambda shape: regions)
    return SimpleNamespace(shape=array.shape, dtype=array.dtype, sharding=here)


def test_what_has_not_all_digests_is_not_read_in_part(copy):
    assert shards.is_possible(copy.content)
    name, digests = max(copy.content["blocks"].items(), key=lambda item: len(item[1]))
    for change in (
        {"blocks": {}},
        {"block_bytes": BLOCK // 2},
        {"blocks": {**copy.content["blocks"], name: digests[:-1]}},
        {"blocks": {n: d for n, d in copy.content["blocks"].items() if n != name}},
    ):
        assert not shards.is_possible(copy.content | change)
    assert not shards.is_possible({"files": copy.content["files"]})


@pytest.mark.parametrize("spec", [("fsdp",), (None, "fsdp"), ()])
def test_a_state_is_read_whole_into_any_shards(copy, spec):
    wanted = {
        "params": {"w": jax.ShapeDtypeStruct(W.shape, W.dtype, sharding=sharding(spec, 4)),
                   "b": like(np.zeros(900, np.float32)), "zero": np.zeros(9, np.float32)},
        "moments": {"w": like(W)}, "key": like(jax.random.key(0)), "step": 0,
    }  # fmt: skip
    state = state_io.restore(fetch(copy, wanted) / "state", wanted)
    np.testing.assert_array_equal(state["params"]["w"], W)
    assert state["params"]["w"].sharding == wanted["params"]["w"].sharding
    np.testing.assert_array_equal(state["params"]["b"], np.arange(900.0))
    np.testing.assert_array_equal(state["params"]["zero"], np.zeros(9))
    np.testing.assert_array_equal(state["moments"]["w"], 1 - W)
    assert jnp.array_equal(
        jax.random.key_data(state["key"]), jax.random.key_data(jax.random.key(3))
    )
    assert state["step"] == 1
    names = [name for name, *_ in copy.read]
    assert len(set(copy.read)) == len(names), "nothing is read twice"


def test_a_process_reads_the_rows_of_its_devices_alone(copy):
    place = fetch(copy, {"params": {"w": half_of(W, 16, 24)}})
    # An eighth of one of two tensors, with the blocks at its ends, and the index.
    assert W[16:24].nbytes * 0.8 < data(copy) < W[16:24].nbytes + 8 * BLOCK
    store = {"driver": "ocdbt", "base": f"file://{place}/state/"}
    array = tensorstore.open({"driver": "zarr3", "kvstore": store, "path": "params.w/"}).result()
    np.testing.assert_array_equal(array[16:24].read().result(), W[16:24])
    with pytest.raises(ValueError, match=r"checksum|[Cc]orrupt|CRC|decod"):
        array[40:48].read().result()  # a hole is never taken for numbers
    assert (copy.folder / shards.FOLDER).exists()
    shards.drop(copy)
    assert not (copy.folder / shards.FOLDER).exists()


def test_what_is_evaluated_is_read_alone(copy):
    wanted = {"params": {"w": like(W)}}
    state = state_io.restore(fetch(copy, wanted) / "state", wanted)
    np.testing.assert_array_equal(state["params"]["w"], W)
    assert data(copy) < 1.1 * W.nbytes + 8 * BLOCK


def test_a_part_that_is_here_still_is_not_fetched_unless_it_was_damaged(copy, saved):
    wanted = {"params": {"w": like(W)}}
    fetch(copy, wanted)
    largest = max(copy.content["files"], key=lambda name: copy.content["files"][name][0])
    own = copy.folder / "checkpoints" / STEP / largest
    own.parent.mkdir(parents=True)
    content = bytearray((saved / "checkpoints" / STEP / largest).read_bytes())
    whole = data(copy)
    own.write_bytes(content)
    copy.read.clear()
    fetch(copy, wanted)
    assert data(copy) < whole / 4
    content[len(content) // 8] ^= 1
    own.write_bytes(content)
    state = state_io.restore(fetch(copy, wanted) / "state", wanted)
    np.testing.assert_array_equal(state["params"]["w"], W)


def test_damage_where_it_reads_is_found_and_elsewhere_is_nobody_s(copy):
    largest = max(copy.content["files"], key=lambda name: copy.content["files"][name][0])
    name = f"checkpoints/{STEP}/{largest}"
    content = bytearray(Bucket(ADDRESS).read(name))
    place = fetch(copy, {"params": {"w": half_of(W, 0, 8)}})
    read = [(offset, length) for file, offset, length in copy.read if file == name]
    offset, length = max(read, key=lambda part: part[1])
    untouched = next(
        at for at in range(0, len(content), BLOCK)
        if not any(first <= at < first + count for first, count in read)
    )  # fmt: skip
    for at, wrong in ((untouched, False), (offset + length // 2, True)):
        changed = content.copy()
        changed[at] ^= 1
        Bucket(ADDRESS).write(name, bytes(changed))
        if wrong:
            with pytest.raises(shards.DamageError, match=f"file {largest} was altered: bytes"):
                fetch(copy, {"params": {"w": half_of(W, 0, 8)}})
        else:
            assert fetch(copy, {"params": {"w": half_of(W, 0, 8)}}) == place
    Bucket(ADDRESS).remove(name)
    with pytest.raises(shards.DamageError, match="is missing"):
        fetch(copy, {"params": {"w": half_of(W, 0, 8)}})


@pytest.mark.parametrize("name", ["../../../outside", "{tmp_path}/outside"])
def test_nothing_is_written_outside_of_the_copy(copy, tmp_path, name):
    name = name.format(tmp_path=tmp_path)
    copy.content["files"] |= {name: [1, manifest.digest_of(b"x")]}
    Bucket(ADDRESS).write(f"checkpoints/{STEP}/{name}", b"x")
    with pytest.raises(shards.DamageError, match="outside, which is not one of its own"):
        fetch(copy, {"step": 0})
    assert not list(tmp_path.rglob("outside"))


def test_what_was_altered_on_the_way_is_read_again(copy):
    ask, spoilt = copy.bucket.read_part, []

    def spoiling(name, offset, length):
        found = ask(name, offset, length)
        if manifest.is_data(name) and not spoilt:
            spoilt.append(name)
            return bytes(length)
        return found

    copy.bucket.read_part = spoiling
    state = state_io.restore(fetch(copy, {"step": 0}) / "state", {"step": 0})
    assert state["step"] == 1 and spoilt


def test_a_full_disk_and_a_lost_network_are_errors_of_their_own(copy, monkeypatch):
    def lost(name, offset, length):
        raise BucketError(f"{name} can't be read: no route")

    (copy.folder / shards.FOLDER).write_text("in the way")
    monkeypatch.setattr(shards, "drop", lambda copy: None)
    with pytest.raises(staging.CopyError, match="JAXCLIP_STAGING"):
        fetch(copy, {"step": 0})
    (copy.folder / shards.FOLDER).unlink()
    copy.bucket.read_part = lost
    with pytest.raises(BucketError, match="no route"):
        fetch(copy, {"step": 0})


def test_an_index_of_many_levels_is_followed(tmp_path, monkeypatch):
    """As of a state with very many chunks, whose keys are shortened by what they share."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    folder = tmp_path / STEP / "state"
    store = tensorstore.KvStore.open({
        "driver": "ocdbt", "base": f"file://{folder}/",
        "config": {"max_decoded_node_bytes": 1000, "max_inline_value_bytes": 10},
    }).result()  # fmt: skip
    keys = [f"params.blocks.{i}.kernel/c/{i % 7}" for i in range(200)]
    with tensorstore.Transaction() as transaction:
        for key in keys:
            store.with_transaction(transaction)[key] = key.encode() * 3
    path = epath.Path(tmp_path / STEP)
    content = {"files": manifest.table_of(path), "blocks": manifest.blocks_of(path)}
    content["block_bytes"] = manifest.BLOCK
    for name in content["files"]:
        Bucket(ADDRESS).write(f"checkpoints/{STEP}/{name}", (path / name).read_bytes())
    source = shards._Source(staging.Copy(Bucket(ADDRESS), tmp_path / "copy"), STEP, content)
    source.need(shards._Place(n, 0, s) for n, (s, _) in content["files"].items())
    assert tensorstore.ocdbt.dump(store.base).result()["versions"][-1]["root_height"] > 0
    index = shards._read_index(source)
    assert index.keys() == set(keys)
    assert all(source.read(place) == key.encode() * 3 for key, (place,) in index.items())
    files.store.clear()
