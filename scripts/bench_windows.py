"""What each kind of window costs, and how far its progress is from that of dense windows, on recorded episodes.

    python scripts/bench_windows.py DATASET --encoder facebook/vjepa2-vitl-fpc64-256 --json windows.json

Every episode is embedded densely once, in both shapes, and once by each cheaper kind. A curve is a success's (appendix
B: distance to the episode's own end), so no label is needed; the reference is dense windows of the same shape.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.embed import embed_frames
from srpo_robot.progress.encoder import VJEPA2Encoder, load_encoder, tflop_per_clip
from srpo_robot.progress.score import dense_distance, success_progress
from srpo_robot.progress.windows import clip_lengths

KINDS = (("dense", "prefix"), ("stride:2", "prefix"), ("stride:4", "prefix"), ("stride:8", "prefix"),
         ("stride:16", "prefix"), ("nested", "prefix"),
         ("dense", "recent"), ("stride:2", "recent"), ("stride:4", "recent"), ("stride:8", "recent"))  # fmt: skip


def progress(frames: np.ndarray, encoder: VJEPA2Encoder, spec: ScoringConfig) -> tuple[np.ndarray, int]:
    """A success's progress at every frame from the first window's end on, (n,), and the first frame it is for."""
    found = embed_frames(frames, encoder, spec)
    distance = np.linalg.norm(found.embeddings - found.embeddings[-1], axis=1)
    return success_progress(dense_distance(found.ends, distance)), int(found.ends[0])


def compared(curve: tuple[np.ndarray, int], dense: tuple[np.ndarray, int]) -> dict[str, float]:
    """Distance of one curve from the dense one over the frames that both have, and how its increments agree."""
    start = max(curve[1], dense[1])
    own, reference = curve[0][start - curve[1] :], dense[0][start - dense[1] :]
    steps = np.corrcoef(np.diff(own), np.diff(reference))[0, 1]
    difference = np.abs(own - reference)
    return {"rms": float(np.sqrt((difference**2).mean())), "max": float(difference.max()), "step_r": float(steps)}


def cost_tflop(length: int, encoder: VJEPA2Encoder, spec: ScoringConfig) -> float:
    """Forward cost of one episode."""
    lengths = clip_lengths(length, spec.resolved(encoder.frames_per_clip))
    return float(sum(tflop_per_clip(encoder.geometry, int(n)) for n in lengths))


def measure(dataset: str, camera: str | None, encoder: VJEPA2Encoder, count: int) -> list[dict[str, object]]:
    """A row per kind of window: mean over the `count` longest episodes."""
    buffer = open_buffer(dataset)
    key = buffer.camera(camera)
    episodes = sorted(buffer.episodes, key=lambda e: -e.length)[:count]
    specs = {(kind, shape): ScoringConfig(windows=kind, window_shape=shape) for kind, shape in KINDS}
    rows: dict[tuple[str, str], list[dict[str, float]]] = {name: [] for name in specs}
    for episode in track(episodes, "episodes"):
        frames = encoder.prepare(buffer.frames(episode, key))
        curves = {name: progress(frames, encoder, spec) for name, spec in specs.items()}
        for name, spec in specs.items():
            cost = cost_tflop(episode.length, encoder, spec)
            found = compared(curves[name], curves["dense", name[1]])
            rows[name].append(found | {"tflop": cost, "frames": episode.length})
    means = {which: {key: float(np.mean([row[key] for row in own])) for key in own[0]} for which, own in rows.items()}
    return [
        {"windows": which[0], "shape": which[1], "episodes": len(own), **means[which]} for which, own in rows.items()
    ]


def show(rows: list[dict], title: str) -> None:
    """The rows as a table; cost as a share of dense."""
    made = Table(title=title, title_justify="left")
    for column in ("windows", "shape", "cost", "rms |dp|", "max |dp|", "r of increments"):
        made.add_column(column, justify="left" if column in ("windows", "shape") else "right")
    dense = {row["shape"]: row["tflop"] for row in rows if row["windows"] == "dense"}
    for row in rows:
        made.add_row(row["windows"], row["shape"], f"{row['tflop'] / dense[row['shape']]:.3f}",
                     f"{row['rms']:.3f}", f"{row['max']:.3f}", f"{row['step_r']:.2f}")  # fmt: skip
    Console(highlight=False).print(made)


def main() -> None:
    """Read the options, measure, print, and write what --json asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", help="a LeRobot v3.0 dataset: a folder or a Hub id")
    parser.add_argument("--camera", help="the first by default")
    parser.add_argument("--encoder", default="embedded", help="as in score-dataset")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--frames-per-clip", type=int, help="F, even; the encoder's by default")
    parser.add_argument("--episodes", type=int, default=8, help="how many, the longest first")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the math library")
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = load_encoder(options.encoder, options.device, options.dtype, frames_per_clip=options.frames_per_clip)
    rows = measure(options.dataset, options.camera, encoder, options.episodes)
    lengths = f"{rows[0]['episodes']} episodes of {rows[0]['frames']:.0f} frames on average"
    show(rows, f"{lengths}, encoder {options.encoder}, {encoder.frames_per_clip} frames a clip")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
