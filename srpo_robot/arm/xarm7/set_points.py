"""From time-stamped targets to the set points of a steady stream: interpolation, deadlines, the log of each tick.

Pure: time comes in as numbers. `streamer` adds the clock and the arm.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from srpo_robot.arm.xarm7 import motion
from srpo_robot.arm.xarm7.motion import Motion, MotionLimits
from srpo_robot.errors import CommandRefused
from srpo_robot.records import JOINTS, ArmCommand

# One tick, as the streamer tells it. Times: `time.monotonic` [s]; angles [rad]; what is not known is NaN.
LOG = np.dtype(
    [
        ("time_s", "f8"),  # when the tick began
        ("late_s", "f8"),  # behind its deadline
        ("missed", "i4"),  # ticks that were left out before it
        ("target", "i8"),  # number of the target that was followed, -1: none
        ("asked_rad", "f8", (JOINTS,)),  # where the targets said to be now
        ("sent_rad", "f8", (JOINTS,)),  # the set point (of a dry run: that would have been sent); else NaN
        ("asked_gripper_m", "f8"),
        ("gripper_m", "f8"),  # set point
        ("reported_rad", "f8", (JOINTS,)),
        ("report_s", "f8"),  # when that report came
        ("gripper_reported_m", "f8"),
        ("reply_s", "f8"),  # how long the command took
        ("code", "i2"),  # of the command, 0: good
        ("state", "u1"),
        ("mode", "u1"),
        ("error", "u1"),
        ("warning", "u1"),
        ("limited_by", "u1"),  # bits, in the order of `motion.LAYERS`
        ("phase", "u1"),  # of the streamer, see `stream_loop.StreamerState`
    ]
)


def layer_bits(layers: Iterable[str]) -> int:
    """Layers of `motion.LAYERS` as bits, for `LOG`."""
    return sum(1 << motion.LAYERS.index(layer) for layer in layers)


def layers_of_bits(bits: int) -> tuple[str, ...]:
    """The inverse of `layer_bits`."""
    return tuple(layer for i, layer in enumerate(motion.LAYERS) if bits >> i & 1)


class SetPoints:
    """Follows targets at a steady rate: straight from one target to the next by its due time, then held.

    Every set point keeps the promise of `motion.advance`; a target that is not finite makes it brake and hold.
    """

    def __init__(self, start: Motion, limits: MotionLimits, tick_s: float) -> None:
        """Begin at rest where the arm is; the first target counts from there."""
        self.motion = start
        self.limits = limits
        self.tick_s = tick_s
        self.number = -1  # of the target that is followed
        self._pace = 1.0
        self._braking = False
        self._from = self._to = (start.joints_rad, start.gripper_m)
        self._from_s, self._to_s = 0.0, 0.0

    def aim(self, number: int, command: ArmCommand, now_s: float, due_s: float, pace: float = 1.0) -> None:
        """Go to `command` so as to be there at `due_s`.

        Raises:
            CommandRefused: it is not finite; what is followed brakes and holds until the next target.
        """
        if not (np.isfinite(command.joints_rad).all() and np.isfinite(command.gripper_m)):
            self.brake()
            raise CommandRefused("a target with NaN or infinity was refused; the arm brakes. Check the policy's output")
        here = self.asked(now_s)
        self._from = (here.joints_rad, here.gripper_m)
        self._to = (command.joints_rad, command.gripper_m)
        self._from_s, self._to_s = now_s, due_s
        self.number, self._pace, self._braking = number, pace, False

    def brake(self) -> None:
        """Come to rest as soon as the acceleration cap allows, and hold there until the next target."""
        self._braking = True

    def asked(self, now_s: float) -> ArmCommand:
        """Where the targets say to be at `now_s`; while braking, where the set points are."""
        if self._braking:
            return ArmCommand(self.motion.joints_rad, self.motion.gripper_m)
        span = self._to_s - self._from_s
        share = float(np.clip((now_s - self._from_s) / span, 0.0, 1.0)) if span > 0.0 else 1.0
        (joints, gripper), (end_joints, end_gripper) = self._from, self._to
        return ArmCommand(joints + share * (end_joints - joints), gripper + share * (end_gripper - gripper))

    def advance(self, now_s: float) -> tuple[str, ...]:
        """One tick; the layers that held it back. However late it comes, it is one tick: no burst after a stall."""
        if self._braking:
            self.motion = motion.brake(self.motion, self.limits, self.tick_s)
            return ()
        asked = self.asked(now_s + self.tick_s)  # where to be when this set point is reached
        self.motion, limited_by = motion.advance(self.motion, asked, self.limits, self.tick_s, self._pace)
        return limited_by

    @property
    def resting_place(self) -> np.ndarray:
        """(7,) where braking from here ends: inside the limits by the promise of every tick."""
        change = self.limits.joint_acceleration_rad_s2 * self.tick_s
        fastest = float(np.abs(self.motion.speed_rad_s).max())
        if fastest <= change:
            return self.motion.joints_rad
        left = np.maximum(1.0 - change / fastest * np.arange(1, int(fastest / change) + 2), 0.0).sum()
        return self.motion.joints_rad + self.motion.speed_rad_s * left * self.tick_s


class Deadlines:
    """Absolute deadlines of a steady rate. After a stall the ticks that were missed are left out, not made up for."""

    def __init__(self, start_s: float, tick_s: float) -> None:
        self.tick_s = tick_s
        self.next_s = start_s

    def begin(self, now_s: float) -> tuple[float, int]:
        """Begin the tick that is due: how late it is [s], and how many were left out before it."""
        late_s = max(now_s - self.next_s, 0.0)
        missed = int(late_s / self.tick_s)
        if late_s > 0.5 * self.tick_s:
            self.next_s = now_s + self.tick_s  # from here on: never two set points close together
        else:
            self.next_s += self.tick_s
        return late_s, missed
