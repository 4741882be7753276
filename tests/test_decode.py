"""Decoding: chunks, damage, files that many episodes share, and two decoders that must give the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import SQUARES, record_squares
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import srpo_robot.buffer.decode as decode
from srpo_robot.buffer.decode import Video, image_chunks, joined, video_chunks, video_packets
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.errors import UndecodableFrame

os.environ.setdefault("SVT_LOG", "1")  # only errors are logged, also in child processes

FPS, LENGTH, WIDTH, HEIGHT = 10, 30, 96, 64
AV1 = ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"})
H264 = ("libx264", {"g": "2", "crf": "23"})
HEVC = ("libx265", {"x265-params": "keyint=12:log-level=0"})  # open groups of pictures, as x265 makes them by default


def write_video(path: Path, coding: tuple[str, dict[str, str]] = AV1, width: int = WIDTH, **context: int) -> Path:
    """Writes LENGTH frames of moving noise. `context` sets colour space and range of the encoder."""
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, width // 8 + 1, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)[:, :width]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(coding[0], rate=FPS, options=coding[1])
        stream.width, stream.height, stream.pix_fmt = width, HEIGHT, "yuv420p"
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for number in range(LENGTH):
            frame = av.VideoFrame.from_ndarray(np.roll(texture, 3 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    codings = {"av1": AV1, "h264": H264, "hevc": HEVC}
    return {name: write_video(folder / f"{name}.mp4", coding) for name, coding in codings.items()}


@pytest.fixture
def by_pyav(monkeypatch):
    monkeypatch.setattr(decode, "torchcodec_decoder", lambda: None)


def span(path: Path, first: int = 0, end: int = LENGTH) -> Video:
    """Returns frames first .. end - 1 of a file as an episode."""
    return Video(name="episode 7, front", path=path, start_s=first / FPS, end_s=end / FPS, length=end - first, fps=FPS)


def frames(video: Video) -> np.ndarray:
    return joined(video_chunks(video), video.length)


def shrink(chunk: np.ndarray) -> np.ndarray:
    return chunk[:, ::4, ::4].copy()


def packets(path: Path) -> list[tuple[int, int]]:
    """Returns (position, size) of each frame's bytes in the file, in display order."""
    with av.open(str(path)) as container:
        rows = [(packet.pts or 0, packet.pos or 0, packet.size) for packet in container.demux() if packet.size]
    return [(position, size) for _, position, size in sorted(rows)]


def damaged(path: Path, frame: int, target: Path) -> Path:
    """Returns a copy in which the frame `frame` is overwritten."""
    content = bytearray(path.read_bytes())
    position, size = packets(path)[frame]
    content[position : position + size] = b"\xff" * size
    target.write_bytes(content)
    return target


# --- chunks


@given(st.integers(1, 40), st.integers(0, LENGTH - 1), st.data())
def test_chunks_together_are_the_whole_span_in_order(files, chunk, first, data):
    end = data.draw(st.integers(first + 1, LENGTH))
    chunks = list(video_chunks(span(files["av1"], first, end), chunk))
    assert [len(part) for part in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    assert np.array_equal(np.concatenate(chunks), frames(span(files["av1"]))[first:end])


def test_no_chunk_is_kept(files):
    alive: list[weakref.ref] = []
    for chunk in video_chunks(span(files["av1"]), 4):
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(chunk))
        del chunk
    assert len(alive) == 8


def test_memory_is_one_chunk_and_its_result(tmp_path):
    path = write_video(tmp_path / "wide.mp4", width=1280)
    frame = HEIGHT * 1280 * 3
    frames(span(path, 0, 1))  # the first call allocates buffers that stay
    tracemalloc.start()
    small = joined(map(shrink, video_chunks(span(path), 5)), LENGTH)  # a generator would hold on to its chunk
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < small.nbytes + 8 * frame  # a chunk, its small copy, and the frames that PyAV hands over
    assert LENGTH * frame > 2 * peak


def test_missing_chunks_are_an_error():
    with pytest.raises(ValueError, match="3 of 4 frames"):
        joined([np.zeros((3, 2))], 4)


