"""A policy on another machine: observations go out and action chunks come back over HTTP, as numpy's npz.

    GET  /metadata -> what the policy takes and gives (JSON); compared with the task before the first move
    POST /reset    {"seed": 3, "instruction": "..."}
    POST /act      an observation as npz -> actions as npz; 204: the policy is done; 422: its output is no action

Nothing is trusted to arrive: connecting and every answer have a time limit. Arrays travel without pickle.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import threading
import urllib.parse
import zipfile
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np

from srpo_robot.arm.actions import ActionSpace
from srpo_robot.errors import CheckpointError, PolicyError, SrpoRobotError, UndecodableActions, UsageError, one_line
from srpo_robot.evaluation.policy import Policy
from srpo_robot.http_server import HttpServer, body, refuse, respond, respond_json
from srpo_robot.records import ActionChunk, ArmCommand, ArmState, Observation

PROTOCOL = 1
CONNECT_S = 5.0
ANSWER_S = 10.0
_IMAGE = "image."
_NPZ = "application/octet-stream"


@dataclass(frozen=True)
class Metadata:
    """What a served policy takes and gives.

    Attributes:
        name: of the policy.
        protocol: of these messages.
        action_names, state_names: of its action space.
        cameras: that it looks at.
        fingerprint: hash of its weights' and processors' provenance: another one is another policy.
    """

    name: str
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    cameras: tuple[str, ...]
    fingerprint: str = ""
    protocol: int = PROTOCOL


def describe(policy: Policy, space: ActionSpace, cameras: tuple[str, ...]) -> Metadata:
    """The metadata of a policy for this action space and these cameras."""
    provenance = json.dumps(getattr(policy, "provenance", {}), sort_keys=True, default=str)
    fingerprint = hashlib.sha256(f"{policy.name}\n{provenance}".encode()).hexdigest()[:16]
    return Metadata(policy.name, space.names, space.state_names, tuple(cameras), fingerprint)


# --- the messages -------------------------------------------------------------------------------------------------


def pack_observation(seen: Observation) -> bytes:
    """An observation as npz."""
    arrays = {
        "time_s": np.array(seen.state.time_s),
        "joints_rad": seen.state.joints_rad,
        "gripper_m": np.array(seen.state.gripper_m),
        "commanded_joints_rad": seen.commanded.joints_rad,
        "commanded_gripper_m": np.array(seen.commanded.gripper_m),
    }
    return _pack(arrays | {_IMAGE + name: image for name, image in seen.images.items()})


def unpack_observation(content: bytes) -> Observation:
    """The inverse of `pack_observation`. Raises ValueError where it is none."""
    arrays = _unpack(content)
    images = {key.removeprefix(_IMAGE): value for key, value in arrays.items() if key.startswith(_IMAGE)}
    try:
        state = ArmState(float(arrays["time_s"]), arrays["joints_rad"], float(arrays["gripper_m"]))
        commanded = ArmCommand(arrays["commanded_joints_rad"], float(arrays["commanded_gripper_m"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no observation: {error}") from None
    return Observation(state, commanded, images)


def _pack(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpack(content: bytes) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"no npz: {one_line(error)}") from None


# --- the robot's side ---------------------------------------------------------------------------------------------


class ServedPolicy:
    """A policy behind a URL; a `Policy` like any other. Metadata is checked when it is made."""

    def __init__(
        self,
        url: str,
        space: ActionSpace,
        instruction: str,
        cameras: tuple[str, ...],
        connect_s: float = CONNECT_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        """`connect_s`, `answer_s`: how long to wait for a connection, and for each answer.

        Raises:
            UsageError: no URL.
            PolicyError: nobody answers there.
            CheckpointError: the policy was made for other cameras, states or actions than this task and arm have.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or not parts.port:
            raise UsageError(f"{url} is no served policy; give http://HOST:PORT, as 'srpo-robot serve' prints it")
        self._place = (parts.hostname, parts.port)
        self._root = parts.path.rstrip("/")
        self._limits = (connect_s, answer_s)
        self._space, self._cameras = space, cameras
        self.instruction = instruction
        self.url = url
        self.metadata = self._checked(json.loads(self._ask("GET", "/metadata")[1]))
        self.name = f"{self.metadata.name} at {url}"
        self.provenance = {"served": asdict(self.metadata)}

    def reset(self, seed: int) -> None:
        """Forget the last episode. Raises PolicyError where it does not answer."""
        self._ask("POST", "/reset", json.dumps({"seed": seed, "instruction": self.instruction}).encode())

    def act(self, observation: Observation) -> ActionChunk | None:
        """The next actions.

        Raises:
            PolicyError: it does not answer in time, or failed; says how.
            UndecodableActions: its output is no action.
        """
        seen = {name: observation.images[name] for name in self._cameras}
        status, content = self._ask(
            "POST", "/act", pack_observation(Observation(observation.state, observation.commanded, seen))
        )
        if status == 204:
            return None
        try:
            return ActionChunk(_unpack(content)["actions"], self._space.names)
        except (KeyError, ValueError) as error:
            raise PolicyError(f"the policy at {self.url} sent no actions ({one_line(error)})") from None

    def _checked(self, found: dict[str, object]) -> Metadata:
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
        try:
            made = Metadata(**values)
        except TypeError:
            raise PolicyError(
                f"{self.url} speaks another protocol; serve with the same version of srpo-robot"
            ) from None
        space = self._space
        pairs = {
            "protocol": (made.protocol, PROTOCOL),
            "actions": (made.action_names, space.names),
            "state": (made.state_names, space.state_names),
            "cameras": (tuple(sorted(made.cameras)), tuple(sorted(self._cameras))),
        }
        for what, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise CheckpointError(f"the policy at {self.url} has {what} {theirs}, this task has {ours}")
        return made

    def _ask(self, method: str, path: str, content: bytes = b"") -> tuple[int, bytes]:
        """Status and content of an answer; a connection each, so that a broken one breaks nothing later."""
        connect_s, answer_s = self._limits
        link = http.client.HTTPConnection(*self._place, timeout=connect_s)
        try:
            link.connect()
            link.sock.settimeout(answer_s)
            link.request(method, self._root + path, content, {"Content-Type": _NPZ})
            answer = link.getresponse()
            found = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise PolicyError(
                f"the policy at {self.url} does not answer ({one_line(error)}); is 'srpo-robot serve' running there?"
            ) from None
        finally:
            link.close()
        if answer.status in (200, 204):
            return answer.status, found
        why = one_line(Exception(found.decode(errors="replace")))
        if answer.status == 422:
            raise UndecodableActions(why)
        raise PolicyError(f"the policy at {self.url} failed: {why}")


