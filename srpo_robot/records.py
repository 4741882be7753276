"""Records that the subpackages exchange: frozen dataclasses with units and shapes. Needs numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

JOINTS = 7


def frozen(array: np.ndarray, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """Returns a read-only float64 copy of `array`.

    Raises:
        ValueError: the shape differs from `shape`. A None in `shape` matches any length.
    """
    copy = np.array(array, dtype=np.float64)
    if shape is not None and (
        copy.ndim != len(shape)
        or any(expected is not None and size != expected for size, expected in zip(copy.shape, shape, strict=True))
    ):
        raise ValueError(f"shape {copy.shape}, expected {shape}")
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode of a LeRobot dataset, without its frames.

    Attributes:
        index: episode_index in the dataset.
        task: language instruction.
        length: number of frames T.
        fps: frames per second.
        first_frame: global `index` of the episode's frame 0.
        cameras: feature keys of the cameras, for example "observation.images.front".
        success: True, False, or None if unlabelled (never counted as a failure).
        group: name shared by episodes cut from one take. Leave-one-out leaves the whole group out.
    """

    index: int
    task: str
    length: int
    fps: float
    first_frame: int
    cameras: tuple[str, ...]
    success: bool | None = None
    group: str = ""


@dataclass(frozen=True, eq=False)
class Curve:
    """Distance and progress of one episode, frame by frame.

    Attributes:
        episode_index: episode_index in the dataset.
        distance: (T,) L2 distance to the references. NaN before the first window.
        progress: (T,) progress in [0, 1]. Frames before the first window hold its value. All NaN if undefined.
        scored: (T,) True for frames with an embedded window, False if the distance is interpolated or absent.
        reason: why progress is undefined, "" if it is defined.
    """

    episode_index: int
    distance: np.ndarray
    progress: np.ndarray
    scored: np.ndarray
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ArmState:
    """Measured state of the arm.

    Attributes:
        time_s: time on the arm's clock [s].
        joints_rad: (7,) measured joint angles [rad], J1..J7.
        gripper_m: measured opening between the fingers [m].
    """

    time_s: float
    joints_rad: np.ndarray
    gripper_m: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "joints_rad", frozen(self.joints_rad, (JOINTS,)))


@dataclass(frozen=True, eq=False)
class ArmCommand:
    """A position target for one control period.

    Attributes:
        joints_rad: (7,) joint targets [rad], J1..J7.
        gripper_m: target opening [m].
    """

    joints_rad: np.ndarray
    gripper_m: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "joints_rad", frozen(self.joints_rad, (JOINTS,)))


@dataclass(frozen=True, eq=False)
class Observation:
    """Input of a policy at one control step.

    Attributes:
        state: measured arm state.
        commanded: the last executed command, after limits.
        images: camera name ("front", "wrist") -> uint8 (H, W, 3) RGB.
    """

    state: ArmState
    commanded: ArmCommand
    images: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """Actions for the next control steps, in the units of an action space of `arm.actions`.

    Attributes:
        actions: (H, A) actions in physical units [m, rad], one row per control period.
        names: names of the A components, for example ("tcp.x", "tcp.y", "tcp.z", "gripper").
    """

    actions: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "actions", frozen(self.actions, (None, len(self.names))))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One evaluation run, a row of trials.jsonl.

    Attributes:
        trial: 0-based number within the run.
        task: language instruction.
        policy: name of the policy that moved the arm.
        seed: seed of the layout.
        success: verdict, None if the trial is void.
        steps: control steps executed.
        seconds: duration on the arm's clock [s].
        limited_by: number of commands that each limit layer changed, by layer name.
        layout: the scene, JSON-able.
        note: why the trial is void or was cut short, else "".
        late: number of control steps at which the arm held because the policy had not answered yet.
        episode_index: index of the recorded episode, -1 if the trial was not recorded.
        score: degree of completion at the end, 0 to 1. None if it was not measured.
    """

    trial: int
    task: str
    policy: str
    seed: int
    success: bool | None
    steps: int
    seconds: float
    limited_by: dict[str, int] = field(default_factory=dict)
    layout: dict[str, object] = field(default_factory=dict)
    note: str = ""
    late: int = 0
    episode_index: int = -1
    score: float | None = None
