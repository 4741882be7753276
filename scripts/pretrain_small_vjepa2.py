"""Pretrains the small V-JEPA 2 of the package on video of the mock cell: records the video, trains and exports.

    python scripts/pretrain_small_vjepa2.py record WORK/train --seed 100000 --episodes 600 --views 2
    python scripts/pretrain_small_vjepa2.py record WORK/validation --seed 800000 --each 60 15
    python scripts/pretrain_small_vjepa2.py train WORK/run --data WORK/train --validation WORK/validation
    python scripts/bench_encoders.py --encoder WORK/run/encoder --json WORK/bench.json

`record` writes raw frames, not a dataset. Every episode is rendered in several appearances, which are the views of
`progress.pretrain`. `train` resumes a run bit for bit. OUT/log.jsonl has all numbers. Only the validation reads labels,
and it does not select a checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score
from torch.nn import functional
from transformers import VJEPA2Config, VJEPA2Model

from srpo_robot.arm.actions import make_action_space
from srpo_robot.errors import UsageError
from srpo_robot.evaluation.runtime import Setup, run_episode
from srpo_robot.files import write_whole
from srpo_robot.mock.arm import MockArm, make_mock
from srpo_robot.mock.demonstrator import Demonstrator, Failure, choose_failure
from srpo_robot.mock.randomization import draw_appearance
from srpo_robot.progress.config import ScoringConfig, WindowShape
from srpo_robot.progress.encoder import VJEPA2Encoder
from srpo_robot.progress.pretrain import Batch, Losses, PretrainConfig, Pretrainer, colour_change
from srpo_robot.progress.windows import clip_indices
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import ActionChunk, Observation

VIEW_SEEDS = 10_000_000  # view k of a seed has the appearance of seed + k * this
WIDE_STARTS, DISTURBANCE_M, LIMIT_S = 0.6, 0.006, 20.0  # the values of `srpo-robot record`
PIXELS = 96  # size of the mock cell's images and of the encoder's crop
CONFIG: dict[str, Any] = {
    "crop_size": PIXELS,
    "patch_size": 16,
    "frames_per_clip": 2,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "mlp_ratio": 4,
    "pred_hidden_size": 96,
    "pred_num_hidden_layers": 2,
    "pred_num_attention_heads": 4,
    "pred_num_mask_tokens": 1,
}
MANIFEST, FRAMES = "episodes.json", "frames.u8"
LOG_STEPS, SAVE_S = 50, 120.0
NEAREST = 3  # number of successes that a final embedding is compared with
_MEAN, _STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


# --- video --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Video:
    """One recorded episode in a folder's frame file.

    Attributes:
        seed: seed of the layout and of the first view's appearance.
        camera: name of the camera.
        kind: requested kind of failure.
        success: result of the physics.
        length: number of frames.
        starts: first row of each view in the frame file. All views show the same motion in different appearances.
    """

    seed: int
    camera: str
    kind: str
    success: bool
    length: int
    starts: tuple[int, ...]


class _RecordedDemonstrator:
    """The demonstrator as a policy that also renders every appearance at the instant of each action."""

    name = "watched demonstrator"

    def __init__(self, arm: MockArm, camera: str, views: int, amount: float) -> None:
        self._arm, self._camera, self._views, self._amount = arm, camera, views, amount
        self._demonstrator = Demonstrator(arm.sim)
        self.failure = Failure.NONE
        self.frames: list[list[np.ndarray]] = []

    def reset(self, seed: int) -> None:
        """See `Policy.reset`. The episode fails in the way of `failure`."""
        self._appearances = [draw_appearance(seed + k * VIEW_SEEDS, self._amount) for k in range(self._views)]
        self.frames = [[] for _ in self._appearances]
        self._demonstrator.reset(seed, self.failure)

    def act(self, observation: Observation) -> ActionChunk | None:
        """See `Policy.act`."""
        chunk = self._demonstrator.act(observation)
        if chunk is None:
            return None
        self.frames[0].append(observation.images[self._camera])
        for appearance, frames in zip(self._appearances[1:], self.frames[1:], strict=True):
            self._arm.sim.set_appearance(appearance)
            frames.append(self._arm.sim.render(self._camera))
        if self._views > 1:
            self._arm.sim.set_appearance(self._appearances[0])
        return chunk


def demonstrations(
    camera: str, seed: int, kinds: Sequence[Failure], views: int, amount: float
) -> Iterator[tuple[int, Failure, bool, list[np.ndarray]]]:
    """Yields one episode per entry of `kinds`: (seed, kind, success, frames uint8 (T, H, W, 3) of each view).

    A demonstration with the wrong outcome (a success that failed) is dropped and its seed is skipped.
    """
    hardware, task = load(HardwareRecipe, "hardware", "mock"), load(TaskRecipe, "datasets", "put-apple")
    hardware = replace(hardware, cameras=tuple(c for c in hardware.cameras if c.name == camera))
    arm, cell = make_mock(hardware, task, wide_starts=WIDE_STARTS, disturbance_m=DISTURBANCE_M, randomization=amount)
    space = make_action_space(task.action_space, arm.limits, arm.home_rad)
    setup = Setup(
        arm=arm,
        workcell=cell,
        space=space,
        instruction=task.instruction,
        time_limit_s=LIMIT_S,
        cameras=(camera,),
        stop_on_success=False,
    )
    policy = _RecordedDemonstrator(arm, camera, views, amount)
    with arm:
        for kind in kinds:
            while True:
                policy.failure = kind
                outcome = run_episode(setup, policy, seed)
                seed += 1
                if outcome.success == (kind is Failure.NONE):
                    break
            yield seed - 1, kind, bool(outcome.success), [np.stack(frames) for frames in policy.frames]


def record(folder: Path, camera: str, episodes: Iterator[tuple[int, Failure, bool, list[np.ndarray]]]) -> None:
    """Appends episodes to a folder's frame file, then writes the manifest that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    manifest = json.loads(path.read_text()) if path.is_file() else []
    row = sum(video["length"] * len(video["starts"]) for video in manifest)
    with (folder / FRAMES).open("ab") as file:
        for seed, kind, success, views in episodes:
            starts = tuple(row + k * len(views[0]) for k in range(len(views)))
            row += len(views) * len(views[0])
            for frames in views:
                file.write(frames.tobytes())
            video = Video(
                seed=seed, camera=camera, kind=str(kind), success=success, length=len(views[0]), starts=starts
            )
            manifest.append(asdict(video))
            if len(manifest) % 50 == 0:
                print(f"{folder}: {len(manifest)} episodes", flush=True)
    write_whole(path, json.dumps(manifest))


