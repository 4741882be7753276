"""The scene of one trial: where every object starts. Data only, no physics."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Placement:
    """Where something starts: centre (x, y) [m], base frame, and its turn about the vertical [rad]."""

    name: str
    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(frozen=True)
class Layout:
    """The scene of one trial.

    Attributes:
        task: name of the task.
        target: what the instruction is about, by its name in `SceneFacts.objects_m`.
        seed: that it was drawn from.
        objects: free objects on the table; the task's others are out of sight.
        plate_m: centre of where the task ends: plate, tray, board, or the towel's fold (x, y) [m], base frame.
        swapped: target and first distractor changed places.
        instruction: what the policy reads in this trial.
        plate_yaw_rad: turn of the board or towel about the vertical.
        fixtures: furniture beside it.
        marks_m: ink on the board, (x, y) [m] from its centre.
        ink_rgb: colour of the ink, 0 to 1.
        swap_at_s: when target and first distractor change places during the trial; None: they stay.
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
        """The layout as JSON values."""
        return json.loads(json.dumps(asdict(self)))
