"""The emulated controller's sockets: several clients, any bytes, faults, reports, and nothing left behind."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srpo_robot.errors import ArmError, UsageError
from srpo_robot.mock.controller import ControllerServer, KinematicPlant, frames, free_host
from srpo_robot.mock.controller.frames import CANNOT_MOVE, HAS_ERROR, Reply, Request, encode_floats

pytestmark = pytest.mark.real_time

HOME = np.array([0.0, -0.25904, 0.0, 0.96166, 0.0, 1.2207, 0.0])
ENABLE, SET_STATE, GET_STATE, GET_ERROR, SET_MODE, SERVO = 11, 12, 13, 15, 19, 29


class Client:
    """A command connection without the SDK."""

    def __init__(self, server: ControllerServer) -> None:
        self.socket = socket.create_connection((server.host, server.command_port), timeout=20.0)
        self._transaction = 0
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, function: int, params: bytes = b"") -> int:
        self._transaction += 1
        self.socket.sendall(frames.encode_request(Request(self._transaction, 2, function, params)))
        return self._transaction

    def receive(self) -> tuple[Request, Reply]:
        while len(self._buffer) < 6 or len(self._buffer) < 6 + int.from_bytes(self._buffer[4:6], "big"):
            data = self.socket.recv(4096)
            if not data:
                raise ConnectionError("closed")
            self._buffer += data
        size = 6 + int.from_bytes(self._buffer[4:6], "big")
        frame, self._buffer = self._buffer[:size], self._buffer[size:]
        return frames.decode_reply(frame)

    def ask(self, function: int, params: bytes = b"") -> Reply:
        transaction = self.send(function, params)
        request, reply = self.receive()
        assert (request.transaction, request.protocol, request.function) == (transaction, 2, function)
        return reply

    def ready(self, mode: int = 1) -> None:
        for function, params in ((16, b""), (ENABLE, b"\x08\x01"), (SET_MODE, bytes([mode])), (SET_STATE, b"\0")):
            self.ask(function, params)

    def is_silent(self) -> bool:
        """Returns whether no data waits to be read. Call `settle` first."""
        self.socket.setblocking(False)
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(20.0)


class Listener:
    """A report connection."""

    def __init__(self, server: ControllerServer, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection((server.host, port), timeout=20.0)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def frame(self) -> np.void:
        size = frames.REPORTS[self.port].itemsize
        data = b""
        while len(data) < size:
            data += self.socket.recv(size - len(data)) or pytest.fail("the report ended")
        return frames.decode_report(self.port, data)


def settle(server: ControllerServer) -> None:
    """Returns once the server has read all data sent so far: a round trip through its loop comes after a poll."""
    server.clients()


@pytest.fixture
def server() -> Iterator[ControllerServer]:
    """Steps the clock by hand: time passes only in `advance`."""
    with ControllerServer(KinematicPlant(HOME), host=free_host(), stepped=True) as running:
        yield running


# --- life -------------------------------------------------------------------------------------------------------------


def open_sockets() -> set[str]:
    folder = Path("/proc/self/fd")
    links = []
    for entry in folder.iterdir():
        try:
            links.append(os.readlink(entry))
        except FileNotFoundError:
            continue
    return {link for link in links if link.startswith("socket:")}


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("stepped", [True, False])
def test_starting_and_stopping_leaves_no_thread_and_no_socket(stepped: bool) -> None:
    sockets, threads = open_sockets(), set(threading.enumerate())
    host = free_host()
    for _ in range(3):  # the same ports are free again at once
        with (
            ControllerServer(KinematicPlant(HOME), host=host, stepped=stepped) as server,
            Client(server) as client,
            Listener(server, 30002) as listener,
        ):
            client.ready()
            listener.frame()
            server.__exit__(None, None, None)  # while clients are connected
    assert open_sockets() <= sockets and set(threading.enumerate()) <= threads


def test_it_listens_on_loopback_only() -> None:
    for host in ("0.0.0.0", "192.168.1.203", "", "localhost", "::1"):
        with pytest.raises(UsageError, match="loopback only"):
            ControllerServer(KinematicPlant(HOME), host=host)


def test_a_taken_port_is_a_one_line_error_with_a_remedy(server: ControllerServer) -> None:
    with (
        pytest.raises(ArmError, match=r"cannot listen on .*:30000 .*another loopback address") as error,
        ControllerServer(KinematicPlant(HOME), host=server.host),
    ):
        pass
    assert "\n" not in str(error.value)
    with (
        pytest.raises(ArmError, match=f":{server.command_port} "),
        ControllerServer(KinematicPlant(HOME), host=server.host, command_port=server.command_port),
    ):
        pass


def test_a_server_that_does_not_run_says_so() -> None:
    server = ControllerServer(KinematicPlant(HOME))
    with pytest.raises(ArmError, match="use it as a context manager"):
        server.arm_state()
    with pytest.raises(ArmError, match="use it as a context manager"):
        server.faults.error(31)


def test_two_emulators_live_side_by_side(server: ControllerServer) -> None:
    with (
        ControllerServer(KinematicPlant(HOME), host=free_host(), stepped=True) as second_server,
        Client(second_server) as client,
    ):
        client.ready()
        assert second_server.arm_state().state == 2 and server.arm_state().state == 4


class Broken(KinematicPlant):
    def drive(self, joints_rad: np.ndarray, gripper_m: float, dt_s: float) -> None:
        raise ArmError("physics diverged")


def test_an_internal_failure_is_raised_when_the_server_ends() -> None:
    with (
        pytest.raises(ArmError, match="the emulated controller failed: physics diverged"),
        ControllerServer(Broken(HOME), host=free_host()) as server,
    ):
        assert server._thread is not None
        server._thread.join(20.0)


# --- clients ----------------------------------------------------------------------------------------------------------


def test_two_clients_are_served_and_one_stops_what_the_other_drives(server: ControllerServer) -> None:
    with Client(server) as driver, Client(server) as stopper:
        driver.ready()
        assert driver.ask(SERVO, encode_floats(HOME + 0.1, np.zeros(3))).status == 0
        server.advance(0.05)
        assert stopper.ask(SET_STATE, b"\x04").status == CANNOT_MOVE
        here = server.arm_state().joints_rad
        assert driver.ask(SERVO, encode_floats(HOME + 0.1, np.zeros(3))).status == CANNOT_MOVE
        server.advance(0.05)
        assert (server.arm_state().joints_rad == here).all() and server.clients() == (1, 2)
    assert [(h.client, h.function) for h in server.request_log()][-3:] == [(1, SERVO), (2, SET_STATE), (1, SERVO)]


@given(st.binary(min_size=1, max_size=120))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_bring_the_server_down(server: ControllerServer, stream: bytes) -> None:
    with Client(server) as good, Client(server) as bad:
        bad.socket.sendall(stream)
        bad.socket.shutdown(socket.SHUT_WR)
        while bad.socket.recv(4096):  # until the server has read it all and closed
            pass
        assert len(good.ask(GET_STATE).data) == 1
    server.advance(0.004)


def test_garbage_closes_its_own_connection_only(server: ControllerServer) -> None:
    with Client(server) as good, Client(server) as bad:
        bad.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert bad.socket.recv(100) == b""
        assert good.ask(GET_STATE) == Reply(CANNOT_MOVE, b"\x04")


def test_a_request_split_at_every_byte_is_answered_once(server: ControllerServer) -> None:
    with Client(server) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frames.encode_request(Request(9, 3, GET_STATE)) + frames.encode_request(Request(10, 2, GET_ERROR)):
            client.socket.sendall(bytes([byte]))
        assert client.receive() == (Request(9, 3, GET_STATE), Reply(CANNOT_MOVE, b"\x04"))
        assert client.receive() == (Request(10, 2, GET_ERROR), Reply(CANNOT_MOVE, bytes(2)))


def test_a_heartbeat_gets_no_answer_and_standard_modbus_an_exception(server: ControllerServer) -> None:
    with Client(server) as client:
        client.socket.sendall(bytes.fromhex("0000 0001 0002 0000"))
        client.socket.sendall(bytes.fromhex("0005 0000 0006 01 03 0000 0001"))
        assert client.socket.recv(100) == bytes.fromhex("0005 0000 0003 01 83 01")


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [30000, 30001, 30002, 30003])
def test_a_report_comes_at_once_and_then_at_its_rate(server: ControllerServer, port: int) -> None:
    with Client(server) as client, Listener(server, port) as listener:
        first = listener.frame()
        assert first["joints"] == pytest.approx(HOME, abs=1e-6) and first["state_mode"] == 4
        client.ready(mode=6)
        server.advance(2.0)
        per_second = {30000: 250, 30001: 5, 30002: 5, 30003: 100}[port]
        states = [int(listener.frame()["state_mode"]) for _ in range(2 * per_second)]
        assert set(states) == {0x62}
        client.ask(GET_STATE)
        listener.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.socket.recv(1)


def test_the_rich_report_carries_error_settings_and_motion(server: ControllerServer) -> None:
    with Client(server) as client, Listener(server, 30002) as listener:
        listener.frame()
        client.ask(35, encode_floats(0.0, 0.0, 172.0, 0.0, 0.0, 0.0))
        client.ask(36, encode_floats(0.82, 0.0, 0.0, 48.0))
        client.ask(37, b"\x04")
        client.ask(52, struct.pack("<6i", 620, 200, 350, -350, 500, 4))
        client.ask(59, b"\1")
        client.ready(mode=0)
        client.ask(23, encode_floats(HOME + 0.5, 0.4, 10.0, 0.0))
        server.advance(0.4)
        listener.frame()
        report = listener.frame()
        assert (report["state_mode"], report["queued"], report["enabled"], report["error"]) == (1, 1, 0x7F, 0)
        assert report["tcp_offset"].tolist() == [0, 0, 172, 0, 0, 0] and report["payload"] == pytest.approx(
            [0.82, 0, 0, 48]
        )
        assert report["collision_sensitivity"] == 4 and report["fence"] == 1 and report["flags"] == 2
        assert report["box"].tolist() == [620, 200, 350, -350, 500, 4]
        assert report["joint_speeds"] == pytest.approx(np.full(7, 0.4)) and report["tcp_speed"] > 100.0
        server.faults.error(31)
        server.advance(0.2)
        report = listener.frame()
        assert (report["state_mode"], report["error"], report["queued"]) == (4, 31, 0)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_lost_reply_is_a_request_that_was_carried_out(server: ControllerServer) -> None:
    with Client(server) as client, Client(server) as second_client:
        client.ready()
        server.faults.drop_replies(count=1, client=1)
        client.send(SET_STATE, b"\x04")
        settle(server)
        assert second_client.ask(GET_STATE).data == b"\x04"
        assert client.is_silent()
        assert client.ask(GET_STATE).data == b"\x04"


def test_replies_are_lost_for_a_time(server: ControllerServer) -> None:
    with Client(server) as client:
        server.faults.drop_replies(seconds=0.1)
        client.send(GET_STATE)
        settle(server)
        server.advance(0.104)
        transaction = client.send(GET_ERROR)
        assert client.receive()[0].transaction == transaction


def test_late_replies_keep_their_order(server: ControllerServer) -> None:
    with Client(server) as client:
        server.faults.delay_replies(0.19, count=1)
        transactions = [client.send(GET_STATE), client.send(GET_ERROR), client.send(GET_STATE)]
        assert [client.receive()[0].transaction for _ in transactions] == transactions


def test_a_half_open_link_loses_requests_and_the_other_client_can_stop(server: ControllerServer) -> None:
    with Client(server) as stuck, Client(server) as stopper, Listener(server, 30002) as listener:
        stuck.ready()
        listener.frame()
        server.faults.half_open(client=1)
        stuck.send(SERVO, encode_floats(HOME + 0.1, np.zeros(3)))
        settle(server)
        assert stopper.ask(SET_STATE, b"\x04").data == b"" and server.arm_state().state == 4
        server.advance(0.2)
        listener.frame()  # reports are another link
        server.faults.half_open()
        server.advance(0.4)
        stopper.send(SET_STATE, b"\0")
        settle(server)
        server.faults.heal()
        assert stopper.ask(GET_STATE).data == b"\x04"
        assert (server.arm_state().joints_rad == HOME).all() and SERVO not in {h.function for h in server.request_log()}


def test_a_reset_breaks_connections_and_new_ones_are_taken(server: ControllerServer) -> None:
    with Client(server) as client, Listener(server, 30003) as listener:
        client.ready()
        listener.frame()
        server.faults.reset_connections()
        with pytest.raises(ConnectionResetError):
            client.socket.recv(1)
        with pytest.raises(ConnectionResetError):
            listener.socket.recv(1)
    with Client(server) as client:
        assert client.ask(GET_STATE).data == b"\x02"  # the arm kept its state


def test_stale_reports_repeat_themselves_and_silent_ones_stop(server: ControllerServer) -> None:
    with Client(server) as client, Listener(server, 30003) as listener:
        client.ready(mode=6)
        listener.frame()
        client.ask(23, encode_floats(HOME + 0.5, 0.5, 10.0, 0.0))
        server.advance(0.2)
        for _ in range(20):
            listener.frame()
        server.faults.stale_reports()
        server.advance(0.2)
        reports = np.array([listener.frame()["joints"] for _ in range(20)])
        assert (reports == reports[0]).all() and np.abs(server.arm_state().joints_rad - reports[0]).max() > 0.05
        server.faults.silence_reports()
        server.advance(0.2)
        server.faults.heal()
        server.advance(0.01)
        assert listener.frame()["joints"] == pytest.approx(server.arm_state().joints_rad, abs=1e-5)


def test_errors_warnings_and_the_emergency_stop_are_seen_by_the_next_request(server: ControllerServer) -> None:
    with Client(server) as client:
        client.ready()
        server.faults.warn(11)
        assert client.ask(GET_ERROR).data == bytes([0, 11])
        server.faults.error(22)
        assert client.ask(GET_STATE) == Reply(HAS_ERROR | 0x20 | CANNOT_MOVE, b"\x04")
        server.faults.emergency_stop()
        client.ready()
        assert client.ask(GET_ERROR).data[0] == 1
        server.faults.release()
        client.ready()
        assert client.ask(GET_STATE).data == b"\x02"
        server.faults.emergency_stop(code=2, latched=False)
        assert client.ask(GET_ERROR).data[0] == 2
        client.ready()
        assert client.ask(GET_STATE).data == b"\x02"
    with pytest.raises(UsageError, match="1 .button."):
        server.faults.emergency_stop(code=31)
    with pytest.raises(UsageError, match="1 to 255"):
        server.faults.error(0)


def test_faults_come_from_many_threads_at_once(server: ControllerServer) -> None:
    def trouble(code: int) -> None:
        for _ in range(20):
            server.faults.error(code)
            server.faults.delay_replies(0.001, count=1)
            server.faults.heal()

    threads = [threading.Thread(target=trouble, args=(code,)) for code in (22, 31, 35)]
    with Client(server) as client:
        for thread in threads:
            thread.start()
        for _ in range(50):
            client.ask(GET_STATE)
        for thread in threads:
            thread.join()
        client.ready()
        assert client.ask(GET_STATE).data == b"\x02"


# --- time -------------------------------------------------------------------------------------------------------------


def test_stepped_time_passes_by_hand_only(server: ControllerServer) -> None:
    before = server.arm_state().time_s
    server.advance(0.4)
    assert server.arm_state().time_s - before == pytest.approx(0.4)
    with (
        ControllerServer(KinematicPlant(HOME), host=free_host()) as by_the_clock,
        pytest.raises(UsageError, match="stepped=True"),
    ):
        by_the_clock.advance(0.1)


def test_by_the_clock_time_passes_by_itself() -> None:
    with ControllerServer(KinematicPlant(HOME), host=free_host()) as server, Listener(server, 30000) as listener:
        times = np.array([int(listener.frame()["time_us"]) for _ in range(50)])
        assert (np.diff(times[1:]) == 4000).all()


def test_only_a_cell_can_be_laid_out(server: ControllerServer) -> None:
    with pytest.raises(UsageError, match="CellPlant"):
        server.place(None, None)  # type: ignore[arg-type]
