"""The xArm gripper (first generation) behind the tool's RS485 bus: registers on one side, an opening on the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from srpo_robot.mock.controller.frames import (
    Malformed,
    RegisterRead,
    RegisterWrite,
    encode_rtu_reply,
    number,
    words,
)

DEVICE = 8  # Modbus address of the gripper
PULSE_M = 1e-4  # one unit of position; 850 units are the full stroke of 85 mm
STILL, MOVING, CAUGHT = range(3)

_METRE_PER_S_PER_RPM = 2e-5  # 5000 r/min are 100 mm/s
_CAUGHT_M = 0.002  # further than this from its target: something is between the fingers
_MOVING_M_S = 0.002
_VERSION = (3, 4, 3)  # the first version whose status register the SDK trusts
_STATUS, _ERROR, _ENABLE, _MODE, _CLEAN = 0x0000, 0x000F, 0x0100, 0x0101, 0x0109
_SPEED, _TARGET, _POSITION, _VERSIONS = 0x0303, 0x0700, 0x0702, 0x0801


class Gripper:
    """State of the gripper. `setpoint_m` is the motor's set point, `measured_m` the position of the fingers."""

    def __init__(self, opening_m: float, stroke_m: float) -> None:
        self.stroke_m = stroke_m
        self.setpoint_m = self.target_m = self.measured_m = opening_m
        self.enabled = False
        self.error = 0  # the gripper's own code (G), 0: none
        self.broken = False  # cleaning does not remove the error
        self._mode = 0
        self._speed_rpm = 1500
        self._speed_m_s = 0.0  # measured

    @property
    def status(self) -> int:
        """STILL, MOVING, or CAUGHT if something holds the fingers off their target."""
        if (self.setpoint_m != self.target_m and self._may_move) or abs(self._speed_m_s) > _MOVING_M_S:
            return MOVING
        return CAUGHT if self.enabled and abs(self.measured_m - self.target_m) > _CAUGHT_M else STILL

    def advance(self, dt_s: float) -> None:
        """Moves the setpoint towards the target."""
        if self._may_move:
            step = self._speed_rpm * _METRE_PER_S_PER_RPM * dt_s
            self.setpoint_m += float(np.clip(self.target_m - self.setpoint_m, -step, step))

    def feel(self, measured_m: float, dt_s: float) -> None:
        """Takes the fingers' new position, `dt_s` after the last one."""
        self._speed_m_s = (measured_m - self.measured_m) / dt_s
        self.measured_m = measured_m

    def hold(self) -> None:
        """Stops at the fingers' position and forgets the target."""
        self.setpoint_m = self.target_m = self.measured_m
        self._speed_m_s = 0.0

    def fail(self, code: int) -> None:
        """Latches the gripper's own error `code` and stops."""
        self.error = code
        self.hold()

    def answer(self, command: RegisterRead | RegisterWrite) -> bytes:
        """Carries out a Modbus command and returns the RTU frame of its answer.

        Raises:
            Malformed: another device is addressed, or a register that the gripper does not have.
        """
        if command.device != DEVICE:
            raise Malformed(f"no Modbus device {command.device} on the tool's bus; the gripper is {DEVICE}")
        if isinstance(command, RegisterRead):
            values = self._registers()
            addresses = range(command.address, command.address + command.count)
            if not set(addresses) <= set(values):
                raise Malformed(f"the gripper has no registers {command.address:#06x} + {command.count}")
            return encode_rtu_reply(command, tuple(values[address] for address in addresses))
        self._write(command)
        return encode_rtu_reply(command)

    @property
    def _may_move(self) -> bool:
        return self.enabled and self.error == 0

    def _registers(self) -> dict[int, int]:
        position, target = words(round(self.measured_m / PULSE_M)), words(round(self.target_m / PULSE_M))
        return {
            _STATUS: self.status,
            _ERROR: self.error,
            _ENABLE: int(self.enabled),
            _MODE: self._mode,
            _SPEED: self._speed_rpm,
            **{_TARGET + i: word for i, word in enumerate(target)},
            **{_POSITION + i: word for i, word in enumerate(position)},
            **{_VERSIONS + i: part for i, part in enumerate(_VERSION)},
        }

    def _write(self, command: RegisterWrite) -> None:
        actions: dict[tuple[int, int], Callable[..., None]] = {
            (_ENABLE, 1): self._set_enabled,
            (_MODE, 1): self._set_mode,
            (_CLEAN, 1): self._clean,
            (_SPEED, 1): self._set_speed,
            (_TARGET, 2): self._set_target,
        }
        action = actions.get((command.address, len(command.values)))
        if action is None:
            raise Malformed(f"the gripper takes no {len(command.values)} values at {command.address:#06x}")
        action(*command.values)

    def _set_enabled(self, value: int) -> None:
        self.enabled = bool(value)
        if not self.enabled:
            self.hold()

    def _set_mode(self, value: int) -> None:
        if value != 0:
            raise Malformed(f"gripper mode {value} is not emulated; 0 (position) is")
        self._mode = value

    def _clean(self, _: int) -> None:
        if not self.broken:
            self.error = 0

    def _set_speed(self, value: int) -> None:
        self._speed_rpm = int(np.clip(value, 50, 5000))

    def _set_target(self, high: int, low: int) -> None:
        if self._may_move:
            self.target_m = float(np.clip(number(high, low) * PULSE_M, 0.0, self.stroke_m))