@pytest.mark.parametrize("name", ["av1", "h264", "hevc"])
def test_every_span_of_a_shared_file_is_decoded(files, by_pyav, name):
    """libav seeks by decoding time. In HEVC's default order that is too late for a frame just before a keyframe."""
    whole = frames(span(files[name]))
    for first in range(LENGTH):
        part = span(files[name], first, min(first + 3, LENGTH))
        assert np.array_equal(frames(part), whole[first : first + 3]), first
        assert len(list(video_packets(part))) == part.length


# --- damage


@pytest.mark.parametrize("name", ["av1", "h264"])
@pytest.mark.parametrize("frame", [10, 13, 19])
def test_a_damaged_frame_is_named_and_harms_no_other_episode(files, tmp_path, by_pyav, name, frame):
    whole = frames(span(files[name]))
    path = damaged(files[name], frame, tmp_path / "bad.mp4")
    with pytest.raises(UndecodableFrame, match=rf"^episode 7, front, frame {frame - 10} cannot be decoded \(") as e:
        frames(span(path, 10, 20))
    assert "\n" not in str(e.value)
    for first, end in ((0, 10), (20, 30)):
        assert np.array_equal(frames(span(path, first, end)), whole[first:end])


NOISY = """
import sys
from pathlib import Path
import numpy as np
from srpo_robot.buffer.decode import UndecodableFrame, Video, joined, video_chunks
path, fps, length = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
name, end_s = "episode 0, front", length / fps
video = lambda path: Video(name=name, path=path, start_s=0.0, end_s=end_s, length=length, fps=fps)
read = lambda path: joined(video_chunks(video(path)), length)
good, content, rng = read(path), path.read_bytes(), np.random.default_rng(0)
start = content.find(b"mdat") + 4
end = start - 8 + int.from_bytes(content[start - 8 : start - 4], "big")
outcome = {"error": 0, "same": 0, "silent": 0}
for _ in range(60):
    at = int(rng.integers(start, end - 64))
    path.with_suffix(".bad.mp4").write_bytes(content[:at] + rng.bytes(64) + content[at + 64 :])
    try:
        outcome["same" if (read(path.with_suffix(".bad.mp4")) == good).all() else "silent"] += 1
    except UndecodableFrame:
        outcome["error"] += 1
print(outcome["error"], outcome["same"], outcome["silent"])
"""


def child(script: str, *arguments: object, libraries: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"LD_LIBRARY_PATH": libraries} if libraries else {})
    command = [sys.executable, "-c", script, *map(str, arguments)]
    folder = Path(__file__).parent
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, timeout=200, check=False
    )


def test_damage_in_h264_is_neither_painted_over_nor_a_hang(tmp_path):
    """The H.264 decoder marks and returns damaged frames, and logs errors from its threads while the file is closed."""
    path = write_video(tmp_path / "long.mp4", ("libx264", {"g": "12", "crf": "18"}), width=320)
    result = child(NOISY, path, FPS, LENGTH)
    assert (result.returncode, result.stderr) == (0, "")
    errors, same, silent = map(int, result.stdout.split())
    assert errors >= 35, (errors, same, silent)  # unmarked: 2


def test_a_file_that_ends_early_names_the_first_missing_frame(files, by_pyav):
    with pytest.raises(UndecodableFrame, match=r"frame 10 cannot be decoded \(the video ends there\)"):
        frames(span(files["av1"], 20, 40))
    with pytest.raises(UndecodableFrame, match=r"frame 0 cannot be decoded \(the video ends there\)"):
        frames(span(files["av1"], 40, 45))


