"""The records that rooms hand to each other: frozen dataclasses with units and shapes; numpy only."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

JOINTS = 7


def frozen(array: np.ndarray, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """A read-only copy of `array` as float64; `shape` (None: any length) is checked.

    Raises:
        ValueError: the shape differs.
    """
    copy = np.array(array, dtype=np.float64)
    if shape is not None and (
        copy.ndim != len(shape)
        or any(want is not None and have != want for have, want in zip(copy.shape, shape, strict=True))
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
        cameras: feature keys of its cameras, for example "observation.images.front".
        success: True, False, or None for unlabelled (never read as failure).
        group: episodes cut from one take share a group; leave-one-out leaves the whole group out.
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
        distance: (T,) L2 distance to the references; NaN before the first window.
        progress: (T,) progress in [0, 1], before the first window held at its value; NaN throughout where undefined.
        scored: (T,) True where a window was embedded, False where the distance was interpolated or there is none.
        reason: why progress is NaN throughout ("" where it is not).
    """

    episode_index: int
    distance: np.ndarray
    progress: np.ndarray
    scored: np.ndarray
    reason: str = ""


@dataclass(frozen=True, eq=False)
class ArmState:
    """What the arm measured.

    Attributes:
        time_s: clock of the arm [s].
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
    """What a policy sees at one control step.

    Attributes:
        state: measured arm state.
        commanded: the last executed command (after limits).
        images: camera name ("front", "wrist") -> uint8 (H, W, 3) RGB.
    """

    state: ArmState
    commanded: ArmCommand
    images: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class ActionChunk:
    """Actions for the next control steps, in the units of an action space of `arm.actions`.

    Attributes:
        actions: (H, A) physical units (m, rad), one row a control period.
        names: A names, for example ("tcp.x", "tcp.y", "tcp.z", "gripper").
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
        policy: what moved the arm.
        seed: seed of the layout.
        success: verdict; None where the trial is void.
        steps: control steps executed.
        seconds: duration on the arm's clock [s].
        limited_by: commands changed by each limit layer, by layer name.
        layout: what the scene was, JSON-able.
        note: why a trial is void or was cut, "" otherwise.
        late: control steps at which the arm held because the policy had not answered yet.
        episode_index: of its recording; -1 where there is none.
        score: how well the task was done at the end, 0 to 1; None where nobody measured it.
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
