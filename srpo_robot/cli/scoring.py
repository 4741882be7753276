"""`srpo-robot score-dataset` and `srpo-robot store`: progress bar, summary, and the picture of curves."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli.console import bar, console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.devices import resolve
from srpo_robot.errors import DatasetError
from srpo_robot.progress.embed import Embedded, gather, store_keys
from srpo_robot.progress.pipeline import (
    STORE,
    Scored,
    ScoreSettings,
    check_scorable,
    embed,
    external_references,
    score_embedded,
)
from srpo_robot.progress.score import Rules
from srpo_robot.progress.store import EmbeddingStore, Entry
from srpo_robot.progress.windows import ends, parse_windows
from srpo_robot.records import Episode


@dataclass(frozen=True)
class ScoreOptions:
    """The options of `score-dataset`; see its help."""

    dataset: str
    encoder: str = "embedded"
    cameras: tuple[str, ...] = ()
    windows: str = "stride:4"
    window_shape: str = "prefix"
    min_window: int = 10
    frames_per_clip: int | None = None
    profile: str = "paper"
    references: str = ""
    value: str = ""
    reference: str | None = None
    skip_tasks: tuple[str, ...] = ()
    skip_bad: bool = False
    compare: tuple[str, ...] = ()
    plan: bool = False
    device: str = "auto"
    dtype: str = "float32"
    attention: str = "sdpa"
    compile: bool = False
    json_path: Path | None = None


def score_command(options: ScoreOptions) -> None:
    """Score, print the summary, draw DATASET/srpo/curves.png. Raises as `score_buffer`.

    Under `accelerate launch` or torchrun each process embeds its share; the first one scores when all are done.
    """
    from srpo_robot.progress.encoder import CAUTIONS, load_encoder

    rules = make_rules(options)
    repeat = "cyclic" if options.profile == "siirl" else "linspace"
    windows = parse_windows(options.windows, options.window_shape, options.min_window, options.frames_per_clip, repeat)
    with waiting(f"opening {options.dataset}"):
        buffer = open_buffer(options.dataset)
    cameras = tuple(dict.fromkeys(buffer.camera(name) for name in options.cameras or (None,)))
    settings = ScoreSettings(options.encoder, cameras, windows, rules, options.reference or "", options.dtype)
    check_scorable(buffer, rules)  # before the encoder: a large one takes a while to load
    device = resolve(options.device)
    processes = Processes(device)
    if options.encoder in CAUTIONS and processes.first:
        warn(CAUTIONS[options.encoder])
    with waiting(f"loading {options.encoder}"):
        encoder = load_encoder(
            options.encoder,
            processes.own_device(device),
            options.dtype,
            options.attention,
            options.compile,
            options.frames_per_clip,
        )
    settings = replace(settings, windows=windows.resolved(encoder.frames_per_clip))  # the record says which F it was
    if options.plan:
        print_plan(buffer, encoder, settings)
        return
    external = external_from(options.reference, encoder, settings) if options.reference else None
    embedded = processes.embed(buffer, encoder, settings, options.skip_bad)
    if embedded is None:
        return  # not the first process
    scored = score_embedded(buffer, encoder, settings, embedded, external)
    note = CAUTIONS.get(options.encoder, f"{options.encoder}, {options.windows}, {rules.profile}")
    finish(buffer, scored, note, options.json_path)
    if options.compare:
        print_comparison(buffer, scored, settings, options.compare, external)


def make_rules(options: ScoreOptions) -> Rules:
    """The rules that the options ask for. Raises UsageError for an unknown name, or --reference without its use."""
    references = options.references
    if options.reference and not references:
        references = "external"
    return Rules(options.profile, references, options.value, skip_tasks=options.skip_tasks)  # type: ignore[arg-type]


def embed_with_bar(
    buffer: Buffer, encoder: Any, settings: ScoreSettings, skip_bad: bool, rank: int = 0, world: int = 1
) -> Embedded:
    """`pipeline.embed` with a progress bar in windows."""
    spec = settings.windows.resolved(encoder.frames_per_clip)
    sizes = {e.index: len(settings.cameras) * len(ends(e.length, spec)) for e in buffer.episodes}
    with bar("embedding windows", sum(sizes.values()) / world, "window") as progress:

        def on_episode(episode: Episode, fresh: int) -> None:
            progress.advance(sizes[episode.index], f"episode {episode.index}" + ("" if fresh else " (in the store)"))

        return embed(buffer, encoder, settings, skip_bad, on_episode, rank, world)


class Processes:
    """This process among those that `accelerate launch` or torchrun started; one alone where nobody did."""

    def __init__(self, device: str) -> None:
        """`device`: what was asked for; on a CPU the processes talk over gloo."""
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self._state: Any = None
        if self.world > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=device == "cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own_device(self, device: str) -> str:
        """Each process of several its own GPU."""
        return str(self._state.device) if self._state is not None and device == "cuda" else device

    def embed(self, buffer: Buffer, encoder: Any, settings: ScoreSettings, skip_bad: bool) -> Embedded | None:
        """Embed this process's share, wait for the others, and give the first process everything."""
        own = embed_with_bar(buffer, encoder, settings, skip_bad, self.rank, self.world)
        if self._state is None:
            return own
        from accelerate.utils import gather_object

        shares = gather_object([(own.computed, own.left_out)])
        self._state.wait_for_everyone()
        if not self.first:
            return None
        left_out = {index: why for _, out in shares for index, why in out.items()}
        spec = settings.windows.resolved(encoder.frames_per_clip)
        found = gather(buffer, encoder, EmbeddingStore(buffer.sidecar / STORE), settings.cameras, spec, left_out)
        return replace(found, computed=sum(computed for computed, _ in shares))


