"""Compares the speed of scoring in this package with a straightforward per-window pipeline, in one process.

    python scripts/bench_scoring.py --json bench.json

Both embed the same windows of the same synthetic video (480x640) with the embedded encoder. The straightforward
pipeline resizes and normalises the frames of each window again with transformers' own processor and runs the encoder
at batch 1 in float32. Our pipeline prepares each frame once and encodes batches in bfloat16. Runs alternate, and the
fastest counts.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from srpo_robot.progress.embed import embed_frames
from srpo_robot.progress.encoder import EMBEDDED_CONFIG, VJEPA2Encoder
from srpo_robot.progress.score import dense_distance, success_progress
from srpo_robot.progress.windows import WindowSpec, clips, ends, parse_windows

SIZES = {  # changes of the embedded encoder's configuration
    "embedded": {},
    "wider": {"crop_size": 128, "frames_per_clip": 32, "hidden_size": 384, "num_attention_heads": 6},
}

WINDOWS = ("dense", "stride:2", "stride:4", "stride:8", "nested")


@dataclass(frozen=True, eq=False)
class Run:
    """Seconds of a pipeline for a whole episode, and its embeddings (n, D) at `ends` (n,)."""

    seconds: float
    ends: np.ndarray
    embeddings: np.ndarray

    @property
    def progress(self) -> np.ndarray:
        """Computes the progress of a success at every frame from the first window's end on (appendix B)."""
        distance = np.linalg.norm(self.embeddings - self.embeddings[-1], axis=1)
        return success_progress(dense_distance(self.ends, distance))


