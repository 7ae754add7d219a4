"""The fast backend beside Pillow: same decisions, nearly the same pixels, same batches."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxclip.data import image_backend, image_op, image_ops, order, pipeline
from jaxclip.data.image_backend import Fast, Picture, Pillow
from jaxclip.data.loader import RecordLoader
from jaxclip.data.record import BadRecord, Record

pytest.importorskip("simplejpeg")
pytest.importorskip("cykooz_resizer")


def photograph(width, height, seed=0):
    """Smooth shapes with edges, about as detailed as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (max(2, height // 20), max(2, width // 20), 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image, **options):
    stream = io.BytesIO()
    image.save(stream, "JPEG", **{"quality": 90, **options})
    return stream.getvalue()


def whole(size):
    return []


def through(backend, data, chain, u):
    """One picture through a loader's own way."""
    picture = backend.decode(data, lambda size: [chain.first_cut(size, u[0])])
    if backend.cut is None:
        return chain([picture.pixels], u)[0]
    return chain([backend.cut(picture, chain.first_cut(picture.size, u[0]))], u, first_done=True)[0]


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}, {"optimize": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_whole_pictures_are_pillows_to_the_bit(options, mode):
    data = jpeg(photograph(123, 77).convert(mode), **options)
    ours, theirs = Fast().decode(data, whole), Pillow().decode(data, whole)
    assert ours.size == theirs.size == (123, 77)
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)


@pytest.mark.parametrize("ops", ["random_resized_crop(0.3, 1.0)", "resize", "resize_small"])
@pytest.mark.parametrize("seed", range(4))
def test_cuts_are_within_a_grey_level_of_pillows(ops, seed):
    chain = image_ops.build(ops, 64)
    data = jpeg(photograph(120, 100, seed))
    u = order.uniforms(seed, np.arange(1), chain.num_draws)
    if ops == "resize_small":
        chain = image_ops.build("resize_small|center_crop", 64)
    difference = np.abs(
        through(Fast(), data, chain, u).astype(int) - through(Pillow(), data, chain, u)
    )
    assert difference.mean() < 0.3
    assert (difference > 1).mean() < 0.001


@pytest.mark.parametrize("method", ["box", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_columns_that_a_cut_does_not_see_are_not_copied(method, axis, monkeypatch):
    pixels = np.asarray(photograph(90, 400))
    cut = image_op.Cut((3.2, 180.4, 80.7, 230.9), (30, 12), method)
    if axis:
        pixels = pixels.transpose(1, 0, 2).copy()
        cut = image_op.Cut((180.4, 3.2, 230.9, 80.7), (12, 30), method)
    other = pixels.copy().swapaxes(0, axis)
    other[:140], other[270:] = 0, 255
    size, fast, copied = (pixels.shape[1], pixels.shape[0]), Fast(), []
    image = fast._local.image
    monkeypatch.setattr(fast._local, "image", lambda *a: copied.append(a[:2]) or image(*a))
    expected = fast.cut(Picture(pixels, size), cut)
    made = fast.cut(Picture(other.swapaxes(0, axis), size), cut)
    np.testing.assert_array_equal(made, expected)
    assert max(side[1 - axis] for side in copied) < 90 < max(side[axis] for side in copied) + 10
    filter_of = getattr(Image.Resampling, method.upper())
    theirs = np.asarray(Image.fromarray(pixels).resize(cut.size, filter_of, box=cut.box))
    assert np.abs(expected.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "shrink"), [(300, 200, 2), (150, 127, 1), (600, 512, 8)]
)
def test_large_photographs_are_decoded_small_enough_and_no_smaller(width, height, shrink):
    chain = image_ops.build("resize", 64)
    data, u = jpeg(photograph(width, height)), np.zeros((1, 0), np.float32)
    picture = Fast().decode(data, lambda size: [chain.first_cut(size, u[0])])
    assert picture.size == (width, height)
    assert picture.pixels.shape == (-(-height // shrink), -(-width // shrink), 3)
    difference = through(Fast(), data, chain, u).astype(int) - through(Pillow(), data, chain, u)
    assert np.abs(difference).mean() < 2.0
    # Where a view needs the whole picture, it gets it.
    assert Fast().decode(data, whole).pixels.shape == (height, width, 3)


@pytest.mark.parametrize(("side", "shrink"), [(475, 4), (449, 4), (603, 4), (301, 2), (805, 8)])
def test_a_smaller_version_whose_side_is_rounded_is_cut_where_its_pixels_are(side, shrink):
    chain, u = image_ops.build("resize", 100), np.empty((1, 0), np.float32)
    found = []
    for size in (side, -(-side // 8) * 8):
        image = photograph(64, 64).resize((size, size), Image.Resampling.BICUBIC)
        data = jpeg(image, subsampling=0, quality=98)
        assert Fast().decode(data, lambda size: [chain.first_cut(size, u[0])]).shrink == shrink
        difference = through(Fast(), data, chain, u).astype(int) - through(Pillow(), data, chain, u)
        found.append(np.abs(difference).mean())
    assert found[0] < 1.25 * found[1]


@pytest.mark.parametrize("start", [0.0, 0.3, 1 / 7])
def test_no_box_ends_behind_its_picture(start):
    for side in range(200, 1200):
        for shrink in (1, 2, 4, 8):
            cut = image_op.Cut((start * side, 0.0, side, side), (25, 25), "bicubic")
            rows, columns, box = image_backend._seen((side, side), shrink, cut)
            whole = -(-side // shrink)
            assert box.left + box.width <= min(whole, columns.stop) - columns.start
            assert box.top + box.height <= min(whole, rows.stop) - rows.start


def test_orientation_cmyk_and_other_formats_are_pillows():
    exif = Image.Exif()
    image = photograph(60, 40)
    for orientation in (1, 6):
        exif[0x0112] = orientation
        data = jpeg(image, exif=exif)
        ours, theirs = Fast().decode(data, whole), Pillow().decode(data, whole)
        assert ours.size == theirs.size == ((60, 40) if orientation == 1 else (40, 60))
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    png = io.BytesIO()
    image.save(png, "PNG")
    for data in (jpeg(image.convert("CMYK")), png.getvalue()):
        np.testing.assert_array_equal(
            Fast().decode(data, whole).pixels, Pillow().decode(data, whole).pixels
        )


def damaged(kind):
    data = jpeg(photograph(90, 70))
    if kind == "half":
        return data[: len(data) // 2]
    if kind == "end":
        return data[:-40]
    if kind == "trailing":
        return data + b"trailing garbage"
    if kind == "between":
        quantisation = data.index(b"\xff\xdb")
        return data[:quantisation] + b"\x00\x00" + data[quantisation:]
    return {"nothing": b"", "header": data[:20], "text": b"<html>not found</html>"}[kind]


@pytest.mark.parametrize(
    "kind", ["half", "end", "trailing", "between", "nothing", "header", "text"]
)
def test_what_pillow_refuses_is_refused_and_what_it_accepts_is_accepted(kind):
    ours, theirs = Fast().decode(damaged(kind), whole), Pillow().decode(damaged(kind), whole)
    assert isinstance(ours, BadRecord) == isinstance(theirs, BadRecord)
    if isinstance(ours, BadRecord):
        assert ours.reason == theirs.reason
    else:
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)


def test_absurd_sizes_are_refused_before_a_pixel_is_decoded():
    assert Fast().decode(jpeg(Image.new("RGB", (400, 4))), whole).reason == "absurd_size"


class Source:
    """Photographs of several sizes, every fifth one damaged."""

    def __init__(self):
        sizes = [(70, 50), (200, 150), (90, 90), (400, 300)]
        self.data = [jpeg(photograph(*sizes[n % 4], seed=n)) for n in range(20)]
        self.data[::5] = [data[:300] for data in self.data[::5]]

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return Record(self.data[index], ("a caption",), key=str(index))


@pytest.mark.parametrize("ops", ["random_resized_crop(0.5, 1.0)|flip", "flip|resize"])
def test_threads_caches_and_batches_change_no_pixel(ops):
    source, chain = Source(), image_ops.build(ops, 32)
    places = np.arange(40) % 20
    u = order.uniforms(3, np.arange(40), chain.num_draws)

    def run(threads, cache, sizes):
        loader = RecordLoader(
            source, {"image": chain}, num_threads=threads, cache_decoded_mb=cache, backend=Fast()
        )
        made, start = [], 0
        for size in sizes:
            rows = slice(start, start + size)
            replacement = lambda row, attempt, start=start: (7 * (start + row) + attempt) % 20  # noqa: E731
            made.append(loader.batch(places[rows], {"image": u[rows]}, replacement)[0]["image"])
            start += size
        loader.close()
        return np.concatenate(made)

    expected = run(1, 0, [40])
    for threads, cache, sizes in ((3, 0, [40]), (2, 64, [40]), (1, 64, [10, 30]), (2, 1, [1] * 40)):
        np.testing.assert_array_equal(run(threads, cache, sizes), expected)


class Watched(Source):
    """Notes what is done with which record."""

    def __init__(self, log):
        super().__init__()
        self.log, self.cut = log, None

    def __getitem__(self, index):
        self.log.append(("read", index))
        return super().__getitem__(index)

    def prepare(self, data, cuts):
        self.log.append(("prepare", self.data.index(data)))
        return lambda: self.decode(data, cuts)

    def decode(self, data, cuts):
        self.log.append(("decode", self.data.index(data)))
        return Pillow().decode(data, cuts)

    def is_whole(self, size, largest):
        return True


@pytest.mark.parametrize("singly", [False, True])
def test_some_records_are_read_before_the_first_is_decoded_but_not_with_care(singly):
    log, first = [], ("read", "prepare")
    watched, chain = Watched(log), image_ops.build("resize", 224)
    loader = RecordLoader(watched, {"image": chain}, num_threads=1, backend=watched)
    views = {"image": np.empty((6, 224, 224, 3), np.uint8)}
    draws = {"image": np.empty((6, 0), np.float32)}
    found = loader.outcomes(np.arange(6), draws, views, singly=singly)
    assert [isinstance(each, BadRecord) for each in found] == [True] + [False] * 4 + [True]
    steps = [(step, n) for n in range(6) for step in first] + [("decode", n) for n in range(6)]
    assert log == (sorted(steps, key=lambda step: step[1]) if singly else steps)
    log.clear()  # what is known to be bad is not read again
    loader.outcomes(np.array([0, 1, 5]), {"image": draws["image"][:3]}, views)
    assert log == [("read", 1), ("prepare", 1), ("decode", 1)]


@pytest.mark.parametrize("ops", ["resize", "resize|color_jitter", "flip|resize"])
@pytest.mark.parametrize("backend", [Fast, Pillow])
def test_whole_pictures_do_not_wait_for_others(backend, ops, monkeypatch):
    log, chain, ours = [], image_ops.build(ops, 224), backend()
    prepare, run = ours.prepare, image_ops.Chain.__call__

    def prepared(data, cuts):
        decode = prepare(data, cuts)
        return lambda: log.append("decode") or decode()

    def watched(self, images, *args, **options):
        log.extend(["ops"] * len(images))
        return run(self, images, *args, **options)

    monkeypatch.setattr(ours, "prepare", prepared)
    monkeypatch.setattr(image_ops.Chain, "__call__", watched)
    loader = RecordLoader(Source(), {"image": chain}, num_threads=1, backend=ours)
    views = {"image": np.empty((4, 224, 224, 3), np.uint8)}
    loader.outcomes(np.arange(1, 5), {"image": np.ones((4, chain.num_draws), np.float32)}, views)
    together = backend is Fast and ops != "flip|resize"
    assert log == (["decode"] * 4 + ["ops"] * 4 if together else ["decode", "ops"] * 4)


@pytest.mark.parametrize("cache", [0, 64])
def test_a_record_that_comes_twice_has_the_pixels_of_each_rows_draws(cache):
    chain = image_ops.build("random_resized_crop(0.1, 0.4)|flip", 32)
    u = order.uniforms(5, np.arange(6), chain.num_draws)

    def run(rows, cache):
        loader = RecordLoader(
            Source(), {"image": chain}, num_threads=1, cache_decoded_mb=cache, backend=Fast()
        )
        return loader.batch(np.full(len(rows), 3), {"image": u[rows]}, None)[0]["image"]

    singles = np.concatenate([run([row], 0) for row in range(6)])
    np.testing.assert_array_equal(run(list(range(6)), cache), singles)


def test_a_cut_keeps_its_pixels_when_the_next_is_made():
    fast, cut = Fast(), image_op.Cut((3.0, 4.0, 60.5, 70.0), (20, 20), "bicubic")
    pictures = [Picture(np.asarray(photograph(90, 80, seed)), (90, 80)) for seed in range(2)]
    first = fast.cut(pictures[0], cut)
    kept = first.copy()
    assert (fast.cut(pictures[1], cut) != kept).any()
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("backend", [Fast, Pillow])
def test_pictures_are_kept_no_longer_than_views_need_them(backend):
    chain = image_ops.build("resize", 16)
    numbers, draws = np.arange(1, 5), {"image": np.empty((4, 0), np.float32)}
    for need, rows in ((False, [0] * 4), (True, [150, 90, 300, 50])):
        loader = RecordLoader(Source(), {"image": chain}, backend=backend(), need_pixels=need)
        views, loaded = loader.batch(numbers, draws, None)
        loader.close()
        assert [len(each.pixels) for each in loaded] == rows
        assert [each.size for each in loaded] == [(200, 150), (90, 90), (400, 300), (70, 50)]
        assert views["image"].std(axis=(1, 2, 3)).min() > 1


@pytest.mark.parametrize("ops", ["flip", "flip(p=1.0)|resize", "resize|flip|color_jitter"])
def test_a_chain_writes_the_same_to_memory_that_it_is_given(ops):
    chain = image_ops.build(ops, 24)
    pixels = [np.asarray(photograph(*size)) for size in ((24, 24), (40, 30), (24, 24), (20, 24))]
    u = order.uniforms(1, np.arange(4), chain.num_draws)
    expected = chain(pixels, u)
    memory = np.full((6, 24, 24, 3), 7, np.uint8)
    assert chain(pixels, u, out=memory[1:5]).base is memory
    np.testing.assert_array_equal(memory[1:5], expected)
    assert (memory[[0, 5]] == 7).all()
    singles = [chain([each], row[None])[0] for each, row in zip(pixels, u, strict=True)]
    np.testing.assert_array_equal(np.stack(singles), expected)


def test_the_name_is_checked_and_the_libraries_are_named(monkeypatch):
    with pytest.raises(ValueError, match="unknown image backend 'fats'; did you mean 'fast'"):
        pipeline.check_spec({"image_backend": "fats"}, {})
    image_backend._imported.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "simplejpeg", None)
    with pytest.raises(ValueError, match="needs simplejpeg, which is not installed"):
        pipeline.check_spec({"image_backend": "fast"}, {})
    image_backend._imported.cache_clear()


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("restart", [0, 3])
@pytest.mark.parametrize(
    "ops", ["random_resized_crop(0.08, 0.6)", "random_resized_crop(0.02, 0.1)"]
)
def test_rows_below_a_cut_are_not_decoded_and_change_nothing(
    subsampling, restart, ops, monkeypatch
):
    data = jpeg(
        photograph(301, 233),
        subsampling=subsampling,
        restart_marker_rows=restart,
    )
    for size in (17, 64):
        chain = image_ops.build(ops, size)
        u = order.uniforms(9, np.arange(12), chain.num_draws)
        made, rows = [], []
        for row in u:
            cut = chain.first_cut((301, 233), row)
            picture = Fast().decode(data, lambda size, cut=cut: [cut])
            rows.append(len(picture.pixels) * picture.shrink)
            made.append(Fast().cut(picture, cut))
        assert min(rows) < 0.75 * 233
        with monkeypatch.context() as patch:
            patch.setattr(image_backend.jpeg_header, "shortened", lambda *_: None)
            for image, row in zip(made, u, strict=True):
                cut = chain.first_cut((301, 233), row)
                whole_one = Fast().decode(data, lambda size, cut=cut: [cut])
                np.testing.assert_array_equal(image, Fast().cut(whole_one, cut))


@pytest.mark.parametrize("kind", ["half", "end", "between", "header"])
def test_a_file_that_ends_early_is_refused_though_its_end_is_not_wanted(kind):
    cut = image_op.Cut((0.0, 0.0, 20.0, 10.0), (8, 8), "bicubic")
    ours, theirs = (
        Fast().decode(damaged(kind), lambda size: [cut]),
        Pillow().decode(damaged(kind), whole),
    )
    assert isinstance(ours, BadRecord) == isinstance(theirs, BadRecord)


def test_progressive_files_are_decoded_whole():
    cut = image_op.Cut((0.0, 0.0, 20.0, 10.0), (8, 8), "bicubic")
    picture = Fast().decode(jpeg(photograph(90, 70), progressive=True), lambda size: [cut])
    assert picture.pixels.shape == (70, 90, 3)


def test_flip_is_the_same_in_each_form():
    chain = image_ops.build("flip(p=1.0)", 16)
    pixels = np.asarray(photograph(16, 16))
    u = np.zeros((1, 1), np.float32)
    (_, flip, _, _), *_ = chain.steps
    expected = pixels[:, ::-1]
    np.testing.assert_array_equal(flip.pixels(pixels, u[0]), expected)
    np.testing.assert_array_equal(np.asarray(flip.example(Image.fromarray(pixels), u[0])), expected)
    planes = flip.batch(pixels.transpose(2, 0, 1)[None].astype(np.float32), u)
    np.testing.assert_array_equal(planes[0].transpose(1, 2, 0), expected)
    np.testing.assert_array_equal(chain([pixels], u)[0], expected)