# --- the policy's side --------------------------------------------------------------------------------------------


class PolicyServer(HttpServer):
    """Serves one policy to one robot at a time as long as the `with` block lasts."""

    def __init__(self, policy: Policy, metadata: Metadata, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(self._serve, host, port)
        self._policy, self._metadata = policy, metadata
        self._lock = threading.Lock()  # a policy has one state

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        try:
            with self._lock:
                self._dispatch(handler)
        except (ValueError, KeyError, TypeError) as error:
            refuse(handler, 400, f"not understood: {one_line(error)}")
        except UndecodableActions as error:
            refuse(handler, 422, one_line(error))
        except SrpoRobotError as error:
            refuse(handler, 500, one_line(error))
        except OSError:
            raise  # the robot went away
        except Exception as error:  # whatever a model throws: the robot is told, the server goes on
            refuse(handler, 500, f"{type(error).__name__}: {one_line(error)}")

    def _dispatch(self, handler: BaseHTTPRequestHandler) -> None:
        match handler.command, handler.path:
            case "GET", "/metadata":
                respond_json(handler, asdict(self._metadata))
            case "POST", "/reset":
                asked = json.loads(body(handler))
                if asked.get("instruction") and hasattr(self._policy, "instruction"):
                    self._policy.instruction = str(asked["instruction"])  # type: ignore[attr-defined]
                self._policy.reset(int(asked["seed"]))
                respond_json(handler, {})
            case "POST", "/act":
                chunk = self._policy.act(unpack_observation(body(handler)))
                if chunk is None:
                    handler.send_response(204)
                    handler.end_headers()
                else:
                    respond(handler, 200, _NPZ, _pack({"actions": chunk.actions}))
            case _:
                refuse(handler, 404, "there are: GET /metadata, POST /reset, POST /act")
