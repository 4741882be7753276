"""Ground truth of the simulator, recorded with the frames: task progress, positions, and the script's intent.

The column names do not start with `observation` or `action`, so no policy takes them as input. They allow tests of the
method without an encoder: `true_windows` returns the embeddings of a perfect encoder. The difference to the results
with a real encoder is then the encoder's error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import ArmError, DatasetError, UsageError
from srpo_robot.mock.cell import CellSim
from srpo_robot.mock.objects import PLATE_TOP_M
from srpo_robot.mock.tasks import SceneFacts, Task
from srpo_robot.records import Episode

if TYPE_CHECKING:
    from srpo_robot.progress.score import WindowEmbeddings
    from srpo_robot.progress.windows import WindowSpec

STAGE, STATE, KIND = "truth.stage", "truth.state", "truth.kind"
SCORE, STRATEGY = "truth.score", "truth.strategy"
STATE_NAMES = (
    *("tcp.x", "tcp.y", "tcp.z"),  # [m], base frame, like all positions
    "gripper",  # opening [m]
    *("target.x", "target.y", "target.z"),  # object of the instruction, middle of the remaining ink, or hem
    *("target-tcp.x", "target-tcp.y", "target-tcp.z"),
    *("target-plate.x", "target-plate.y", "target-plate.z"),  # relative to the upper face at `Layout.plate_m`
    *("held", "on_plate"),  # 1 or 0: `Task.held` and `Task.placed` of the target
    *("distractor.x", "distractor.y", "distractor.z"),  # first distractor
    *("distractor-plate.x", "distractor-plate.y", "distractor-plate.z"),
    *("wrong_held", "wrong_on_plate"),  # 1 or 0: `Task.held` and `Task.placed` of any other object
)
FEATURES: dict[str, Any] = {
    STAGE: {"dtype": "float32", "shape": (1,), "names": ["stage"]},
    STATE: {"dtype": "float32", "shape": (len(STATE_NAMES),), "names": list(STATE_NAMES)},
    SCORE: {"dtype": "float32", "shape": (1,), "names": ["score"]},
    KIND: {"dtype": "string", "shape": (1,), "names": None},
    STRATEGY: {"dtype": "string", "shape": (1,), "names": None},
}  # features of a LeRobot dataset
ABSENT_M = (-1.0, 0.0, 0.0)  # distractor position in tasks without distractors: behind the arm, out of sight

StateView = Literal["absolute", "relative"]
Pool = Literal["last", "mean"]
_DROPPED = {
    "absolute": ("target-tcp.", "target-plate.", "distractor-plate."),
    "relative": ("tcp.", "target.", "distractor."),
}  # prefixes of the state values that a view leaves out


def snapshot(sim: CellSim) -> dict[str, np.ndarray | str]:
    """Returns the current values of `FEATURES`.

    `truth.kind` is the demonstrator's planned failure ("none" for a success) and `truth.strategy` its strategy. Both
    are "" if a policy drives.

    Raises:
        ArmError: the cell has no layout yet.
    """
    if sim.layout is None:
        raise ArmError("the cell has no layout yet; reset the workcell before asking what is true")
    return {
        STAGE: np.array([sim.stage()], dtype=np.float32),
        STATE: _state(sim.facts(), sim.task, sim.layout.target),
        SCORE: np.array([sim.score()], dtype=np.float32),
        KIND: sim.intent,
        STRATEGY: sim.strategy,
    }


def _state(facts: SceneFacts, task: Task, target: str) -> np.ndarray:
    """Returns the values of `STATE_NAMES`, float32 (K,)."""
    plate = np.append(facts.plate_m, PLATE_TOP_M)
    target_m = facts.objects_m[target]
    others = [name for name in facts.objects_m if name != target]
    distractor = facts.objects_m[others[0]] if others else np.array(ABSENT_M)
    flags = [task.held(facts, target), task.placed(facts, target)]
    wrong = [any(task.held(facts, name) for name in others), any(task.placed(facts, name) for name in others)]
    parts = (facts.tcp_m, [facts.gripper_m], target_m, target_m - facts.tcp_m, target_m - plate, flags)
    return np.concatenate([*parts, distractor, distractor - plate, wrong]).astype(np.float32)


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Truth:
    """Ground truth of a buffer. Every field has one entry per episode.

    Attributes:
        stage: (T,) ground-truth progress, 0 to 1.
        state: (T, K) values of `STATE_NAMES`.
        score: (T,) how well the task is done, 0 to 1.
        kind: planned failure: "none", "miss", "drop", "wrong" or "stop". "" for a policy's trial.
        strategy: planned strategy. "" for a policy's trial.
        drop: first frame at which the target was held before but is neither held nor on the plate. None if the target
            was not dropped.
    """

    stage: tuple[np.ndarray, ...]
    state: tuple[np.ndarray, ...]
    score: tuple[np.ndarray, ...]
    kind: tuple[str, ...]
    strategy: tuple[str, ...]
    drop: tuple[int | None, ...]


def read_truth(buffer: Buffer) -> Truth:
    """Reads the truth columns of a buffer by episode.

    Raises:
        DatasetError: the buffer has no truth columns (it is from a real arm or an older version), or different ones.
    """
    missing = [name for name in FEATURES if name not in buffer.meta.features]
    if missing:
        raise DatasetError(
            f"{buffer.root} has no column {missing[0]!r}; only the mock cell knows the truth: "
            "record with 'srpo-robot record --arm mock'"
        )
    names = tuple(buffer.meta.features[STATE]["names"])
    if names != STATE_NAMES:
        raise DatasetError(f"{buffer.root}: {STATE} holds {', '.join(names)}; record it again with this version")
    stage, state, score, kind, strategy = (buffer.column(name) for name in (STAGE, STATE, SCORE, KIND, STRATEGY))
    spans = [slice(e.first_frame, e.first_frame + e.length) for e in buffer.episodes]
    states = tuple(state[span] for span in spans)
    return Truth(
        stage=tuple(stage[span] for span in spans),
        state=states,
        score=tuple(score[span] for span in spans),
        kind=tuple(str(kind[span.start]) for span in spans),
        strategy=tuple(str(strategy[span.start]) for span in spans),
        drop=tuple(drop_frame(rows) for rows in states),
    )


def drop_frame(state: np.ndarray) -> int | None:
    """Returns the first frame at which the target was held before but is neither held nor on the plate.

    `state`: (T, K) values of `STATE_NAMES`.
    """
    is_held = state[:, STATE_NAMES.index("held")] > 0.5
    is_placed = state[:, STATE_NAMES.index("on_plate")] > 0.5
    frames = np.flatnonzero(np.logical_or.accumulate(is_held) & ~is_held & ~is_placed)
    return int(frames[0]) if len(frames) else None


# --- a perfect encoder --------------------------------------------------------------------------------------------


def true_windows(
    truth: Truth,
    episodes: Sequence[Episode],
    spec: WindowSpec,
    view: StateView = "relative",
    pool: Pool = "last",
) -> list[WindowEmbeddings]:
    """Returns the window embeddings of a perfect encoder: the true state, standardised over all frames.

    Args:
        truth: ground truth of the buffer with `episodes`.
        episodes: all episodes of the buffer, in order.
        spec: the windows. Its clip length must be set if `pool` is "mean".
        view: "absolute" positions in the base frame, or positions "relative" to gripper and plate.
        pool: the state at the "last" frame of the window, or the "mean" over the frames of its clip.

    Returns:
        One entry per episode, embeddings float64 (n, D).

    Raises:
        UsageError: there is no such view or pool.
        ValueError: `truth` is of other episodes, or the clip length is not set.
    """
    from srpo_robot.progress.score import WindowEmbeddings
    from srpo_robot.progress.windows import clips, ends

    if view not in get_args(StateView) or pool not in get_args(Pool):
        raise UsageError(f"no true state {view!r}, {pool!r}; views: absolute, relative; pools: last, mean")
    if [e.length for e in episodes] != [len(rows) for rows in truth.state]:
        raise ValueError("the truth is of other episodes")
    kept = [i for i, name in enumerate(STATE_NAMES) if not name.startswith(_DROPPED[view])]
    states = _standardised([rows[:, kept].astype(np.float64) for rows in truth.state])
    windows = []
    for rows in states:
        last = ends(len(rows), spec)
        if pool == "last":
            embeddings = rows[last]
        else:
            embeddings = np.stack([rows[clip].mean(axis=0) for clip in clips(len(rows), spec)])
        windows.append(WindowEmbeddings(last, embeddings))
    return windows


def _standardised(states: list[np.ndarray]) -> list[np.ndarray]:
    """Standardises each dimension by its mean and standard deviation over all frames. Constant dimensions become 0."""
    pooled = np.concatenate(states)
    spread = pooled.std(axis=0)
    return [(rows - pooled.mean(axis=0)) / np.where(spread > 0.0, spread, 1.0) for rows in states]