class Videos:
    """The videos of several folders. The frames stay on disk."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.videos: list[Video] = []
        self._frames: list[np.ndarray] = []
        for folder in folders:
            frames = np.memmap(folder / FRAMES, dtype=np.uint8, mode="r").reshape(-1, PIXELS, PIXELS, 3)
            for item in json.loads((folder / MANIFEST).read_text()):
                self.videos.append(Video(**{**item, "starts": tuple(item["starts"])}))
                self._frames.append(frames)

    def frames(self, index: int, view: int, numbers: np.ndarray) -> np.ndarray:
        """Returns frames `numbers` of one view of a video: uint8 (n, H, W, 3)."""
        return self._frames[index][self.videos[index].starts[view] + numbers]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings for the clips of a training step.

    Attributes:
        episodes, instants: number of episodes in a batch, and number of windows of each. The windows include one near
            the start and one near the end.
        prefix: fraction of episodes with prefix windows. The others have recent windows.
        shift_px, zoom, turn_rad: largest crop shift [px], zoom and roll [rad] in either direction.
        gain, bias: largest change of the colour gain and of the brightness in either direction. Each colour channel
            changes by up to half of `gain` on its own.
    """

    episodes: int = 8
    instants: int = 5
    prefix: float = 0.85
    shift_px: float = 4.0
    zoom: float = 0.05
    turn_rad: float = 0.03
    gain: float = 0.05
    bias: float = 0.02


