"""Loads TOML recipes into frozen dataclasses. An unknown key is an error that names the closest known key."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
import types
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from srpo_robot.errors import RecipeError
from srpo_robot.renames import RECIPE_KEYS, STEP_VALUES, current

FOLDERS = ("datasets", "policies", "hardware")


# --- recipe types -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CameraRecipe:
    """One camera. The dataset's feature key is "observation.images." + name.

    A captured picture is cropped to `crop`, or to the largest centred part of the right shape, and resized to
    `height_px` x `width_px`. The mock arm renders its own pictures and uses only name and size.
    """

    name: str
    height_px: int
    width_px: int
    source: str = ""  # real arm only: an index ("0"), a device ("/dev/video2") or the URL of an MJPEG stream
    capture_px: tuple[int, ...] = ()  # (height, width) to request from a device; (): its default
    capture_fps: float = 0.0  # rate to request from a device [Hz]; 0: its default
    crop: tuple[int, ...] = ()  # (top, left, height, width) in the captured picture [px]
    fixed: dict[str, Any] = field(default_factory=dict)  # exposure, gain, ...: set on the device and read back
    max_age_s: float = 0.5  # an older picture, or one unchanged for this long, is an error
    reference: str = ""  # picture of the expected view, compared before a run
    min_similarity: float = 0.5  # least correlation with the reference, -1 to 1


@dataclass(frozen=True, kw_only=True)
class LimitsRecipe:
    """Bounds that no command may exceed. Angles [rad], lengths [m], speeds [rad/s] or [m/s]. Box in the base frame."""

    joint_min_rad: tuple[float, ...]
    joint_max_rad: tuple[float, ...]
    max_joint_speed_rad_s: float
    box_min_m: tuple[float, ...]  # lowest TCP position (x, y, z)
    box_max_m: tuple[float, ...]  # highest TCP position (x, y, z)
    gripper_min_m: float
    gripper_max_m: float
    max_gripper_speed_m_s: float


@dataclass(frozen=True, kw_only=True)
class ControllerRecipe:
    """Controller of an xArm 7: its address, the settings written at every start and read back, and the streaming."""

    address: str  # IPv4 of the control box
    command_port: int = 502  # the vendor's port; change it only for an emulator
    serial: str = ""  # serial number, as printed on the arm's base; "": any xArm 7
    connect_timeout_s: float = 3.0
    stream: Literal["servo", "online"] = "servo"  # servo: mode 1; online: mode 6, which tolerates network jitter
    stream_hz: float = 100.0  # set points per second; online: 20 to 50
    max_joint_acceleration_rad_s2: float = 8.0
    max_tcp_speed_m_s: float = 0.25
    table_m: float = 0.0  # lowest height of any part of the arm, base frame
    home_speed_rad_s: float = 0.35  # 20 deg/s
    payload_kg: float = 0.82  # mass of the xArm gripper
    payload_centre_m: tuple[float, ...] = (0.0, 0.0, 0.048)  # flange frame
    collision_sensitivity: int = 3  # 1 to 5
    self_collision: bool = True
    tool_model: int = 1  # tool for the self-collision check; 1: xArm gripper, 0: none
    fence: bool = True  # the controller enforces limits.box_* too, `fence_margin_m` wider
    fence_margin_m: float = 0.02
    reduced: bool = True  # the controller caps speeds and joint range too
    reduced_joint_speed_rad_s: float = 1.5
    reduced_tcp_speed_m_s: float = 0.3
    gripper: Literal["xarm", "none"] = "xarm"
    gripper_rpm: int = 3000  # speed of the motor, 50 to 5000
    max_report_age_s: float = 0.05  # age of the 100 Hz report at which the arm is stopped
    command_timeout_s: float = 0.4  # a slower reply is a fault; real arms stall for up to 0.19 s


@dataclass(frozen=True, kw_only=True)
class HardwareRecipe:
    """One arm in the lab (hardware/*.toml)."""

    name: str
    kind: Literal["mock", "xarm7"]
    fps: float  # control and recording rate [Hz]
    home_rad: tuple[float, ...]
    tcp_offset_m: tuple[float, ...]  # flange -> TCP, tool frame
    cameras: tuple[CameraRecipe, ...]
    limits: LimitsRecipe
    controller: ControllerRecipe | None = None  # real arm only
    judge_url: str = ""  # mock lab only: server that lays out and judges in place of a person


@dataclass(frozen=True, kw_only=True)
class TaskRecipe:
    """One task of a lab (datasets/*.toml)."""

    name: str  # value of --task, for example "put-apple"
    instruction: str  # language instruction; "{target}" is replaced by the layout's target
    cameras: tuple[str, ...]
    action_space: Literal["tcp", "joints"]
    time_limit_s: float
    success: str  # success rule in words, printed with every result
    target: str  # the object that the instruction names
    distractors: tuple[str, ...] = ()
    draw_target: bool = False  # each layout draws its target from `target` and `distractors`
    swap_probability: float = 0.0  # probability that target and a distractor swap places in a layout
    swap_during_probability: float = 0.0  # probability that they swap places during a trial
    strategies: tuple[str, ...] = ()  # strategies of the scripted expert, equally likely; (): all
    material: Literal["", "hinge", "cloth"] = ""  # of the towel; "" is the default, a hinge

    def instruction_for(self, target: str) -> str:
        """Returns the instruction for a layout with this target."""
        return self.instruction.replace("{target}", target)


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """How progress becomes weights of frames: min(exp(A / beta), w_max), scaled to mean 1.

    A = A_chunk + kappa * A_trajectory. A_chunk is the standardised gain of the step value over `horizon` frames.
    """

    beta: float = 1.0  # temperature of exp(A / beta), Peng et al. 2019
    w_max: float = 20.0  # cap on exp(A / beta) before scaling to mean 1
    horizon: int = 0  # frames of the chunk advantage; 0: the policy's n_action_steps
    shift: int = 1  # 1: R[t+H] - R[t]; 0 with horizon 1 is the paper's D_t
    tail: Literal["divide", "raw", "drop"] = "divide"  # how a horizon cut by the episode's end counts
    kappa: float = 0.0  # factor of the trajectory advantage
    baseline: Literal["mean", "value"] = "mean"  # compares a gain with all gains, or with gains from a similar value
    step_horizon: int = 5  # frames of a single action's gain, for action_weights; 1: its increment alone, mostly noise


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe(Weighting):
    """A policy, how its training data is weighted, and how it is fine-tuned (policies/*.toml)."""

    name: str
    family: Literal["pi0", "pi0_fast", "pi05", "smolvla"]
    base: str = ""  # checkpoint folder or Hub id to start from; "": `config` with fresh weights
    config: dict[str, Any] = field(default_factory=dict)  # fields of lerobot's policy config
    tiny: dict[str, int] = field(default_factory=dict)  # sizes that lerobot hard-codes; only if base is ""
    rename: dict[str, str] = field(default_factory=dict)  # the dataset's camera -> the base's name for it
    steps: int = 30_000  # optimizer steps
    batch_size: int = 32  # samples per forward pass and process
    accumulate: int = 1  # forward passes per optimizer step: batch_size * accumulate * processes samples
    learning_rate: float = 2.5e-5  # peak; lerobot's preset for pi0
    warmup_steps: int = 1_000  # steps over which the learning rate rises to its peak
    final_learning_rate: float = 2.5e-6  # at the end of the cosine
    weight_decay: float = 0.01  # AdamW
    grad_clip_norm: float = 1.0  # largest norm of the gradient
    ema_decay: float = 0.0  # 0: no averaging; a checkpoint carries the averaged weights
    save_every: int = 1_000  # steps between checkpoints; 0: only the last one, which is always written
    validation_share: float = 0.0  # share of each task's episodes held out; their loss is logged at every checkpoint
    padding: Literal["masked", "trained"] = "masked"  # the repeated last action of a chunk cut by the episode's end
    token_balance: Literal["sample", "batch"] = "sample"  # pi0-FAST: mean over samples, or over a batch's tokens
    image_shift: float = 0.0  # largest random shift of training images, as a share of their longer side
    state_noise: float = 0.0  # uniform state noise, as a fraction of the 1st to 99th percentile range
    weights_as: Literal["loss", "sampling"] = "loss"  # a weight multiplies a frame's loss, or how often it is drawn
    action_weights: bool = False  # pi0: one weight per action of a chunk instead of one per chunk
    lora_rank: int = 0  # 0: all weights that the config trains; otherwise LoRA through peft
    lora_alpha: int = 0  # 0: twice the rank
    lora_targets: str = ""  # regular expression over module names; "": the family's own
    cache_gb: float = 4.0  # decoded frames are kept in memory up to this size, otherwise read from disk one by one
    value: Literal["", "progress", "reward", "knn-time", "knn-return"] = ""  # required step value; "": any
    audit_level: float = 0.05  # largest p that counts as separated; see srpo-robot audit
    seed: int = 0  # of fresh weights, sample order, noise and augmentation


# --- loading ------------------------------------------------------------------------------------------------------


def packaged_folder(folder: str) -> Path:
    """Returns the folder of the packaged recipes: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    inside = package / "_recipes" / folder
    return inside if inside.is_dir() else package.parent / folder


def find(folder: str, name: str) -> Path:
    """Returns the path of a recipe. `name` is a path, or is looked up in ./FOLDER and then in the packaged recipes.

    Raises:
        RecipeError: there is no such recipe. The message lists the existing ones.
    """
    stem = name.removesuffix(".toml").replace("-", "_")
    folders = [Path.cwd() / folder, packaged_folder(folder)]
    if name.endswith(".toml") or "/" in name:
        candidates = [Path(name)]
    else:
        candidates = [place / f"{stem}.toml" for place in folders]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted({path.stem.replace("_", "-") for place in folders for path in place.glob("*.toml")})
    close = difflib.get_close_matches(stem.replace("_", "-"), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise RecipeError(f"no recipe {name!r} in {folder}/{hint} There are: {', '.join(known) or 'none'}")


def load[T](cls: type[T], folder: str, name: str) -> T:
    """Reads the recipe `name` of `folder` into the frozen dataclass `cls`.

    Raises:
        RecipeError: the recipe does not exist, is not TOML, has an unknown key or lacks one, or a value has the wrong
            type.
    """
    path = find(folder, name)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    return build(cls, table, str(path))


def build[T](cls: type[T], table: dict[str, Any], where: str) -> T:
    """Builds the dataclass `cls` from a TOML table. Nested tables become dataclasses, arrays become tuples.

    Args:
        where: name of the table for error messages.

    Raises:
        RecipeError: as `load`.
    """
    for old, new in RECIPE_KEYS.items():
        if old in table and new in table:
            raise RecipeError(f"{where}: {old!r} is the old name of {new!r}; keep {new!r} alone")
    table = {current(key, RECIPE_KEYS): value for key, value in table.items()}
    hints = get_type_hints(cls)
    known = {f.name: f for f in _required_first(cls)}
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            raise RecipeError(f"{where}: unknown key {key!r}; {hint}")
    missing = [
        name for name, f in known.items() if name not in table and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise RecipeError(f"{where}: missing key {', '.join(map(repr, missing))}")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in table.items()})


def _required_first(recipe: Any) -> list[Field[Any]]:
    """Fields of a recipe or its class, those without a default first: a subclass lists its base's fields first."""
    return sorted(fields(recipe), key=lambda f: f.default is not MISSING or f.default_factory is not MISSING)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(value, dict):
        return build(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], item, where) for item in value)
    if origin is Literal:
        if value not in args and isinstance(value, str):
            value = current(value, STEP_VALUES)
        if value not in args:
            raise RecipeError(f"{where} is {value!r}; choices: {', '.join(map(repr, args))}")
        return value
    if origin in (Union, types.UnionType):  # `X | None`: TOML has no None
        return _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is dict and isinstance(value, dict):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    raise RecipeError(f"{where} is {value!r}; expected {getattr(hint, '__name__', hint)}")


def dump(recipe: Any) -> str:
    """Returns a recipe as TOML that `load` reads back unchanged. Keys whose value is None are left out."""
    content = asdict(recipe)
    tables = {f.name: content[f.name] for f in _required_first(recipe)}
    plain = {key: value for key, value in tables.items() if not _is_table(value)}
    lines = [f"{key} = {_toml(value)}" for key, value in plain.items() if value is not None]
    for key, value in tables.items():
        if not _is_table(value):
            continue
        rows, head = ([value], f"[{key}]") if isinstance(value, dict) else (value, f"[[{key}]]")
        for row in rows:
            lines += ["", head, *(f"{name} = {_toml(item)}" for name, item in row.items() if item is not None)]
    return "\n".join(lines) + "\n"


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, tuple | list) and bool(value) and isinstance(value[0], dict))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value)  # strings, numbers, true and false are the same in JSON and TOML


def digest(recipe: Any) -> str:
    """Returns a short hash of a recipe (dataclass or JSON-able), for table metadata and file names."""
    content = asdict(recipe) if is_dataclass(recipe) and not isinstance(recipe, type) else recipe
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
