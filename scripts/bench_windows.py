"""Compares the cost of each kind of window, and its progress with that of dense windows, on recorded episodes.

    python scripts/bench_windows.py DATASET --encoder facebook/vjepa2-vitl-fpc64-256 --json windows.json

Every episode is embedded once with dense windows in both shapes, and once with each cheaper kind. A curve is computed
as for a success (appendix B: distance to the episode's own end), so no label is needed. The reference is dense windows
of the same shape.
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
from srpo_robot.progress.embed import embed_frames
from srpo_robot.progress.encoder import VJEPA2Encoder, load_encoder, tflop_per_clip
from srpo_robot.progress.score import dense_distance, success_progress
from srpo_robot.progress.windows import WindowSpec, clip_lengths, parse_windows

KINDS = (("dense", "prefix"), ("stride:2", "prefix"), ("stride:4", "prefix"), ("stride:8", "prefix"),
         ("stride:16", "prefix"), ("nested", "prefix"),
         ("dense", "recent"), ("stride:2", "recent"), ("stride:4", "recent"), ("stride:8", "recent"))  # fmt: skip


def progress(frames: np.ndarray, encoder: VJEPA2Encoder, spec: WindowSpec) -> tuple[np.ndarray, int]:
    """Computes the progress of a success from the first window's end on, (n,). Returns it with its first frame."""
    windows = embed_frames(frames, encoder, spec)
    distance = np.linalg.norm(windows.embeddings - windows.embeddings[-1], axis=1)
    return success_progress(dense_distance(windows.ends, distance)), int(windows.ends[0])


def compared(curve: tuple[np.ndarray, int], dense: tuple[np.ndarray, int]) -> dict[str, float]:
    """Compares a curve with the dense one over their common frames: distances, and correlation of the increments."""
    start = max(curve[1], dense[1])
    values, reference = curve[0][start - curve[1] :], dense[0][start - dense[1] :]
    steps = np.corrcoef(np.diff(values), np.diff(reference))[0, 1]
    difference = np.abs(values - reference)
    return {"rms": float(np.sqrt((difference**2).mean())), "max": float(difference.max()), "step_r": float(steps)}


def cost_tflop(length: int, encoder: VJEPA2Encoder, spec: WindowSpec) -> float:
    """Computes the forward cost of one episode [TFLOP]."""
    lengths = clip_lengths(length, spec.resolved(encoder.frames_per_clip))
    return float(sum(tflop_per_clip(encoder.geometry, int(n)) for n in lengths))


def measure(dataset: str, camera: str | None, encoder: VJEPA2Encoder, count: int) -> list[dict[str, object]]:
    """Returns one row per kind of window: means over the `count` longest episodes."""
    buffer = open_buffer(dataset)
    key = buffer.camera(camera)
    episodes = sorted(buffer.episodes, key=lambda e: -e.length)[:count]
    specs = {(kind, shape): parse_windows(kind, shape) for kind, shape in KINDS}
    rows: dict[tuple[str, str], list[dict[str, float]]] = {name: [] for name in specs}
    for episode in track(episodes, "episodes"):
        frames = encoder.prepare(buffer.frames(episode, key))
        curves = {name: progress(frames, encoder, spec) for name, spec in specs.items()}
        for name, spec in specs.items():
            cost = cost_tflop(episode.length, encoder, spec)
            row = compared(curves[name], curves["dense", name[1]])
            rows[name].append(row | {"tflop": cost, "frames": episode.length})
    result: list[dict[str, object]] = []
    for (kind, shape), members in rows.items():
        means = {key: float(np.mean([row[key] for row in members])) for key in members[0]}
        result.append({"windows": kind, "shape": shape, "episodes": len(members), **means})
    return result


def show(rows: list[dict], title: str) -> None:
    """Prints the rows as a table. The cost is a fraction of the cost of dense windows."""
    table = Table(title=title, title_justify="left")
    for column in ("windows", "shape", "cost", "rms |dp|", "max |dp|", "r of increments"):
        table.add_column(column, justify="left" if column in ("windows", "shape") else "right")
    dense = {row["shape"]: row["tflop"] for row in rows if row["windows"] == "dense"}
    for row in rows:
        table.add_row(row["windows"], row["shape"], f"{row['tflop'] / dense[row['shape']]:.3f}",
                     f"{row['rms']:.3f}", f"{row['max']:.3f}", f"{row['step_r']:.2f}")  # fmt: skip
    Console(highlight=False).print(table)


def main() -> None:
    """Reads the options, measures, prints the table and writes the --json file."""
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
