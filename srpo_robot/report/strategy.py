"""The strategy map of a task without its picture: where its episodes lie, and which one stands for each cluster.

Whole-episode embeddings h_i are projected to their two principal axes; a cluster of successes (eq. 3) is one way to do
the task, and its medoid, the real success nearest to its centre, is the one to look at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from srpo_robot.progress.references import MIN_CLUSTERED, References

EACH = ("nearest", "knn3")  # strategies without clusters: every success is its own centre
OUTSIDE = -1  # the cluster of a failure, a noise point or a singleton
EXACT = 500  # [points or dimensions] up to here the decomposition is exact; above it is randomised, with a fixed seed


@dataclass(frozen=True, eq=False)
class Plane:
    """The two principal axes of some points.

    Attributes:
        origin: (D,) their mean.
        axes: (2, D) unit vectors; zero where the points span less.
        shares: (2,) of the variance along each axis, in [0, 1]; NaN where all points are equal.
    """

    origin: np.ndarray
    axes: np.ndarray
    shares: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Coordinates (n, 2) of points (n, D) [embedding units]."""
        return (np.asarray(points, dtype=np.float64) - self.origin) @ self.axes.T


@dataclass(frozen=True, eq=False)
class Strip:
    """A cluster to look at: `size` successes, and the row (of the map's episodes) of the one that stands for it."""

    size: int
    medoid: int


@dataclass(frozen=True, eq=False, kw_only=True)
class StrategyMap:
    """One task, ready to draw. n episodes, k references.

    Attributes:
        task: language instruction.
        episodes: (n,) episode_index.
        success: (n,) bool.
        points: (n, 2) projected h_i.
        centres: (k, 2) projected references; (0, 2) where every success is its own.
        shares: (2,) of the variance that the axes explain; NaN where there is none.
        cluster: (n,) 0 for the largest cluster, 1 for the next ...; `OUTSIDE` for everything else.
        strips: the clusters, then the singletons, largest first; one where there are no clusters.
        notes: what a reader should know, in whole sentences.
    """

    task: str
    episodes: np.ndarray
    success: np.ndarray
    points: np.ndarray
    centres: np.ndarray
    shares: np.ndarray
    cluster: np.ndarray
    strips: tuple[Strip, ...]
    notes: tuple[str, ...]

    @property
    def clustered(self) -> bool:
        """Whether some reference stands for two successes or more."""
        return bool((self.cluster != OUTSIDE).any())


def principal_plane(points: np.ndarray) -> Plane:
    """The plane through the mean of points (n, D), n >= 1, along their first two principal axes."""
    points = np.asarray(points, dtype=np.float64)
    if (points == points[0]).all():
        return Plane(points[0], np.zeros((2, points.shape[1])), np.full(2, np.nan))
    solver = "full" if min(points.shape) <= EXACT else "randomized"
    found = PCA(min(2, *points.shape), svd_solver=solver, random_state=0).fit(points)
    axes, shares = np.zeros((2, points.shape[1])), np.zeros(2)
    rank = found.n_components_
    axes[:rank], shares[:rank] = found.components_, found.explained_variance_ratio_
    return Plane(found.mean_, axes, shares)


def medoid(points: np.ndarray, centre: np.ndarray) -> int:
    """Row of the point (n, D) nearest to `centre` (D,); of equally near ones (two around their mean) the first."""
    distances = np.linalg.norm(np.asarray(points, dtype=np.float64) - centre, axis=1)
    return int(np.flatnonzero(distances <= distances.min() * (1 + 1e-9))[0])


def most_central(points: np.ndarray) -> int:
    """Row of the point (n, D) with the least mean distance to the others; of equal ones the first."""
    mean = cdist(points, points).mean(axis=1)
    return int(np.flatnonzero(mean <= mean.min() * (1 + 1e-9))[0])


def strategy_map(
    task: str,
    episodes: np.ndarray,
    success: np.ndarray,
    embeddings: np.ndarray,
    references: References,
    reference_episodes: np.ndarray,
) -> StrategyMap:
    """The map of one task.

    Args:
        episodes, success, embeddings: (n,), (n,), (n, D) of the task's scored episodes; h_i, one row an episode.
        references, reference_episodes: as `Scores.references[task]` and `Scores.reference_episodes[task]`.
    """
    plane = principal_plane(embeddings)
    row_of = {int(index): row for row, index in enumerate(episodes)}
    reference_rows = np.array([row_of[int(index)] for index in reference_episodes], dtype=int)
    each = references.strategy in EACH
    cluster = np.full(len(episodes), OUTSIDE)
    strips: list[Strip] = []
    if len(reference_rows) and each:
        strips = [Strip(len(reference_rows), int(reference_rows[most_central(embeddings[reference_rows])]))]
    elif len(reference_rows):
        for number, place in enumerate(np.argsort(-references.sizes, kind="stable")):
            rows = reference_rows[references.members[place]]
            strips.append(Strip(len(rows), int(rows[medoid(embeddings[rows], references.centres[place])])))
            if len(rows) > 1:
                cluster[rows] = number
    shown = np.zeros((0, references.centres.shape[1])) if each and len(reference_rows) else references.centres
    notes = _notes(references, len(reference_rows), each)
    return StrategyMap(
        task=task,
        episodes=episodes,
        success=success,
        points=plane.project(embeddings),
        centres=plane.project(shown),
        shares=plane.shares,
        cluster=cluster,
        strips=tuple(strips),
        notes=notes,
    )


def _notes(references: References, successes: int, each: bool) -> tuple[str, ...]:
    name = _strategy(references)
    if successes == 0:
        return ("The references (stars) are another dataset's successes, so there is no cluster of this task's own.",)
    if successes == 1:
        return ("One success: it is the only reference.",)
    if each:
        return (f"{name}: each success is its own reference, so there are no clusters; the strip is the most central.",)
    if references.k == 1:
        return (_one_centre(references, successes),)
    clusters = int((references.sizes > 1).sum())
    singletons = references.k - clusters
    text = f"{name}: {_count(clusters, 'cluster')}"
    if singletons:
        text += f" and {_count(singletons, 'success', 'es')} alone, each its own reference"
    left = successes - int(references.sizes.sum())
    return (text + ("." if not left else f"; {_count(left, 'success', 'es')} called noise, no reference."),)


def _one_centre(references: References, successes: int) -> str:
    name = _strategy(references)
    if name == "mean":
        return f"mean: the reference is the mean of all {successes} successes, as asked for."
    if references.noise == successes:
        return f"{name} called all {successes} successes noise, so their mean is the reference."
    if successes < MIN_CLUSTERED:
        return f"{successes} successes are too few to cluster (it takes {MIN_CLUSTERED}): one reference for all."
    inside = int(references.sizes[0])
    if inside < successes:
        return f"{name}: one cluster of {inside}; {_count(successes - inside, 'success', 'es')} called noise."
    return f"{name} degenerated: all {successes} successes form one cluster, a weak reference for varied layouts."


def _strategy(references: References) -> str:
    """Its name; a radius that was asked for is said to be one."""
    name = references.strategy
    return f"radius {name}" if name[:1].isdigit() or name[:1] == "." else name


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
