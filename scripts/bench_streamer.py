"""Measures the streamer's period and the latency of a stop against the emulated controller in its own process.

    python scripts/bench_streamer.py --json bench_streamer.json

The arm follows a sine with commands at 10 Hz. The gripper gets a new target 5 times a second, and two synthetic
cameras (480x640 at 30 Hz) are read at every step. The periods are measured twice: as the controller receives commands,
and as the streamer sends them. A deadline is missed if a tick begins more than half a period late. The controller's
process stands for another machine, so it gets real-time scheduling if the system allows it. The streamer requests it
too.

Then the arm is stopped many times: with a healthy link, and with a half-open command link, so that the streamer hangs
in a call without a reply. The latency of a stop is the time from the call to its arrival at the controller.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from srpo_robot.arm.cameras import Cameras
from srpo_robot.arm.xarm7.driver import XArm7
from srpo_robot.arm.xarm7.stream_loop import StreamerState
from srpo_robot.mock.controller import ControllerServer, KinematicPlant, free_host
from srpo_robot.recipes import CameraRecipe, HardwareRecipe, load
from srpo_robot.records import JOINTS, ArmCommand

SET_POINT, SET_STATE, STOP = 29, 12, 4  # function codes, and the state that stops
TARGETS_MS = {"period_p99_ms": 12.0, "stop_p99_ms_healthy": 25.0, "stop_p99_ms_stuck": 25.0}
_SWING_RAD, _SWING_S = 0.2, 4.0  # of the sine
_STUCK_S = 0.05  # time in the hanging call before the stop
_REPORT_AGE_S = 0.5  # large, so that the benchmark does not fail on a busy machine


# --- the controller's process -----------------------------------------------------------------------------------------


class StampingServer(ControllerServer):
    """A controller server that records the time of each command."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stamps: list[tuple[float, int, int]] = []  # time, function, first byte

    def _execute(self, client: int, request: Any) -> bytes:
        first = request.params[0] if request.params else -1
        self.stamps.append((time.monotonic(), request.function, first))
        return super()._execute(client, request)


def emulate() -> None:
    """Serves until stdin closes. Reads one order per line and answers with one line of JSON."""
    with contextlib.suppress(OSError, AttributeError):  # a real controller does not share this machine's load
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(20))
    plant = KinematicPlant(np.array(load(HardwareRecipe, "hardware", "xarm7").home_rad))
    with StampingServer(plant, host=free_host()) as server:
        print(json.dumps([server.host, server.command_port]), flush=True)
        for line in sys.stdin:
            answer: Any = None
            if line.strip() == "stick":
                server.faults.half_open(client=server.clients()[0])
            elif line.strip() == "heal":
                server.faults.heal()
            elif line.strip() == "stamps":
                answer = server._call(lambda: list(server.stamps))
            print(json.dumps(answer), flush=True)


class Emulator:
    """Client of the emulator process."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--emulator"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.host, self.port = self._answer()

    def order(self, line: str) -> Any:
        """Sends an order and waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def times(self, function: int, first: int | None = None) -> np.ndarray:
        """Returns the arrival times of the commands of a function [s, `time.monotonic`]."""
        stamps = self.order("stamps")
        return np.array([t for t, code, byte in stamps if code == function and first in (None, byte)])

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


# --- load -------------------------------------------------------------------------------------------------------------


class SyntheticCapture:
    """A synthetic camera at 30 Hz. Each picture is different."""

    def __init__(self, recipe: CameraRecipe) -> None:
        self._rng = np.random.default_rng(len(recipe.name))
        self._due_s = time.monotonic()
        self._picture = self._rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's own name)
        return True

    def read(self) -> tuple[bool, np.ndarray]:
        self._due_s = max(self._due_s + 1 / 30, time.monotonic())
        time.sleep(max(self._due_s - time.monotonic(), 0.0))
        self._picture = np.roll(self._picture, 7, axis=1)
        return True, self._picture

    def get(self, propId: int) -> float:  # noqa: N803 (OpenCV's own name)
        return 0.0

    def set(self, propId: int, value: float) -> bool:  # noqa: N803 (OpenCV's own name)
        return True

    def release(self) -> None: ...


# --- measuring --------------------------------------------------------------------------------------------------------


def stream(arm: XArm7, cameras: Cameras, seconds: float) -> np.ndarray:
    """Moves the arm along the sine for `seconds`. Returns the streamer's log."""
    start = arm.observe().state.joints_rad
    arm.take_log()
    began_s = time.monotonic()
    while (now_s := time.monotonic() - began_s) < seconds:
        swing = _SWING_RAD * np.sin(2 * np.pi * now_s / _SWING_S)
        opening = 0.08 if int(now_s * 5) % 2 else 0.04  # a new target 5 times a second
        arm.send(ArmCommand(start + swing * np.eye(JOINTS)[0], opening))
        arm.observe()
        cameras.read()
    return arm.take_log()


