"""The emulator on the network: one thread, one asyncio loop for sockets, time and physics. Loopback only.

The SDK finds its report ports by the literal numbers 30000 to 30003. Several emulators therefore run side by side on
different loopback addresses (127.0.0.2, ...), not on different ports.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import random
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar, cast

from srpo_robot.errors import ArmError, UsageError
from srpo_robot.mock.controller import commands, reports
from srpo_robot.mock.controller.faults import Faults, Network
from srpo_robot.mock.controller.frames import (
    HEARTBEAT,
    MODBUS,
    Request,
    RequestReader,
    encode_reply,
    illegal_function,
)
from srpo_robot.mock.controller.physics import CellPlant, Plant
from srpo_robot.mock.controller.state import Controller, Firmware, Snapshot
from srpo_robot.mock.layout import Layout
from srpo_robot.records import ArmCommand

TICK_S = 0.004  # period of the controller: 250 Hz
_MAX_LATE_TICKS = 50  # a loop that hung longer drops the time instead of catching up
_LOG_LENGTH = 4096  # length of the request log
_FULL_BYTES = 1 << 18  # a client that does not read is cut off at this backlog
_RST = struct.pack("ii", 1, 0)  # SO_LINGER: on, no time
_WAIT_S = 30.0

T = TypeVar("T")


@dataclass(frozen=True)
class LoggedRequest:
    """A request that was carried out, and the status of its answer (bits as in `frames`)."""

    time_s: float
    client: int
    function: int
    params: bytes
    status: int


class ControllerServer:
    """The controller of one arm. Its command and report ports are open for the duration of the `with` block.

    Args:
        plant: the emulated arm.
        host: loopback address to listen on.
        command_port: the SDK's is 502, which needs privileges. 0 takes a free one; read `command_port` afterwards.
        firmware: version, serial number and thresholds.
        stepped: time passes only in `advance`, not with the clock.
    """

    def __init__(
        self,
        plant: Plant,
        *,
        host: str = "127.0.0.1",
        command_port: int = 0,
        firmware: Firmware | None = None,
        stepped: bool = False,
    ) -> None:
        """Raises UsageError if `host` is no IPv4 loopback address."""
        self.host = _loopback(host)
        self.command_port = command_port
        self.stepped = stepped
        self._plant = plant
        self._controller = Controller(plant, firmware)
        self._network = Network()
        self.faults = Faults(self._call, self._controller, self._network, self._reset_connections)
        self._commands: dict[int, _CommandConnection] = {}
        self._accepted = 0
        self._channels = {port: _ReportChannel(port) for port in reports.PERIODS_S}
        self._request_log: deque[LoggedRequest] = deque(maxlen=_LOG_LENGTH)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._started_s, self._ticks = 0.0, 0

    # --- for the caller, from any thread ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Opens the ports and starts the thread. Raises ArmError if a port is in use."""
        sockets = self._bind()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(sockets, ready), name="xarm-controller", daemon=True)
        self._thread.start()
        ready.wait(_WAIT_S)
        if self._failure is not None:
            raise self._failed_with() from self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes every socket and ends the thread. Raises ArmError if the emulator itself failed meanwhile."""
        if self._loop is not None and self._stopping is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None and error is None:
            raise self._failed_with() from self._failure

    def arm_state(self) -> Snapshot:
        """Returns the controller's current state."""
        return self._call(self._controller.snapshot)

    def request_log(self) -> tuple[LoggedRequest, ...]:
        """Returns the latest requests that were carried out, oldest first, a few thousand at most."""
        return self._call(lambda: tuple(self._request_log))

    def clients(self) -> tuple[int, ...]:
        """Returns the numbers of the open command connections. 1 was the first since the start."""
        return self._call(lambda: tuple(self._commands))

    def advance(self, seconds: float) -> None:
        """Lets time pass, in whole ticks of `TICK_S`. Raises UsageError if the clock does that (not `stepped`)."""
        if not self.stepped:
            raise UsageError("this emulator runs by the clock; build it with stepped=True to advance it")
        for _ in range(round(seconds / TICK_S)):
            self._call(self._advance)

    def place(self, layout: Layout, start: ArmCommand) -> None:
        """Lays out the cell with the arm at rest at `start`. Raises UsageError if the plant is no cell."""
        plant = self._plant
        if not isinstance(plant, CellPlant):
            raise UsageError("only an emulator with a CellPlant has a scene to lay out")

        def place() -> None:
            plant.place(layout, start)
            self._controller.resynchronise()

        self._call(place)

    # --- start and end ------------------------------------------------------------------------------------------------

    def _bind(self) -> dict[int, socket.socket]:
        """Returns listening sockets by port, with the command port under 0."""
        sockets: dict[int, socket.socket] = {}
        try:
            for key, port in {0: self.command_port, **{port: port for port in self._channels}}.items():
                sockets[key] = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                sockets[key].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    sockets[key].bind((self.host, port))
                    sockets[key].listen()
                except OSError as error:
                    raise ArmError(
                        f"cannot listen on {self.host}:{port} ({error.strerror}); end what uses it, or give another "
                        "loopback address, for example host='127.0.0.2'"
                    ) from error
        except ArmError:
            for listener in sockets.values():
                listener.close()
            raise
        self.command_port = sockets[0].getsockname()[1]
        return sockets

    def _run(self, sockets: dict[int, socket.socket], ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(sockets, ready))
        except BaseException as error:  # kept for `__exit__`, which raises it in the caller's thread
            self._failure = self._failure or error
        finally:
            ready.set()

    async def _serve(self, sockets: dict[int, socket.socket], ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._caught)
        self._stopping = asyncio.Event()
        servers = [await self._loop.create_server(lambda: _CommandConnection(self), sock=sockets.pop(0))]
        for port, listening in sockets.items():
            channel = self._channels[port]
            servers.append(
                await self._loop.create_server(lambda channel=channel: _ReportConnection(self, channel), sock=listening)
            )
        if not self.stepped:
            self._started_s = self._loop.time()
            self._loop.call_soon(self._tick)
        ready.set()
        await self._stopping.wait()
        for server in servers:
            server.close()
        for transport in self._transports():
            transport.abort()
        await asyncio.sleep(0)  # lets the transports close their sockets
        await asyncio.sleep(0)

    def _caught(self, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self._fail(cast("BaseException", context.get("exception") or ArmError(str(context.get("message")))))

    def _failed_with(self) -> ArmError:
        return ArmError(f"the emulated controller failed: {self._failure}")

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        if self._stopping is not None:
            self._stopping.set()

    def _call(self, function: Callable[[], T]) -> T:
        """Runs `function` in the server's thread and returns its result or raises its exception.

        Raises:
            ArmError: the server is not running, or failed.
        """
        loop = self._loop
        if self._failure is not None:
            raise self._failed_with()
        if loop is None or loop.is_closed():
            raise ArmError("the emulated controller is not running; use it as a context manager: with server: ...")

        async def run() -> T:
            return function()

        try:
            return asyncio.run_coroutine_threadsafe(run(), loop).result(_WAIT_S)
        except (concurrent.futures.CancelledError, concurrent.futures.TimeoutError) as error:
            raise ArmError("the emulated controller ended, or did not answer in time") from error

    # --- in the server's thread ---------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Catches up with the clock. Deadlines are absolute, so delays do not add up."""
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        try:
            due_ticks = int((loop.time() - self._started_s) / TICK_S) - self._ticks
            if due_ticks > _MAX_LATE_TICKS:
                self._started_s += (due_ticks - _MAX_LATE_TICKS) * TICK_S
                due_ticks = _MAX_LATE_TICKS
            for _ in range(due_ticks):
                self._ticks += 1
                self._advance()
        except Exception as error:
            self._fail(error)
            return
        loop.call_at(self._started_s + (self._ticks + 1) * TICK_S, self._tick)

    def _advance(self) -> None:
        self._controller.advance(TICK_S)
        for channel in self._channels.values():
            if self._controller.time_s >= channel.due_s - TICK_S / 2:
                channel.due_s += channel.period_s
                self._report(channel, channel.connections)

    def _report(self, channel: _ReportChannel, connections: set[_ReportConnection]) -> None:
        mode = self._network.reports
        if mode == "silent" or not connections:
            return
        if mode == "fresh" or not channel.stale:
            channel.frame = reports.report(self._controller, channel.port)
        channel.stale = mode == "stale"
        for connection in tuple(connections):
            connection.send(channel.frame)

    def _execute(self, client: int, request: Request) -> bytes:
        reply = commands.execute(self._controller, request)
        self._request_log.append(
            LoggedRequest(self._controller.time_s, client, request.function, request.params, reply.status)
        )
        return encode_reply(request, reply)

    def _transports(self) -> list[asyncio.Transport]:
        links = [*self._commands.values(), *(one for c in self._channels.values() for one in c.connections)]
        return [link.transport for link in links if link.transport is not None]

    def _reset_connections(self) -> None:
        for transport in self._transports():
            _reset(transport)


class _CommandConnection(asyncio.Protocol):
    """One client of the command port."""

    def __init__(self, server: ControllerServer) -> None:
        self.transport: asyncio.Transport | None = None
        self._server = server
        self._reader = RequestReader()
        self._number = 0
        self._free_s = 0.0  # send time of the last delayed reply, so that replies keep their order

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        server = self._server
        server._accepted += 1
        self._number = server._accepted
        server._commands[self._number] = self

    def connection_lost(self, exc: Exception | None) -> None:
        self._server._commands.pop(self._number, None)

    def data_received(self, data: bytes) -> None:
        for request in self._reader.feed(data):
            self._handle(request)
        if self._reader.broken and self.transport is not None:
            self.transport.close()

    def _handle(self, request: Request) -> None:
        if request.protocol == HEARTBEAT:  # a heartbeat has no reply
            return
        server = self._server
        fate = server._network.fate(self._number, server._controller.time_s)
        if fate.dead:
            return
        frame = illegal_function(request) if request.protocol == MODBUS else server._execute(self._number, request)
        if fate.cut and self.transport is not None:
            _reset(self.transport)
        elif not fate.lost:
            self._send(frame, fate.delay_s)

    def _send(self, frame: bytes, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        at_s = max(now_s + delay_s, self._free_s)
        if at_s <= now_s:
            _write(self.transport, frame)
        else:
            self._free_s = at_s
            loop.call_at(at_s, _write, self.transport, frame)


class _ReportChannel:
    """One report port: its listeners, the due time of the next frame, and the last frame."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.period_s = reports.PERIODS_S[port]
        self.due_s = self.period_s
        self.frame = b""
        self.stale = False  # the frame is kept on purpose
        self.connections: set[_ReportConnection] = set()


class _ReportConnection(asyncio.Protocol):
    """One listener of a report port. Its input is ignored."""

    def __init__(self, server: ControllerServer, channel: _ReportChannel) -> None:
        self.transport: asyncio.Transport | None = None
        self._server = server
        self._channel = channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._channel.connections.add(self)
        self._server._report(self._channel, {self})

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel.connections.discard(self)

    def send(self, frame: bytes) -> None:
        _write(self.transport, frame)


def _write(transport: asyncio.Transport | None, frame: bytes) -> None:
    """Sends the frame unless the client disconnected. Cuts off a client that does not read."""
    if transport is None or transport.is_closing():
        return
    if transport.get_write_buffer_size() > _FULL_BYTES:
        transport.abort()
    else:
        transport.write(frame)


def _reset(transport: asyncio.Transport) -> None:
    """Breaks the connection with RST. Unsent data is lost."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    transport.abort()


def free_host() -> str:
    """Returns a loopback address with free report ports, for tests and for several emulators at once.

    Raises:
        ArmError: there is none. On a machine with 127.0.0.1 only (macOS), another emulator runs.
    """
    for _ in range(20):
        host = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        for candidate in (host, "127.0.0.1"):
            if all(_is_free(candidate, port) for port in reports.PERIODS_S):
                return candidate
    raise ArmError("no loopback address with free report ports (30000 to 30003); end the other emulator")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _loopback(host: str) -> str:
    try:
        if ipaddress.IPv4Address(host).is_loopback:
            return host
    except ValueError:
        pass
    raise UsageError(f"the emulator listens on loopback only; {host!r} is no address of 127.0.0.0/8")
