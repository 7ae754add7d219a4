"""Scenes: pictures of another data set pasted together, with a box and a text for each.

``"scenes:emoji"`` is a data set with the splits of ``emoji`` and as many records. Record ``i``
shows picture ``i`` and up to three others on a coloured ground, and is the same each time: a
function of the record's number alone. Its caption is the joined names of what is seen, and ``meta``
has ``boxes`` and ``region_texts``. It is made for methods on regions, which want known boxes.
"""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image

from jaxclip.data import copy_paste, decode, order
from jaxclip.data.dataset import DataSet, RecordSource
from jaxclip.data.naming import BOXES, REGION_TEXTS
from jaxclip.data.record import BadRecord, Record

SIDE = 96
_OBJECTS = (2, 4)
_SIDES = (0.3, 0.6)  # of an object, as a share of the scene's
_MIN_VISIBLE = 0.4  # or an object counts as hidden
_SEED, _STREAM = 0, "scenes"
_DRAWS = 4 + 4 * _OBJECTS[1]


def of(base: DataSet) -> DataSet:
    """Scenes of the pictures of a data set."""
    return DataSet(f"scenes:{base.name}", base.splits, lambda split: Scenes(base.source(split)))


class Scenes(RecordSource):
    """Scenes of the pictures of a split."""

    def __init__(self, base: RecordSource):
        self._base = base

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: int) -> Record | BadRecord:
        u = order.uniforms(_SEED, np.array([index]), _DRAWS, _STREAM)[0].astype(np.float64)
        low, high = _OBJECTS
        count = low + min(int(u[0] * (high - low + 1)), high - low)
        ground = (160 + 90 * u[1:4]).astype(np.uint8)
        scene = copy_paste.Annotated(
            np.broadcast_to(ground, (SIDE, SIDE, 3)), np.zeros((0, SIDE, SIDE), bool), ()
        )
        for number, draw in enumerate(u[4:].reshape(-1, 4)[:count]):
            which = index if number == 0 else int(draw[0] * len(self._base))
            placed = self._placed(which, draw[1:])
            if isinstance(placed, BadRecord):
                if number == 0:
                    return placed
                continue
            scene = copy_paste.copy_paste(scene, placed, [0], min_visible=_MIN_VISIBLE)
        texts = scene.texts
        joined = texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
        boxes = copy_paste.boxes_of(scene.masks)
        meta = {BOXES: boxes.round(6).tolist(), REGION_TEXTS: list(texts)}
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(scene.pixels)).save(
            buffer, format="png", compress_level=1
        )
        return Record(buffer.getvalue(), (joined,), key=f"scene/{index}", meta=json.dumps(meta))

    def _placed(self, index: int, u: np.ndarray) -> copy_paste.Annotated | BadRecord:
        """A picture at a random size and place of a scene."""
        record = self._base[index]
        if isinstance(record, BadRecord):
            return record
        picture = decode.decode(record.image)
        if isinstance(picture, BadRecord):
            return picture
        if not record.texts:
            return BadRecord("empty_caption", "", record.key)
        side = max(8, round(SIDE * (_SIDES[0] + u[0] * (_SIDES[1] - _SIDES[0]))))
        small = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
        mask = copy_paste.object_mask(small)
        if not mask.any():
            return BadRecord("absurd_size", "the picture is all white", record.key)
        left, top = (int(x * (SIDE - side + 1)) for x in u[1:])
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[top : top + side, left : left + side] = small
        masks = np.zeros((1, SIDE, SIDE), bool)
        masks[0, top : top + side, left : left + side] = mask
        return copy_paste.Annotated(pixels, masks, (record.texts[0],))
