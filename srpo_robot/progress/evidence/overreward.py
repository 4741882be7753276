"""Over-reward: how far a score rises above the allowed progress on counterfactual episodes.

The variants of `counterfactual` are embedded and scored by the same pipeline as the dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.errors import ScoringError
from srpo_robot.progress.embed import embed_frames
from srpo_robot.progress.encoder import Encoder
from srpo_robot.progress.evidence.counterfactual import Colour, Variant, over_reward, variant_episode, variants
from srpo_robot.progress.score import Rules, WindowEmbeddings, score
from srpo_robot.progress.windows import WindowSpec
from srpo_robot.records import Episode


@dataclass(frozen=True, kw_only=True)
class OverReward:
    """Results for one kind of variant.

    Attributes:
        variant: kind of variant.
        count: number of variants.
        final, source: mean final progress of the variants, and of the successes they were made from.
        excess: mean distance of a variant's end above the progress at its last real frame.
        share: fraction of variants that end above it.
        undefined: number of variants without a progress.
    """

    variant: str
    count: int
    final: float
    source: float
    excess: float
    share: float
    undefined: int


@dataclass(frozen=True, eq=False)
class _VariantEpisode:
    """A variant, its episode and windows, and the rows of its source and donor in the list of all episodes."""

    variant: Variant
    episode: Episode
    windows: WindowEmbeddings
    source: int
    donor: int | None


def over_rewards(
    buffer: Buffer,
    camera: str,
    encoder: Encoder,
    spec: WindowSpec,
    windows: Sequence[WindowEmbeddings | None],
    rules: Rules,
    count: int,
    seed: int = 0,
    on_success: Callable[[Episode], None] | None = None,
    colours: tuple[Colour, Colour] | None = None,
) -> list[OverReward]:
    """Creates variants of up to `count` successes, scores them with the dataset and compares them with `allowed`.

    Args:
        buffer: the dataset.
        camera, encoder, spec: camera, encoder and windows of the score under test.
        windows: windows of all episodes by this encoder, camera and spec.
        rules: rules of the score under test. The profile must be `loo`, so that a variant is not measured against its
            own source.
        count: number of successes, spread evenly over the dataset.
        seed: seed of the variants.
        on_success: called after the variants of each success are embedded.
        colours: colours of target and distractor as they look in the video. None omits the variant "wrong-object".

    Raises:
        ScoringError: no success has windows.
        UndecodableFrame: a frame cannot be decoded. The message names episode and frame.
    """
    rows = [i for i, e in enumerate(buffer.episodes) if e.success and e.length > 1 and windows[i] is not None]
    if not rows:
        raise ScoringError("no success to make variants of; label or record one")
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    variant_episodes: list[_VariantEpisode] = []
    for row in chosen:
        first = len(buffer.episodes) + len(variant_episodes)
        variant_episodes += _variants_of(buffer, camera, encoder, spec, row, seed, first, colours)
        if on_success is not None:
            on_success(buffer.episodes[row])
    scores = score(
        [*buffer.episodes, *(c.episode for c in variant_episodes)],
        [*windows, *(c.windows for c in variant_episodes)],
        rules,
    )
    progress = [curve.progress for curve in scores.curves]
    members = list(zip(variant_episodes, progress[len(buffer.episodes) :], strict=True))
    return [
        _summary(name, [(c, p) for c, p in members if c.variant.name == name], progress)
        for name in dict.fromkeys(c.variant.name for c in variant_episodes)
    ]


def _variants_of(
    buffer: Buffer,
    camera: str,
    encoder: Encoder,
    spec: WindowSpec,
    row: int,
    seed: int,
    first: int,
    colours: tuple[Colour, Colour] | None,
) -> list[_VariantEpisode]:
    """Creates and embeds the variants of one success.

    Donors are the next failure of the same task and the next episode of another task.
    """
    source = buffer.episodes[row]
    after = [*range(row + 1, len(buffer.episodes)), *range(row)]
    failure = next(
        (i for i in after if buffer.episodes[i].task == source.task and not buffer.episodes[i].success), None
    )
    other = next((i for i in after if buffer.episodes[i].task != source.task), None)
    donors = {"failure": failure, "other-task": other}
    prepared = {
        i: encoder.prepare(buffer.frames(buffer.episodes[i], camera)) for i in (row, failure, other) if i is not None
    }
    ends = {kind: None if i is None else prepared[i] for kind, i in donors.items()}
    result = []
    for variant in variants(prepared[row], seed + source.index, ends["failure"], ends["other-task"], colours):
        episode = variant_episode(source, variant, first + len(result))
        embedded = embed_frames(variant.frames, encoder, spec, episode.index)
        result.append(_VariantEpisode(variant, episode, embedded, row, donors.get(variant.name.partition(":")[2])))
    return result


def _summary(
    name: str, members: list[tuple[_VariantEpisode, np.ndarray]], progress: Sequence[np.ndarray]
) -> OverReward:
    """Summarises one kind of variant. `members`: each variant with its own progress; `progress`: of all episodes."""
    final = np.array([curve[-1] for _, curve in members])
    source = np.array([progress[item.source][-1] for item, _ in members])
    excess = np.full(len(members), np.nan)
    for i, (item, curve) in enumerate(members):
        donor = None if item.donor is None else progress[item.donor]
        excess[i] = over_reward(curve[-1], item.variant, progress[item.source], donor)
    known = np.isfinite(excess)

    def mean(values: np.ndarray) -> float:  # over the variants that have a progress
        return float(values[known].mean()) if known.any() else math.nan

    return OverReward(
        variant=name,
        count=len(members),
        final=mean(final),
        source=mean(source),
        excess=mean(excess),
        share=mean(excess > 0.0),
        undefined=int((~known).sum()),
    )
