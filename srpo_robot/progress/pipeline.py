"""`score-dataset` without the terminal: a buffer in, progress.parquet and what the summary needs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.labels import require_labels
from srpo_robot.buffer.tables import Table, read_table, write_table
from srpo_robot.errors import ScoringError
from srpo_robot.progress.embed import Embedded, embed_buffer
from srpo_robot.progress.encoder import Encoder
from srpo_robot.progress.score import ALPHA, Scores, score
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import parse_stride
from srpo_robot.recipes import digest
from srpo_robot.records import Curve, Episode

TABLE = "progress.parquet"
STORE = "embeddings.zarr"


@dataclass(frozen=True)
class ScoreSettings:
    """What a score depends on besides the data."""

    encoder: str  # name, folder or Hub id, for the record; its identity is stored too
    camera: str  # feature key
    windows: str = "stride:4"  # or "dense": every frame, the paper
    min_window: int = 10  # t0, last frame of the first window
    profile: str = "paper"
    alpha: float = ALPHA
    skip_tasks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of a buffer, the table that holds them, and what was embedded for it."""

    scores: Scores
    embedded: Embedded
    table: Table


def score_buffer(
    buffer: Buffer,
    encoder: Encoder,
    settings: ScoreSettings,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
) -> Scored:
    """Embed what is not embedded yet, score everything, and write DATASET/srpo/progress.parquet.

    Raises:
        UnlabelledError: an episode has no label.
        ScoringError: a task without a success (checked before anything is embedded), an unknown task to skip.
        UndecodableFrame: names episode and frame (unless `skip_bad`).
    """
    require_labels(buffer)
    _check_tasks(buffer, settings.skip_tasks)
    store = EmbeddingStore(buffer.sidecar / STORE)
    stride = parse_stride(settings.windows)
    embedded = embed_buffer(buffer, encoder, store, settings.camera, stride, settings.min_window, skip_bad, on_episode)
    scores = score(buffer.episodes, embedded.windows, settings.alpha, settings.skip_tasks)
    table = write_table(
        buffer.sidecar / TABLE,
        progress_columns(buffer.episodes, scores),
        {
            "kind": "progress",
            "dataset": buffer.fingerprint,
            "labels": buffer.labels_fingerprint,
            "settings": asdict(settings),
            "recipe": digest(settings),
            "encoder": encoder.identity,
        },
    )
    return Scored(scores, embedded, table)


def progress_columns(episodes: tuple[Episode, ...], scores: Scores) -> dict[str, np.ndarray]:
    """The columns of progress.parquet, one row a frame, in the order of the dataset's `index`."""
    lengths = [episode.length for episode in episodes]
    return {
        "index": np.concatenate([np.arange(e.first_frame, e.first_frame + e.length) for e in episodes]),
        "episode_index": np.repeat([e.index for e in episodes], lengths),
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "distance": np.concatenate([curve.distance for curve in scores.curves]),
        "progress": np.concatenate([curve.progress for curve in scores.curves]),
        "scored": np.concatenate([curve.scored for curve in scores.curves]),
        "reward": np.repeat(scores.rewards, lengths),
    }


def read_progress(buffer: Buffer) -> Table:
    """The buffer's progress.parquet.

    Raises:
        StaleTable: absent, or of another state of the recorded data or its labels.
    """
    return read_table(
        buffer.sidecar / TABLE,
        refresh=f"srpo-robot score-dataset {buffer.root}",
        dataset=buffer.fingerprint,
        labels=buffer.labels_fingerprint,
    )


def read_curves(buffer: Buffer) -> tuple[Curve, ...]:
    """The curves of a scored buffer, one per episode. Raises as `read_progress`."""
    table = read_progress(buffer)
    spans = [slice(e.first_frame, e.first_frame + e.length) for e in buffer.episodes]
    return tuple(
        Curve(e.index, table["distance"][s], table["progress"][s], table["scored"][s])
        for e, s in zip(buffer.episodes, spans, strict=True)
    )


def _check_tasks(buffer: Buffer, skip: tuple[str, ...]) -> None:
    tasks = sorted({episode.task for episode in buffer.episodes})
    for task in skip:
        if task not in tasks:
            raise ScoringError(f"no task {task!r} to skip; there are: {', '.join(map(repr, tasks))}")
    for task in tasks:
        if task not in skip and not any(e.success for e in buffer.episodes if e.task == task):
            raise ScoringError(
                f"task {task!r} has no success, so nothing to measure against; label or record one, "
                f"or leave the task out: --skip-task {task!r}"
            )
