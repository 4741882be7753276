"""Decodes recorded frames in order and in chunks. A frame that cannot be decoded raises an error.

Embeddings must not depend on the installed packages. So torchcodec decodes a video only if its frames are bit-equal to
PyAV's, and PyAV decodes all others. Bit-equal (FFmpeg 5.1 and 7.1) are 8-bit AV1 videos (lerobot's default) of limited
range in BT.601 or unspecified colours. PyAV ignores any other colour space and torchcodec does not: up to 50 of 255
levels apart. H.264 needs PyAV: the decoder conceals damage and only marks the frame, and torchcodec drops the mark.
With 64 bytes overwritten, torchcodec showed 55 of 60 files without an error, this module 13. No format has a checksum,
so both miss some damage (AV1 17 of 60 files, HEVC 49).
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from av.error import FFmpegError
from PIL import Image

from srpo_robot.errors import UndecodableFrame, one_line

# Silence libav's log: its errors become exceptions, which say more. The level is None, because PyAV's log callback
# needs the GIL. The thread that closes a damaged file holds the GIL while it waits for libav's threads: a deadlock. The
# second line is for libav's default callback, which lerobot's writer restores.
av.logging.set_level(None)
av.logging.set_libav_level(av.logging.FATAL)

CHUNK = 32  # frames; 88 MB of 720x1280
REORDER_S = 1.0  # packets are in decoding order: a packet may follow another that is shown this much later
STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}  # damage is an error; libav does not conceal it
_BT601 = (2, 5, 6)  # colour spaces that PyAV converts correctly: unspecified, BT.470BG, SMPTE 170M
_FULL_RANGE = 2


@dataclass(frozen=True, kw_only=True)
class Video:
    """Location of one episode's frames. Many episodes may share a file.

    Attributes:
        name: episode and camera, for messages.
        path: the file.
        start_s, end_s: time at which the first frame appears and the last one disappears [s].
        length: number of frames.
        fps: frames per second.
    """

    name: str
    path: Path
    start_s: float
    end_s: float
    length: int
    fps: float


def broken(name: str, frame: int, why: object) -> UndecodableFrame:
    """Returns the error for frame `frame` of `name`, an episode and camera."""
    return UndecodableFrame(
        f"{name}, frame {frame} cannot be decoded ({why}); "
        "record the episode again, or go on without it: --skip-bad-episodes"
    )


def joined(chunks: Iterable[np.ndarray], length: int) -> np.ndarray:
    """Concatenates chunks (n, ...) into one array (length, ...), with one chunk at a time in memory.

    Raises:
        ValueError: the chunks have another total length.
    """
    whole, at = np.empty(0), 0
    for chunk in chunks:
        if at == 0:
            whole = np.empty((length, *chunk.shape[1:]), chunk.dtype)
        whole[at : at + len(chunk)] = chunk
        at += len(chunk)
        del chunk  # free it before the next one is decoded
    if at != length:
        raise ValueError(f"{at} of {length} frames")
    return whole


def video_chunks(video: Video, chunk: int = CHUNK) -> Iterator[np.ndarray]:
    """Yields all frames of `video` in chunks: uint8 (at most `chunk`, H, W, 3) RGB.

    Raises:
        UndecodableFrame: a frame is damaged or missing. The message names the first such frame.
    """
    # torchcodec stops at the first irregularity. PyAV continues there and reports the reason.
    done = yield from _by_torchcodec(video, chunk)
    yield from _gathered(_by_pyav(video, done), video.length - done, chunk, video.name, done)


def image_chunks(name: str, cells: Iterable[Any], root: Path, length: int, chunk: int = CHUNK) -> Generator[np.ndarray]:
    """Yields frames as `video_chunks` does, from compressed images in `cells` {"bytes", "path"}. Raises the same."""

    def frames() -> Iterator[np.ndarray]:
        for number, cell in enumerate(cells):
            try:
                frame = _image(cell, root)
            except MemoryError:
                raise
            except Exception as error:  # PIL's readers raise dozens of exception types
                raise broken(name, number, one_line(error)) from None
            yield frame

    yield from _gathered(frames(), length, chunk, name)


def image_content(cell: Any) -> bytes:
    """Returns bytes that identify a cell of `image_chunks`."""
    return (cell["bytes"] or str(cell["path"]).encode()) if isinstance(cell, dict) else repr(cell).encode()


def video_packets(video: Video) -> Iterator[bytes]:
    """Yields the compressed frames of `video` in file order.

    Raises:
        UndecodableFrame: the file cannot be read.
    """
    with _opened(video) as (container, stream):
        half = 0.5 / video.fps
        try:
            for packet in container.demux(stream):
                if packet.pts is None:
                    continue
                seconds = float(packet.pts * stream.time_base)
                if video.start_s - half <= seconds < video.end_s - half:
                    yield bytes(packet)
                elif seconds > video.end_s + REORDER_S:
                    return
        except FFmpegError as error:
            raise UndecodableFrame(f"{video.name}: {video.path.name} cannot be read: {error.strerror}") from None


@cache
def torchcodec_decoder() -> Any:
    """Returns torchcodec's VideoDecoder, None if torchcodec is not installed or finds no FFmpeg libraries."""
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception:  # RuntimeError, ImportError or OSError
        return None
    return VideoDecoder