def external_from(reference: str, encoder: Any, settings: ScoreSettings) -> dict[str, np.ndarray]:
    """References from another dataset, embedded with the same encoder, cameras and windows."""
    with waiting(f"opening {reference}"):
        other = open_buffer(reference)
    for camera in settings.cameras:
        other.camera(camera)
    return external_references(other, embed_with_bar(other, encoder, settings, skip_bad=False))


def finish(buffer: Buffer, scored: Scored, note: str, json_path: Path | None) -> None:
    """The tables, the pictures and the summary of a score."""
    from srpo_robot.report.figures import draw_curves
    from srpo_robot.report.strategy_figure import draw_strategy_maps

    draw_curves(buffer.episodes, scored.scores.curves, buffer.sidecar / "curves.png", note)
    summary = summarise(buffer, scored)
    print_summary(scored, summary)
    with waiting("drawing the strategy maps"):
        maps = draw_strategy_maps(buffer, scored.scores, scored.windows, next(iter(scored.embedded.cameras)))
    files = ", ".join(["progress.parquet", "curves.png", *_named(maps, len(summary["tasks"]))])
    say(f"Tables and pictures are in {buffer.sidecar} ({files}).")
    write_json(json_path, summary)


def _named(maps: list[Path], tasks: int) -> list[str]:
    """The strategy maps by name; by number where there are many."""
    if len(maps) <= 3 and len(maps) == tasks:
        return [f"{path.parent.name}/{path.name}" for path in maps]
    return [f"{maps[0].parent.name}/*.png: {len(maps)} of {tasks} tasks, the largest"] if maps else []


def print_plan(buffer: Buffer, encoder: Any, settings: ScoreSettings) -> None:
    """What scoring would cost on this machine; nothing is embedded."""
    from srpo_robot.progress.encoder import measured_tflops
    from srpo_robot.progress.plan import plan

    spec = settings.windows.resolved(encoder.frames_per_clip)
    store = EmbeddingStore(buffer.sidecar / STORE)
    with waiting("measuring this machine"):
        keys = store_keys(buffer, encoder, settings.cameras, spec)
        found = plan(buffer.episodes, spec, encoder.geometry, keys, store, measured_tflops(encoder))
    assert found.seconds is not None
    made = table(f"plan for {buffer.root}", "windows", "embedded already", "TFLOP left", "time left", "disk")
    made.add_row(
        str(found.windows),
        str(found.windows_stored),
        f"{found.tflop:.2f}",
        f"{found.seconds / 60:.1f} min, decoding not counted",
        f"{found.bytes / 1e6:.1f} MB",
    )
    console.print(made)


