"""The controller as a state machine: modes, enable bits, run states, the error latch, setpoints, limits.

No sockets and no clock: time passes in `advance`. Lengths [m], angles [rad]. `commands` converts from millimetres.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from srpo_robot.arm import kinematics
from srpo_robot.mock.controller import motion, poses
from srpo_robot.mock.controller.gripper import Gripper
from srpo_robot.mock.controller.physics import Plant
from srpo_robot.records import JOINTS, frozen

PLANNED, SERVO, JOINT_ONLINE, POSE_ONLINE = 0, 1, 6, 7  # the modes that are emulated
MODES = (PLANNED, SERVO, JOINT_ONLINE, POSE_ONLINE)
GO, MOVING, READY, PAUSED, STOPPED, RESET, SLOWING = range(7)  # run states; GO is a request and is never reported
EMERGENCY = (1, 2, 3)
KINEMATICS, JOINT_LIMIT, SPEED, COLLISION, FENCE, LINEAR_SPEED, TOOL_BUS = 21, 23, 24, 31, 35, 60, 19

MAX_JOINT_SPEED_RAD_S = np.pi  # 180 deg/s
MAX_JOINT_ACCELERATION_RAD_S2 = 20.0  # 1145 deg/s^2
MAX_TCP_SPEED_M_S = 1.0
MAX_TCP_ACCELERATION_M_S2 = 50.0

_ALL_MOTORS = (1 << JOINTS) - 1
_FULL_TURN = 2 * np.pi
_IK = kinematics.SolverOptions(iterations=60, tolerance_m=2e-5, tolerance_rad=1e-4)


@dataclass(frozen=True)
class Firmware:
    """Differences between arms and versions, and the thresholds that no document states (see `ASSUMPTIONS`)."""

    version: str = "v2.5.0"
    serial: str = "XI130500000001"  # characters 2 to 5 must be digits; from 1305 on the joint ranges are narrower
    box_serial: str = "AC130000000001"
    servo_step_rad: float = 0.1745  # C24 beyond this, target to target
    collision_rad: tuple[float, ...] = (np.inf, 0.20, 0.14, 0.10, 0.07, 0.045)  # C31 beyond this, by sensitivity

    def joint_range(self) -> np.ndarray:
        """Returns lowest and highest angle [rad], (7, 2), from the vendor's table for the serial number."""
        narrow = int(self.serial[2:6]) >= 1305
        second, fourth = (
            ((-2.042035, 2.024581), (-0.10472, 3.92699)) if narrow else ((-2.059488, 2.094395), (-0.191986, 3.92699))
        )
        turn = (-_FULL_TURN, _FULL_TURN)
        return np.array([turn, second, turn, fourth, turn, (-1.692969, np.pi), turn])


@dataclass(eq=False, kw_only=True)
class ControllerSettings:
    """Settings that clients write to the controller and can read back."""

    tool: np.ndarray = field(default_factory=lambda: np.eye(4))  # T_flange_tcp; identity until it is set
    payload_kg: float = 0.0
    payload_centre_m: np.ndarray = field(default_factory=lambda: np.zeros(3))
    collision_sensitivity: int = 3
    teach_sensitivity: int = 3
    self_collision: bool = False
    tool_model: int = 0
    tool_size: np.ndarray = field(default_factory=lambda: np.zeros(6))  # as received
    gravity: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, -1.0]))
    box_m: np.ndarray = field(default_factory=lambda: np.array([[-9.999, 9.999]] * 3))  # (3, 2) lowest, highest
    fence: bool = False
    rebound: bool = False
    reduced: bool = False
    reduced_tcp_speed_m_s: float = 0.25
    reduced_joint_speed_rad_s: float = 1.0
    reduced_range_rad: np.ndarray = field(default_factory=lambda: np.array([[-_FULL_TURN, _FULL_TURN]] * JOINTS))
    speed_factor: float = 1.2  # multiple of MAX_TCP_SPEED_M_S, for C60


@dataclass(frozen=True, eq=False)
class JointGoal:
    """Move to `target` (7,) with `speed` and `acceleration`, each one number or (7,)."""

    target: np.ndarray
    speed: np.ndarray | float
    acceleration: np.ndarray | float


