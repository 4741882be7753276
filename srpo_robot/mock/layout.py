"""The scene of one trial: the start pose of every object. Data only, no physics."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Placement:
    """The start pose of an object: centre (x, y) [m] in the base frame, and rotation about the vertical [rad]."""

    name: str
    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The scene of one trial.

    Attributes:
        task: name of the task.
        target: name in `SceneFacts.objects_m` of the object of the instruction.
        seed: seed that the layout was drawn from.
        objects: free objects on the table. The task's other objects are out of sight.
        plate_m: centre of the goal (plate, tray, board, or the towel's fold), (x, y) [m], base frame.
        swapped: whether target and first distractor were swapped.
        instruction: instruction for the policy in this trial.
        plate_yaw_rad: rotation of the board or towel about the vertical.
        fixtures: poses of the furniture besides the goal.
        marks_m: ink on the board, (x, y) [m] from its centre.
        ink_rgb: colour of the ink, 0 to 1.
        swap_at_s: time at which target and first distractor are swapped during the trial. With None, they stay.
    """

    task: str
    target: str
    seed: int
    objects: tuple[Placement, ...]
    plate_m: tuple[float, float]
    swapped: bool
    instruction: str
    plate_yaw_rad: float = 0.0
    fixtures: tuple[Placement, ...] = ()
    marks_m: tuple[tuple[float, float], ...] = ()
    ink_rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)
    swap_at_s: float | None = None

    def as_json(self) -> dict[str, object]:
        """Returns the layout as JSON values."""
        return json.loads(json.dumps(asdict(self)))