def test_a_file_that_is_not_a_video(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    for name, why in (("text", "text.mp4 cannot be opened"), ("sound", "holds no video"), ("absent", "No such file")):
        for reader in (video_chunks, video_packets):
            with pytest.raises(UndecodableFrame, match=rf"episode 7, front, frame 0 cannot be decoded \(.*{why}"):
                list(reader(span(tmp_path / f"{name}.mp4")))


# --- images


def stored(image: Image.Image, kind: str = "PNG") -> dict[str, bytes | None]:
    from io import BytesIO

    content = BytesIO()
    image.save(content, kind)
    return {"bytes": content.getvalue(), "path": None}


GREY = stored(Image.fromarray(np.full((4, 6, 3), 9, dtype=np.uint8)))
NAN = stored(Image.fromarray(np.full((4, 6), np.nan, dtype=np.float32)), "TIFF")
DEEP = stored(Image.fromarray(np.full((4, 6), 900, dtype=np.uint16)))
WIDE = stored(Image.fromarray(np.zeros((4, 8, 3), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (NAN, "floating-point numbers, which may be NaN"),
        (DEEP, "integers of more than 8 bits"),
        (WIDE, "it is 8x4, the frame before it 6x4"),
        (None, "the frame is missing"),
        ({"bytes": None, "path": None}, "the frame is missing"),
        ({"bytes": None, "path": "gone.png"}, "gone.png"),
        ([0.1, float("nan")], "it is not a stored image"),
        ({"bytes": GREY["bytes"][:40], "path": None}, ""),  # type: ignore[index]
        ({"bytes": b"no image", "path": None}, "cannot identify"),
    ],
)
def test_an_invalid_image_names_its_frame(tmp_path, cell, why):
    cells = [GREY, GREY, cell]
    with pytest.raises(UndecodableFrame, match=rf"^episode 7, frame 2 cannot be decoded \(.*{re.escape(why)}") as e:
        list(image_chunks("episode 7", cells, tmp_path, 3))
    assert "\n" not in str(e.value)
    assert np.concatenate(list(image_chunks("episode 7", cells[:2], tmp_path, 2))).shape == (2, 4, 6, 3)
    with pytest.raises(UndecodableFrame, match=r"frame 2 cannot be decoded \(the frame is missing\)"):
        list(image_chunks("episode 7", cells[:2], tmp_path, 3))


# --- torchcodec


class Fake:
    """A decoder like torchcodec's that returns black frames until the fault `odd` occurs."""

    def __init__(self, odd: str) -> None:
        self.odd, self.asked = odd, 0

    def __call__(self, path: str, **options: object) -> Fake:
        if self.odd == "does not open":
            raise RuntimeError("no")
        return self

    def get_frames_in_range(self, start: int, stop: int) -> SimpleNamespace:
        self.asked += 1
        if start >= 12 and self.odd == "raises":
            raise RuntimeError("Could not push packet to decoder")
        times = torch.arange(start, stop, dtype=torch.float64) / FPS
        if start >= 12 and self.odd == "late":
            times = times + 1 / FPS
        if start >= 12 and self.odd == "fewer":
            times = times[:-1]
        return SimpleNamespace(data=torch.zeros(len(times), HEIGHT, WIDTH, 3, dtype=torch.uint8), pts_seconds=times)


@pytest.mark.parametrize(("odd", "n_fake"), [("raises", 8), ("late", 8), ("fewer", 8), ("does not open", 0), ("", 20)])
def test_pyav_takes_over_if_torchcodec_is_in_doubt(files, monkeypatch, odd, n_fake):
    monkeypatch.setattr(decode, "torchcodec_decoder", lambda: None)
    by_pyav_alone = frames(span(files["av1"], 4, 24))
    monkeypatch.setattr(decode, "torchcodec_decoder", lambda: Fake(odd))
    mixed = np.concatenate(list(video_chunks(span(files["av1"], 4, 24), 4)))
    assert not mixed[:n_fake].any()
    assert np.array_equal(mixed[n_fake:], by_pyav_alone[n_fake:])


@pytest.mark.parametrize(
    ("coding", "context"), [(H264, {}), (HEVC, {}), (AV1, {"colorspace": 1}), (AV1, {"color_range": 2})], ids=str
)
def test_torchcodec_is_not_used_if_it_shows_damage_or_other_colours(tmp_path, monkeypatch, coding, context):
    path = write_video(tmp_path / "v.mp4", coding, **context)
    fake = Fake("")
    monkeypatch.setattr(decode, "torchcodec_decoder", lambda: fake)
    assert frames(span(path)).any()
    assert fake.asked == 0


BOTH = """
import sys
from pathlib import Path
import numpy as np
import srpo_robot.buffer.decode as decode
from test_decode import AV1, damaged, frames, span, write_video
torchcodec = decode.torchcodec_decoder()
if torchcodec is None:
    sys.exit(77)
asked = []
class Counting(torchcodec):
    def get_frames_in_range(self, *arguments, **options):
        asked.append(arguments)
        return super().get_frames_in_range(*arguments, **options)
def either(video):
    made = []
    for decoder in (None, Counting):
        decode.torchcodec_decoder = lambda: decoder
        try:
            made.append(frames(video))
        except decode.UndecodableFrame as error:
            made.append(str(error))
    return made
folder = Path(sys.argv[1])
for width in (96, 320, 322, 424):
    path = write_video(folder / f"{width}.mp4", width=width)
    for first, end in ((0, 30), (0, 7), (7, 8), (8, 30), (29, 30)):
        one, other = either(span(path, first, end))
        assert one.any() and np.array_equal(one, other), (width, first, end)
assert len(asked) == 20, asked
bad = damaged(path, 13, folder / "bad.mp4")
one, other = either(span(bad, 10, 20))
assert one == other and "frame 3 cannot be decoded" in one, (one, other)
one, other = either(span(path, 20, 40))
assert one == other and "frame 10 cannot be decoded (the video ends there)" in one, (one, other)
print("equal")
"""


def bundled_ffmpeg(folder: Path) -> str:
    """Returns a search path to PyAV's own FFmpeg under the names that torchcodec looks for. "" if PyAV brings none."""
    bundle = Path(av.__file__).parent.parent / "av.libs"
    for library in bundle.glob("lib*"):
        match = re.fullmatch(r"(lib(?:av\w+|sw\w+))-\w+\.so\.(\d+)[\d.]*", library.name)
        if match:
            (folder / f"{match[1]}.so.{match[2]}").symlink_to(library)
    return f"{folder}{os.pathsep}{bundle}" if any(folder.iterdir()) else ""


def test_torchcodec_and_pyav_give_the_same_frames_and_the_same_errors(tmp_path):
    (tmp_path / "libraries").mkdir()
    result = child(BOTH, tmp_path, libraries=bundled_ffmpeg(tmp_path / "libraries"))
    if result.returncode == 77:
        pytest.skip("torchcodec does not load: it is absent, or finds no FFmpeg, nor does PyAV's own do")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "equal\n"


def test_a_torchcodec_that_does_not_load_is_silent(files):
    """Covers the installed packages: torchcodec finds no FFmpeg, or the package is absent, or it decodes."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom test_decode import frames, span\n"
        "print(frames(span(Path(sys.argv[1]))).shape)\n"
    )
    result = child(script, files["av1"])
    assert (result.stdout, result.stderr) == (f"({LENGTH}, {HEIGHT}, {WIDTH}, 3)\n", "")


# --- a buffer


def test_a_buffer_gives_its_frames_in_chunks(squares, tmp_path):
    together = open_buffer(record_squares(tmp_path / "d", SQUARES, commit_every=4))
    for buffer in (together, open_buffer(squares)):
        for episode in buffer.episodes:
            chunks = list(buffer.frame_chunks(episode, buffer.cameras[0], 7))
            assert [len(chunk) for chunk in chunks] == [7] * (episode.length // 7) + [episode.length % 7]
            assert np.array_equal(np.concatenate(chunks), buffer.frames(episode, buffer.cameras[0]))


@pytest.mark.parametrize("value", [float("nan"), None, float("inf")])
def test_an_episode_with_an_unknown_place_in_its_file(squares, value):
    buffer = open_buffer(squares)
    episode, camera = buffer.episodes[1], buffer.cameras[0]
    rows = [dict(row) for row in buffer.meta.episodes]
    rows[1][f"videos/{camera}/from_timestamp"] = value
    without_place = replace(
        buffer,
        meta=SimpleNamespace(episodes=rows, image_keys=[], fps=10, get_video_file_path=buffer.meta.get_video_file_path),
    )
    for reader in (without_place.frames, without_place.video_identity):
        with pytest.raises(UndecodableFrame, match=r"episode 1, .*front, frame 0 cannot be decoded \(meta/episodes"):
            reader(episode, camera)
