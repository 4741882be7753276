"""What a report reads: the tables that scoring left on disk, and where each failure fell back most."""

from __future__ import annotations

import re
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
from srpo_robot.progress.pipeline import STORE, ScoreSettings, combined, read_progress, read_settings
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import WindowSpec
from srpo_robot.recipes import Weighting
from srpo_robot.records import Episode
from srpo_robot.report.frames import spread
from srpo_robot.report.regress import Match, Regress, nearest_windows, window_at, worst_regress

MAX_COMPARED = 400  # successes of a task that a failure is compared with, evenly over the dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredDataset:
    """A scored buffer as its tables have it.

    Attributes:
        buffer: the dataset.
        progress: progress.parquet.
        settings: what it was scored with.
        weights: (N,) weight of each frame; None if they are undefined everywhere.
        weighting: the keys that the weights were made with.
        weighted: whether a command wrote the weights; if not, they are computed with the default weighting.
        no_weights: the reason, if there are none.
    """

    buffer: Buffer
    progress: Table
    settings: ScoreSettings
    weights: np.ndarray | None
    weighting: Weighting
    weighted: bool = False
    no_weights: str = ""

    @property
    def camera(self) -> str:
        """The camera whose frames are shown: the first one that was scored."""
        return self.settings.cameras[0]

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
    """Reads the tables in DATASET/srpo. Without a table of weights for this score, computes the default weights.

    Raises:
        StaleTable: never scored, or the data or its labels changed since; names the command. Missing weights are not
            an error: `no_weights` gives the reason.
    """
    progress, settings = read_progress(buffer), read_settings(buffer)
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
        settings=settings,
        weights=values,
        weighting=weighting,
        weighted=weighted,
        no_weights=reason,
    )


class Embeddings:
    """The window embeddings that a score was made from, one episode at a time, without loading an encoder."""

    def __init__(self, scored: ScoredDataset) -> None:
        """Raises StaleTable where they are gone, or cannot be told from those of other clips."""
        self._buffer = scored.buffer
        path = scored.buffer.sidecar / STORE
        refresh = f"run: srpo-robot score-dataset {scored.buffer.root}"
        if not path.is_dir():  # looked at first: opening the store would make it
            raise StaleTable(f"there are no embeddings at {path}; {refresh}")
        self._store = EmbeddingStore(path)
        self._cameras = scored.settings.cameras
        identity = scored.progress.metadata["encoder"]
        spec = scored.settings.windows
        if spec.frames_per_clip is None:
            clips = self._clip_lengths(identity)
            if len(clips) != 1:
                found = ", ".join(map(str, sorted(clips))) or "none"
                raise StaleTable(f"{path} does not say which embeddings are the score's (frames a clip: {found})")
            spec = spec.resolved(clips.pop())
        self._spec: WindowSpec = spec
        self._encoder: Any = SimpleNamespace(identity=identity, frames_per_clip=spec.frames_per_clip)

    def _clip_lengths(self, identity: str) -> set[int]:
        """Frames a clip of what this encoder embedded: the score's settings leave it to the encoder."""
        texts = (e.metadata.get("windows", "") for e in self._store.entries() if e.metadata.get("encoder") == identity)
        return {int(found[1]) for text in texts if (found := re.search(r"(\d+) frames$", str(text)))}

    def of(self, episode: Episode) -> WindowEmbeddings | None:
        """Its windows; None where they are not in the store."""
        try:
            keys = {
                camera: store_key(self._encoder, self._buffer.video_identity(episode, camera), self._spec)
                for camera in self._cameras
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
