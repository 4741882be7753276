"""Selects frames of an episode, tiles them into a film strip and packs them as JPEG."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

GAP = 4  # white space between the frames of a strip [px]


def spread(length: int, count: int) -> np.ndarray:
    """Returns at most `count` frame numbers evenly over 0..length-1, including both ends: (m,) increasing."""
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64))


def resized(frame: np.ndarray, height: int) -> np.ndarray:
    """Resizes a frame uint8 (H, W, 3) to `height` pixels and keeps its aspect ratio: uint8 (height, w, 3)."""
    width = max(1, round(frame.shape[1] * height / frame.shape[0]))
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


def tiled(frames: list[np.ndarray], columns: int, gap: int = GAP) -> np.ndarray:
    """Tiles frames of one shape row by row on white: uint8 (H', W', 3)."""
    height, width = frames[0].shape[:2]
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for place, frame in enumerate(frames):
        top, left = place // columns * (height + gap), place % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def film_strip(frames: np.ndarray, count: int, columns: int, height: int) -> np.ndarray:
    """Tiles `count` frames of an episode (T, H, W, 3), each `height` pixels high, `columns` per row."""
    return tiled([resized(frames[t], height) for t in spread(len(frames), count)], columns)


def jpeg(image: np.ndarray | Image.Image, quality: int = 72) -> bytes:
    """Encodes uint8 (H, W, 3) as JPEG."""
    packed = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(packed, "JPEG", quality=quality, optimize=True)
    return packed.getvalue()


def shrunk(path: Path) -> bytes:
    """Converts a figure's PNG file to JPEG: a third of the bytes for photographs, and text stays sharp."""
    with Image.open(path) as figure:
        return jpeg(figure.convert("RGB"), quality=88)


def data_uri(picture: bytes) -> str:
    """Returns a JPEG or PNG as a data URI, for a page that needs no other file."""
    kind = "jpeg" if picture.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