def print_comparison(
    buffer: Buffer,
    scored: Scored,
    settings: ScoreSettings,
    profiles: tuple[str, ...],
    external: dict[str, np.ndarray] | None,
) -> None:
    """Episodes on which the profiles disagree most, by rank within their task."""
    from srpo_robot.progress.evidence.profiles import compare

    rows = compare(buffer.episodes, scored.windows, profiles, replace(settings.rules, references=""), external)
    made = table(
        "where the profiles disagree: final progress (rank in its task), largest disagreement first",
        "episode", "label", *profiles, "ranks apart",
    )  # fmt: skip
    for row in rows[:20]:
        cells = (f"{number(row.progress[p], 2)} ({number(row.progress_rank[p], 0)})" for p in profiles)
        label = "success" if row.success else "failure"
        made.add_row(str(row.episode_index), label, *cells, number(row.disagreement, 0))
    console.print(made)
    if len(rows) > 20:
        say(f"... and {len(rows) - 20} episodes that disagree less")


def list_store(dataset: str, prune: bool) -> None:
    """What DATASET/srpo/embeddings.zarr holds; with `prune`, remove what no episode of the dataset refers to.

    Raises:
        DatasetError: no dataset there, or it was never scored.
    """
    with waiting(f"opening {dataset}"):
        buffer = open_buffer(dataset)
    if not (buffer.sidecar / STORE).is_dir():
        raise DatasetError(f"{dataset} has no embeddings yet; run: srpo-robot score-dataset {dataset}")
    store = EmbeddingStore(buffer.sidecar / STORE)
    videos = {buffer.video_identity(episode, camera) for episode in buffer.episodes for camera in buffer.cameras}
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    orphans = []
    for entry in store.entries():
        known = entry.metadata.get("video") in videos
        kind = tuple(str(entry.metadata.get(name, "unknown")) for name in ("encoder", "windows", "camera"))
        (groups.setdefault(kind, []) if known else orphans).append(entry)  # type: ignore[arg-type]
    made = table(str(store.path), "encoder", "windows", "camera", "episodes", "embeddings", "MB")
    for kind, entries in sorted(groups.items()):
        made.add_row(*kind, str(len(entries)), str(sum(e.windows for e in entries)), f"{_megabytes(entries):.1f}")
    console.print(made)
    say(f"{len(orphans)} entries ({_megabytes(orphans):.1f} MB) belong to no episode of the dataset.")
    if prune:
        gone = store.prune({entry.key for entries in groups.values() for entry in entries})
        say(f"Removed {gone.entries} entries and {gone.leftovers} leftovers, {gone.bytes / 1e6:.1f} MB.")


def _megabytes(entries: list[Entry]) -> float:
    return sum(entry.bytes for entry in entries) / 1e6


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
            "left_out": task in scored.table.metadata["settings"]["rules"]["skip_tasks"],
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


def print_summary(scored: Scored, summary: dict[str, Any]) -> None:
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
            "left out" if row["left_out"] else _clusters(row["clusters"]),
        )
    console.print(made)
    for index, why in scored.embedded.left_out.items():
        warn(f"left out episode {index}: {why}")
    for text, tasks in merged(scored.scores.warnings).items():
        warn(f"{text}: {', '.join(tasks)}" if len(tasks) > 1 else f"{tasks[0]}: {text}")
    undefined = [c for c in scored.scores.curves if c.reason]
    for reason in dict.fromkeys(c.reason for c in undefined):
        which = [c.episode_index for c in undefined if c.reason == reason]
        warn(f"progress of {len(which)} episodes is undefined ({reason}); their frames get weight 0: {which[:10]}")


def _clusters(sizes: list[int]) -> str:
    """Number of references and the successes behind each; the largest only where there are many."""
    if not sizes:
        return "none"
    shown = ", ".join(map(str, sizes)) if len(sizes) <= 4 else f"largest {max(sizes)}"
    return f"{len(sizes)} ({shown})"


def merged(warnings: tuple[str, ...]) -> dict[str, list[str]]:
    """Warnings of the form "'task': text", by text: many tasks often share one."""
    found: dict[str, list[str]] = {}
    for warning in warnings:
        task, _, text = warning.partition(": ")
        found.setdefault(text, []).append(task)
    return found
