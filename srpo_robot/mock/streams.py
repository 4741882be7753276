"""The mock cell's cameras as MJPEG over HTTP on loopback, which OpenCV opens like any camera; with their faults.

One thread draws (a graphics context belongs to a thread) while it holds the plant's lock, and only what somebody
watches. A little noise is laid over each picture, as a sensor would: without it a scene at rest looks frozen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Literal, Self

import numpy as np

from srpo_robot.errors import ArmError, UsageError, one_line
from srpo_robot.http_server import HttpServer, refuse, respond
from srpo_robot.mock.controller.physics import CellPlant
from srpo_robot.recipes import CameraRecipe

_NOISE = 2  # levels, either way
_QUALITY = 95  # of the JPEGs
_BOUNDARY = "frame"
_WAIT_S = 0.25  # how soon a stream sees that it should end

Fault = Literal["", "freeze", "stall", "unplug"]


@dataclass
class _Stream:
    """What one camera sends; guarded by the streams' condition."""

    recipe: CameraRecipe
    jpeg: bytes = b""
    number: int = 0  # of the picture, 0: none yet
    watchers: int = 0
    fault: Fault = ""
    slow_s: float = 0.0
    due_s: float = 0.0  # when the next picture may come, where it is slow


class CameraStreams:
    """Serves URL/NAME.mjpg for each camera of the cell as long as the `with` block lasts."""

    def __init__(self, plant: CellPlant, *, host: str = "127.0.0.1", port: int = 0, fps: float = 0.0) -> None:
        """`fps` 0: twice the control rate, so that a picture is at most half a period old. Slow machines get less."""
        cameras: Sequence[CameraRecipe] = plant.sim.hardware.cameras
        self._plant = plant
        self._period_s = 1.0 / (fps or 2.0 * plant.sim.hardware.fps)
        self._streams = {camera.name: _Stream(camera) for camera in cameras}
        self._news = threading.Condition()
        self._ending = False
        self._can_draw = threading.Event()  # or has failed
        self._failure: BaseException | None = None
        self._server = HttpServer(self._answer, host, port)
        self._painter: threading.Thread | None = None
        self._noise = np.random.default_rng(0).integers(-_NOISE, _NOISE + 1, 1 << 16, dtype=np.int8)

    def __enter__(self) -> Self:
        """Raises ArmError where the port is taken, or nothing can be drawn here."""
        self._ending = False
        self._server.__enter__()
        self._can_draw.clear()
        self._painter = threading.Thread(target=self._paint, name="mock-cameras", daemon=True)
        self._painter.start()
        self._can_draw.wait()  # finding a renderer takes seconds: no camera's first picture waits for it
        if self._failure is not None:
            self.__exit__(None, None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every stream. Raises ArmError where drawing failed meanwhile."""
        with self._news:
            self._ending = True
            self._news.notify_all()
        if self._painter is not None:
            self._painter.join()
        self._server.__exit__(kind, error, trace)
        if self._failure is not None and error is None:
            raise ArmError(f"the mock cameras failed: {self.failed}") from self._failure

    def url(self, camera: str) -> str:
        """Where a camera's stream is. Raises UsageError for a camera that the cell does not have."""
        self._named(camera)
        return f"{self._server.url}/{camera}.mjpg"

    @property
    def failed(self) -> str:
        """Why drawing ended, "" while it goes on."""
        return "" if self._failure is None else one_line(self._failure)

    # --- faults -------------------------------------------------------------------------------------------------------

    def freeze(self, camera: str) -> None:
        """The same picture, to the bit, again and again."""
        self._break(camera, "freeze")

    def stall(self, camera: str) -> None:
        """The connection stays open, nothing comes."""
        self._break(camera, "stall")

    def unplug(self, camera: str) -> None:
        """Connections are closed, new ones refused."""
        self._break(camera, "unplug")

    def slow(self, camera: str, period_s: float) -> None:
        """A picture only every `period_s`."""
        with self._news:
            self._named(camera).slow_s = period_s

    def heal(self) -> None:
        """No faults any more; what was unplugged is to be opened anew."""
        with self._news:
            for stream in self._streams.values():
                stream.fault, stream.slow_s = "", 0.0
            self._news.notify_all()

    def _break(self, camera: str, fault: Fault) -> None:
        with self._news:
            self._named(camera).fault = fault
            self._news.notify_all()

    def _named(self, camera: str) -> _Stream:
        if camera not in self._streams:
            raise UsageError(f"the mock cell has no camera {camera!r}; it has: {', '.join(self._streams)}")
        return self._streams[camera]

    # --- the painter's thread -----------------------------------------------------------------------------------------

    def _paint(self) -> None:
        """Draw at absolute deadlines; it never takes more than half of its time, so that physics keeps up."""
        try:
            for name in self._streams:
                self._draw(name)
            self._can_draw.set()
            due_s = time.monotonic()
            while self._wait_until(due_s):
                began_s = time.monotonic()
                for name, stream in self._streams.items():
                    if stream.watchers:
                        self._publish(stream, self._draw(name))
                cost_s = time.monotonic() - began_s
                due_s = max(due_s + self._period_s, began_s + 2.0 * cost_s)
        except Exception as error:  # kept for __exit__, which raises it where somebody looks
            self._failure = error
            with self._news:
                self._ending = True
                self._news.notify_all()
        finally:
            self._can_draw.set()
            with self._plant.lock:
                self._plant.sim.close()

    def _wait_until(self, due_s: float) -> bool:
        """Whether the streams go on when it is due."""
        with self._news:
            self._news.wait_for(lambda: self._ending, max(due_s - time.monotonic(), 0.0))
            return not self._ending

    def _draw(self, name: str) -> np.ndarray:
        with self._plant.lock:
            return self._plant.sim.render(name)

    def _publish(self, stream: _Stream, image: np.ndarray) -> None:
        import cv2

        start = int(np.random.default_rng(stream.number).integers(len(self._noise)))
        noise = np.resize(np.roll(self._noise, start), image.size).reshape(image.shape)
        noisy = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
        jpeg = cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
        now_s = time.monotonic()
        with self._news:
            if stream.fault in ("stall", "unplug") or now_s < stream.due_s:
                return
            stream.due_s = now_s + stream.slow_s if stream.slow_s else 0.0
            stream.jpeg = stream.jpeg if stream.fault == "freeze" and stream.jpeg else jpeg
            stream.number += 1
            self._news.notify_all()

    # --- the connections' threads -------------------------------------------------------------------------------------

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.strip("/").removesuffix(".mjpg")
        stream = self._streams.get(name)
        if stream is None:
            respond(handler, 200, "text/html", _page(list(self._streams)))
        elif stream.fault == "unplug":
            refuse(handler, 503, "unplugged")
        else:
            self._send(handler, stream)

    def _send(self, handler: BaseHTTPRequestHandler, stream: _Stream) -> None:
        """Every new picture, until the client goes, the camera is unplugged, or the streams end."""
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        handler.send_header("Cache-Control", "no-store")
        handler.end_headers()
        with self._news:
            stream.watchers += 1
        try:
            sent = stream.number  # the next one: what is there may be old
            while not self._ending and stream.fault != "unplug":
                with self._news:
                    self._news.wait_for(lambda sent=sent: stream.number != sent or self._ending, _WAIT_S)
                    jpeg, number = stream.jpeg, stream.number
                if number != sent:
                    _write_part(handler, jpeg)
                    sent = number
        except OSError:
            return  # the client went away
        finally:
            with self._news:
                stream.watchers -= 1


def _write_part(handler: BaseHTTPRequestHandler, jpeg: bytes) -> None:
    """One part; with its length, so that a reader need not wait for the next one to see where it ends."""
    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    handler.wfile.write(head.encode() + jpeg + b"\r\n")


def _page(names: list[str]) -> bytes:
    """A page that shows all cameras, for a browser."""
    pictures = "".join(
        f'<figure><img src="/{name}.mjpg" height="384"><figcaption>{name}</figcaption></figure>' for name in names
    )
    return f"<!doctype html><title>mock lab</title><body style='display:flex'>{pictures}</body>\n".encode()
