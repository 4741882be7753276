"""Cameras: newest picture, age, frozen, unplugged, properties read back, shape, references."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.arm import cameras as cameras_module
from srpo_robot.arm.cameras import Cameras, Frame, check_references, similarity
from srpo_robot.errors import CameraError, RecipeError
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, build

pytestmark = pytest.mark.real_time

FRONT = CameraRecipe(name="front", height_px=12, width_px=16, source="0")
SMOOTH = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (96, 96, 3), dtype=np.uint8), (31, 31), 0)


class Device:
    """A camera in memory. It shows `picture` until it is unplugged and obeys the settings in `obeys`."""

    def __init__(self, height: int = 12, width: int = 16) -> None:
        self.picture = np.zeros((height, width, 3), dtype=np.uint8)
        self.noisy = True
        self.is_there = True
        self.go = threading.Event()  # if cleared, `read` blocks like a stalled camera
        self.go.set()
        self.released = False
        self.values: dict[int, float] = {cv2.CAP_PROP_EXPOSURE: 156.0, cv2.CAP_PROP_GAIN: 3.0}
        self.obeys = {cv2.CAP_PROP_EXPOSURE}
        self.reads = 0

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's own name)
        return self.is_there

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.001)
        self.go.wait()
        self.reads += 1
        if not self.is_there:
            return False, None
        if self.noisy:
            self.picture = self.picture.copy()
            self.picture[0, 0] = self.reads % 256
        return True, self.picture

    def get(self, propId: int) -> float:  # noqa: N803 (OpenCV's own name)
        return self.values.get(propId, -1.0)

    def set(self, propId: int, value: float) -> bool:  # noqa: N803 (OpenCV's own name)
        if propId in self.obeys:
            self.values[propId] = value
        return True  # most drivers return True even if they ignored the setting

    def release(self) -> None:
        self.released = True


@pytest.fixture
def device() -> Iterator[Device]:
    camera = Device()
    yield camera
    camera.go.set()


def over(device: Device, recipe: CameraRecipe = FRONT) -> Cameras:
    return Cameras([recipe], lambda _: device)


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 30.0
    while not happens():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def no_threads() -> bool:
    return not any(thread.name.startswith("camera-") for thread in threading.enumerate())


# --- the newest picture


def test_a_picture_is_rgb_in_the_recipes_size_and_knows_its_time(device):
    device.picture[:] = (10, 20, 30)  # BGR, as OpenCV gives it
    with over(device) as cameras:
        before_s = time.monotonic()
        until(lambda: cameras.read()["front"].time_s > before_s)
        frame = cameras.read()["front"]
        assert frame.image.shape == (12, 16, 3) and frame.image.dtype == np.uint8
        assert frame.image[5, 5].tolist() == [30, 20, 10]
        assert before_s < frame.time_s <= time.monotonic()
        with pytest.raises(ValueError):
            frame.image[0, 0] = 0
    assert device.released and no_threads()


def test_frames_that_were_not_read_are_dropped(device):
    with over(device) as cameras:
        reads = device.reads
        until(lambda: device.reads > reads + 20)
        device.go.clear()
        time.sleep(0.01)
        assert cameras.read(10.0)["front"].image[0, 0, 0] >= (reads + 20) % 256
        device.go.set()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (12, 16), (6, 8), (100, 31)])
def test_any_picture_is_brought_to_the_recipes_size_without_stretching(height, width):
    device = Device(height, width)
    half = np.linspace(0, 255, width, dtype=np.uint8)
    device.picture[:] = half[None, :, None]
    device.noisy = False
    with over(device) as cameras:
        image = cameras.read(10.0)["front"].image
    assert image.shape == (12, 16, 3)
    assert int(image[6, 8, 0]) == pytest.approx(127, abs=12)  # the middle of the picture stays in the middle
    rows, columns = min(height, width * 12 / 16), min(width, height * 16 / 12)
    assert rows / columns == pytest.approx(12 / 16)
    span = float(image[6, -1, 0]) - float(image[6, 0, 0])  # both cropped sides are invisible
    assert span == pytest.approx(255 * columns / width * 15 / 16, abs=20)


def test_a_given_crop_is_used_unchanged(device):
    device.picture[4:8, 6:10] = 200
    device.noisy = False
    with over(device, replace(FRONT, height_px=4, width_px=4, crop=(4, 6, 4, 4))) as cameras:
        assert np.all(cameras.read(10.0)["front"].image == 200)
    with over(device, replace(FRONT, crop=(4, 6, 40, 4))) as cameras, pytest.raises(CameraError, match="does not fit"):
        cameras.read(10.0)


def test_the_same_picture_is_shaped_once(device):
    with over(device) as cameras:
        device.go.clear()
        time.sleep(0.01)
        assert cameras.read(10.0)["front"] is cameras.read(10.0)["front"]
        device.go.set()


# --- faults


def test_a_frozen_camera_is_an_error(device):
    with over(device) as cameras:
        cameras.read()
        device.noisy = False

        def frozen() -> bool:
            try:
                cameras.read(0.05)
            except CameraError as error:
                return "front" in str(error) and "frozen: the same picture" in str(error)
            return False

        until(frozen)
        device.noisy = True
        until(lambda: not frozen())


def test_a_stalled_camera_is_an_error(device):
    with over(device) as cameras:
        cameras.read()
        device.go.clear()
        time.sleep(0.06)
        with pytest.raises(CameraError, match=r"camera front \(0\) gave no picture for 0\.\d s"):
            cameras.read(0.05)
        device.go.set()


def test_an_unplugged_camera_is_an_error_that_stays(device):
    with over(device) as cameras:
        device.is_there = False

        def unplugged() -> bool:
            try:
                cameras.read(10.0)
            except CameraError as error:
                return "gives no pictures any more" in str(error)
            return False

        until(unplugged)
        device.is_there = True
        assert unplugged()
    assert device.released


def test_all_cameras_are_closed_if_one_cannot_be_opened(device):
    absent = Device()
    absent.is_there = False
    wrist = replace(FRONT, name="wrist", source="/dev/video9")
    cameras = Cameras([FRONT, wrist], lambda recipe: device if recipe.name == "front" else absent)
    with pytest.raises(CameraError, match=r"camera wrist \(/dev/video9\) cannot be opened; "):
        cameras.open()
    assert device.released and absent.released and no_threads()


def test_a_camera_without_a_picture_is_an_error(device, monkeypatch):
    monkeypatch.setattr(cameras_module, "_OPEN_S", 0.05)
    device.go.clear()
    cameras = over(device)
    threading.Timer(0.2, device.go.set).start()
    with pytest.raises(CameraError, match="gave no picture; unplug it"):
        cameras.open()
    until(no_threads)


def test_an_opencv_exception_becomes_a_one_line_error(device):
    class Broken(Device):
        def read(self) -> tuple[bool, np.ndarray | None]:
            raise cv2.error("bad\nnews")

    with pytest.raises(CameraError, match="camera front .* failed"):
        over(Broken()).open()


def test_reading_before_opening_is_an_error(device):
    with pytest.raises(CameraError, match="is not open"):
        over(device).read()


def test_a_camera_that_does_not_exist():
    with pytest.raises(CameraError, match=r"camera front \(97\) cannot be opened"):
        Cameras([replace(FRONT, source="97")]).open()  # OpenCV itself
    with pytest.raises(CameraError, match=r"cannot be opened; is its server running"):
        Cameras([replace(FRONT, source="http://127.0.0.1:9/front.mjpg")]).open()
    assert no_threads()


# --- properties


def test_properties_are_set_and_read_back(device):
    device.obeys |= {cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FPS}
    recipe = replace(FRONT, fixed={"exposure": 80, "gain": 3.0}, capture_px=(480, 640), capture_fps=30.0)
    with over(device, recipe) as cameras:
        assert device.values[cv2.CAP_PROP_EXPOSURE] == 80 and device.values[cv2.CAP_PROP_FRAME_WIDTH] == 640
        assert cameras.notes == ()


def test_an_ignored_property_is_an_error_that_names_it(device):
    with pytest.raises(CameraError, match=r"camera front \(0\) ignored gain = 7, it has 3; "):
        over(device, replace(FRONT, fixed={"exposure": 80, "gain": 7})).open()
    assert device.released and no_threads()


def test_a_real_capture_that_ignores_its_settings(tmp_path):
    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (16, 12))
    writer.write(np.zeros((12, 16, 3), dtype=np.uint8))
    writer.release()
    recipe = replace(FRONT, fixed={"white_balance": 4600})
    with pytest.raises(CameraError, match=r"ignored white_balance = 4600, it has 0; "):
        Cameras([recipe], lambda _: cv2.VideoCapture(path, cv2.CAP_FFMPEG)).open()


def test_a_stream_takes_no_properties_and_says_so(device):
    with over(device, replace(FRONT, source="http://127.0.0.1/x.mjpg", fixed={"exposure": 80})) as cameras:
        assert cameras.notes == ("camera front: a stream takes no exposure; set it where it comes from",)
        assert device.values[cv2.CAP_PROP_EXPOSURE] == 156


# --- recipes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": "front.mp4"}, r"source is 'front.mp4'; give an index"),
        ({"source": ""}, "give an index"),
        ({"crop": (1, 2, 3)}, "crop is \\(top, left, height, width\\)"),
        ({"crop": (0, 0, 0, 4)}, "needs a height and a width"),
        ({"fixed": {"exposuer": 3}}, "no property 'exposuer'; did you mean 'exposure'"),
        ({"fixed": {"gain": True}}, "fixed.gain is True; it is a number"),
    ],
)
def test_an_invalid_recipe_is_refused(change, says):
    with pytest.raises(RecipeError, match=says):
        Cameras([replace(FRONT, **change)])


def test_one_source_for_two_cameras():
    with pytest.raises(RecipeError, match="two cameras have the source '0'"):
        Cameras([FRONT, replace(FRONT, name="wrist")])


def test_a_camera_in_toml():
    table = {"name": "front", "height_px": 224, "width_px": 224, "source": "/dev/video0", "capture_px": [480, 640]}
    recipe = build(CameraRecipe, table | {"fixed": {"exposure": 156}}, "x.toml")
    assert recipe.capture_px == (480, 640) and recipe.fixed == {"exposure": 156}
    assert HardwareRecipe.__dataclass_fields__["cameras"].type == "tuple[CameraRecipe, ...]"


# --- references


def test_a_picture_is_similar_to_itself_also_in_other_light():
    assert similarity(SMOOTH, SMOOTH) == pytest.approx(1.0)
    darker = (SMOOTH * 0.5 + 20).astype(np.uint8)
    assert similarity(SMOOTH, darker) > 0.99
    assert similarity(SMOOTH, SMOOTH[:, ::-1]) < 0.5
    assert similarity(SMOOTH, np.full_like(SMOOTH, 90)) == 0.0


@given(st.integers(0, 2**32 - 1))
def test_similarity_is_symmetric_and_bounded(seed):
    a, b = np.random.default_rng(seed).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    assert similarity(a, b) == pytest.approx(similarity(b, a))
    assert abs(similarity(a, b)) <= 1.0 + 1e-12


def referenced(tmp_path: Path) -> tuple[list[CameraRecipe], dict[str, Frame]]:
    pictures = {"front": SMOOTH, "wrist": np.ascontiguousarray(SMOOTH[::-1, ::-1])}
    recipes = []
    for place, (name, picture) in enumerate(pictures.items()):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), picture[..., ::-1])
        recipes.append(CameraRecipe(name=name, height_px=96, width_px=96, source=str(place), reference=str(path)))
    return recipes, {name: Frame(picture, 0.0) for name, picture in pictures.items()}


def test_cameras_that_match_their_references(tmp_path):
    recipes, frames = referenced(tmp_path)
    assert check_references(recipes, frames) == ()
    assert check_references([replace(recipe, reference="") for recipe in recipes], frames) == ()


def test_swapped_cameras_are_detected(tmp_path):
    recipes, frames = referenced(tmp_path)
    wrong = check_references(recipes, {"front": frames["wrist"], "wrist": frames["front"]})
    assert len(wrong) == 2 and "camera front sees what wrist should" in wrong[0] and "swap their sources" in wrong[0]


def test_a_moved_camera_is_detected(tmp_path):
    recipes, frames = referenced(tmp_path)
    elsewhere = Frame(np.random.default_rng(9).integers(0, 256, (96, 96, 3), dtype=np.uint8), 0.0)
    (line,) = check_references(recipes, {**frames, "front": elsewhere})
    assert "camera front is" in line and "needs 0.50; mount" in line


def test_a_reference_that_is_not_a_picture(tmp_path):
    recipes, frames = referenced(tmp_path)
    with pytest.raises(RecipeError, match="is no picture"):
        check_references([replace(recipes[0], reference=str(tmp_path / "none.png"))], frames)
