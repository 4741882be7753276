"""Measures GPU use of the full-size encoders: V-JEPA 2 L, H and g (256 and 384 px), random weights, bfloat16.

    python scripts/bench_scoring_gpu.py --peak-tflops 989 --json gpu.json

MFU is the FLOP of the clips (encoder.tflop_per_clip), divided by time and by the card's dense bfloat16 peak. The time
covers all of `encode`: uint8 clips on the device, normalising, the encoder, and the mean over tokens back to the host.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import VJEPA2Config, VJEPA2Model

from srpo_robot.progress.encoder import ATTENTIONS, VJEPA2Encoder, tflop_per_clip

# facebook/vjepa2-vit{l,h,g}-fpc64-256, -vitg-fpc64-384: width, layers, heads, mlp ratio, crop [px]
CONFIGS = {
    "L/256": (1024, 24, 16, 4, 256),
    "H/256": (1280, 32, 16, 4, 256),
    "g/256": (1408, 40, 22, 48 / 11, 256),
    "g/384": (1408, 40, 22, 48 / 11, 384),
}
# The encoder drops the predictor, so the predictor may be tiny.
SMALL_PREDICTOR: dict[str, Any] = {"pred_hidden_size": 48, "pred_num_hidden_layers": 1, "pred_num_attention_heads": 2}
PEAKS = {"H100": 989.0, "H200": 989.0, "GH200": 989.0, "A100": 312.0, "B200": 2250.0, "L40S": 362.0, "4090": 165.0}
TARGET = 0.45


def peak_of(card: str) -> float | None:
    """Returns the dense bfloat16 peak of a card by its name [TFLOP/s]. None if the table lacks the card."""
    return next((peak for name, peak in sorted(PEAKS.items(), key=lambda p: -len(p[0])) if name in card), None)


def full_size(name: str, frames: int, attention: str, compile: bool) -> VJEPA2Encoder:
    """Creates an encoder of CONFIGS with random weights on the GPU."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "crop_size")
    sizes: dict[str, Any] = dict(zip(names, CONFIGS[name], strict=True)) | {"frames_per_clip": frames}
    config = VJEPA2Config(**sizes, **SMALL_PREDICTOR)
    with torch.device("cuda"):
        model = VJEPA2Model(config)
    return VJEPA2Encoder(model, "cuda", "bfloat16", attention, compile)


def measure(encoder: VJEPA2Encoder, frames: int, tokens: int, repeats: int) -> dict[str, float]:
    """Encodes a batch of about `tokens` tokens. Returns clips, fastest seconds, TFLOP/s and peak memory [GB]."""
    clips = max(1, tokens // encoder.geometry.tokens(frames))
    side = encoder.crop_px
    batch = torch.randint(0, 256, (clips, frames, side, side, 3), dtype=torch.uint8, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(2 + repeats):  # the first two warm up, or compile
        torch.cuda.synchronize()
        start = time.perf_counter()
        encoder.encode(batch)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    best = min(seconds[2:])
    rate = clips * tflop_per_clip(encoder.geometry, frames) / best
    return {"clips": clips, "seconds": best, "tflops": rate, "memory_gb": torch.cuda.max_memory_allocated() / 1e9}


def main() -> None:
    """Measures every size and batch, prints the table and writes the --json file. Exits if there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", choices=list(CONFIGS), action="append", help="repeat for several; default: all")
    parser.add_argument("--frames", type=int, default=64, help="frames of a clip")
    parser.add_argument("--tokens", type=int, action="append", help="tokens of a batch; default: 16k, 64k, 128k")
    parser.add_argument("--repeats", type=int, default=5, help="batches that are timed; the fastest counts")
    parser.add_argument("--attention", choices=ATTENTIONS, default="sdpa")
    parser.add_argument("--compile", action="store_true", help="torch.compile; minutes to warm up")
    parser.add_argument("--peak-tflops", type=float, help="of this card, dense bfloat16; default: by its name")
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device here; run this on a machine with an NVIDIA GPU, or scripts/bench_scoring.py")
    card = torch.cuda.get_device_name()
    peak = options.peak_tflops or peak_of(card)
    if peak is None:
        sys.exit(f"error: the bfloat16 peak of {card!r} is not known here; give it: --peak-tflops 989")
    rows = []
    for name in options.encoder or list(CONFIGS):
        encoder = full_size(name, options.frames, options.attention, options.compile)
        for tokens in options.tokens or (16_384, 65_536, 131_072):
            row = measure(encoder, options.frames, tokens, options.repeats)
            rows.append({"encoder": name, "tokens": tokens, **row, "mfu": row["tflops"] / peak})
        del encoder
        torch.cuda.empty_cache()
    show(rows, f"{card}, peak {peak:.0f} TFLOP/s, {options.frames} frames, {options.attention}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = {"card": card, "peak_tflops": peak, "frames": options.frames, "compile": options.compile, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def show(rows: list[dict], title: str) -> None:
    """Prints the rows as a table, then whether each encoder reaches the target at its best batch."""
    console = Console(highlight=False)
    table = Table(title=title, title_justify="left")
    for column in ("encoder", "tokens", "clips", "seconds", "TFLOP/s", "MFU", "GB"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for row in rows:
        table.add_row(row["encoder"], f"{row['tokens'] // 1024}k", str(row["clips"]), f"{row['seconds']:.3f}",
                     f"{row['tflops']:.0f}", f"{row['mfu']:.0%}", f"{row['memory_gb']:.1f}")  # fmt: skip
    console.print(table)
    for name in dict.fromkeys(row["encoder"] for row in rows):
        best = max(row["mfu"] for row in rows if row["encoder"] == name)
        console.print(f"{name}: {best:.0%} at best (target {TARGET:.0%}: {'met' if best >= TARGET else 'MISSED'})")


if __name__ == "__main__":
    main()