def draw(videos: Videos, sampling: Sampling, frames: int, settings: PretrainConfig, step: int) -> Batch:
    """Draws the batch of one step: shuffled windows at several instants of several episodes, each in two views."""
    rng = np.random.default_rng([settings.seed, step, 0])
    clips: list[tuple[np.ndarray, np.ndarray, float]] = []
    for index in rng.choice(len(videos.videos), sampling.episodes, replace=False).tolist():
        video = videos.videos[index]
        shape: WindowShape = "prefix" if rng.random() < sampling.prefix else "recent"
        views = rng.permutation(len(video.starts))[:2].tolist()
        for end in _instants(video.length, sampling.instants, rng):
            numbers = clip_indices(end, frames, ScoringConfig(windows="dense", window_shape=shape))
            one, other = (videos.frames(index, view, numbers) for view in (views[0], views[-1]))
            clips.append((one, other, end / (video.length - 1)))
    order = rng.permutation(len(clips))
    view, other = (varied(np.stack([clips[i][k] for i in order]), sampling, rng) for k in (0, 1))
    dates = torch.tensor([clips[i][2] for i in order])
    first, last = (other[:, k] * _STD + _MEAN for k in (0, -1))
    return Batch(view, other, dates, colour_change(first, last, settings.cells))


def _instants(length: int, count: int, rng: np.random.Generator) -> list[int]:
    """Draws the ends of windows: one among the first frames, one among the last, the others anywhere."""
    last = length - 1
    inner = rng.uniform(0, last, count - 2).astype(int)
    ends = np.array([rng.integers(0, 5), *inner, last - rng.integers(0, 4)])
    return np.clip(ends, 1, last).tolist()


def varied(clips: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> torch.Tensor:
    """Crops clips as the encoder's `prepare` does, with a small random shift, zoom, roll and change of colour.

    All frames of a clip change in the same way. uint8 (B, F, H, W, 3) -> normalised (B, F, 3, S, S).
    """
    batch, frames = clips.shape[:2]
    pixels = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).reshape(batch, frames * 3, PIXELS, PIXELS).float()
    grid = functional.affine_grid(_placements(batch, sampling, rng), [batch, 1, PIXELS, PIXELS], align_corners=False)
    pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    pixels = pixels.view(batch, frames, 3, PIXELS, PIXELS) / 255.0
    whole = 1.0 + rng.uniform(-sampling.gain, sampling.gain, (batch, 1))
    gain = whole * (1.0 + rng.uniform(-0.5, 0.5, (batch, 3)) * sampling.gain)
    bias = rng.uniform(-sampling.bias, sampling.bias, (batch, 1)) * np.ones(3)
    gain, bias = (torch.from_numpy(x).float().view(batch, 1, 3, 1, 1) for x in (gain, bias))
    return ((pixels * gain + bias).clamp_(0.0, 1.0) - _MEAN) / _STD


def _placements(batch: int, sampling: Sampling, rng: np.random.Generator) -> torch.Tensor:
    """Draws affine maps (B, 2, 3) from the crop to the frame. With no change this is the centre crop of `prepare`."""
    resized = int(PIXELS * 256 / 224)
    scale = PIXELS / resized * (1.0 + rng.uniform(-sampling.zoom, sampling.zoom, batch))
    turn = rng.uniform(-sampling.turn_rad, sampling.turn_rad, batch)
    centre = 2.0 * (round((resized - PIXELS) / 2) + PIXELS / 2) / resized - 1.0
    shift = centre + rng.uniform(-sampling.shift_px, sampling.shift_px, (2, batch)) * 2.0 / PIXELS
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    return torch.from_numpy(np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]]).transpose(2, 0, 1)).float()


# --- training -----------------------------------------------------------------------------------------------------


def evaluate(model: VJEPA2Model, videos: Videos) -> dict[str, float]:
    """Computes ROC-AUC of final progress on held-out video, by window shape and by kind of failure.

    Final progress is measured in profile `loo`, as the mean distance to the 3 nearest successes.
    """
    encoder = VJEPA2Encoder(copy.deepcopy(model))
    success = np.array([video.success for video in videos.videos])
    kinds = np.array([video.kind for video in videos.videos])
    result: dict[str, float] = {}
    for shape in ("prefix", "recent"):
        rows = []
        for i, video in enumerate(videos.videos):
            numbers = clip_indices(
                video.length - 1, encoder.frames_per_clip, ScoringConfig(windows="dense", window_shape=shape)
            )
            rows.append(encoder.encode(encoder.prepare(videos.frames(i, 0, numbers))[None])[0])
        distance = cdist(np.stack(rows), np.stack(rows))
        np.fill_diagonal(distance, np.inf)
        score = -np.sort(distance[:, success], axis=1)[:, :NEAREST].mean(axis=1)
        result[shape] = float(roc_auc_score(success, score))
        for kind in dict.fromkeys(kinds[~success].tolist()):
            chosen = success | (kinds == kind)
            result[f"{shape} {kind}"] = float(roc_auc_score(success[chosen], score[chosen]))
    return result