def synthetic_video(length: int, height: int = 480, width: int = 640) -> np.ndarray:
    """Draws an arm-like square that carries another square across a textured table: uint8 (T, H, W, 3)."""
    rng = np.random.default_rng(0)
    table = rng.integers(60, 120, (height // 20, width // 20, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    frames = np.tile(table, (length, 1, 1, 1))
    for t in range(length):
        phase = t / max(length - 1, 1)
        x, y = round((width - 160) * phase), round((height - 200) * (0.5 + 0.5 * np.cos(3 * phase)))
        frames[t, y : y + 120, x : x + 120] = (230, 60, 50)
        frames[t, y + 120 : y + 180, x + 30 : x + 90] = (40, 90, 220)
    return frames


def encoded(frames: np.ndarray) -> bytes:
    """Encodes the video as an H.264 mp4, the format of a dataset."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def decoded(video: bytes) -> np.ndarray:
    """Decodes all frames of an mp4: uint8 (T, H, W, 3)."""
    frames = []
    with av.open(io.BytesIO(video), "r") as container:
        container.streams.video[0].thread_type = "AUTO"
        frames += [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def ours(encoder: VJEPA2Encoder, frames: np.ndarray, spec: WindowSpec) -> Run:
    """Embeds an episode in the same way as `score-dataset`."""
    start = time.perf_counter()
    windows = embed_frames(encoder.prepare(frames), encoder, spec)
    return Run(time.perf_counter() - start, windows.ends, windows.embeddings)


@torch.inference_mode()
def straightforward(model: VJEPA2Model, frames: np.ndarray, spec: WindowSpec) -> Run:
    """Embeds one window at a time: transformers' processor, then the encoder at batch 1 in float32."""
    crop = model.config.crop_size
    processor = VJEPA2VideoProcessor(size={"shortest_edge": int(crop * 256 / 224)}, crop_size=crop)
    start = time.perf_counter()
    rows = []
    for clip in clips(len(frames), spec):
        video = torch.from_numpy(frames[clip]).permute(0, 3, 1, 2)
        pixels = processor(video, return_tensors="pt")["pixel_values_videos"]
        rows.append(model.encoder(pixels).last_hidden_state.mean(dim=1)[0].numpy())
    return Run(time.perf_counter() - start, ends(len(frames), spec), np.stack(rows))


def interleaved(runs: dict[str, Callable[[], Run]], repeats: int) -> dict[str, Run]:
    """Returns the fastest run of each pipeline. Runs alternate, so that a slow moment of the machine affects all."""
    best: dict[str, Run] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            result = run()
            if name not in best or result.seconds < best[name].seconds:
                best[name] = result
    return best


def measure(size: str, length: int, repeats: int, dtype: str) -> dict[str, object]:
    """Returns all numbers of the benchmark, ready for JSON. `show` prints them."""
    torch.manual_seed(0)
    model = VJEPA2Model(VJEPA2Config(**(EMBEDDED_CONFIG | SIZES[size]))).eval()
    reference = copy.deepcopy(model)  # VJEPA2Encoder changes dtype and attention of the model that it gets
    encoder = VJEPA2Encoder(model, dtype=dtype)
    video = encoded(synthetic_video(length))
    frames = decoded(video)
    parsed = {text: parse_windows(text, frames_per_clip=encoder.frames_per_clip) for text in WINDOWS}
    dense = parsed["dense"]
    runs: dict[str, Callable[[], Run]] = {"straightforward dense": lambda: straightforward(reference, frames, dense)}
    for name, spec in parsed.items():
        runs[f"ours {name}"] = lambda spec=spec: ours(encoder, frames, spec)
    ours(encoder, frames[:12], dense)  # warm up
    best = interleaved(runs, repeats)
    decode_s, prepare_s = fastest(lambda: decoded(video), repeats), fastest(lambda: encoder.prepare(frames), repeats)
    naive, same, strided = best["straightforward dense"], best["ours dense"], best["ours stride:4"]
    fixed_s, window_s, off = line([best[f"ours {name}"] for name in WINDOWS if name != "nested"])
    return {
        "speedup_same_windows": naive.seconds / same.seconds,
        "speedup_stride4": naive.seconds / strided.seconds,
        "max_progress_difference": float(np.abs(same.progress - naive.progress).max()),
        "max_progress_difference_by_windows": {
            name: float(np.abs(run.progress - naive.progress[-len(run.progress) :]).max()) for name, run in best.items()
        },
        "seconds": {name: run.seconds for name, run in best.items()},
        "windows": {name: len(run.ends) for name, run in best.items()},
        "ms_per_window": {name: 1000 * run.seconds / len(run.ends) for name, run in best.items()},
        "linear_fixed_seconds": fixed_s,
        "linear_seconds_per_window": window_s,
        "linear_largest_deviation": off,
        "decode_share": {name: decode_s / (decode_s + run.seconds) for name, run in best.items()},
        "decode_seconds": decode_s,
        "prepare_seconds": prepare_s,
        "encoder": size,
        "dtype": dtype,
        "frames": length,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def line(runs: list[Run]) -> tuple[float, float, float]:
    """Fits seconds as a straight line in the number of windows.

    All runs must have clips of one length, so nested windows are not allowed.

    Returns:
        Seconds for no window, seconds per window, and the largest relative deviation from the line.
    """
    windows, seconds = np.array([len(run.ends) for run in runs]), np.array([run.seconds for run in runs])
    slope, fixed = np.polyfit(windows, seconds, 1, w=1 / seconds)
    return float(fixed), float(slope), float(np.abs((fixed + slope * windows) / seconds - 1).max())


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Returns the seconds of the fastest of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def show(result: dict) -> None:
    """Prints the numbers as a table, then the three numbers that have a target."""
    console = Console(highlight=False)
    table = Table(title=f"{result['frames']} frames of 480x640, encoder '{result['encoder']}', {result['dtype']}, "
                  f"{result['threads']} threads, {result['cpu']}", title_justify="left")  # fmt: skip
    for column in ("pipeline", "windows", "seconds", "ms a window", "speedup", "max |dp|"):
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    naive = result["seconds"]["straightforward dense"]
    for name, seconds in result["seconds"].items():
        count, difference = result["windows"][name], result["max_progress_difference_by_windows"][name]
        table.add_row(name, str(count), f"{seconds:.2f}", f"{result['ms_per_window'][name]:.1f}",
                      f"x{naive / seconds:.2f}", f"{difference:.4f}")  # fmt: skip
    console.print(table)
    prepare = result["prepare_seconds"]
    for name in ("ours dense", "ours stride:4"):
        total = result["seconds"][name]
        console.print(
            f"{name}: decoding {result['decode_seconds']:.2f} s runs beside it "
            f"({result['decode_share'][name]:.0%} of the work), "
            f"resize and crop {prepare:.2f} s ({prepare / total:.0%} of the above)"
        )
    console.print(
        f"cost over the number of windows: {1000 * result['linear_fixed_seconds']:.0f} ms and "
        f"{1000 * result['linear_seconds_per_window']:.1f} ms a window; no run is further from that line than "
        f"{result['linear_largest_deviation']:.0%}"
    )
    for key, target, better in (
        ("speedup_same_windows", 3, "at least"),
        ("speedup_stride4", 10, "at least"),
        ("max_progress_difference", 0.01, "at most"),
    ):
        value = result[key]
        met = value >= target if better == "at least" else value <= target
        console.print(f"{key} = {value:.4g} (target: {better} {target}: {'met' if met else 'MISSED'})")


def main() -> None:
    """Reads the options, measures, prints the table and writes the --json file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", choices=sorted(SIZES), default="embedded", help="how small an encoder")
    parser.add_argument("--frames", type=int, default=120, help="length of the episode")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each pipeline; the fastest counts")
    parser.add_argument("--dtype", default="bfloat16", help="ours; the other pipeline is float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the math library")
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(options.encoder, options.frames, options.repeats, options.dtype)
    show(result)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
