"""Tests of the mock cell's cameras over HTTP, which OpenCV opens through the driver's code."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from srpo_robot.arm.cameras import Cameras, similarity
from srpo_robot.errors import ArmError, CameraError, UsageError
from srpo_robot.mock import tasks
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.controller import CellPlant
from srpo_robot.mock.streams import CameraStreams
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ArmCommand

pytestmark = pytest.mark.real_time

HARDWARE = load(HardwareRecipe, "hardware", "mock")
TASK = load(TaskRecipe, "datasets", "put-apple")
START = ArmCommand(np.array(HARDWARE.home_rad), 0.085)


@pytest.fixture
def streams() -> Iterator[CameraStreams]:
    plant = CellPlant(CellSim(HARDWARE, TASK))
    plant.place(tasks.layout(TASK, 1), START)
    with CameraStreams(plant) as running:
        yield running
    assert not [t.name for t in threading.enumerate() if t.name in ("mock-cameras", "http-server")]


def recipes(streams: CameraStreams) -> list[CameraRecipe]:
    return [replace(camera, source=streams.url(camera.name)) for camera in HARDWARE.cameras]


def fails(cameras: Cameras, max_age_s: float, says: str) -> bool:
    """Waits until `read` fails. Returns whether the error contains the text."""
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        try:
            cameras.read(max_age_s)
        except CameraError as error:
            assert says in str(error)
            return True
        time.sleep(0.005)
    return False


def works(act: Callable[[], object]) -> bool:
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        try:
            act()
        except CameraError:
            time.sleep(0.01)
        else:
            return True
    return False


def test_opencv_reads_the_images_that_the_cell_renders(streams):
    expected = {}
    reference = CellSim(HARDWARE, TASK)
    reference.reset(tasks.layout(TASK, 1), START)
    for camera in HARDWARE.cameras:
        expected[camera.name] = reference.render(camera.name)
    reference.close()
    with Cameras(recipes(streams)) as cameras:
        frames = cameras.read(10.0)
        for name, image in expected.items():
            assert frames[name].image.shape == image.shape
            off = np.abs(frames[name].image.astype(int) - image)
            assert off.mean() < 6.0 and similarity(frames[name].image, image) > 0.99  # JPEG, colour at half size
        assert similarity(frames["front"].image, expected["wrist"]) < 0.9


def test_a_scene_at_rest_is_not_frozen(streams):
    with Cameras(recipes(streams)) as cameras:
        first = cameras.read(10.0)
        assert works(lambda: _newer(cameras, first))
        later = cameras.read(10.0)
        assert np.any(first["front"].image != later["front"].image)


def _newer(cameras: Cameras, first: dict) -> None:
    frames = cameras.read(10.0)
    if any(frames[name].time_s == first[name].time_s for name in frames):
        raise CameraError("not yet")


def test_faults_of_a_camera_are_detected(streams):
    with Cameras(recipes(streams)) as cameras:
        streams.freeze("front")
        assert fails(cameras, 0.4, "camera front") and fails(cameras, 0.4, "is frozen")
        streams.heal()
        assert works(lambda: cameras.read(0.2))
        streams.stall("wrist")
        assert fails(cameras, 0.4, "camera wrist")
        streams.heal()
        assert works(lambda: cameras.read(0.2))
        streams.slow("wrist", 1.5)
        assert fails(cameras, 0.7, "camera wrist")
        streams.unplug("front")
        assert fails(cameras, 10.0, "gives no pictures any more")
    with pytest.raises(CameraError, match="camera front .* cannot be opened"):
        Cameras([recipes(streams)[0]]).open()
    streams.heal()
    with Cameras(recipes(streams)) as cameras:
        assert works(lambda: cameras.read(1.0))


def test_only_watched_cameras_are_rendered_and_a_browser_gets_a_page(streams):
    time.sleep(0.1)
    assert all(stream.number == 0 for stream in streams._streams.values())
    with urllib.request.urlopen(streams.url("front").rsplit("/", 1)[0] + "/", timeout=10) as answer:
        assert b"/front.mjpg" in answer.read()


def test_two_clients_can_read_the_same_camera(streams):
    front = recipes(streams)[:1]
    with Cameras(front) as one, Cameras(front) as other:
        assert one.read(10.0)["front"].image.shape == other.read(10.0)["front"].image.shape


def test_bad_input(streams):
    with pytest.raises(UsageError, match="no camera 'side'; it has: front, wrist"):
        streams.freeze("side")
    port = int(streams.url("front").split(":")[2].split("/")[0])
    with pytest.raises(ArmError, match=f"cannot listen on 127.0.0.1:{port}"):
        CameraStreams(streams._plant, port=port).__enter__()


def test_a_machine_that_cannot_render_is_refused_at_the_start(monkeypatch):
    monkeypatch.setenv("SRPO_RENDERER", "vulkan")
    with pytest.raises(ArmError, match="the mock cameras failed: SRPO_RENDERER='vulkan' is no renderer"):
        CameraStreams(CellPlant(CellSim(HARDWARE, TASK))).__enter__()
    assert not [t.name for t in threading.enumerate() if t.name in ("mock-cameras", "http-server")]


def test_a_stopped_server_closes_its_port_and_its_clients_notice(streams):
    with Cameras(recipes(streams)) as cameras:
        cameras.read(10.0)
        port = int(streams.url("front").split(":")[2].split("/")[0])
        streams.__exit__(None, None, None)  # while clients are connected
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        assert fails(cameras, 10.0, "gives no pictures any more")
    streams.__enter__()