def train(
    out: Path, settings: PretrainConfig, sampling: Sampling, videos: Videos, validation: Videos, evaluate_s: float
) -> Pretrainer:
    """Trains up to `settings.steps` and resumes from `out`. Logs, saves and evaluates regularly, then exports."""
    out.mkdir(parents=True, exist_ok=True)
    run, state = Pretrainer(VJEPA2Config(**CONFIG), settings), out / "state.pt"
    if state.is_file():
        run.restore(torch.load(state, weights_only=True))
        _log(out, {"resumed": run.done})
    started, saved_s, evaluated_s = time.process_time(), time.monotonic(), time.process_time()
    recent: list[Losses] = []
    while run.done < settings.steps:
        recent.append(run.step(draw(videos, sampling, CONFIG["frames_per_clip"], settings, run.done)))
        last = run.done == settings.steps
        if run.done % LOG_STEPS == 0 or last:
            means = {key: round(float(np.mean([asdict(x)[key] for x in recent])), 4) for key in asdict(recent[0])}
            _log(out, {"step": run.done, "cpu_s": round(time.process_time() - started)} | means)
            recent = []
        if last or time.monotonic() - saved_s > SAVE_S:
            write_whole(state, partial(torch.save, run.state()))
            saved_s = time.monotonic()
        if last or time.process_time() - evaluated_s > evaluate_s:
            scores = evaluate(run.exported(), validation)
            _log(out, {"step": run.done, "validation": {key: round(value, 3) for key, value in scores.items()}})
            evaluated_s = time.process_time()
    run.exported().half().save_pretrained(out / "encoder")
    return run


def _log(out: Path, line: dict[str, Any]) -> None:
    text = json.dumps(line)
    with (out / "log.jsonl").open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)


def main() -> None:
    """Reads the options and runs the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="append episodes to a folder")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--seed", type=int, required=True, help="of the first episode")
    recording.add_argument("--episodes", type=int, default=0, help="this many, of drawn kinds")
    recording.add_argument("--failure-rate", type=float, default=0.5, help="share of failures among those")
    recording.add_argument("--each", type=int, nargs=2, default=(0, 0), help="successes, and failures of each kind")
    recording.add_argument("--views", type=int, default=1, help="appearances in which each episode is shown")
    recording.add_argument("--camera", default="front")
    recording.add_argument(
        "--randomization", "--looks", type=float, default=1.0, help="how much the appearance varies, 0 to 1"
    )
    training = commands.add_parser("train", help="train, or go on")
    training.add_argument("out", type=Path)
    training.add_argument("--data", type=Path, nargs="+", required=True, help="recorded folders")
    training.add_argument("--validation", type=Path, required=True, help="a recorded folder of other seeds")
    training.add_argument("--steps", type=int, default=7000)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--evaluate-s", type=float, default=300.0, help="CPU seconds between evaluations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "train":
        settings, sampling = PretrainConfig(steps=options.steps, seed=options.seed), Sampling()
        videos, validation = Videos(options.data), Videos([options.validation])
        successes = sum(video.success for video in validation.videos)
        if len(videos.videos) < sampling.episodes or successes <= NEAREST or successes == len(validation.videos):
            raise UsageError(
                f"{len(videos.videos)} episodes of --data, {successes} successes among {len(validation.videos)} of "
                "--validation; "
                f"record at least {sampling.episodes}, and {NEAREST + 1} successes and a failure"
            )
        train(options.out, settings, sampling, videos, validation, options.evaluate_s)
        return
    kinds = [choose_failure(options.seed + i, options.failure_rate) for i in range(options.episodes)]
    kinds += [kind for kind in Failure for _ in range(options.each[0 if kind is Failure.NONE else 1])]
    if not kinds:
        raise UsageError("nothing to record; give --episodes N or --each SUCCESSES FAILURES")
    record(
        options.folder,
        options.camera,
        demonstrations(options.camera, options.seed, kinds, options.views, options.randomization),
    )


if __name__ == "__main__":
    main()
