"""`score-dataset` without the terminal: embeds and scores a buffer, writes and reads progress.parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.labels import require_labels
from srpo_robot.buffer.tables import Table, read_table, write_table
from srpo_robot.errors import ScoringError
from srpo_robot.progress.config import ScoringConfig, parse_reference_name
from srpo_robot.progress.embed import ALL, Embedded, Shard, embed_buffer, resolved
from srpo_robot.progress.encoder import Encoder
from srpo_robot.progress.score import Scores, WindowEmbeddings, score
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.recipes import digest
from srpo_robot.records import Curve, Episode

TABLE = "progress.parquet"
STORE = "embeddings.zarr"
FORMAT = 3  # of the table and its metadata; 3: the config and the encoder's own name, precision and identity


@dataclass(frozen=True)
class EncoderInfo:
    """Name, precision and identity that an encoder reports about itself.

    Attributes:
        name: name, folder or Hub id that it was loaded by.
        dtype: precision it ran in.
        identity: hash that changes if the same clip would get another embedding.
    """

    name: str
    dtype: str
    identity: str


@dataclass(frozen=True)
class Provenance:
    """The config and the encoder of a score.

    Attributes:
        config: with feature keys as cameras and with the clip length filled in.
        encoder: the encoder of the windows.
    """

    config: ScoringConfig
    encoder: EncoderInfo


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of a buffer, the windows they come from, and the table that holds them."""

    scores: Scores
    windows: Sequence[WindowEmbeddings | None]
    embedded: Embedded
    table: Table
    config: ScoringConfig


def provenance(buffer: Buffer, encoder: Encoder, config: ScoringConfig) -> Provenance:
    """Returns the provenance of a score that this encoder makes with this config."""
    return Provenance(resolved(config, buffer, encoder), EncoderInfo(encoder.name, encoder.dtype, encoder.identity))


def embed(
    buffer: Buffer,
    encoder: Encoder,
    config: ScoringConfig,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
    shard: Shard = ALL,
) -> Embedded:
    """Embeds the episodes that are not in DATASET/srpo/embeddings.zarr yet. Arguments and errors as `embed_buffer`."""
    store = EmbeddingStore(buffer.sidecar / STORE)
    return embed_buffer(buffer, encoder, store, config, skip_bad, on_episode, shard)


def score_embedded(
    buffer: Buffer,
    encoder: Encoder,
    config: ScoringConfig,
    embedded: Embedded,
    external: dict[str, np.ndarray] | None = None,
) -> Scored:
    """Scores embedded windows and writes DATASET/srpo/progress.parquet.

    Args:
        external: by task, embeddings (S, D) of another dataset's successes (see `external_references`).

    Raises:
        ScoringError: see `score`.
    """
    origin = provenance(buffer, encoder, config)
    windows = combined(embedded)
    scores = score(buffer.episodes, windows, origin.config, external)
    metadata = {
        "kind": "progress",
        "format": FORMAT,
        "dataset": buffer.fingerprint,
        "labels": buffer.labels_fingerprint,
        "config": asdict(origin.config),
        "encoder": asdict(origin.encoder),
        "recipe": digest(origin),
    }
    table = write_table(buffer.sidecar / TABLE, progress_columns(buffer.episodes, scores), metadata)
    return Scored(scores, windows, embedded, table, origin.config)


def score_buffer(
    buffer: Buffer,
    encoder: Encoder,
    config: ScoringConfig,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
) -> Scored:
    """Embeds the episodes that are not embedded yet, scores all episodes, and writes DATASET/srpo/progress.parquet.

    Raises:
        UnlabelledError: an episode has no label.
        ScoringError: a task without a success (checked before anything is embedded), an unknown task to skip.
        UndecodableFrame: names episode and frame (unless `skip_bad`).
    """
    check_scorable(buffer, config)
    return score_embedded(buffer, encoder, config, embed(buffer, encoder, config, skip_bad, on_episode))


def combined(embedded: Embedded) -> Sequence[WindowEmbeddings | None]:
    """Returns one embedding per window from the embeddings of one or several cameras.

    The embeddings of several cameras are concatenated, so the squared distance is the sum of the cameras' squared
    distances: a window is near a reference only if it is near for every camera.
    """
    cameras = list(embedded.cameras.values())
    if len(cameras) == 1:
        return cameras[0]
    return [_side_by_side(views) for views in zip(*cameras, strict=True)]


