"""A thumbnail is a JPEG in a data URI; small images are enlarged by a whole number."""

from __future__ import annotations

import base64
import io

from PIL import Image

from skipnets.report.thumbnails import data_uri, thumbnail_scale


def test_a_data_uri_holds_the_image() -> None:
    kind, _, data = data_uri(Image.new("RGB", (30, 20), (200, 30, 60))).partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.size) == ("JPEG", (30, 20))


def test_scales() -> None:
    scales = {side: thumbnail_scale(Image.new("L", (side, 8))) for side in (8, 32, 100, 112, 224)}
    assert scales == {8: 14, 32: 4, 100: 1, 112: 1, 224: 0.5}
