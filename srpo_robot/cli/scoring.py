"""`srpo-robot score-dataset`: progress bar, summary and the picture of curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.buffer.episodes import Buffer, open_buffer
from srpo_robot.cli.console import bar, console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.devices import resolve
from srpo_robot.progress.pipeline import Scored, ScoreSettings, score_buffer
from srpo_robot.progress.windows import parse_stride, window_ends


def score_command(
    dataset: str,
    encoder: str,
    camera: str | None,
    windows: str,
    min_window: int,
    device: str,
    dtype: str,
    skip_tasks: tuple[str, ...],
    skip_bad: bool,
    json_path: Path | None,
) -> Scored:
    """Score, print the summary, draw DATASET/srpo/curves.png, write the advantage table. Raises as `score_buffer`."""
    from srpo_robot.awr.tables import Weighting, weigh_buffer
    from srpo_robot.progress.encoder import EMBEDDED, RANDOM_WARNING, load_encoder
    from srpo_robot.report.figures import draw_curves

    stride = parse_stride(windows)
    with waiting(f"opening {dataset}"):
        buffer = open_buffer(dataset)
    settings = ScoreSettings(encoder, buffer.camera(camera), windows, min_window, skip_tasks=skip_tasks)
    if encoder == EMBEDDED:
        warn(RANDOM_WARNING)
    with waiting(f"loading {encoder}"):
        model = load_encoder(encoder, resolve(device), dtype)
    total = sum(len(window_ends(e.length, stride, min_window)) for e in buffer.episodes)
    done = 0
    with bar("embedding windows", total, "window") as progress:

        def on_episode(episode: Any, fresh: int) -> None:
            nonlocal done
            done += len(window_ends(episode.length, stride, min_window))
            progress.at(done, f"episode {episode.index}" + ("" if fresh else " (in the store)"))

        scored = score_buffer(buffer, model, settings, skip_bad, on_episode)
    if np.isfinite(scored.table["progress"]).any():
        weigh_buffer(buffer, scored.table, Weighting())
    picture = buffer.sidecar / "curves.png"
    note = RANDOM_WARNING if encoder == EMBEDDED else f"{encoder}, {windows}"
    draw_curves(buffer.episodes, scored.scores.curves, picture, note)
    summary = summarise(buffer, scored)
    print_summary(buffer, scored, summary)
    say(f"Tables and curves are in {buffer.sidecar} (progress.parquet, advantage.parquet, curves.png).")
    write_json(json_path, summary)
    return scored


def summarise(buffer: Buffer, scored: Scored) -> dict[str, Any]:
    """The numbers of the summary, JSON-able; a mean over nothing is null."""
    tasks = {}
    for task in sorted({episode.task for episode in buffer.episodes}):
        members = [i for i, e in enumerate(buffer.episodes) if e.task == task]
        references = scored.scores.references.get(task)
        tasks[task] = {
            "episodes": len(members),
            "successes": sum(bool(buffer.episodes[i].success) for i in members),
            "final_progress_success": _mean_final(buffer, scored, members, True),
            "final_progress_failure": _mean_final(buffer, scored, members, False),
            "reward_failure": _mean(
                np.array([scored.scores.rewards[i] for i in members if not buffer.episodes[i].success])
            ),
            "clusters": [] if references is None else references.sizes.tolist(),
            "noise": None if references is None else references.noise,
        }
    return {
        "dataset": str(buffer.root),
        "episodes": len(buffer.episodes),
        "frames": buffer.total_frames,
        "embedded_now": scored.embedded.computed,
        "left_out": scored.embedded.left_out,
        "tasks": tasks,
        "warnings": list(scored.scores.warnings),
    }


def _mean_final(buffer: Buffer, scored: Scored, members: list[int], success: bool) -> float | None:
    return _mean(
        np.array([scored.scores.curves[i].progress[-1] for i in members if buffer.episodes[i].success == success])
    )


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)] if len(values) else values
    return float(finite.mean()) if len(finite) else None


def print_summary(buffer: Buffer, scored: Scored, summary: dict[str, Any]) -> None:
    """The summary as a table, then what was left out, then the warnings."""
    made = table(
        f"{summary['episodes']} episodes, {summary['frames']} frames, {summary['embedded_now']} episodes embedded now",
        "task", "episodes", "success", "final p, success", "final p, failure", "reward, failure", "clusters",
    )  # fmt: skip
    for task, row in summary["tasks"].items():
        made.add_row(
            task,
            str(row["episodes"]),
            f"{row['successes'] / row['episodes']:.0%}",
            *(
                "-" if row[key] is None else number(row[key])
                for key in ("final_progress_success", "final_progress_failure", "reward_failure")
            ),
            f"{len(row['clusters'])} ({', '.join(map(str, row['clusters']))})" if row["clusters"] else "left out",
        )
    console.print(made)
    for index, why in scored.embedded.left_out.items():
        warn(f"left out episode {index}: {why}")
    for text in scored.scores.warnings:
        warn(text)
    undefined = [c for c in scored.scores.curves if c.reason]
    for reason in dict.fromkeys(c.reason for c in undefined):
        which = [c.episode_index for c in undefined if c.reason == reason]
        warn(f"progress of {len(which)} episodes is undefined ({reason}); their frames get weight 0: {which[:10]}")
