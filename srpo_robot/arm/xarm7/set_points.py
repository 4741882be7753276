"""Turns time-stamped targets into the set points of a steady stream: interpolation, deadlines, the log of each tick.

Pure functions and classes: the time is an argument. `stream_loop` adds the clock and the arm.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from srpo_robot.arm.xarm7 import motion
from srpo_robot.arm.xarm7.motion import Motion, MotionLimits
from srpo_robot.errors import CommandRefused
from srpo_robot.records import JOINTS, ArmCommand

# One tick in the streamer's log. Times: `time.monotonic` [s]; angles [rad]; unknown values are NaN.
LOG = np.dtype(
    [
        ("time_s", "f8"),  # start of the tick
        ("late_s", "f8"),  # delay against its deadline
        ("missed", "i4"),  # ticks that were skipped before it
        ("target", "i8"),  # number of the active target, -1: none
        ("asked_rad", "f8", (JOINTS,)),  # interpolated target
        ("sent_rad", "f8", (JOINTS,)),  # set point (in a dry run: the one that would have been sent), else NaN
        ("asked_gripper_m", "f8"),
        ("gripper_m", "f8"),  # set point
        ("reported_rad", "f8", (JOINTS,)),
        ("report_s", "f8"),  # arrival time of the report
        ("gripper_reported_m", "f8"),
        ("reply_s", "f8"),  # duration of the command
        ("code", "i2"),  # the SDK's code for the command, 0: accepted
        ("state", "u1"),
        ("mode", "u1"),
        ("error", "u1"),
        ("warning", "u1"),
        ("limited_by", "u1"),  # bit i: `motion.LAYERS[i]` held the set point back
        ("phase", "u1"),  # `stream_loop.StreamerState` of the streamer (`state` is the controller's)
    ]
)


def bits_of_layers(layers: Iterable[str]) -> int:
    """Encodes layers of `motion.LAYERS` as the bits of `LOG`'s column `limited_by`."""
    return sum(1 << motion.LAYERS.index(layer) for layer in layers)


def layers_of_bits(bits: int) -> tuple[str, ...]:
    """Decodes the bits of `bits_of_layers`."""
    return tuple(layer for i, layer in enumerate(motion.LAYERS) if bits >> i & 1)


class SetPoints:
    """Follows targets at a steady rate: straight from one target to the next by its due time, then hold.

    Every set point keeps the invariant of `motion.advance`. A target that is not finite makes the set points brake and
    hold.
    """

    def __init__(self, start: Motion, limits: MotionLimits, tick_s: float) -> None:
        """Starts at rest at the measured pose, from which the first target is approached."""
        self.motion = start
        self.limits = limits
        self.tick_s = tick_s
        self.number = -1  # number of the active target
        self._pace = 1.0
        self._braking = False
        self._from = self._to = (start.joints_rad, start.gripper_m)
        self._from_s, self._to_s = 0.0, 0.0

    def aim(self, number: int, command: ArmCommand, now_s: float, due_s: float, pace: float = 1.0) -> None:
        """Makes `command` the active target, to be reached at `due_s`.

        Raises:
            CommandRefused: it is not finite. The set points brake and hold until the next target.
        """
        if not (np.isfinite(command.joints_rad).all() and np.isfinite(command.gripper_m)):
            self.brake()
            raise CommandRefused("a target with NaN or infinity was refused; the arm brakes. Check the policy's output")
        start = self.target_at(now_s)
        self._from = (start.joints_rad, start.gripper_m)
        self._to = (command.joints_rad, command.gripper_m)
        self._from_s, self._to_s = now_s, due_s
        self.number, self._pace, self._braking = number, pace, False

    def brake(self) -> None:
        """Comes to rest as soon as the acceleration cap allows, and holds there until the next target."""
        self._braking = True

    def target_at(self, now_s: float) -> ArmCommand:
        """Returns the interpolated target at `now_s`, or the current set point while braking."""
        if self._braking:
            return ArmCommand(self.motion.joints_rad, self.motion.gripper_m)
        span = self._to_s - self._from_s
        share = float(np.clip((now_s - self._from_s) / span, 0.0, 1.0)) if span > 0.0 else 1.0
        (joints, gripper), (end_joints, end_gripper) = self._from, self._to
        return ArmCommand(joints + share * (end_joints - joints), gripper + share * (end_gripper - gripper))

    def advance(self, now_s: float) -> tuple[str, ...]:
        """Advances by one tick and returns the layers that held it back.

        A late call is still one tick, so a stall is not followed by a burst.
        """
        if self._braking:
            self.motion = motion.brake(self.motion, self.limits, self.tick_s)
            return ()
        target = self.target_at(now_s + self.tick_s)  # the set point is reached one tick later
        self.motion, limited_by = motion.advance(self.motion, target, self.limits, self.tick_s, self._pace)
        return limited_by

    @property
    def resting_place(self) -> np.ndarray:
        """(7,) end of braking from the current set point, inside the limits by the invariant of every tick."""
        change = self.limits.joint_acceleration_rad_s2 * self.tick_s
        fastest = float(np.abs(self.motion.speed_rad_s).max())
        if fastest <= change:
            return self.motion.joints_rad
        fractions = np.maximum(1.0 - change / fastest * np.arange(1, int(fastest / change) + 2), 0.0).sum()
        return self.motion.joints_rad + self.motion.speed_rad_s * fractions * self.tick_s


class Deadlines:
    """Absolute deadlines of a steady rate. After a stall, missed ticks are skipped and not made up for."""

    def __init__(self, start_s: float, tick_s: float) -> None:
        self.tick_s = tick_s
        self.next_s = start_s

    def begin(self, now_s: float) -> tuple[float, int]:
        """Begins the tick that is due. Returns its delay [s] and the number of ticks that were skipped before it."""
        late_s = max(now_s - self.next_s, 0.0)
        missed = int(late_s / self.tick_s)
        if late_s > 0.5 * self.tick_s:
            self.next_s = now_s + self.tick_s  # restart from now, so that two set points are never close together
        else:
            self.next_s += self.tick_s
        return late_s, missed
