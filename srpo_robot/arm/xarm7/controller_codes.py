"""The controller's error codes: the meaning of each, and the remedy. No code is ever retried automatically.

Numbers and meanings are from the vendor's manual (error code tables of controller and gripper).
"""

from __future__ import annotations

from enum import StrEnum

from srpo_robot.errors import ArmError


class Remedy(StrEnum):
    """The action that a fault needs before a run may go on."""

    CONFIRM = "look why it stopped, make the way free, then confirm the recovery"
    RELEASE = "release the emergency stop, then confirm the recovery"
    SUPPORT = "end the session, power the control box off and on; if it comes back, ask the vendor's support"
    PROGRAM = "this software asked for something the controller does not do; report it with the trial's log"


class ControllerFault(ArmError):
    """The controller or the gripper reports an error. The arm has stopped.

    Attributes:
        code: the gripper's G code if `gripper`, else the controller's C code.
        gripper: whether the error is the gripper's.
        remedy: the action that the fault needs.
    """

    def __init__(self, code: int, gripper: bool = False) -> None:
        self.code, self.gripper = code, gripper
        title, self.remedy = gripper_error(code) if gripper else controller_error(code)
        super().__init__(
            f"{'gripper' if gripper else 'controller'} error {'G' if gripper else 'C'}{code} ({title}); "
            f"the arm has stopped: {self.remedy}"
        )

    def __reduce__(self) -> tuple[type[ControllerFault], tuple[int, bool]]:
        return type(self), (self.code, self.gripper)


_CONTROLLER: dict[int, tuple[str, Remedy]] = {
    1: ("the emergency stop button is pressed", Remedy.RELEASE),
    2: ("the emergency stop input is open", Remedy.RELEASE),
    3: ("the three-state switch stopped the arm", Remedy.RELEASE),
    18: ("force-torque sensor does not answer", Remedy.SUPPORT),
    19: ("the gripper's bus does not answer", Remedy.CONFIRM),
    21: ("no kinematic solution", Remedy.CONFIRM),
    22: ("self-collision", Remedy.CONFIRM),
    23: ("a joint angle beyond its range", Remedy.CONFIRM),
    24: ("a joint asked to go too fast", Remedy.CONFIRM),
    25: ("planning failed", Remedy.CONFIRM),
    26: ("the control box's real-time system failed", Remedy.SUPPORT),
    27: ("a motor did not answer a command", Remedy.SUPPORT),
    28: ("the tool's board does not answer", Remedy.SUPPORT),
    30: ("a joint moves faster than asked", Remedy.SUPPORT),
    31: ("collision", Remedy.CONFIRM),
    32: ("three-point circle", Remedy.PROGRAM),
    33: ("inputs and outputs of the control box", Remedy.SUPPORT),
    34: ("recording ran out of time", Remedy.PROGRAM),
    35: ("the TCP crossed the safety boundary", Remedy.CONFIRM),
    36: ("too many delayed commands", Remedy.PROGRAM),
    37: ("unexpected motion while guided by hand: wrong payload or mounting", Remedy.CONFIRM),
    38: ("an impossible joint angle", Remedy.SUPPORT),
    39: ("power board: its two halves do not talk", Remedy.SUPPORT),
    40: ("no trajectory for a joint move", Remedy.PROGRAM),
    41: ("friction file", Remedy.SUPPORT),
    42: ("calibration file", Remedy.SUPPORT),
    60: ("the TCP was asked to go too fast", Remedy.CONFIRM),
    110: ("the base board does not answer", Remedy.SUPPORT),
    111: ("a device on the control box's RS485 does not answer", Remedy.SUPPORT),
}


def controller_error(code: int) -> tuple[str, Remedy]:
    """Returns title and remedy of the controller's error C`code`. Unknown codes are left to the vendor's support."""
    if 10 <= code <= 17:
        return ("a motor failed" if code == 10 else f"motor {code - 10} failed"), Remedy.SUPPORT
    if 50 <= code <= 53:
        return "force-torque sensor", Remedy.SUPPORT
    return _CONTROLLER.get(code, ("not in the table of this version", Remedy.SUPPORT))


_GRIPPER = {
    9: "current sensing",
    11: "too much current",
    12: "too fast",
    14: "position beyond its range",
    15: "memory",
    20: "driver chip",
    21: "driver chip not initialised",
    23: "far from its target",
    25: "command beyond its software range",
    26: "position beyond its software range",
    33: "drive overloaded",
    34: "motor overloaded",
    36: "driver type",
}


def gripper_error(code: int) -> tuple[str, Remedy]:
    """Returns title and remedy of the gripper's error G`code`."""
    return _GRIPPER.get(code, "not in the table of this version"), Remedy.CONFIRM


CLOSED, NO_REPLY = -1, 3
NOT_READY = 9  # reply to a set point that was not executed, because the state or the mode is another one
_REPLIES = {
    -12: "an error of the tool",
    -9: "the arm is stopped",
    -8: "a joint angle beyond the range that the vendor's SDK knows",
    -2: "the arm is not ready",
    CLOSED: "the connection is closed",
    1: "the controller has an error",
    2: "the controller has a warning",
    NO_REPLY: "no reply in time",
    6: "a reply of another protocol",
    7: "a reply to another function",
    8: "the request could not be sent",
    NOT_READY: "the arm is not ready to move",
    10: "the controller refused the parameters",
    19: "the tool's bus does not answer",
    100: "it took too long",
    102: "the gripper has an error",
}


def reply(code: int) -> str:
    """Returns the meaning of a code that a call of the SDK returned."""
    return _REPLIES.get(code, "not in the table of this version") + f", code {code}"