def _side_by_side(views: tuple[WindowEmbeddings | None, ...]) -> WindowEmbeddings | None:
    present = [view for view in views if view is not None]
    if len(present) < len(views):
        return None
    return WindowEmbeddings(present[0].ends, np.concatenate([view.embeddings for view in present], axis=1))


def external_references(buffer: Buffer, embedded: Embedded) -> dict[str, np.ndarray]:
    """Returns by task the whole-episode embeddings (S, D) of the successes of another, embedded dataset.

    Raises:
        UnlabelledError: an episode of that dataset has no label.
        ScoringError: that dataset has no success.
    """
    require_labels(buffer)
    ends: dict[str, list[np.ndarray]] = {}
    for episode, windows in zip(buffer.episodes, combined(embedded), strict=True):
        if episode.success and windows is not None:
            ends.setdefault(episode.task, []).append(windows.embeddings[-1])
    if not ends:
        raise ScoringError(f"{buffer.root} has no success to serve as a reference; give another --reference")
    return {task: np.stack(rows) for task, rows in ends.items()}


def progress_columns(episodes: tuple[Episode, ...], scores: Scores) -> dict[str, np.ndarray]:
    """Returns the columns of progress.parquet, one row per frame, in the order of the dataset's `index`."""
    lengths = [episode.length for episode in episodes]
    return {
        "index": np.concatenate([np.arange(e.first_frame, e.first_frame + e.length) for e in episodes]),
        "episode_index": np.repeat([e.index for e in episodes], lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "distance": np.concatenate([curve.distance for curve in scores.curves]),
        "progress": np.concatenate([curve.progress for curve in scores.curves]),
        "value": np.concatenate(scores.values),
        "scored": np.concatenate([curve.scored for curve in scores.curves]),
        "reward": np.repeat(scores.rewards, lengths),
        "trajectory_advantage": np.repeat(scores.trajectory_advantages, lengths),
    }


def read_progress(buffer: Buffer) -> Table:
    """Reads the buffer's progress.parquet.

    Raises:
        StaleTable: it is absent, has an older format, or belongs to another state of the recorded data or its labels.
    """
    return read_table(
        buffer.sidecar / TABLE,
        refresh=f"srpo-robot score-dataset {buffer.root}",
        format=FORMAT,
        dataset=buffer.fingerprint,
        labels=buffer.labels_fingerprint,
    )


def provenance_of(table: Table) -> Provenance:
    """Returns the provenance that a progress table stores."""
    stored: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.metadata["config"].items()
    }
    return Provenance(ScoringConfig(**stored), EncoderInfo(**table.metadata["encoder"]))


def read_provenance(buffer: Buffer) -> Provenance:
    """Returns the config and the encoder that the buffer was scored with. Raises as `read_progress`."""
    return provenance_of(read_progress(buffer))


def audit_origin(buffer: Buffer, provenance: Provenance) -> dict[str, Any]:
    """Returns the inputs of an audit, ready for JSON: data, labels, encoder, cameras and windows.

    The profile is not part of it: an audit always uses `loo`.
    """
    config = provenance.config
    return {
        "dataset": buffer.fingerprint,
        "labels": buffer.labels_fingerprint,
        "encoder": provenance.encoder.identity,
        "cameras": list(config.cameras),
        "windows": [config.windows, config.window_shape, config.min_window, config.frames_per_clip, config.repeat],
    }


def read_curves(buffer: Buffer) -> tuple[Curve, ...]:
    """Returns the curves of a scored buffer, one per episode. Raises as `read_progress`."""
    table = read_progress(buffer)
    spans = [slice(e.first_frame, e.first_frame + e.length) for e in buffer.episodes]
    return tuple(
        Curve(e.index, table["distance"][s], table["progress"][s], table["scored"][s])
        for e, s in zip(buffer.episodes, spans, strict=True)
    )


def check_scorable(buffer: Buffer, config: ScoringConfig) -> None:
    """Raises UnlabelledError or ScoringError (see `score_buffer`) without decoding or loading anything."""
    require_labels(buffer)
    tasks = sorted({episode.task for episode in buffer.episodes})
    for task in config.skip_tasks:
        if task not in tasks:
            raise ScoringError(f"no task {task!r} to skip; there are: {', '.join(map(repr, tasks))}")
    if config.profile == "siirl" or parse_reference_name(config.reference_name).external:
        return
    for task in tasks:
        if task not in config.skip_tasks and not any(e.success for e in buffer.episodes if e.task == task):
            raise ScoringError(
                f"task {task!r} has no success, so nothing to measure against; label or record one, leave the task "
                f"out: --skip-task {task!r}, or measure against another dataset: --reference DATASET"
            )
