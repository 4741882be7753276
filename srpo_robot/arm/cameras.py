"""Cameras through OpenCV. One thread per camera keeps the newest picture and its time, and reports faults.

A picture that is too old, or that no longer changes, is an error and never data: a policy that sees a frozen scene
keeps moving the arm through a real one. Settings that change the policy's view (exposure, white balance, gain) are read
back, because most cameras accept any number silently.
"""

from __future__ import annotations

import difflib
import glob
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from srpo_robot.errors import CameraError, RecipeError
from srpo_robot.recipes import CameraRecipe

# Key of `CameraRecipe.fixed` -> OpenCV property. Values are the driver's own, as `v4l2-ctl -L` lists them.
PROPERTIES = {
    "auto_exposure": "CAP_PROP_AUTO_EXPOSURE",
    "exposure": "CAP_PROP_EXPOSURE",
    "auto_white_balance": "CAP_PROP_AUTO_WB",
    "white_balance": "CAP_PROP_WB_TEMPERATURE",
    "gain": "CAP_PROP_GAIN",
    "autofocus": "CAP_PROP_AUTOFOCUS",
    "focus": "CAP_PROP_FOCUS",
    "brightness": "CAP_PROP_BRIGHTNESS",
    "contrast": "CAP_PROP_CONTRAST",
    "saturation": "CAP_PROP_SATURATION",
}
_OPEN_S = 10.0  # time limit for the first picture
_READ_MS = 5000  # OpenCV gives up on a stream that stalls for this long
_SAME = 1e-3  # relative tolerance of a property's value, since floats are read back rounded
_SMALL_PX = 24  # pictures are compared at this size, which also blurs them