def _by_torchcodec(video: Video, chunk: int) -> Generator[np.ndarray, None, int]:
    """Yields frames until the first irregularity. Returns their number."""
    decoder = _decoder_for(video)
    if decoder is None:
        return 0
    for done in range(0, video.length, chunk):
        frames = _range(decoder, video, done, min(chunk, video.length - done))
        if frames is None:
            return done
        yield frames
        del frames  # free them before the next ones are decoded
    return video.length


def _decoder_for(video: Video) -> Any:
    """Returns a torchcodec decoder, None if PyAV's frames would differ or PyAV detects more damage."""
    make = torchcodec_decoder()
    if make is None:
        return None
    with _opened(video) as (_, stream):
        context = stream.codec_context
        if (context.codec.canonical_name, context.pix_fmt) != ("av1", "yuv420p"):
            return None
        if context.colorspace not in _BT601 or context.color_range == _FULL_RANGE:
            return None
    try:
        # "approximate" avoids a scan of the whole file for each episode. `_range` checks the time of each frame.
        return make(str(video.path), dimension_order="NHWC", num_ffmpeg_threads=0, seek_mode="approximate")
    except (RuntimeError, ValueError, AssertionError):
        return None


def _range(decoder: Any, video: Video, done: int, count: int) -> np.ndarray | None:
    """Returns frames done, done + 1, ... of the episode, None if one is missing or has the wrong time."""
    start = round(video.start_s * video.fps) + done
    try:
        batch = decoder.get_frames_in_range(start, start + count)
    except (RuntimeError, IndexError, ValueError):
        return None
    numbers = (batch.pts_seconds.numpy() - video.start_s) * video.fps
    if len(numbers) != count or np.any(np.abs(numbers - np.arange(done, done + count)) >= 0.5):
        return None
    return batch.data.numpy()


def _by_pyav(video: Video, first: int) -> Generator[np.ndarray]:
    """Yields frames from number `first` on: uint8 (H, W, 3). Raises as `video_chunks`.

    libav's threads report damage late and at the wrong frame. From the first report on, a single thread decodes, which
    attributes damage to the right frame or to another episode.
    """
    done = yield from _undamaged(video, first)
    number, bad = done, dict[int, str]()
    if done == video.length:
        return
    with _opened(video, done, threads=1) as (container, stream):
        for at, frame, why in _shown(_own_packets(video, container, stream), video, stream):
            if why:
                bad[number if at is None else at] = why
            elif at == number and at not in bad:
                yield frame.to_ndarray(format="rgb24")
                number += 1
                if number == video.length:
                    return
            elif at is None or at >= done:
                raise broken(video.name, number, bad.get(number, "the frame is missing"))
    raise broken(video.name, number, bad.get(number, "the video ends there"))


def _undamaged(video: Video, first: int) -> Generator[np.ndarray, None, int]:
    """Yields frames from `first` on until the first irregularity. Returns the number of the next frame."""
    number = first
    if first == video.length:
        return number
    with _opened(video, first) as (container, stream):
        for at, frame, why in _shown(container.demux(stream), video, stream):
            if not why and at is not None and at < first:
                continue
            if why or at != number:
                break
            yield frame.to_ndarray(format="rgb24")
            number += 1
            if number == video.length:
                break
    return number


