"""The emulator's assumptions: behaviour of the firmware that was not verified on a robot.

A driver must not depend on an assumption before its check (third column) was done on the real arm.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumption:
    """One unverified behaviour: its topic, the emulator's behaviour, and the check to do on the robot."""

    topic: str
    emulated: str
    check: str


ASSUMPTIONS: tuple[Assumption, ...] = (
    Assumption("start", "state 4, motors off, no error, mode 0", "power up, read func 13, 15 and the report"),
    Assumption(
        "system reset",
        "set_mode, motion_enable, TCP offset, both sensitivities and gravity stop the arm, empty the queue and leave "
        "state 5; state 4 instead while an error is latched",
        "send each while standing, read the state after it",
    ),
    Assumption(
        "payload",
        "is stored at once and resets nothing; the SDK counts it among the moves, so that it returns 9 unless ready",
        "set_tcp_load in states 2 and 5, read the report",
    ),
    Assumption(
        "set_state(0)",
        "is accepted but changes nothing while an error is latched or a motor is off; else the state reads 2",
        "send it with motors off and with C31 latched",
    ),
    Assumption("stop", "set_state(4) holds the measured joints at once, the queue is lost", "stop at 60 deg/s, plot"),
    Assumption(
        "slow stop",
        "set_state(6) brakes the setpoint with 20 rad/s^2, state 6 until it is at rest, then 4",
        "the same with 6",
    ),
    Assumption(
        "pause", "set_state(3) stops at once and keeps the queue; servo targets get 'cannot move'", "pause, plot"
    ),
    Assumption(
        "first error stays",
        "a later error does not replace a latched one; only an emergency stop does",
        "raise C35 while C31 is latched",
    ),
    Assumption("cleaned error", "clean_error leaves state 4; motors keep their enable bits", "read both after C31"),
    Assumption(
        "emergency stop",
        "pressing latches C1, C2 or C3, cuts the motors and keeps the error until released and cleaned; reports go on",
        "press, try clean_error, release, clean_error; watch the report throughout",
    ),
    Assumption(
        "servo target",
        "mode 1 follows only the newest target, with at most 180 deg/s and 20 rad/s^2 for each joint",
        "stream a 2 deg square wave, plot the 100 Hz report",
    ),
    Assumption(
        "dead stream", "in mode 1 the arm comes to rest at its last target and stays ready", "pull the cable in mode 1"
    ),
    Assumption(
        "C24",
        "raised in mode 1 by a target further than 10 deg in one joint from the one before it; the reply of that "
        "command already carries the error",
        "raise the step 1 deg at a time",
    ),
    Assumption("C60", "raised in mode 1 if the TCP setpoint passes 1 m/s times the speed factor", "speed up slowly"),
    Assumption(
        "C23",
        "raised by a joint target outside the range, or by NaN; also by the reduced range in reduced mode",
        "send it",
    ),
    Assumption("C21", "raised by a pose without inverse kinematics, at once or on the way", "ask for 900 mm"),
    Assumption(
        "C31",
        "raised if the measured joints stay behind the setpoint by more than the motors' lag explains: 0.20, 0.14, "
        "0.10, 0.07, 0.045 rad for sensitivities 1 to 5; never with 0",
        "push a foam block by hand at each sensitivity",
    ),
    Assumption(
        "C35",
        "needs the fence on, with or without reduced mode; raised once the measured TCP is outside and going further "
        "out, so that the way back is free",
        "set the boundary with reduced mode only, with the fence only, with both",
    ),
    Assumption("reduced mode", "caps joint and TCP speed in every mode instead of raising an error", "exceed both"),
    Assumption(
        "wrong mode",
        "a move of another mode is not executed and gets 'cannot move' (code 9)",
        "send servo_j in mode 0, set_servo_angle in mode 1",
    ),
    Assumption("other modes", "2, 3, 4, 5 and above 7 are refused as invalid (code 10)", "not needed here"),
    Assumption("unknown function", "is refused as invalid (code 10) and listed by the emulator", "send func 250"),
    Assumption(
        "parameters", "too few, or a value that is not finite: invalid (code 10), nothing changes", "send 4 bytes"
    ),
    Assumption(
        "garbage", "a client that sends no valid request is disconnected; other clients go on", "send random bytes"
    ),
    Assumption("no solution", "inverse kinematics (func 43) without one is invalid (code 10)", "ask for 900 mm"),
    Assumption(
        "only check", "answers 0, 21 or 23 for the end of the move, not for its path", "check a path through C35"
    ),
    Assumption("blending", "radius is ignored: every queued move comes to rest", "two moves with radius 50"),
    Assumption("move time", "mvtime is ignored, as is jerk", "send a move with a time"),
    Assumption(
        "feedback", "no 0xFF frames are sent; the SDK falls back to polling the state", "wait=True, sniff port 502"
    ),
    Assumption(
        "clients", "any number of command connections, served in the order of arrival, all with full rights", "two"
    ),
    Assumption("first report", "a report comes at once after connecting, then at the port's rate", "sniff 30002"),
    Assumption("torques and currents", "read zero", "read them"),
    Assumption("self-collision", "C22 is never raised", "fold the arm in mode 0 at 5 deg/s"),
    Assumption(
        "gripper speed", "100 mm/s at 5000 r/min, proportional; full stroke 85 mm is 850 pulses", "time a full stroke"
    ),
    Assumption("gripper off", "positions written while it is off or has an error are dropped", "write, then enable"),
    Assumption(
        "gripper status",
        "2 (caught) if it stands more than 2 mm off its target, 1 while moving, else 0",
        "close on foam",
    ),
    Assumption(
        "gripper bus",
        "a dead bus latches C19 at every access, stops the arm, and the reply carries no RTU frame",
        "unplug the gripper at rest",
    ),
)
