"""How much does a score pay for endings that we know to be wrong? The counterfactual pack through the one pipeline."""

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


@dataclass(frozen=True)
class OverReward:
    """One kind of variant, over the successes it was made of.

    Attributes:
        variant: what was done.
        count: how many were made.
        final, source: mean final progress of the variants, and of the successes they were made of.
        excess: mean of how far a variant ends above the moment up to which it was real.
        share: of variants that end above it.
        undefined: variants without a progress.
    """

    variant: str
    count: int
    final: float
    source: float
    excess: float
    share: float
    undefined: int


@dataclass(frozen=True, eq=False)
class _Made:
    """A variant, the episode it is scored as, and the rows of its source and donor among all episodes."""

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
    """Make the variants of up to `count` successes, score them beside the dataset, and compare with what is allowed.

    Args:
        windows: of all episodes, by this encoder, camera and spec.
        rules: of the score under test; profile `loo`, as a variant is left out with its source.
        on_success: called after each success whose variants are embedded.
        colours: of target and distractor as they look, for the wrong object; None: without it.

    Raises:
        ScoringError: no success has windows.
        UndecodableFrame: names episode and frame.
    """
    rows = [i for i, e in enumerate(buffer.episodes) if e.success and e.length > 1 and windows[i] is not None]
    if not rows:
        raise ScoringError("no success to make variants of; label or record one")
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
    made: list[_Made] = []
    for row in chosen:
        first = len(buffer.episodes) + len(made)
        made += _variants_of(buffer, camera, encoder, spec, row, seed, first, colours)
        if on_success is not None:
            on_success(buffer.episodes[row])
    scores = score([*buffer.episodes, *(m.episode for m in made)], [*windows, *(m.windows for m in made)], rules)
    progress = [curve.progress for curve in scores.curves]
    own = progress[len(buffer.episodes) :]
    return [
        _summary(name, [(m, p) for m, p in zip(made, own, strict=True) if m.variant.name == name], progress)
        for name in dict.fromkeys(m.variant.name for m in made)
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
) -> list[_Made]:
    """The variants of one success, embedded. Donors: the next failure of its task, the next episode of another."""
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
    made = []
    for variant in variants(prepared[row], seed + source.index, ends["failure"], ends["other-task"], colours):
        episode = variant_episode(source, variant, first + len(made))
        embedded = embed_frames(variant.frames, encoder, spec, episode.index)
        made.append(_Made(variant, episode, embedded, row, donors.get(variant.name.partition(":")[2])))
    return made


def _summary(name: str, members: list[tuple[_Made, np.ndarray]], progress: Sequence[np.ndarray]) -> OverReward:
    final = np.array([own[-1] for _, own in members])
    source = np.array([progress[made.source][-1] for made, _ in members])
    excess = np.array(
        [
            over_reward(
                own[-1], made.variant, progress[made.source], None if made.donor is None else progress[made.donor]
            )
            for made, own in members
        ]
    )
    known = np.isfinite(excess)
    if not known.any():
        return OverReward(name, len(members), math.nan, math.nan, math.nan, math.nan, len(members))
    return OverReward(
        name,
        len(members),
        float(final[known].mean()),
        float(source[known].mean()),
        float(excess[known].mean()),
        float((excess[known] > 0.0).mean()),
        int((~known).sum()),
    )