def _shown(packets: Iterator[Any], video: Video, stream: Any) -> Iterator[tuple[int | None, Any, str]]:
    """Yields (number in the episode, frame, ""). For a failed packet or a damaged frame the last item is the reason."""
    while True:
        packet = None
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = stream.codec_context.decode(packet if packet.size else None)
        except FFmpegError as error:
            yield _number(packet, video, stream), None, str(error.strerror)
            continue
        for frame in frames:
            yield _number(frame, video, stream), frame, "its data are damaged" if frame.is_corrupt else ""


def _own_packets(video: Video, container: Any, stream: Any) -> Iterator[Any]:
    """Yields packets up to the episode's end, then an empty one that flushes the decoder.

    Without the flush, damage in the next episode would make the decoder drop the last frames of this one.
    """
    for packet in container.demux(stream):
        at = _number(packet, video, stream)
        if at is not None and at >= video.length + REORDER_S * video.fps:
            break
        if packet.size and (at is None or at < video.length):
            yield packet
    yield av.Packet()


def _number(timed: Any, video: Video, stream: Any) -> int | None:
    """Returns the frame number of a packet or decoded frame in its episode, by its time."""
    if timed is None or timed.pts is None:
        return None
    return round((float(timed.pts * stream.time_base) - video.start_s) * video.fps)


@contextmanager
def _opened(video: Video, frame: int = 0, threads: int = 0) -> Iterator[tuple[Any, Any]]:
    """Opens the file in strict mode at a keyframe not after `frame`. Yields the container and its video stream.

    Args:
        threads: number of decoder threads; 0: libav's choice.

    Raises:
        UndecodableFrame: the file does not exist, holds no video, or cannot be read there.
    """
    try:
        container = av.open(str(video.path))
    except (FFmpegError, OSError) as error:
        raise broken(video.name, frame, f"{video.path.name} cannot be opened: {error.strerror}") from None
    with container:
        if not container.streams.video:
            raise broken(video.name, frame, f"{video.path.name} holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "NONE" if threads == 1 else "AUTO"
        stream.codec_context.thread_count = threads
        stream.codec_context.options = STRICT
        try:
            _seek(container, stream, video.start_s + frame / video.fps, video.fps)
        except FFmpegError as error:
            raise broken(video.name, frame, f"{video.path.name} cannot be read: {error.strerror}") from None
        yield container, stream


def _seek(container: Any, stream: Any, at_s: float, fps: float) -> None:
    """Seeks to a keyframe not after `at_s`.

    libav seeks by decoding time. If frames are not stored in presentation order, it may land too late, so this retries
    with an earlier target.
    """
    if at_s <= 0:
        return
    for back_s in (1 / fps, REORDER_S, at_s):
        target = int(max(at_s - back_s, 0) / stream.time_base)
        container.seek(target, stream=stream)
        packet = next(container.demux(stream), None)
        if packet is None or packet.pts is None or float(packet.pts * stream.time_base) < at_s + 0.5 / fps:
            break
    container.seek(target, stream=stream)


def _gathered(
    frames: Iterator[np.ndarray], length: int, chunk: int, name: str, first: int = 0
) -> Generator[np.ndarray]:
    """Yields `length` frames in chunks. The first frame has number `first`. Raises UndecodableFrame."""
    for done in range(0, length, chunk):
        yield _gather(
            frames, min(chunk, length - done), name, first + done
        )  # no local reference: only the consumer holds the chunk


def _gather(frames: Iterator[np.ndarray], count: int, name: str, first: int) -> np.ndarray:
    whole = np.empty(0)
    for row in range(count):
        frame = next(frames, None)
        if frame is None:
            raise broken(name, first + row, "the frame is missing")
        if row == 0:
            whole = np.empty((count, *frame.shape), frame.dtype)
        if frame.shape != whole.shape[1:]:
            raise broken(name, first + row, f"it is {_size(frame)}, the frame before it {_size(whole[0])}")
        whole[row] = frame
    return whole


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"


def _image(cell: Any, root: Path) -> np.ndarray:
    """Decodes a cell to uint8 (H, W, 3). Raises PIL's exceptions, and ValueError if the colours are not 8-bit."""
    if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
        raise ValueError("the frame is missing" if not cell or isinstance(cell, dict) else "it is not a stored image")
    with Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] else root / cell["path"]) as image:
        # PIL would clip such pixels to 0..255 and turn NaN black.
        if image.mode.startswith(("F", "I")):
            kind = "floating-point numbers, which may be NaN" if image.mode == "F" else "integers of more than 8 bits"
            raise ValueError(f"its pixels are {kind}; give a camera of 8-bit colours")
        return np.asarray(image.convert("RGB"))