@dataclass(frozen=True, eq=False)
class PoseGoal:
    """Move the TCP to `target` (4, 4) in a straight line, ending at `joints` (7,)."""

    target: np.ndarray
    joints: np.ndarray
    speed: float
    acceleration: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Snapshot:
    """State of the controller at one instant."""

    time_s: float
    mode: int
    state: int
    error: int
    warning: int
    queued: int
    enabled: bool  # all motors
    joints_rad: np.ndarray  # (7,) measured
    setpoint_rad: np.ndarray  # (7,) last setpoint of the motors
    velocity_rad_s: np.ndarray  # (7,) of the setpoint
    tcp: np.ndarray  # T_base_tcp, (4, 4), measured
    gripper_m: float
    gripper_target_m: float


class Controller:
    """One arm's controller around a `Plant`. Not thread-safe: call it from one thread only."""

    def __init__(self, plant: Plant, firmware: Firmware | None = None) -> None:
        self.plant = plant
        self.firmware = firmware or Firmware()
        self.range_rad = self.firmware.joint_range()
        self.settings = ControllerSettings()
        self.time_s = 0.0
        self.mode = PLANNED
        self.error = 0
        self.warning = 0
        self.enabled_bits = 0
        self.pressed = 0  # the emergency stop that is held down: 0 (none), 1, 2 or 3
        self.bus_dead = False  # no device answers on the tool's RS485 bus
        self.tool_registers: dict[int, int] = {0x0A0B: 11}  # of the tool's own board; 11: 2 Mbaud
        self._run = STOPPED
        self._queue: deque[JointGoal | PoseGoal] = deque()
        self._servo_target: np.ndarray | None = None
        plant_state = plant.measure()
        self.gripper = Gripper(plant_state.gripper_m, plant.stroke_m)
        self.joints = plant_state.joints_rad
        self.setpoint = np.array(self.joints)
        self.velocity = np.zeros(JOINTS)
        self._pose_velocity = np.zeros(3)
        self._setpoint_tcp: np.ndarray | None = None
        self._tcp: np.ndarray | None = None
        self._outside_m = 0.0

    # --- readings -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> int:
        """MOVING, READY, PAUSED, STOPPED, RESET or SLOWING."""
        if self._run != GO:
            return self._run
        return MOVING if self._queue or np.any(self.velocity) else READY

    @property
    def ready(self) -> bool:
        """Whether a move would be accepted: running, no error, all motors on."""
        return self._run in (GO, PAUSED) and self.error == 0 and self.enabled

    @property
    def enabled(self) -> bool:
        """Whether all motors are on."""
        return self.enabled_bits == _ALL_MOTORS

    @property
    def queued(self) -> int:
        """Number of moves that are not finished."""
        return len(self._queue)

    @property
    def tcp(self) -> np.ndarray:
        """T_base_tcp, (4, 4), of the measured joints."""
        if self._tcp is None:
            self._tcp = self.forward(self.joints)
        return self._tcp

    def snapshot(self) -> Snapshot:
        """Returns a copy of the current state."""
        return Snapshot(
            time_s=self.time_s,
            mode=self.mode,
            state=self.state,
            error=self.error,
            warning=self.warning,
            queued=self.queued,
            enabled=self.enabled,
            joints_rad=frozen(self.joints),
            setpoint_rad=frozen(self.setpoint),
            velocity_rad_s=frozen(self.velocity),
            tcp=frozen(self.tcp),
            gripper_m=self.gripper.measured_m,
            gripper_target_m=self.gripper.target_m,
        )

    def forward(self, joints_rad: np.ndarray) -> np.ndarray:
        """Returns T_base_tcp, (4, 4), with the current tool."""
        return kinematics.frames(joints_rad)[-1] @ self.settings.tool

    def inverse(self, tcp: np.ndarray, near_rad: np.ndarray, limited: bool = True) -> np.ndarray | None:
        """Returns joints (7,) near `near_rad` for a TCP pose, or None. `limited`: keep them inside the joint range."""
        flange = tcp @ poses.inverse(self.settings.tool)
        low, high = self.range_rad.T if limited else (np.full(JOINTS, -_FULL_TURN), np.full(JOINTS, _FULL_TURN))
        solution = kinematics.inverse(flange[:3, 3], flange[:3, :3], near_rad, np.zeros(3), low, high, options=_IK)
        return solution.joints_rad if solution.reached else None

    def in_range(self, joints_rad: np.ndarray) -> bool:
        """Returns whether joints are inside the range, in reduced mode also inside the reduced one. NaN never is."""
        inside = (joints_rad >= self.range_rad[:, 0]) & (joints_rad <= self.range_rad[:, 1])
        if self.settings.reduced:
            low, high = self.settings.reduced_range_rad.T
            inside &= (joints_rad >= low) & (joints_rad <= high)
        return bool(inside.all())

    def set_tool(self, tool: np.ndarray) -> None:
        """Sets T_flange_tcp. This is a system reset."""
        self.settings.tool = tool
        self._tcp = self._setpoint_tcp = None
        self.system_reset()

    # --- run states, modes, errors ------------------------------------------------------------------------------------

    def set_state(self, request: int) -> bool:
        """Requests GO, PAUSED, STOPPED or SLOWING. Returns False if there is no such request."""
        if request == GO:
            if self.error == 0 and self.enabled:
                self._run = GO
        elif request == PAUSED:
            if self._run == GO:
                self._freeze()
                self._run = PAUSED
        elif request == STOPPED:
            self._halt(STOPPED)
        elif request == SLOWING:
            if self._run == GO:
                self._queue.clear()
                self._servo_target = None
                self._run = SLOWING
        else:
            return False
        return True

    def set_mode(self, mode: int) -> bool:
        """Changes the mode, which is a system reset. Returns False if the mode is not emulated."""
        if mode not in MODES:
            return False
        self.mode = mode
        self.system_reset()
        return True

    def enable(self, axis: int, on: bool) -> bool:
        """Switches one motor (1 to 7) or all (8), which is a system reset. Returns False if there is no such axis."""
        if not 1 <= axis <= 8:
            return False
        bits = _ALL_MOTORS if axis == 8 else 1 << (axis - 1)
        if not on:
            self.enabled_bits &= ~bits
        elif not self.pressed:
            self.enabled_bits |= bits
        self.system_reset()
        return True

    def system_reset(self) -> None:
        """Stops and forgets all moves. Moves are refused until the next `set_state(GO)`."""
        self._halt(STOPPED if self.error else RESET)

    def fault(self, code: int) -> None:
        """Latches the controller's error `code` and stops. Only an emergency stop replaces a latched error."""
        if self.error == 0 or code in EMERGENCY:
            self.error = code
        self._halt(STOPPED)

    def press(self, code: int) -> None:
        """Presses an emergency stop, 1 to 3: motors off. The error stays while it is pressed."""
        self.pressed = code
        self.fault(code)
        self.enabled_bits = 0
        self.gripper.hold()

    def release(self) -> None:
        """Releases the emergency stop. The error stays until it is cleaned."""
        self.pressed = 0

    def clean_error(self) -> None:
        """Clears the error, unless an emergency stop is pressed. The arm stays stopped."""
        self.error = self.pressed
        self._halt(STOPPED)

    # --- moves --------------------------------------------------------------------------------------------------------

    def move_joints(self, target: np.ndarray, speed: float, acceleration: float) -> bool:
        """Accepts a joint move (mode 0: queued; mode 6: at once). An infinite number keeps that joint.

        Returns:
            False if the arm cannot move now.
        """
        if not self._takes(PLANNED, JOINT_ONLINE):
            return False
        start = self._end()
        target = np.where(np.isinf(target), start, target)
        if not self.in_range(target):
            self.fault(JOINT_LIMIT)
            return True
        self._take(self._joint_goal(start, target, speed, acceleration))
        return True

    def move_pose(self, target: np.ndarray, speed: float, acceleration: float) -> bool:
        """Accepts a straight move of the TCP to `target` (4, 4), queued in mode 0. False if it cannot move now."""
        if not self._takes(PLANNED, POSE_ONLINE):
            return False
        joints = self.inverse(target, self._end())
        if joints is None:
            self.fault(KINEMATICS)
            return True
        fastest = self.settings.reduced_tcp_speed_m_s if self.settings.reduced else MAX_TCP_SPEED_M_S
        self._take(
            PoseGoal(
                target,
                joints,
                float(np.clip(speed, 1e-4, fastest)),
                float(np.clip(acceleration, 1e-3, MAX_TCP_ACCELERATION_M_S2)),
            )
        )
        return True

    def servo_joints(self, target: np.ndarray) -> bool:
        """Accepts a servo target (mode 1). Returns False if it cannot move now."""
        if not self._takes(SERVO) or self._run == PAUSED:
            return False
        last = self.setpoint if self._servo_target is None else self._servo_target
        if not self.in_range(target):
            self.fault(JOINT_LIMIT)
        elif np.abs(target - last).max() > self.firmware.servo_step_rad:
            self.fault(SPEED)
        else:
            self._servo_target = frozen(target)
        return True

    def servo_pose(self, target: np.ndarray) -> bool:
        """Accepts a servo target of the TCP (mode 1). Returns False if it cannot move now."""
        if not self._takes(SERVO) or self._run == PAUSED:
            return False
        joints = self.inverse(target, self.setpoint)
        if joints is None:
            self.fault(KINEMATICS)
            return True
        return self.servo_joints(joints)

    def end_tcp(self) -> np.ndarray:
        """Returns the TCP pose (4, 4) after all accepted moves, from which relative moves start."""
        if self._queue and isinstance(goal := self._queue[-1], PoseGoal):
            return goal.target
        return self.forward(self._end())

    def end_joints(self) -> np.ndarray:
        """Returns the joints (7,) after all accepted moves."""
        return self._end()

    # --- time ---------------------------------------------------------------------------------------------------------

    def advance(self, dt_s: float) -> None:
        """Lets `dt_s` pass: moves the setpoints and the plant, then checks the guards."""
        if self._run == GO:
            self._follow(dt_s)
        elif self._run == SLOWING:
            self._brake(dt_s)
        self.gripper.advance(dt_s)
        self.plant.drive(self.setpoint, self.gripper.setpoint_m, dt_s)
        self.time_s += dt_s
        before = self.joints
        plant_state = self.plant.measure()
        self.joints = plant_state.joints_rad
        self.gripper.feel(plant_state.gripper_m, dt_s)
        self._tcp = None
        self._guard((self.joints - before) / dt_s)

    def resynchronise(self) -> None:
        """Sets the setpoints to the plant's joints, after the arm was moved by other means. Moves are forgotten."""
        plant_state = self.plant.measure()
        self.joints, self._tcp = plant_state.joints_rad, None
        self.gripper.measured_m = plant_state.gripper_m
        self.gripper.hold()
        self._freeze()
        self._queue.clear()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _takes(self, *modes: int) -> bool:
        return self.ready and self.mode in modes

    def _end(self) -> np.ndarray:
        if not self._queue:
            return self.setpoint
        goal = self._queue[-1]
        return goal.target if isinstance(goal, JointGoal) else goal.joints

    def _take(self, goal: JointGoal | PoseGoal) -> None:
        if self.mode != PLANNED:
            self._queue.clear()  # online planning keeps only the newest target
        self._queue.append(goal)

    def _joint_goal(self, start: np.ndarray, target: np.ndarray, speed: float, acceleration: float) -> JointGoal:
        """Returns a goal with speeds that let all joints arrive together in mode 0, or independently in mode 6."""
        speed = float(np.clip(speed, 1e-4, self._joint_speed()))
        acceleration = float(np.clip(acceleration, 1e-2, MAX_JOINT_ACCELERATION_RAD_S2))
        distance = np.abs(target - start)
        if self.mode != PLANNED or not distance.any():
            return JointGoal(frozen(target), speed, acceleration)
        share = np.maximum(distance / distance.max(), 1e-6)
        return JointGoal(frozen(target), speed * share, acceleration * share)

    def _joint_speed(self) -> float:
        return min(MAX_JOINT_SPEED_RAD_S, self.settings.reduced_joint_speed_rad_s if self.settings.reduced else np.inf)

    def _follow(self, dt_s: float) -> None:
        """Moves the setpoint one step towards the goal of the mode."""
        if self.mode == SERVO:
            if self._servo_target is not None:
                limit, acceleration = self._joint_speed(), MAX_JOINT_ACCELERATION_RAD_S2
                self._step_joints(JointGoal(self._servo_target, limit, acceleration), dt_s)
            return
        if not self._queue:
            return
        goal = self._queue[0]
        arrived = self._step_joints(goal, dt_s) if isinstance(goal, JointGoal) else self._step_pose(goal, dt_s)
        if arrived and self._queue:  # a fault on the way clears the queue
            self._queue.popleft()

    def _step_joints(self, goal: JointGoal, dt_s: float) -> bool:
        joints, velocity = motion.approach(
            self.setpoint, self.velocity, goal.target, goal.speed, goal.acceleration, dt_s
        )
        joints = np.clip(joints, self.range_rad[:, 0], self.range_rad[:, 1])
        slowest = np.max(np.asarray(goal.acceleration)) * dt_s
        if np.abs(goal.target - joints).max() < 1e-9 and np.abs(velocity).max() <= slowest:
            joints, velocity = np.array(goal.target), np.zeros(JOINTS)
        if self.settings.reduced and np.any(velocity):
            joints, velocity = self._reduced(joints, velocity, dt_s)
        self._put(joints, velocity)
        return not np.any(velocity) and bool(np.all(joints == goal.target))

    def _reduced(self, joints: np.ndarray, velocity: np.ndarray, dt_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Shortens a step whose TCP would be faster than reduced mode allows."""
        distance = float(np.linalg.norm((self.forward(joints) - self._tcp_of_setpoint())[:3, 3]))
        longest = self.settings.reduced_tcp_speed_m_s * dt_s
        if distance <= longest:
            return joints, velocity
        return self.setpoint + (joints - self.setpoint) * (longest / distance), velocity * (longest / distance)

    def _step_pose(self, goal: PoseGoal, dt_s: float) -> bool:
        pose, self._pose_velocity = motion.approach_pose(
            self._tcp_of_setpoint(), self._pose_velocity, goal.target, goal.speed, goal.acceleration, dt_s
        )
        joints = self.inverse(pose, self.setpoint)
        if joints is None:
            self.fault(KINEMATICS)
            return True
        arrived = bool(np.abs(goal.target - pose).max() < 1e-9)
        velocity = np.zeros(JOINTS) if arrived else (joints - self.setpoint) / dt_s
        self._put(joints, velocity)
        self._setpoint_tcp = pose  # as planned, because the solver's tolerance must not add up along the line
        if arrived:
            self._pose_velocity = np.zeros(3)
        return arrived

    def _put(self, joints: np.ndarray, velocity: np.ndarray) -> None:
        self.setpoint, self.velocity, self._setpoint_tcp = joints, velocity, None

    def _tcp_of_setpoint(self) -> np.ndarray:
        if self._setpoint_tcp is None:
            self._setpoint_tcp = self.forward(self.setpoint)
        return self._setpoint_tcp

    def _brake(self, dt_s: float) -> None:
        change = MAX_JOINT_ACCELERATION_RAD_S2 * dt_s
        velocity = self.velocity - np.clip(self.velocity, -change, change)
        joints = np.clip(self.setpoint + velocity * dt_s, self.range_rad[:, 0], self.range_rad[:, 1])
        self._put(joints, velocity)
        if not np.any(velocity):
            self._halt(STOPPED)

    def _freeze(self) -> None:
        """Holds the measured joints, at once."""
        self._put(np.array(self.joints), np.zeros(JOINTS))
        self._pose_velocity = np.zeros(3)
        self._servo_target = None

    def _halt(self, run: int) -> None:
        self._queue.clear()
        self._freeze()
        self._run = run

    def _guard(self, measured_speed: np.ndarray) -> None:
        """Raises C31, C35 and C60 if the arm, the TCP or the setpoint violate their limits."""
        lag = np.abs(self.setpoint - self.joints - self.plant.lag_s * measured_speed).max()
        if self._run in (GO, SLOWING) and lag > self.firmware.collision_rad[self.settings.collision_sensitivity]:
            self.fault(COLLISION)
        if self.settings.fence:
            self._guard_fence()
        if self.mode == SERVO and self._run == GO and np.any(self.velocity):
            tcp_speed = kinematics.jacobian(self.setpoint, self.settings.tool[:3, 3])[:3] @ self.velocity
            if np.linalg.norm(tcp_speed) > MAX_TCP_SPEED_M_S * self.settings.speed_factor:
                self.fault(LINEAR_SPEED)

    def _guard_fence(self) -> None:
        low, high = self.settings.box_m.T
        position = self.tcp[:3, 3]
        outside = float(np.maximum(np.maximum(low - position, position - high), 0.0).max())
        if outside > self._outside_m + 1e-6 and self._run in (GO, SLOWING):
            self.fault(FENCE)
        self._outside_m = outside
