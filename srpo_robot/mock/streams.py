"""The mock cell's cameras as MJPEG over HTTP on loopback, with injectable faults. OpenCV opens them like any camera.

One thread renders, because a graphics context belongs to a thread. It holds the plant's lock and renders only cameras
with clients. Each image gets a little sensor noise. Without noise, a scene at rest would look like a frozen camera.
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

_NOISE = 2  # largest change of a pixel in either direction, in levels of 0 to 255
_QUALITY = 95  # JPEG quality
_BOUNDARY = "frame"
_WAIT_S = 0.25  # time within which a stream notices that it should end

Fault = Literal["", "freeze", "stall", "unplug"]


@dataclass(kw_only=True)
class _Stream:
    """The state of one camera's stream. `CameraStreams._news` guards it."""

    recipe: CameraRecipe
    jpeg: bytes = b""
    number: int = 0  # number of the newest image, 0 before the first one
    watchers: int = 0
    fault: Fault = ""
    slow_s: float = 0.0
    due_s: float = 0.0  # earliest time of the next image of a slow camera


class CameraStreams:
    """Serves URL/NAME.mjpg for each camera of the cell inside a `with` block."""

    def __init__(self, plant: CellPlant, *, host: str = "127.0.0.1", port: int = 0, fps: float = 0.0) -> None:
        """`fps` 0: twice the control rate, so that images are at most half a period old. Slow machines get less."""
        cameras: Sequence[CameraRecipe] = plant.sim.hardware.cameras
        self._plant = plant
        self._period_s = 1.0 / (fps or 2.0 * plant.sim.hardware.fps)
        self._streams = {camera.name: _Stream(recipe=camera) for camera in cameras}
        self._news = threading.Condition()
        self._ending = False
        self._can_draw = threading.Event()  # set when the renderer works or has failed
        self._failure: BaseException | None = None
        self._server = HttpServer(self._answer, host, port)
        self._painter: threading.Thread | None = None
        self._noise = np.random.default_rng(0).integers(-_NOISE, _NOISE + 1, 1 << 16, dtype=np.int8)

    def __enter__(self) -> Self:
        """Starts server and renderer. Raises ArmError if the port is taken or rendering does not work here."""
        self._ending = False
        self._server.__enter__()
        self._can_draw.clear()
        self._painter = threading.Thread(target=self._paint, name="mock-cameras", daemon=True)
        self._painter.start()
        self._can_draw.wait()  # finding a renderer takes seconds, and no camera's first image must wait for it
        if self._failure is not None:
            self.__exit__(None, None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends every stream. Raises ArmError if rendering failed meanwhile."""
        with self._news:
            self._ending = True
            self._news.notify_all()
        if self._painter is not None:
            self._painter.join()
        self._server.__exit__(kind, error, trace)
        if self._failure is not None and error is None:
            raise ArmError(f"the mock cameras failed: {self.failed}") from self._failure

    def url(self, camera: str) -> str:
        """Returns the URL of a camera's stream. Raises UsageError if the cell has no such camera."""
        self._named(camera)
        return f"{self._server.url}/{camera}.mjpg"

    @property
    def failed(self) -> str:
        """The reason for which rendering failed, or "" if it did not."""
        return "" if self._failure is None else one_line(self._failure)

    # --- faults -------------------------------------------------------------------------------------------------------

    def freeze(self, camera: str) -> None:
        """Repeats the current image, bit for bit."""
        self._break(camera, "freeze")

    def stall(self, camera: str) -> None:
        """Keeps connections open but sends no images."""
        self._break(camera, "stall")

    def unplug(self, camera: str) -> None:
        """Closes connections and refuses new ones."""
        self._break(camera, "unplug")

    def slow(self, camera: str, period_s: float) -> None:
        """Sends an image only every `period_s`."""
        with self._news:
            self._named(camera).slow_s = period_s

    def heal(self) -> None:
        """Ends all faults. Clients must reopen unplugged cameras."""
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
        """Renders at absolute deadlines. Uses at most half of the time, so that physics keeps up."""
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
        except Exception as error:  # __exit__ raises it in the caller's thread
            self._failure = error
            with self._news:
                self._ending = True
                self._news.notify_all()
        finally:
            self._can_draw.set()
            with self._plant.lock:
                self._plant.sim.close()

    def _wait_until(self, due_s: float) -> bool:
        """Waits until `due_s`. Returns False if the streams end."""
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
        """Sends every new image until the client disconnects, the camera is unplugged, or the streams end."""
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        handler.send_header("Cache-Control", "no-store")
        handler.end_headers()
        with self._news:
            stream.watchers += 1
        try:
            sent = stream.number  # start with the next image, because the current one may be old
            while not self._ending and stream.fault != "unplug":
                with self._news:
                    self._news.wait_for(lambda sent=sent: stream.number != sent or self._ending, _WAIT_S)
                    jpeg, number = stream.jpeg, stream.number
                if number != sent:
                    _write_part(handler, jpeg)
                    sent = number
        except OSError:
            return  # the client disconnected
        finally:
            with self._news:
                stream.watchers -= 1


def _write_part(handler: BaseHTTPRequestHandler, jpeg: bytes) -> None:
    """Sends one part with its length, so that a reader knows the end without waiting for the next part."""
    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
    handler.wfile.write(head.encode() + jpeg + b"\r\n")


def _page(names: list[str]) -> bytes:
    """Returns an HTML page that shows all cameras."""
    pictures = "".join(
        f'<figure><img src="/{name}.mjpg" height="384"><figcaption>{name}</figcaption></figure>' for name in names
    )
    return f"<!doctype html><title>mock lab</title><body style='display:flex'>{pictures}</body>\n".encode()
