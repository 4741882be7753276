"""`score-dataset` without the terminal: a buffer in, progress.parquet and what the summary needs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.labels import require_labels
from srpo_robot.buffer.tables import Table, read_table, write_table
from srpo_robot.errors import ScoringError
from srpo_robot.progress.embed import Embedded, embed_buffer
from srpo_robot.progress.encoder import Encoder
from srpo_robot.progress.references import parse_references
from srpo_robot.progress.score import Rules, Scores, WindowEmbeddings, score
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import WindowSpec
from srpo_robot.recipes import digest
from srpo_robot.records import Curve, Episode

TABLE = "progress.parquet"
STORE = "embeddings.zarr"
FORMAT = 2  # of the table's columns; 2: with `value`


@dataclass(frozen=True)
class ScoreSettings:
    """What a score depends on besides the data."""

    encoder: str  # name, folder or Hub id, for the record; its identity is stored too
    cameras: tuple[str, ...]  # feature keys
    windows: WindowSpec
    rules: Rules = field(default_factory=Rules)
    reference: str = ""  # dataset of external references, for the record
    dtype: str = "float32"  # that the encoder ran in, for the record


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores of a buffer, the windows they come from, and the table that holds them."""

    scores: Scores
    windows: Sequence[WindowEmbeddings | None]
    embedded: Embedded
    table: Table


def embed(
    buffer: Buffer,
    encoder: Encoder,
    settings: ScoreSettings,
    skip_bad: bool = False,
    on_episode: Callable[[Episode, int], None] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Embedded:
    """Embed what is not embedded yet into DATASET/srpo/embeddings.zarr. Raises as `embed_buffer`."""
    store = EmbeddingStore(buffer.sidecar / STORE)
    return embed_buffer(buffer, encoder, store, settings.cameras, settings.windows, skip_bad, on_episode, rank, world)


def score_embedded(
    buffer: Buffer,
    encoder: Encoder,
    settings: ScoreSettings,
    embedded: Embedded,
    external: dict[str, np.ndarray] | None = None,
) -> Scored:
    """Score embedded windows and write DATASET/srpo/progress.parquet.

    Args:
        external: by task, embeddings (S, D) of another dataset's successes (see `external_references`).

    Raises:
        ScoringError: see `score`.
    """
    windows = combined(embedded)
    scores = score(buffer.episodes, windows, settings.rules, external)
    metadata = {
        "kind": "progress",
        "format": FORMAT,
        "dataset": buffer.fingerprint,
        "labels": buffer.labels_fingerprint,
        "settings": asdict(settings),
        "recipe": digest(settings),
        "encoder": encoder.identity,
    }
    table = write_table(buffer.sidecar / TABLE, progress_columns(buffer.episodes, scores), metadata)
    return Scored(scores, windows, embedded, table)


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
    check_scorable(buffer, settings.rules)
    return score_embedded(buffer, encoder, settings, embed(buffer, encoder, settings, skip_bad, on_episode))


def combined(embedded: Embedded) -> Sequence[WindowEmbeddings | None]:
    """One embedding a window from one or several cameras.

    Several cameras' embeddings stand side by side, so the distance is the root of the sum of the cameras' squared
    distances: a window is near a reference only where every camera says so.
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
    """By task, the whole-episode embeddings (S, D) of the successes of another, embedded dataset.

    Raises:
        UnlabelledError: an episode of it has no label.
        ScoringError: it has no success.
    """
    require_labels(buffer)
    found: dict[str, list[np.ndarray]] = {}
    for episode, windows in zip(buffer.episodes, combined(embedded), strict=True):
        if episode.success and windows is not None:
            found.setdefault(episode.task, []).append(windows.embeddings[-1])
    if not found:
        raise ScoringError(f"{buffer.root} has no success to serve as a reference; give another --reference")
    return {task: np.stack(ends) for task, ends in found.items()}


def progress_columns(episodes: tuple[Episode, ...], scores: Scores) -> dict[str, np.ndarray]:
    """The columns of progress.parquet, one row a frame, in the order of the dataset's `index`."""
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
        "trajectory_advantage": np.repeat(scores.trajectory_advantage, lengths),
    }


def read_progress(buffer: Buffer) -> Table:
    """The buffer's progress.parquet.

    Raises:
        StaleTable: absent, or of another state of the recorded data or its labels.
    """
    return read_table(
        buffer.sidecar / TABLE,
        refresh=f"srpo-robot score-dataset {buffer.root}",
        format=FORMAT,
        dataset=buffer.fingerprint,
        labels=buffer.labels_fingerprint,
    )


def read_settings(buffer: Buffer) -> ScoreSettings:
    """What the buffer was scored with. Raises as `read_progress`."""
    stored = read_progress(buffer).metadata["settings"]
    rules = stored["rules"] | {"skip_tasks": tuple(stored["rules"]["skip_tasks"])}
    return ScoreSettings(
        stored["encoder"],
        tuple(stored["cameras"]),
        WindowSpec(**stored["windows"]),
        Rules(**rules),
        stored["reference"],
        stored.get("dtype", "float32"),
    )


def read_curves(buffer: Buffer) -> tuple[Curve, ...]:
    """The curves of a scored buffer, one per episode. Raises as `read_progress`."""
    table = read_progress(buffer)
    spans = [slice(e.first_frame, e.first_frame + e.length) for e in buffer.episodes]
    return tuple(
        Curve(e.index, table["distance"][s], table["progress"][s], table["scored"][s])
        for e, s in zip(buffer.episodes, spans, strict=True)
    )


def check_scorable(buffer: Buffer, rules: Rules) -> None:
    """Raise UnlabelledError or ScoringError (see `score_buffer`) without decoding or loading anything."""
    require_labels(buffer)
    tasks = sorted({episode.task for episode in buffer.episodes})
    for task in rules.skip_tasks:
        if task not in tasks:
            raise ScoringError(f"no task {task!r} to skip; there are: {', '.join(map(repr, tasks))}")
    if rules.profile == "siirl" or parse_references(rules.reference_name).external:
        return
    for task in tasks:
        if task not in rules.skip_tasks and not any(e.success for e in buffer.episodes if e.task == task):
            raise ScoringError(
                f"task {task!r} has no success, so nothing to measure against; label or record one, leave the task "
                f"out: --skip-task {task!r}, or measure against another dataset: --reference DATASET"
            )