class Capture(Protocol):
    """The part of `cv2.VideoCapture` that is used here."""

    def isOpened(self) -> bool: ...  # noqa: N802 (OpenCV's own name)

    def read(self) -> tuple[bool, Any]: ...

    def get(self, propId: int) -> float: ...  # noqa: N803 (OpenCV's own name)

    def set(self, propId: int, value: float) -> bool: ...  # noqa: N803 (OpenCV's own name)

    def release(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture, uint8 (H, W, 3) RGB in the recipe's size, and its arrival time (`time.monotonic`)."""

    image: np.ndarray
    time_s: float


class Cameras:
    """The cameras of an arm. Use it as a context manager, or call `open` and `close`."""

    def __init__(
        self, recipes: Sequence[CameraRecipe], make_capture: Callable[[CameraRecipe], Capture] | None = None
    ) -> None:
        """Creates the cameras without opening them.

        Args:
            recipes: one recipe per camera.
            make_capture: opens the source of a recipe; None means `open_capture`.

        Raises:
            RecipeError: a source, crop or property is invalid, or two cameras have the same source.
        """
        for recipe in recipes:
            _check(recipe)
        sources = [recipe.source for recipe in recipes]
        duplicates = [source for source in sources if sources.count(source) > 1]
        if duplicates:
            raise RecipeError(f"two cameras have the source {duplicates[0]!r}; each needs its own")
        self._cameras = {recipe.name: _Camera(recipe, make_capture or open_capture) for recipe in recipes}

    @property
    def notes(self) -> tuple[str, ...]:
        """Settings that could not be applied but are no error, one line each. A stream has no exposure, for example."""
        return tuple(note for camera in self._cameras.values() for note in camera.notes)

    def open(self) -> None:
        """Opens all cameras at once and waits for the first pictures.

        Raises:
            CameraError: a camera is missing, gives no picture, or ignored a property. All cameras are closed again.
        """
        try:
            for camera in self._cameras.values():
                camera.start()
            deadline_s = time.monotonic() + _OPEN_S
            for camera in self._cameras.values():
                camera.wait(deadline_s)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the threads and frees the devices. It is safe to call twice."""
        for camera in self._cameras.values():
            camera.end()
        for camera in self._cameras.values():
            camera.join()

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, max_age_s: float | None = None) -> dict[str, Frame]:
        """Returns the newest picture of each camera by name, at most `max_age_s` old (None: the recipe's limit).

        Raises:
            CameraError: a camera stopped giving pictures, or repeats the same one. The message names it.
        """
        now_s = time.monotonic()
        return {name: camera.read(now_s, max_age_s) for name, camera in self._cameras.items()}


def open_capture(recipe: CameraRecipe) -> Capture:
    """Returns OpenCV's capture for a recipe's source, with short queues and time limits. It may have failed to open."""
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "2")  # [s], instead of OpenCV's 10
    import cv2

    cv2.utils.logging.setLogLevel(
        cv2.utils.logging.LOG_LEVEL_SILENT
    )  # `CameraError` reports the same problems in one line
    if _is_stream(recipe.source):
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(1000 * _OPEN_S), cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_MS]
        return cv2.VideoCapture(recipe.source, cv2.CAP_FFMPEG, limits)
    device = int(recipe.source) if recipe.source.isdecimal() else recipe.source
    capture = cv2.VideoCapture(device, cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # a longer queue only holds older pictures
    return capture


# --- reference pictures --------------------------------------------------------------------------------------------


def similarity(image: np.ndarray, reference: np.ndarray) -> float:
    """Returns the correlation (-1 to 1) of the coarse brightness of two RGB pictures (H, W, 3), or 0 if one is flat.

    Objects and light may differ between the two, but the camera's mount and view should not.
    """
    small = [_coarse(picture) for picture in (image, reference)]
    scale = float(np.linalg.norm(small[0]) * np.linalg.norm(small[1]))
    return float(small[0] @ small[1]) / scale if scale > 0.0 else 0.0


def check_references(recipes: Sequence[CameraRecipe], frames: Mapping[str, Frame]) -> tuple[str, ...]:
    """Compares cameras with their reference pictures and returns one line per problem, or () if all views match.

    Raises:
        RecipeError: a reference file is not a picture.
    """
    references = {recipe.name: _picture(recipe) for recipe in recipes if recipe.reference}
    problems = []
    for recipe in recipes:
        if recipe.name not in references:
            continue
        scores = {name: similarity(frames[recipe.name].image, picture) for name, picture in references.items()}
        best, score = max(scores, key=scores.__getitem__), scores[recipe.name]
        if best != recipe.name and scores[best] >= recipe.min_similarity:
            problems.append(f"camera {recipe.name} sees what {best} should ({scores[best]:.2f}); swap their sources")
        elif score < recipe.min_similarity:
            problems.append(
                f"camera {recipe.name} is {score:.2f} like {recipe.reference}, needs {recipe.min_similarity:.2f}; "
                "mount it as it was, or take a new reference"
            )
    return tuple(problems)


def _coarse(image: np.ndarray) -> np.ndarray:
    """Returns the brightness of a picture as `_SMALL_PX` x `_SMALL_PX` block means, centred and flattened."""
    import cv2

    grey = np.asarray(image, dtype=np.float32).mean(axis=2)
    small = cv2.resize(grey, (_SMALL_PX, _SMALL_PX), interpolation=cv2.INTER_AREA).ravel().astype(np.float64)
    return small - small.mean()


def _picture(recipe: CameraRecipe) -> np.ndarray:
    import cv2

    path = Path(recipe.reference)
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if path.is_file() else None
    if picture is None:
        raise RecipeError(f"camera {recipe.name}: the reference {path} is no picture; take one, or remove the key")
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


# --- one camera ---------------------------------------------------------------------------------------------------


class _Camera:
    """One camera and the thread that reads it. Pictures that are not fetched in time are dropped."""

    def __init__(self, recipe: CameraRecipe, make_capture: Callable[[CameraRecipe], Capture]) -> None:
        self.recipe = recipe
        self.notes: tuple[str, ...] = ()
        self._make_capture = make_capture
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()
        self._news = threading.Condition()
        self._newest: tuple[np.ndarray, float] | None = None  # BGR as captured, and its time
        self._changed_s = 0.0  # time at which a picture last differed from the one before it
        self._failure: CameraError | None = None
        self._shaped: Frame | None = None

    def start(self) -> None:
        self._ending.clear()
        self._newest = self._failure = self._shaped = None
        self._thread = threading.Thread(target=self._run, name=f"camera-{self.recipe.name}", daemon=True)
        self._thread.start()

    def wait(self, deadline_s: float) -> None:
        """Waits for the first picture. Raises CameraError if none arrives before the deadline."""
        with self._news:
            self._news.wait_for(
                lambda: self._newest is not None or self._failure is not None, deadline_s - time.monotonic()
            )
        if self._failure is not None:
            raise self._failure
        if self._newest is None:
            raise self._error("gave no picture", "unplug it and plug it in again, or restart its stream")

    def end(self) -> None:
        self._ending.set()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join(1.5 * _READ_MS / 1000.0)
            self._thread = None

    def read(self, now_s: float, max_age_s: float | None) -> Frame:
        limit_s = self.recipe.max_age_s if max_age_s is None else max_age_s
        with self._news:
            newest, changed_s, failure = self._newest, self._changed_s, self._failure
        if failure is not None:
            raise failure
        if newest is None:
            raise self._error("is not open", "use it as a context manager: with cameras: ...")
        captured, time_s = newest
        if now_s - time_s > limit_s:
            raise self._error(f"gave no picture for {now_s - time_s:.1f} s", "check its cable, or its stream")
        if now_s - changed_s > limit_s:
            raise self._error(f"is frozen: the same picture for {now_s - changed_s:.1f} s", "plug it in again")
        if self._shaped is None or self._shaped.time_s != time_s:
            self._shaped = Frame(_shape(captured, self.recipe), time_s)
        return self._shaped

    def _run(self) -> None:
        capture = None
        try:
            capture = self._make_capture(self.recipe)
            if not capture.isOpened():
                raise self._error("cannot be opened", _sources_here(self.recipe))
            self.notes = _configure(capture, self.recipe)
            self._keep_newest(capture)
        except CameraError as error:
            self._fail(error)
        except Exception as error:  # an exception of OpenCV would be lost in this thread
            self._fail(self._error(f"failed ({error})", "check its cable and its recipe"))
        finally:
            if capture is not None:
                capture.release()

    def _keep_newest(self, capture: Capture) -> None:
        previous = None
        while not self._ending.is_set():
            ok, picture = capture.read()
            now_s = time.monotonic()
            if not ok or picture is None:
                if not self._ending.is_set():
                    raise self._error("gives no pictures any more", "check its cable, or its stream")
                return
            changed = previous is None or previous.shape != picture.shape or not np.array_equal(previous, picture)
            previous = picture
            with self._news:
                self._newest = (picture, now_s)
                self._changed_s = now_s if changed else self._changed_s
                self._news.notify_all()

    def _fail(self, error: CameraError) -> None:
        with self._news:
            self._failure = error
            self._news.notify_all()

    def _error(self, problem: str, remedy: str) -> CameraError:
        return CameraError(f"camera {self.recipe.name} ({self.recipe.source}) {problem}; {remedy}")


def _is_stream(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _check(recipe: CameraRecipe) -> None:
    """Raises RecipeError if no camera could satisfy the recipe."""
    prefix = f"camera {recipe.name}"
    if not (recipe.source.isdecimal() or recipe.source.startswith("/dev/") or _is_stream(recipe.source)):
        raise RecipeError(f'{prefix}: source is {recipe.source!r}; give an index ("0"), /dev/videoN or http://...')
    if len(recipe.capture_px) not in (0, 2) or len(recipe.crop) not in (0, 4):
        raise RecipeError(f"{prefix}: capture_px is (height, width), crop is (top, left, height, width)")
    if recipe.crop and (min(recipe.crop) < 0 or min(recipe.crop[2:]) == 0):
        raise RecipeError(f"{prefix}: crop is {list(recipe.crop)}; it needs a height and a width, and no minus signs")
    for name, value in recipe.fixed.items():
        if name not in PROPERTIES:
            close = difflib.get_close_matches(name, PROPERTIES, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(PROPERTIES)}"
            raise RecipeError(f"{prefix}: no property {name!r}; {hint}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RecipeError(f"{prefix}: fixed.{name} is {value!r}; it is a number, as v4l2-ctl -L lists it")


def _configure(capture: Capture, recipe: CameraRecipe) -> tuple[str, ...]:
    """Applies the recipe's settings and reads them back. Returns notes on settings that a stream does not take.

    Raises:
        CameraError: the camera ignored a setting. The message gives the camera's own value.
    """
    import cv2

    size = {"height": recipe.capture_px[0], "width": recipe.capture_px[1]} if recipe.capture_px else {}
    requested = {name: (f"CAP_PROP_FRAME_{name.upper()}", float(value)) for name, value in size.items()}
    requested |= {"fps": ("CAP_PROP_FPS", recipe.capture_fps)} if recipe.capture_fps else {}
    requested |= {name: (PROPERTIES[name], float(recipe.fixed[name])) for name in PROPERTIES if name in recipe.fixed}
    if _is_stream(recipe.source):
        names = ", ".join(requested)
        return (f"camera {recipe.name}: a stream takes no {names}; set it where it comes from",) if requested else ()
    for prop, value in requested.values():
        capture.set(getattr(cv2, prop), value)
    for name, (prop, value) in requested.items():  # read back last, because setting one property may change another
        actual = capture.get(getattr(cv2, prop))
        if abs(actual - value) > _SAME * max(1.0, abs(value)):
            raise CameraError(
                f"camera {recipe.name} ({recipe.source}) ignored {name} = {value:g}, it has {actual:g}; take a value "
                "that v4l2-ctl -L lists, or remove the key"
            )
    return ()


def _sources_here(recipe: CameraRecipe) -> str:
    if _is_stream(recipe.source):
        return "is its server running, and the URL right?"
    devices = sorted(glob.glob("/dev/video*"))
    return f"there are: {', '.join(devices)}" if devices else "this machine has no /dev/video*: plug a camera in"


def _shape(captured: np.ndarray, recipe: CameraRecipe) -> np.ndarray:
    """Crops and resizes a BGR picture to the recipe's size: uint8 (H, W, 3) RGB, read-only.

    Raises:
        CameraError: the crop is larger than the picture.
    """
    import cv2

    height, width = captured.shape[:2]
    top, left, rows, columns = recipe.crop or _centred(height, width, recipe.height_px / recipe.width_px)
    if top + rows > height or left + columns > width:
        raise CameraError(f"camera {recipe.name}: crop {list(recipe.crop)} does not fit its {height} x {width} picture")
    part = captured[top : top + rows, left : left + columns]
    if part.shape[:2] != (recipe.height_px, recipe.width_px):
        shrinks = rows >= recipe.height_px
        part = cv2.resize(
            part,
            (recipe.width_px, recipe.height_px),  # OpenCV's sizes are (width, height)
            interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
        )
    image = np.ascontiguousarray(part[..., ::-1])
    image.setflags(write=False)
    return image


def _centred(height: int, width: int, aspect: float) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of the largest centred crop with `aspect` = height / width."""
    rows, columns = min(height, round(width * aspect)), min(width, round(height / aspect))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
