"""Reads the tables of a scored dataset, and finds the largest fall of each failure with a matching success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np

from srpo_robot.awr.weighting import weights_of
from srpo_robot.awr.weights_table import read_weights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.tables import Table
from srpo_robot.errors import StaleTable, TrainingError, UndecodableFrame
from srpo_robot.progress.embed import Embedded, StoredWindows, store_key
from srpo_robot.progress.pipeline import STORE, Provenance, combined, provenance_of, read_progress
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.recipes import Weighting
from srpo_robot.records import Episode
from srpo_robot.report.frames import spread
from srpo_robot.report.regress import Match, Regress, nearest_windows, window_at, worst_regress

MAX_COMPARED = 400  # most successes of a task to compare with a failure, spread evenly over the dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredDataset:
    """A scored buffer with its tables.

    Attributes:
        buffer: the dataset.
        progress: progress.parquet.
        provenance: config and encoder of the score.
        weights: (N,) weight of each frame; None if they are undefined everywhere.
        weighting: the keys that the weights were made with.
        weighted: whether a command wrote the weights; if not, they are computed with the default weighting.
        no_weights: the reason, if there are none.
    """

    buffer: Buffer
    progress: Table
    provenance: Provenance
    weights: np.ndarray | None
    weighting: Weighting
    weighted: bool = False
    no_weights: str = ""

    @property
    def camera(self) -> str:
        """Camera whose frames the report shows: the first scored one."""
        return self.provenance.config.cameras[0]

    def of(self, column: str, episode: Episode) -> np.ndarray:
        """Returns one column of progress.parquet for one episode: (T,)."""
        return self.progress[column][episode.first_frame : episode.first_frame + episode.length]

    def weights_of(self, episode: Episode) -> np.ndarray | None:
        """Returns the weights of one episode: (T,)."""
        return None if self.weights is None else self.weights[episode.first_frame :][: episode.length]

    @cached_property
    def regresses(self) -> dict[int, Regress | None]:
        """Largest fall of each episode by episode_index, None if the value never falls.

        Episodes with an undefined step value are left out.
        """
        values = {e.index: self.of("value", e) for e in self.buffer.episodes}
        return {index: worst_regress(value) for index, value in values.items() if np.isfinite(value).all()}


def read_scored(buffer: Buffer) -> ScoredDataset:
    """Reads the tables in DATASET/srpo. Without a table of weights for this score, computes the default weights.

    Raises:
        StaleTable: the dataset was never scored, or its data or labels changed since. The message names the command.
            Missing weights are not an error: `no_weights` gives the reason.
    """
    progress = read_progress(buffer)
    values, weighting, weighted, reason = None, Weighting(), False, ""
    try:
        table = read_weights(buffer, progress)
        values, weighting, weighted = table["weight"], Weighting(**table.metadata["weighting"]), True
    except StaleTable:
        try:
            weights = weights_of(buffer, progress, weighting)
            values, weighting = weights.frames.values, weights.weighting
        except TrainingError as error:  # the value is undefined everywhere
            reason = str(error)
    return ScoredDataset(
        buffer=buffer,
        progress=progress,
        provenance=provenance_of(progress),
        weights=values,
        weighting=weighting,
        weighted=weighted,
        no_weights=reason,
    )


class Embeddings:
    """The window embeddings behind a score, read one episode at a time without loading an encoder."""

    def __init__(self, scored: ScoredDataset) -> None:
        """Raises StaleTable if the embeddings are gone."""
        self._buffer = scored.buffer
        path = scored.buffer.sidecar / STORE
        refresh = f"run: srpo-robot score-dataset {scored.buffer.root}"
        if not path.is_dir():  # checked first, because opening the store would create it
            raise StaleTable(f"there are no embeddings at {path}; {refresh}")
        self._store = EmbeddingStore(path)
        self._config = scored.provenance.config
        self._encoder: Any = SimpleNamespace(
            identity=scored.provenance.encoder.identity, frames_per_clip=self._config.frames_per_clip
        )

    def of(self, episode: Episode) -> WindowEmbeddings | None:
        """Returns the windows of an episode, None if they are not in the store."""
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
    """The largest fall of a failure, and the most similar success window.

    Attributes:
        episode: the failure.
        regress: the fall.
        match: nearest window of a success, None if there is none.
        why: why there is no match.
    """

    episode: Episode
    regress: Regress
    match: Match | None = None
    why: str = ""


def worst_falls(scored: ScoredDataset, count: int) -> list[Fall]:
    """Returns the `count` failures with the largest falls, largest first."""
    regresses = scored.regresses
    falls = [
        Fall(e, regress)
        for e in scored.buffer.episodes
        if e.success is False and (regress := regresses.get(e.index)) is not None
    ]
    return sorted(falls, key=lambda fall: (-fall.regress.drop, fall.episode.index))[:count]


def matched(scored: ScoredDataset, falls: Sequence[Fall]) -> list[Fall]:
    """Returns `falls`, each with the success window nearest to its window at the fall's start.

    The success has the same task and another group. At most `MAX_COMPARED` successes per task are compared.
    """
    try:
        embeddings = Embeddings(scored)
    except StaleTable as error:
        return [Fall(fall.episode, fall.regress, None, str(error)) for fall in falls]
    by_episode: dict[int, Fall] = {}
    for task in dict.fromkeys(fall.episode.task for fall in falls):
        members = [fall for fall in falls if fall.episode.task == task]
        by_episode |= {fall.episode.index: fall for fall in _matched_task(scored, embeddings, members)}
    return [by_episode[fall.episode.index] for fall in falls]


def _matched_task(scored: ScoredDataset, embeddings: Embeddings, falls: list[Fall]) -> list[Fall]:
    known = [(fall, windows) for fall in falls if (windows := embeddings.of(fall.episode)) is not None]
    successes = [e for e in scored.buffer.episodes if e.task == falls[0].episode.task and e.success]
    compared = [successes[i] for i in spread(len(successes), MAX_COMPARED)] if successes else []
    matches: dict[int, Match | None] = {}
    if known:
        nearest = nearest_windows(
            np.stack([window_at(windows, fall.regress.start) for fall, windows in known]),
            [fall.episode.group for fall, _ in known],
            ((e.index, e.group, windows) for e in compared if (windows := embeddings.of(e)) is not None),
        )
        matches = {fall.episode.index: match for (fall, _), match in zip(known, nearest, strict=True)}
    missing = "its embeddings are not in the store any more; score again to compare it with a success"
    alone = "no success of the task outside its own group to compare it with"
    reasons = {fall.episode.index: alone if fall.episode.index in matches else missing for fall in falls}
    return [
        Fall(fall.episode, fall.regress, matches.get(fall.episode.index), reasons[fall.episode.index]) for fall in falls
    ]