def stop_latencies(arm: XArm7, emulator: Emulator, stops: int, stuck: bool) -> np.ndarray:
    """Returns the seconds from each call of `stop` to its arrival at the controller, (stops,)."""
    calls = []
    for _ in range(stops):
        arm.resume()
        start = arm.observe().state.joints_rad
        arm.send(ArmCommand(start, 0.08))
        if stuck:
            emulator.order("stick")
            time.sleep(_STUCK_S)
        calls.append(time.monotonic())
        arm.stop()
        emulator.order("heal")
        if stuck:
            time.sleep(0.45)  # until the hanging call times out
    arrivals = emulator.times(SET_STATE, STOP)
    return np.array([arrivals[arrivals >= call_s].min() - call_s for call_s in calls])


def measure(seconds: float, stops: int) -> dict[str, Any]:
    """Runs all measurements. Returns the content of the --json file."""
    emulator = Emulator()
    recipe = load(HardwareRecipe, "hardware", "xarm7")
    assert recipe.controller is not None
    controller = replace(
        recipe.controller, address=emulator.host, command_port=emulator.port, max_report_age_s=_REPORT_AGE_S
    )
    cameras = Cameras([replace(camera, max_age_s=5.0) for camera in recipe.cameras], SyntheticCapture)
    recipe = replace(recipe, cameras=(), controller=controller)
    try:
        with cameras, XArm7(recipe) as arm:
            real_time = arm.info["real_time"]
            log = stream(arm, cameras, seconds)
            periods_s = np.diff(emulator.times(SET_POINT))
        with cameras, XArm7(replace(recipe, fps=50.0)) as arm:
            healthy = stop_latencies(arm, emulator, stops, stuck=False)
            stuck = stop_latencies(arm, emulator, stops, stuck=True)
    finally:
        emulator.close()
    log = log[log["phase"] == StreamerState.STREAM]
    half_s = 0.5 / controller.stream_hz
    distributions = {
        "period": 1000 * periods_s,
        "period_sent": 1000 * np.diff(log["time_s"]),
        "late": 1000 * log["late_s"],
        "reply": 1000 * log["reply_s"],
        "stop_healthy": 1000 * healthy,
        "stop_stuck": 1000 * stuck,
    }
    rows = {name: _summary(values) for name, values in distributions.items()}
    return {
        "period_p99_ms": rows["period"]["p99"],
        "deadline_misses": int((log["late_s"] > half_s).sum()),
        "stop_p99_ms_healthy": rows["stop_healthy"]["p99"],
        "stop_p99_ms_stuck": rows["stop_stuck"]["p99"],
        "ticks": len(log),
        "ticks_left_out": int(log["missed"].sum()),
        "seconds": seconds,
        "stops": stops,
        "real_time": real_time,
        "load_average": os.getloadavg()[0],
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "distributions_ms": rows,
    }


def _summary(values: np.ndarray) -> dict[str, float]:
    p50, p99, most = np.percentile(values, [50, 99, 100])
    return {"p50": float(p50), "p99": float(p99), "max": float(most), "count": len(values)}


NAMES = {
    "period": "period, received",
    "period_sent": "period, sent",
    "late": "behind its deadline",
    "reply": "reply to a set point",
    "stop_healthy": "stop, link healthy",
    "stop_stuck": "stop, link stuck",
}


def show(result: dict[str, Any]) -> None:
    """Prints the numbers as a table, then the numbers that have a target."""
    console = Console(highlight=False)
    title = (
        f"{result['seconds']:g} s at 100 Hz, {result['cpus']} CPUs, load {result['load_average']:.1f}, "
        f"{'with' if result['real_time'] else 'without'} real-time scheduling"
    )
    table = Table(title=title, title_justify="left")
    for column in ("ms", "p50", "p99", "max", "count"):
        table.add_column(column, justify="left" if column == "ms" else "right")
    for key, row in result["distributions_ms"].items():
        table.add_row(NAMES[key], *(f"{row[name]:.2f}" for name in ("p50", "p99", "max")), str(row["count"]))
    console.print(table)
    console.print(f"deadline_misses = {result['deadline_misses']} of {result['ticks']} ticks")
    for key, target in TARGETS_MS.items():
        console.print(
            f"{key} = {result[key]:.2f} (target: at most {target:g}: {'met' if result[key] <= target else 'MISSED'})"
        )


def main() -> None:
    """Reads the options, measures, prints the table and writes the --json file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of streaming")
    parser.add_argument("--stops", type=int, default=200, help="with the link healthy, and as many with it stuck")
    parser.add_argument("--json", type=Path, help="write every number here")
    parser.add_argument("--emulator", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.emulator:
        emulate()
        return
    result = measure(options.seconds, options.stops)
    show(result)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    assert threading.active_count() == 1, threading.enumerate()  # no thread is left


if __name__ == "__main__":
    main()
