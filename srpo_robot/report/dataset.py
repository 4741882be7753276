"""What a report reads: the tables that scoring left on disk, and where each failure fell back most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from srpo_robot.awr.tables import TABLE as ADVANTAGE
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.tables import Table, read_table
from srpo_robot.errors import StaleTable, UndecodableFrame
from srpo_robot.progress.embed import Embedded, StoredWindows, store_key
from srpo_robot.progress.pipeline import STORE, Provenance, combined, provenance_of, read_progress
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.records import Episode
from srpo_robot.report.frames import spread
from srpo_robot.report.regress import Match, Regress, nearest_windows, window_at, worst_regress

MAX_COMPARED = 400  # successes of a task that a failure is compared with, evenly over the dataset


@dataclass(frozen=True, eq=False)
class ScoredDataset:
    """A scored buffer as its tables have it.

    Attributes:
        buffer: the dataset.
        progress: progress.parquet.
        provenance: config and encoder that it was scored with.
        weights: (N,) weight of each frame; None where there is none.
        no_weights: why.
    """

    buffer: Buffer
    progress: Table
    provenance: Provenance
    weights: np.ndarray | None
    no_weights: str = ""

    @property
    def camera(self) -> str:
        """The camera whose frames are shown: the first one that was scored."""
        return self.provenance.config.cameras[0]

    def of(self, column: str, episode: Episode) -> np.ndarray:
        """(T,) one column of progress.parquet in one episode."""
        return self.progress[column][episode.first_frame : episode.first_frame + episode.length]

    def weights_of(self, episode: Episode) -> np.ndarray | None:
        """(T,) weights of one episode."""
        return None if self.weights is None else self.weights[episode.first_frame :][: episode.length]

    @cached_property
    def regresses(self) -> dict[int, Regress | None]:
        """By episode_index, where its step value falls most (None: nowhere); without those whose value is undefined."""
        values = {e.index: self.of("value", e) for e in self.buffer.episodes}
        return {index: worst_regress(value) for index, value in values.items() if np.isfinite(value).all()}


def read_scored(buffer: Buffer) -> ScoredDataset:
    """Read what scoring left in DATASET/srpo.

    Raises:
        StaleTable: never scored, or the data or its labels changed since; names the command. Missing weights are not
            an error: `no_weights` says why.
    """
    progress = read_progress(buffer)
    provenance = provenance_of(progress)
    try:
        table = read_table(
            buffer.sidecar / ADVANTAGE,
            refresh=f"srpo-robot score-dataset {buffer.root}",
            dataset=buffer.fingerprint,
            parent=progress.metadata["content"],
        )
    except StaleTable as error:
        return ScoredDataset(buffer, progress, provenance, None, str(error))
    return ScoredDataset(buffer, progress, provenance, table["weight"])


class Embeddings:
    """The window embeddings that a score was made from, one episode at a time, without loading an encoder."""

    def __init__(self, scored: ScoredDataset) -> None:
        """Raises StaleTable if they are gone."""
        self._buffer = scored.buffer
        path = scored.buffer.sidecar / STORE
        refresh = f"run: srpo-robot score-dataset {scored.buffer.root}"
        if not path.is_dir():  # looked at first: opening the store would make it
            raise StaleTable(f"there are no embeddings at {path}; {refresh}")
        self._store = EmbeddingStore(path)
        self._config = scored.provenance.config
        self._encoder: Any = SimpleNamespace(
            identity=scored.provenance.encoder.identity, frames_per_clip=self._config.frames_per_clip
        )

    def of(self, episode: Episode) -> WindowEmbeddings | None:
        """Its windows; None where they are not in the store."""
        try:
            keys = {
                camera: store_key(self._encoder, self._buffer.video_identity(episode, camera), self._config)
                for camera in self._config.cameras
            }
        except UndecodableFrame:
            return None
        if any(key not in self._store for key in keys.values()):
            return None
        views = {camera: StoredWindows(self._store, [key]) for camera, key in keys.items()}
        return combined(Embedded(views, 0, {}))[0]


@dataclass(frozen=True, eq=False)
class Fall:
    """The worst regress of a failure, and the success that was in the same place: `match`, or why there is none."""

    episode: Episode
    regress: Regress
    match: Match | None = None
    why: str = ""


def worst_falls(scored: ScoredDataset, count: int) -> list[Fall]:
    """The failures that fall back most, at most `count`, the largest fall first."""
    regresses = scored.regresses
    falls = [
        Fall(e, regress)
        for e in scored.buffer.episodes
        if e.success is False and (regress := regresses.get(e.index)) is not None
    ]
    return sorted(falls, key=lambda fall: (-fall.regress.drop, fall.episode.index))[:count]


def matched(scored: ScoredDataset, falls: Sequence[Fall]) -> list[Fall]:
    """`falls` with, for each, the success window nearest to its window at the regress's start.

    Of the same task and outside the episode's own group; at most `MAX_COMPARED` successes a task are looked at.
    """
    try:
        embeddings = Embeddings(scored)
    except StaleTable as error:
        return [Fall(fall.episode, fall.regress, None, str(error)) for fall in falls]
    found: dict[int, Fall] = {}
    for task in dict.fromkeys(fall.episode.task for fall in falls):
        members = [fall for fall in falls if fall.episode.task == task]
        found |= {fall.episode.index: fall for fall in _matched_task(scored, embeddings, members)}
    return [found[fall.episode.index] for fall in falls]


def _matched_task(scored: ScoredDataset, embeddings: Embeddings, falls: list[Fall]) -> list[Fall]:
    own = {fall.episode.index: embeddings.of(fall.episode) for fall in falls}
    known = [(fall, windows) for fall in falls if (windows := own[fall.episode.index]) is not None]
    successes = [e for e in scored.buffer.episodes if e.task == falls[0].episode.task and e.success]
    picked = [successes[i] for i in spread(len(successes), MAX_COMPARED)] if successes else []
    matches: dict[int, Match | None] = {}
    if known:
        found = nearest_windows(
            np.stack([window_at(windows, fall.regress.start) for fall, windows in known]),
            [fall.episode.group for fall, _ in known],
            ((e.index, e.group, windows) for e in picked if (windows := embeddings.of(e)) is not None),
        )
        matches = {fall.episode.index: match for (fall, _), match in zip(known, found, strict=True)}
    missing = "its embeddings are not in the store any more; score again to compare it with a success"
    alone = "no success of the task outside its own group to compare it with"
    return [
        Fall(fall.episode, fall.regress, matches.get(fall.episode.index),
             alone if fall.episode.index in matches else missing)
        for fall in falls
    ]  # fmt: skip
