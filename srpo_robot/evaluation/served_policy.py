"""A policy on another machine: sends observations and receives action chunks over HTTP, as numpy's npz.

    GET  /metadata -> inputs and outputs of the policy (JSON); compared with the task before the first move
    POST /reset    {"seed": 3, "instruction": "..."}
    POST /act      an observation as npz -> actions as npz; 204: the policy is done; 422: its output is no action

Connecting and every response have a time limit. Arrays are sent without pickle.
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


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Inputs and outputs of a served policy.

    Attributes:
        name: name of the policy.
        action_names, state_names: names of its action space.
        cameras: names of its cameras.
        fingerprint: hash of the provenance of weights and processors. Policies with different hashes differ.
        protocol: version of the messages.
    """

    name: str
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    cameras: tuple[str, ...]
    fingerprint: str = ""
    protocol: int = PROTOCOL


def describe(policy: Policy, space: ActionSpace, cameras: tuple[str, ...]) -> Metadata:
    """Returns the metadata of a policy for an action space and cameras."""
    provenance = json.dumps(getattr(policy, "provenance", {}), sort_keys=True, default=str)
    fingerprint = hashlib.sha256(f"{policy.name}\n{provenance}".encode()).hexdigest()[:16]
    return Metadata(
        name=policy.name,
        action_names=space.names,
        state_names=space.state_names,
        cameras=tuple(cameras),
        fingerprint=fingerprint,
    )


# --- the messages -------------------------------------------------------------------------------------------------


def pack_observation(observation: Observation) -> bytes:
    """Encodes an observation as npz."""
    arrays = {
        "time_s": np.array(observation.state.time_s),
        "joints_rad": observation.state.joints_rad,
        "gripper_m": np.array(observation.state.gripper_m),
        "commanded_joints_rad": observation.commanded.joints_rad,
        "commanded_gripper_m": np.array(observation.commanded.gripper_m),
    }
    return _pack(arrays | {_IMAGE + name: image for name, image in observation.images.items()})


def unpack_observation(content: bytes) -> Observation:
    """Decodes an observation, the inverse of `pack_observation`. Raises ValueError if `content` is no observation."""
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
    """A `Policy` behind a URL. Its metadata is checked at construction."""

    def __init__(
        self,
        url: str,
        space: ActionSpace,
        instruction: str,
        cameras: tuple[str, ...],
        connect_s: float = CONNECT_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        """`connect_s`: time limit for a connection. `answer_s`: time limit for each response.

        Raises:
            UsageError: `url` is no URL.
            PolicyError: the server does not answer.
            CheckpointError: the policy has other cameras, states or actions than this task and arm.
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
        """Forgets the last episode. Raises PolicyError if the server does not answer."""
        self._ask("POST", "/reset", json.dumps({"seed": seed, "instruction": self.instruction}).encode())

    def act(self, observation: Observation) -> ActionChunk | None:
        """Returns the next actions.

        Raises:
            PolicyError: the server does not answer in time, or the policy failed. The message gives the reason.
            UndecodableActions: the policy's output is no action.
        """
        images = {name: observation.images[name] for name in self._cameras}
        status, content = self._ask(
            "POST", "/act", pack_observation(Observation(observation.state, observation.commanded, images))
        )
        if status == 204:
            return None
        try:
            return ActionChunk(_unpack(content)["actions"], self._space.names)
        except (KeyError, ValueError) as error:
            raise PolicyError(f"the policy at {self.url} sent no actions ({one_line(error)})") from None

    def _checked(self, content: dict[str, object]) -> Metadata:
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
        try:
            metadata = Metadata(**values)
        except TypeError:
            raise PolicyError(
                f"{self.url} speaks another protocol; serve with the same version of srpo-robot"
            ) from None
        space = self._space
        pairs = {
            "protocol": (metadata.protocol, PROTOCOL),
            "actions": (metadata.action_names, space.names),
            "state": (metadata.state_names, space.state_names),
            "cameras": (tuple(sorted(metadata.cameras)), tuple(sorted(self._cameras))),
        }
        for key, (theirs, ours) in pairs.items():
            if theirs != ours:
                raise CheckpointError(f"the policy at {self.url} has {key} {theirs}, this task has {ours}")
        return metadata

    def _ask(self, method: str, path: str, content: bytes = b"") -> tuple[int, bytes]:
        """Returns status and content of a response. Uses a new connection, so that a broken one has no later effect."""
        connect_s, answer_s = self._limits
        link = http.client.HTTPConnection(*self._place, timeout=connect_s)
        try:
            link.connect()
            link.sock.settimeout(answer_s)
            link.request(method, self._root + path, content, {"Content-Type": _NPZ})
            response = link.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise PolicyError(
                f"the policy at {self.url} does not answer ({one_line(error)}); is 'srpo-robot serve' running there?"
            ) from None
        finally:
            link.close()
        if response.status in (200, 204):
            return response.status, answer
        reason = one_line(Exception(answer.decode(errors="replace")))
        if response.status == 422:
            raise UndecodableActions(reason)
        raise PolicyError(f"the policy at {self.url} failed: {reason}")


# --- the policy's side --------------------------------------------------------------------------------------------


class PolicyServer(HttpServer):
    """Serves one policy to one robot at a time inside a `with` block."""

    def __init__(self, policy: Policy, metadata: Metadata, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(self._serve, host, port)
        self._policy, self._metadata = policy, metadata
        self._lock = threading.Lock()  # a policy has one state, so calls must not overlap

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
            raise  # the robot disconnected
        except Exception as error:  # any error of the model: report it to the robot and keep serving
            refuse(handler, 500, f"{type(error).__name__}: {one_line(error)}")

    def _dispatch(self, handler: BaseHTTPRequestHandler) -> None:
        match handler.command, handler.path:
            case "GET", "/metadata":
                respond_json(handler, asdict(self._metadata))
            case "POST", "/reset":
                request = json.loads(body(handler))
                if request.get("instruction") and hasattr(self._policy, "instruction"):
                    self._policy.instruction = str(request["instruction"])  # type: ignore[attr-defined]
                self._policy.reset(int(request["seed"]))
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
