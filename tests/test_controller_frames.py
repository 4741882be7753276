"""The emulated controller's wire format: laws, and bytes written by hand."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srpo_robot.mock.controller import frames, poses
from srpo_robot.mock.controller.frames import (
    Malformed,
    Params,
    RegisterRead,
    RegisterWrite,
    Reply,
    Request,
    RequestReader,
)

U16 = st.integers(0, 0xFFFF)
BYTE = st.integers(0, 255)
REQUESTS = st.builds(Request, U16, st.integers(0, 3), BYTE, st.binary(max_size=80))


def test_enable_and_its_reply_in_the_vendors_bytes() -> None:
    request = Request(1, 2, 11, bytes([8, 1]))
    assert frames.encode_request(request) == bytes.fromhex("00 01 00 02 00 03 0B 08 01")
    assert frames.encode_reply(request, Reply(0)) == bytes.fromhex("00 01 00 02 00 02 0B 00")


@given(st.lists(REQUESTS, max_size=6), st.data())
def test_requests_are_complete_for_every_split_of_the_stream(requests: list[Request], data: st.DataObject) -> None:
    stream = b"".join(frames.encode_request(request) for request in requests)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, received_requests = RequestReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received_requests += reader.feed(stream[start:end])
    assert received_requests == requests and not reader.broken


@given(st.binary(max_size=200), st.data())
def test_any_bytes_give_the_same_requests_however_they_are_split(stream: bytes, data: st.DataObject) -> None:
    split_at = data.draw(st.integers(0, len(stream)))
    whole, split = RequestReader(), RequestReader()
    assert whole.feed(stream) == split.feed(stream[:split_at]) + split.feed(stream[split_at:])
    assert whole.broken == split.broken


@pytest.mark.parametrize("garbage", ["0001 0004 0002 0D00", "0001 0002 0000"])
def test_a_reader_that_lost_the_frames_stays_broken(garbage: str) -> None:
    reader = RequestReader()
    good = frames.encode_request(Request(7, 2, 13))
    assert reader.feed(good + bytes.fromhex(garbage) + good) == [Request(7, 2, 13)]
    assert reader.broken and reader.feed(good) == []


@given(REQUESTS, BYTE, st.binary(max_size=80))
def test_a_reply_round_trips_and_echoes_transaction_protocol_and_function(
    request: Request, status: int, data: bytes
) -> None:
    back, reply = frames.decode_reply(frames.encode_reply(request, Reply(status, data)))
    assert (back.transaction, back.protocol, back.function) == (
        request.transaction,
        request.protocol,
        request.function,
    )
    assert reply == Reply(status, data)


def test_a_reply_of_the_wrong_length_is_refused() -> None:
    frame = frames.encode_reply(Request(1, 2, 13), Reply(0, b"\2"))
    for wrong in (frame[:5], frame[:-1], frame + b"\0"):
        with pytest.raises(Malformed, match="a reply of"):
            frames.decode_reply(wrong)


def test_parameters_are_little_endian_floats_and_big_endian_words() -> None:
    data = struct.pack("<2f", 0.5, -2.0) + struct.pack(">H", 0x0A0B) + struct.pack("<i", -350) + b"\7"
    params = Params(data)
    assert params.floats(2).tolist() == [0.5, -2.0]
    assert params.u16() == 0x0A0B and params.s32s(1) == [-350] and params.u8() == 7 and params.remaining == 0
    with pytest.raises(Malformed, match="0 bytes of parameters left, 1 needed"):
        params.u8()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2e5])
def test_finite_parameters_refuse_nan_and_infinity(value: float) -> None:
    with pytest.raises(Malformed):
        Params(frames.encode_floats(value)).finite(1)
    assert not np.isfinite(value) or Params(frames.encode_floats(value)).floats(1)[0] == value


COMMANDS = st.one_of(
    st.builds(RegisterRead, BYTE, U16, st.integers(1, 125)),
    st.builds(RegisterWrite, BYTE, U16, st.lists(U16, min_size=1, max_size=20).map(tuple)),
)


@given(COMMANDS)
def test_rtu_commands_round_trip(command: RegisterRead | RegisterWrite) -> None:
    assert frames.decode_rtu(frames.encode_rtu(command)) == command


@given(st.binary(max_size=40))
def test_any_bytes_are_an_rtu_command_or_malformed(frame: bytes) -> None:
    try:
        command = frames.decode_rtu(frame)
    except Malformed:
        return
    assert frames.encode_rtu(command) == frame


@given(st.integers(-(2**31), 2**31 - 1))
def test_a_number_in_two_registers_round_trips(value: int) -> None:
    assert frames.number(*frames.words(value)) == value


def test_gripper_frames_in_the_vendors_bytes() -> None:
    request = RegisterRead(8, 0x0702, 2)
    assert frames.encode_rtu(request) == bytes.fromhex("08 03 0702 0002")
    assert frames.encode_rtu_reply(request, frames.words(850)) == bytes.fromhex("08 03 04 0000 0352")
    write = RegisterWrite(8, 0x0700, frames.words(200))
    assert frames.encode_rtu(write) == bytes.fromhex("08 10 0700 0002 04 0000 00C8")
    assert frames.encode_rtu_reply(write) == bytes.fromhex("08 10 0700 0002")


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("port", "size"), [(30000, 804), (30001, 145), (30002, 587), (30003, 135)])
def test_reports_have_the_firmwares_lengths_and_round_trip(port: int, size: int) -> None:
    joints = np.arange(7) / 8.0  # exact in float32
    frame = frames.encode_report(port, {"joints": joints, "state_mode": 0x12, "queued": 513, "error": 31})
    assert len(frame) == size and frame[:4] == struct.pack(">I", size)
    fields = frames.decode_report(port, frame)
    assert fields["joints"].tolist() == joints.tolist() and fields["state_mode"] == 0x12 and fields["queued"] == 513
    with pytest.raises(Malformed, match=f"expected {size}"):
        frames.decode_report(port, frame[:-1])


def test_report_fields_lie_where_the_protocol_pages_put_them() -> None:
    offsets = {
        30001: {"joints": 7, "pose": 35, "torques": 59, "brakes": 87, "error": 89, "tcp_offset": 91, "payload": 115,
                "collision_sensitivity": 131, "gravity": 133},
        30002: {"type": 145, "version": 151, "tcp_limits": 181, "joint_limits": 201, "servo_codes": 229,
                "temperatures": 245, "tcp_speed": 252, "joint_speeds": 256, "counter": 284, "world_offset": 288,
                "simulation": 314, "tool_size": 317, "voltages": 341, "currents": 355, "box_state": 383,
                "external_force": 433, "identification": 481, "axis_angle": 482, "flags": 494, "reduced": 495,
                "box": 496, "reduced_tcp_speed": 508, "reduced_joint_speed": 512, "reduced_range": 516, "fence": 572,
                "rebound": 573, "alarm": 574, "monitor": 579, "monitor_values": 581},
        30003: {"joints": 7, "pose": 35, "torques": 59, "external_force": 87},
        30000: {"time_us": 4, "state_mode": 12, "queued": 13, "target_joints": 32, "target_speeds": 60, "joints": 116,
                "joint_speeds": 144, "currents": 200, "torques": 228, "target_pose": 424, "pose_aa": 472,
                "raw_force": 688},
    }  # fmt: skip
    for port, fields in offsets.items():
        layout = {str(name): field[1] for name, field in (frames.REPORTS[port].fields or {}).items()}
        assert {name: layout[name] for name in fields} == fields


# --- poses ------------------------------------------------------------------------------------------------------------

ANGLE = st.floats(-3.1, 3.1)
PITCH = st.floats(-1.5, 1.5)
LENGTH = st.floats(-900.0, 900.0)


@given(st.tuples(LENGTH, LENGTH, LENGTH, ANGLE, PITCH, ANGLE))
def test_a_pose_on_the_wire_round_trips(wire: tuple[float, ...]) -> None:
    pose = poses.from_rpy(np.array(wire))
    assert poses.to_rpy(pose) == pytest.approx(wire, abs=1e-9)
    assert poses.from_axis_angle(poses.to_axis_angle(pose)) == pytest.approx(pose, abs=1e-9)
    assert poses.inverse(pose) @ pose == pytest.approx(np.eye(4), abs=1e-9)


def test_roll_pitch_yaw_turn_about_fixed_axes_in_that_order() -> None:
    pose = poses.from_rpy(np.array([1000.0, 0.0, 0.0, np.pi / 2, 0.0, np.pi / 2]))
    # Roll brings y to z, yaw leaves z and brings x to y: the tool's x points along y, its y along z.
    assert pose[:3, 0] == pytest.approx([0, 1, 0], abs=1e-12) and pose[:3, 1] == pytest.approx([0, 0, 1], abs=1e-12)
    assert pose[0, 3] == 1.0


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_at_the_pole_the_angles_still_mean_the_same_rotation(pitch: float) -> None:
    pose = poses.from_rpy(np.array([0.0, 0.0, 0.0, 0.3, pitch, 0.8]))
    assert poses.from_rpy(poses.to_rpy(pose)) == pytest.approx(pose, abs=1e-9)
