"""Action spaces: convert between the action vectors of datasets and policies and the joint commands of an arm.

The first dimensions of the state describe the same quantities as the action, in the same order. lerobot's relative
actions (action minus state) are therefore displacements from the measured pose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from srpo_robot.arm import kinematics
from srpo_robot.arm.limits import Limited, Limits
from srpo_robot.errors import CommandRefused, RecipeError
from srpo_robot.records import JOINTS, ArmCommand, ArmState

TCP_NAMES = ("tcp.x", "tcp.y", "tcp.z", "gripper")
JOINT_NAMES = (*(f"joint{i}.pos" for i in range(1, JOINTS + 1)), "gripper.pos")


@dataclass(frozen=True, eq=False)
class ActionSpace:
    """Meaning of one action vector.

    Attributes:
        names: names of the action's dimensions.
        state_names: names of the dimensions of observation.state.
        limits: limits of the arm; the TCP space also clips its targets to the workspace box.
        posture_rad: (7,) elbow posture that inverse kinematics stays near.
    """

    names: tuple[str, ...]
    state_names: tuple[str, ...]
    limits: Limits
    posture_rad: np.ndarray

    def command(self, action: np.ndarray, previous: ArmCommand) -> Limited:
        """Returns the joint command for `action` (A,), solved from `previous`, the command that was executed last.

        A TCP target outside the workspace box is first moved to the nearest wall ("workspace_box"), so the arm can
        still slide along the wall. An unreachable TCP target becomes a hold ("unreachable").

        Raises:
            CommandRefused: the action has the wrong length or is not finite.
        """
        if action.shape != (len(self.names),):
            raise CommandRefused(f"an action has {action.shape} values, this arm takes {len(self.names)}: {self.names}")
        if not np.isfinite(action).all():
            raise CommandRefused("an action with NaN or infinity was refused; the arm holds. Check the policy's output")
        if self.names == JOINT_NAMES:
            return Limited(ArmCommand(action[:JOINTS], float(action[JOINTS])), ())
        target = np.clip(action[:3], self.limits.box_min_m, self.limits.box_max_m)
        limited_by = ("workspace_box",) if np.any(target != action[:3]) else ()
        solution = kinematics.inverse(
            target,
            kinematics.TOOL_DOWN,
            previous.joints_rad,
            self.limits.tcp_offset_m,
            self.limits.joint_min_rad,
            self.limits.joint_max_rad,
            posture_rad=self.posture_rad,
        )
        if not solution.reached:
            return Limited(ArmCommand(previous.joints_rad, float(action[3])), (*limited_by, "unreachable"))
        return Limited(ArmCommand(solution.joints_rad, float(action[3])), limited_by)

    def action(self, command: ArmCommand) -> np.ndarray:
        """Returns the action (A,) that corresponds to `command`, the inverse of the method `command`."""
        if self.names == JOINT_NAMES:
            return np.append(command.joints_rad, command.gripper_m)
        return np.append(kinematics.tcp_position(command.joints_rad, self.limits.tcp_offset_m), command.gripper_m)

    def state(self, state: ArmState, commanded: ArmCommand) -> np.ndarray:
        """Returns observation.state (S,): the measured state, followed by the last command."""
        measured = self.action(ArmCommand(state.joints_rad, state.gripper_m))
        target = self.action(commanded)
        return np.concatenate([measured, target if self.names == JOINT_NAMES else target[:3]])


def make_action_space(kind: str, limits: Limits, posture_rad: np.ndarray) -> ActionSpace:
    """Returns the action space `kind`.

    Args:
        kind: "tcp" (TCP position with the tool pointing down, and gripper) or "joints".
        limits: limits of the arm.
        posture_rad: (7,) elbow posture that inverse kinematics stays near.

    Raises:
        RecipeError: `kind` is unknown.
    """
    if kind == "tcp":
        return ActionSpace(TCP_NAMES, (*TCP_NAMES, "target.x", "target.y", "target.z"), limits, posture_rad)
    if kind == "joints":
        targets = tuple(f"target.{name}" for name in JOINT_NAMES)
        return ActionSpace(JOINT_NAMES, (*JOINT_NAMES, *targets), limits, posture_rad)
    raise RecipeError(f"no action space {kind!r}; there are: tcp, joints")
