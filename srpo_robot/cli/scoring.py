"""`srpo-robot score-dataset` and `srpo-robot store`: progress bar, summary, and the picture of curves."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli.console import bar, console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.devices import resolve
from srpo_robot.cli.scoring_options import ScoreOptions
from srpo_robot.errors import DatasetError
from srpo_robot.numerics import cell
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder_names import CAUTIONS
from srpo_robot.records import Episode

if TYPE_CHECKING:  # these import torch, zarr or lerobot: a typo must be answered before that
    from srpo_robot.buffer.episodes import Buffer
    from srpo_robot.progress.embed import Embedded, Shard
    from srpo_robot.progress.pipeline import Scored
    from srpo_robot.progress.store import Entry


def score_command(options: ScoreOptions) -> None:
    """Scores, prints the summary and draws DATASET/srpo/curves.png. Raises as `score_buffer`.

    Under `accelerate launch` or torchrun each process embeds its shard. The first process scores after all of them.
    """
    options.check()
    with waiting(f"opening {options.dataset}"):
        buffer = open_buffer(options.dataset)
    for camera in options.config.cameras or (None,):
        buffer.camera(camera)
    with waiting("loading libraries"):
        from srpo_robot.progress.embed import resolved
        from srpo_robot.progress.encoder import load_encoder
        from srpo_robot.progress.pipeline import check_scorable, score_embedded

    check_scorable(buffer, options.config)  # before the encoder: a large one takes a while to load
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
            options.config.frames_per_clip,
        )
    config = resolved(options.config, buffer, encoder)
    if options.plan:
        print_plan(buffer, encoder, config)
        return
    external = external_from(config.reference, encoder, config) if config.reference else None
    embedded = processes.embed(buffer, encoder, config, options.skip_bad_episodes)
    if embedded is None:
        return  # not the first process
    scored = score_embedded(buffer, encoder, config, embedded, external)
    note = CAUTIONS.get(options.encoder, f"{options.encoder}, {config.windows}, {config.profile}")
    finish(buffer, scored, note, options.json)
    if options.compare:
        print_comparison(buffer, scored, options.compare, external)


def embed_with_bar(
    buffer: Buffer, encoder: Any, config: ScoringConfig, skip_bad: bool, shard: Shard | None = None
) -> Embedded:
    """Runs `pipeline.embed` with a progress bar in windows."""
    from srpo_robot.progress.embed import ALL
    from srpo_robot.progress.pipeline import embed
    from srpo_robot.progress.windows import ends

    shard = shard or ALL
    sizes = {e.index: len(config.cameras) * len(ends(e.length, config)) for e in buffer.episodes}
    with bar("embedding windows", sum(sizes.values()) / shard.world, "window") as progress:

        def on_episode(episode: Episode, fresh: int) -> None:
            progress.advance(sizes[episode.index], f"episode {episode.index}" + ("" if fresh else " (in the store)"))

        return embed(buffer, encoder, config, skip_bad, on_episode, shard)


class Processes:
    """This process among those that `accelerate launch` or torchrun started; the only one without them."""

    def __init__(self, device: str) -> None:
        """`device`: the requested device; on a CPU the processes communicate over gloo."""
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        self._state: Any = None
        if self.world > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=device == "cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def own_device(self, device: str) -> str:
        """Returns the device of this process: each of several processes has its own GPU."""
        return str(self._state.device) if self._state is not None and device == "cuda" else device

    def embed(self, buffer: Buffer, encoder: Any, config: ScoringConfig, skip_bad: bool) -> Embedded | None:
        """Embeds the shard of this process and waits for the others. Returns all embeddings in the first process."""
        from srpo_robot.progress.embed import Shard, gather
        from srpo_robot.progress.pipeline import STORE
        from srpo_robot.progress.store import EmbeddingStore

        shard = embed_with_bar(buffer, encoder, config, skip_bad, Shard(self.rank, self.world))
        if self._state is None:
            return shard
        from accelerate.utils import gather_object

        all_shards = gather_object([(shard.computed, shard.left_out)])
        self._state.wait_for_everyone()
        if not self.first:
            return None
        left_out = {index: why for _, out in all_shards for index, why in out.items()}
        embedded = gather(buffer, encoder, EmbeddingStore(buffer.sidecar / STORE), config, left_out)
        return replace(embedded, computed=sum(computed for computed, _ in all_shards))


def external_from(reference: str, encoder: Any, config: ScoringConfig) -> dict[str, np.ndarray]:
    """Returns references from another dataset, embedded with the same encoder, cameras and windows."""
    from srpo_robot.progress.pipeline import external_references

    with waiting(f"opening {reference}"):
        other = open_buffer(reference)
    return external_references(other, embed_with_bar(other, encoder, config, skip_bad=False))


def finish(buffer: Buffer, scored: Scored, note: str, json_path: Path | None) -> None:
    """Writes the tables and pictures of a score and prints its summary."""
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
    """Returns the strategy maps by name, or their number if there are many."""
    if len(maps) <= 3 and len(maps) == tasks:
        return [f"{path.parent.name}/{path.name}" for path in maps]
    return [f"{maps[0].parent.name}/*.png: {len(maps)} of {tasks} tasks, the largest"] if maps else []


def print_plan(buffer: Buffer, encoder: Any, config: ScoringConfig) -> None:
    """Prints the cost of scoring on this machine. Nothing is embedded."""
    from srpo_robot.progress.embed import store_keys
    from srpo_robot.progress.encoder import measured_tflops
    from srpo_robot.progress.pipeline import STORE
    from srpo_robot.progress.plan import plan
    from srpo_robot.progress.store import EmbeddingStore

    store = EmbeddingStore(buffer.sidecar / STORE)
    with waiting("measuring this machine"):
        keys = store_keys(buffer, encoder, config)
        cost = plan(buffer.episodes, config, encoder.geometry, keys, store, measured_tflops(encoder))
    assert cost.seconds is not None
    rows = table(f"plan for {buffer.root}", "windows", "embedded already", "TFLOP left", "time left", "disk")
    rows.add_row(
        str(cost.windows),
        str(cost.windows_stored),
        f"{cost.tflop:.2f}",
        f"{cost.seconds / 60:.1f} min, decoding not counted",
        f"{cost.bytes / 1e6:.1f} MB",
    )
    console.print(rows)


def print_comparison(
    buffer: Buffer, scored: Scored, profiles: tuple[str, ...], external: dict[str, np.ndarray] | None
) -> None:
    """Prints the episodes on which the profiles disagree most, by rank within their task."""
    from srpo_robot.progress.evidence.profiles import compare

    episodes = compare(buffer.episodes, scored.windows, profiles, replace(scored.config, references=""), external)
    rows = table(
        "where the profiles disagree: final progress (rank in its task), largest disagreement first",
        "episode", "label", *profiles, "ranks apart",
    )  # fmt: skip
    for row in episodes[:20]:
        cells = (f"{number(row.progress[p], 2)} ({number(row.progress_rank[p], 0)})" for p in profiles)
        label = "success" if row.success else "failure"
        rows.add_row(str(row.episode_index), label, *cells, number(row.disagreement, 0))
    console.print(rows)
    if len(episodes) > 20:
        say(f"... and {len(episodes) - 20} episodes that disagree less")


def list_store(dataset: str, prune: bool) -> None:
    """Prints the content of DATASET/srpo/embeddings.zarr. With `prune`, removes entries that no episode refers to.

    Raises:
        DatasetError: there is no dataset, or it was never scored.
    """
    with waiting(f"opening {dataset}"):
        buffer = open_buffer(dataset)
    from srpo_robot.progress.pipeline import STORE
    from srpo_robot.progress.store import EmbeddingStore

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
    rows = table(str(store.path), "encoder", "windows", "camera", "episodes", "embeddings", "MB")
    for kind, entries in sorted(groups.items()):
        rows.add_row(*kind, str(len(entries)), str(sum(e.windows for e in entries)), f"{_megabytes(entries):.1f}")
    console.print(rows)
    say(f"{len(orphans)} entries ({_megabytes(orphans):.1f} MB) belong to no episode of the dataset.")
    if prune:
        gone = store.prune({entry.key for entries in groups.values() for entry in entries})
        say(f"Removed {gone.entries} entries and {gone.leftovers} leftovers, {gone.bytes / 1e6:.1f} MB.")


def _megabytes(entries: list[Entry]) -> float:
    return sum(entry.bytes for entry in entries) / 1e6


def summarise(buffer: Buffer, scored: Scored) -> dict[str, Any]:
    """Returns the numbers of the summary, ready for JSON; a mean over nothing is null."""
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
                np.array([scored.scores.episodes[i].reward for i in members if not buffer.episodes[i].success])
            ),
            "clusters": [] if references is None else references.sizes.tolist(),
            "noise": None if references is None else references.noise,
            "left_out": task in scored.config.skip_tasks,
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
    same_label = [scored.scores.episodes[i] for i in members if buffer.episodes[i].success == success]
    return _mean(np.array([episode.curve.progress[-1] for episode in same_label]))


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)] if len(values) else values
    return float(finite.mean()) if len(finite) else None


def print_summary(scored: Scored, summary: dict[str, Any]) -> None:
    """Prints the summary as a table, then the episodes that were left out, then the warnings."""
    rows = table(
        f"{summary['episodes']} episodes, {summary['frames']} frames, {summary['embedded_now']} episodes embedded now",
        "task", "episodes", "success", "final p, success", "final p, failure", "reward, failure", "clusters",
    )  # fmt: skip
    for task, row in summary["tasks"].items():
        rows.add_row(
            task,
            str(row["episodes"]),
            f"{row['successes'] / row['episodes']:.0%}",
            *(cell(row[key]) for key in ("final_progress_success", "final_progress_failure", "reward_failure")),
            "left out" if row["left_out"] else _clusters(row["clusters"]),
        )
    console.print(rows)
    for index, why in scored.embedded.left_out.items():
        warn(f"left out episode {index}: {why}")
    for text, tasks in merged(scored.scores.warnings).items():
        warn(f"{text}: {', '.join(tasks)}" if len(tasks) > 1 else f"{tasks[0]}: {text}")
    undefined = [c for c in scored.scores.curves if c.reason]
    for reason in dict.fromkeys(c.reason for c in undefined):
        which = [c.episode_index for c in undefined if c.reason == reason]
        warn(f"progress of {len(which)} episodes is undefined ({reason}); their frames get weight 0: {which[:10]}")


def _clusters(sizes: list[int]) -> str:
    """Returns the number of references and the successes behind each, or the largest only if there are many."""
    if not sizes:
        return "none"
    shown = ", ".join(map(str, sizes)) if len(sizes) <= 4 else f"largest {max(sizes)}"
    return f"{len(sizes)} ({shown})"


def merged(warnings: tuple[str, ...]) -> dict[str, list[str]]:
    """Groups warnings of the form "'task': text" by text: many tasks often share one."""
    tasks: dict[str, list[str]] = {}
    for warning in warnings:
        task, _, text = warning.partition(": ")
        tasks.setdefault(text, []).append(task)
    return tasks
