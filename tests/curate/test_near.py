"""Near duplicates: planted ones are found, unrelated ones are not, whatever the shards."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jaxclip.curate import curate, flow, near, perceptual
from jaxclip.curate.steps.near_captions import NearCaptions, minhash, shingles
from jaxclip.data import decode


def blobs(seed, side=128):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_hashes_survive_scale_and_encoding():
    apart = []
    for seed in range(12):
        image = blobs(seed)
        small = Image.open(io.BytesIO(encoded(image.resize((64, 64)), "JPEG", quality=75)))
        bright = ImageEnhance.Brightness(image).enhance(0.9)
        for hashed, most in ((perceptual.phash, 3), (perceptual.dhash, 6)):
            one = np.uint64(hashed(image))
            for other in (small, bright):
                assert perceptual.distance(one, np.uint64(hashed(other))) <= most
        apart.append(perceptual.phash(image))
    apart = np.array(apart, np.uint64)
    far = perceptual.distance(apart[:, None], apart)[np.triu_indices(12, 1)]
    assert far.min() > 8 and 24 < far.mean() < 40
    assert perceptual.phash(Image.new("RGB", (50, 50), "red")) is None


def test_large_jpegs_are_hashed_as_when_they_are_decoded_whole():
    for seed in range(6):
        data = encoded(blobs(seed, 900), "JPEG", quality=90)
        whole, part = decode.decode(data), decode.decode(data, draft=perceptual.DRAFT)
        assert whole.size == (900, 900) and 128 <= min(part.size) < 256
        for hashed in (perceptual.phash, perceptual.dhash):
            assert (hashed(whole) ^ hashed(part)).bit_count() <= 2


def test_the_hash_is_the_dct_of_its_definition():
    image = blobs(3)
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
    n = np.arange(32)
    low = np.array([[
        (grey * np.outer(np.cos(np.pi * (n + 0.5) * u / 32), np.cos(np.pi * (n + 0.5) * v / 32))
         ).sum() * (0.5**0.5 if u == 0 else 1) * (0.5**0.5 if v == 0 else 1)
        for v in range(8)] for u in range(8)])  # fmt: skip
    bits = "".join(str(int(each)) for each in (low > np.median(low)).reshape(-1))
    # The library may scale in two steps: a bit next to the median can turn.
    assert (perceptual.phash(image) ^ int(bits, 2)).bit_count() <= 2


@pytest.mark.parametrize("most", [0, 1, 3, 4])
def test_hashes_within_the_distance_share_a_band(most):
    rng = np.random.default_rng(most)
    one = rng.integers(0, 2**63, 300, np.uint64)
    flips = np.array([
        sum(1 << int(bit) for bit in rng.choice(64, most, replace=False)) for _ in one
    ], np.uint64)  # fmt: skip
    other = one ^ flips
    assert (perceptual.distance(one, other) == most).all()
    same = perceptual.bands(one, most) == perceptual.bands(other, most)
    assert same.any(axis=1).all()
    assert min(mask.bit_count() for mask in perceptual.masks(most)) >= 28
    unrelated = perceptual.bands(one, most)[:, None] == perceptual.bands(one, most)[None]
    assert not unrelated.any(axis=2)[np.triu_indices(300, 1)].any()


def test_minhash_estimates_the_jaccard_similarity():
    words = [f"w{i}" for i in range(40)]
    for shared in (10, 20, 30, 36):
        one = shingles([" ".join(words)])
        other = set(sorted(one)[:shared]) | {f"x{i}" for i in range(39 - shared)}
        exact = len(one & other) / len(one | other)
        equal = (minhash(one, 2048) == minhash(other, 2048)).mean()
        assert abs(equal - exact) < 4 * np.sqrt(exact * (1 - exact) / 2048)
    assert shingles(["Red, red DOG!"]) == {"red red", "red dog"} and shingles(["Dog"]) == {"dog"}
    assert minhash(set(), 8) is None


def test_bands_find_what_the_formula_says():
    step, rng, found, pairs = NearCaptions(), np.random.default_rng(0), 0, 300
    for _ in range(pairs):
        one = rng.integers(0, 2**32, 128, np.uint32)
        other = np.where(rng.random(128) < 0.8, one, one + np.uint32(1))
        rows = {near.SIGNATURE: np.stack([one, other]), "_has": np.ones(2, bool)}
        keys, _ = step.band_keys(_Rows(rows))
        found += (keys[0] == keys[1]).any()
    expected = 1 - (1 - 0.8**8) ** 16
    assert abs(found / pairs - expected) < 4 * np.sqrt(expected * (1 - expected) / pairs)


class _Rows(dict):
    def __len__(self):
        return 2


@pytest.fixture(scope="module")
def copies(pools, tmp_path_factory):
    """60 pictures; of every fifth two further versions, a smaller and a darker one."""
    rows = []
    for i in range(60):
        rows.append({"key": f"p{i}", "image": encoded(blobs(i)), "texts": [caption(i)]})
        if i % 5 == 0:
            small = encoded(blobs(i).resize((90, 90)), "JPEG", quality=80)
            dark = encoded(ImageEnhance.Brightness(blobs(i, 60)).enhance(0.9), "JPEG", quality=70)
            rows.append({"key": f"s{i}", "image": small, "texts": [caption(i).upper() + " again"]})
            rows.append({"key": f"d{i}", "image": dark, "texts": [caption(i) + "!"]})
    order = np.random.default_rng(0).permutation(len(rows))
    path = tmp_path_factory.mktemp("copies") / "pool.parquet"
    return pools.write(path, [rows[i] for i in order])


def caption(i):
    return " ".join(f"w{(i * 31 + j * j * 7) % 997}" for j in range(16))


@pytest.mark.parametrize("name", ["near_pictures", "near_captions"])
def test_planted_duplicates_go_and_the_rest_stays(pools, copies, tmp_path, name, monkeypatch):
    config = {"source": copies, "steps": [{"name": name}], "shard_size": 40}
    outcome = curate(config, tmp_path / "run")
    kept = {row["key"] for row in pools.table(tmp_path / "run", "kept")}
    assert outcome.kept == len(kept) == 60
    assert len({key[1:] for key in kept}) == 60, "one of each"
    if name == "near_pictures":
        assert kept == {f"p{i}" for i in range(60)}, "the largest of each"
    notes = outcome.report["steps"][1]["notes"]
    assert notes["components"] == 12 and notes["records in components"] == 36
    monkeypatch.setattr(flow, "_PART_RECORDS", 10)  # what is grouped is in nine parts
    other = curate({**config, "shard_size": 11}, tmp_path / "other")
    assert {row["key"] for row in pools.table(tmp_path / "other", "kept")} == kept
    assert other.report["steps"][1]["dropped"] == outcome.report["steps"][1]["dropped"]


def test_colours_tell_drawings_of_one_shape_apart(pools, tmp_path):
    rows = []
    for number, colour in enumerate(["red", "darkgreen", "#fc0a04"]):
        image = Image.new("RGB", (80, 80), "white")
        image.paste(Image.new("RGB", (30, 50), colour), (15, 20))
        rows.append({"key": f"key{number}", "image": encoded(image), "texts": ["a flag"]})
    source = pools.write(tmp_path / "pool.parquet", rows)
    for colour, count in ((16.0, 2), (255.0, 1)):
        step = {"name": "near_pictures", "colour": colour}
        assert curate({"source": source, "steps": [step]}, tmp_path / str(colour)).kept == count


def test_chains_are_one_component_and_large_ones_stay(pools, tmp_path):
    # Each caption shares 15 of 16 words with the next: ends have nothing in common.
    texts = [[" ".join(f"w{i + j}" for j in range(24))] for i in range(12)]
    source = pools.write(tmp_path / "chain.parquet", pools.rows(12, texts))
    step = {"name": "near_captions", "similarity": 0.75, "bands": 64, "rows": 4}
    assert curate({"source": source, "steps": [step]}, tmp_path / "a").kept == 1
    left = curate({"source": source, "steps": [{**step, "largest": 5}]}, tmp_path / "b")
    assert left.kept == 12
    note = left.report["steps"][1]["notes"]
    assert note["records in components of more than 5, which stay"] == 12
