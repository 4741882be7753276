"""Computes the strategy map of a task: positions of its episodes, clusters, and a representative of each cluster.

Whole-episode embeddings h_i are projected to their two principal axes. A cluster of successes (eq. 3) is one strategy
for the task. Its medoid, the success nearest to the cluster's centre, represents it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from srpo_robot.progress.references import MIN_CLUSTERED, References

EACH = ("nearest", "knn3")  # reference strategies without clusters: each success is its own centre
OUTSIDE = -1  # cluster of failures, noise points and singletons
EXACT = 500  # largest size of an exact decomposition [points or dimensions]; above, it is randomised with a fixed seed


@dataclass(frozen=True, eq=False)
class Plane:
    """The two principal axes of some points.

    Attributes:
        origin: (D,) mean of the points.
        axes: (2, D) unit vectors, zero if the points span fewer dimensions.
        shares: (2,) share of the variance along each axis, in [0, 1]. NaN if all points are equal.
    """

    origin: np.ndarray
    axes: np.ndarray
    shares: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """Returns the coordinates (n, 2) of points (n, D) [embedding units]."""
        return (np.asarray(points, dtype=np.float64) - self.origin) @ self.axes.T


@dataclass(frozen=True, eq=False)
class Strip:
    """A cluster with a film strip.

    Attributes:
        size: number of successes in the cluster.
        medoid: row of the representative success among the map's episodes.
    """

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
        centres: (k, 2) projected references, (0, 2) if each success is its own reference.
        shares: (2,) share of the variance along each axis, NaN if there is no variance.
        cluster: (n,) 0 for the largest cluster, 1 for the next one, and so on. `OUTSIDE` for all other episodes.
        strips: clusters, then singletons, largest first. A single strip if there are no clusters.
        notes: remarks for the reader, in whole sentences.
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
        """Whether a cluster with two or more successes exists."""
        return bool((self.cluster != OUTSIDE).any())


def principal_plane(points: np.ndarray) -> Plane:
    """Returns the plane through the mean of points (n, D), n >= 1, along their first two principal axes."""
    points = np.asarray(points, dtype=np.float64)
    if (points == points[0]).all():
        return Plane(points[0], np.zeros((2, points.shape[1])), np.full(2, np.nan))
    solver = "full" if min(points.shape) <= EXACT else "randomized"
    pca = PCA(min(2, *points.shape), svd_solver=solver, random_state=0).fit(points)
    axes, shares = np.zeros((2, points.shape[1])), np.zeros(2)
    rank = pca.n_components_
    axes[:rank], shares[:rank] = pca.components_, pca.explained_variance_ratio_
    return Plane(pca.mean_, axes, shares)


def medoid(points: np.ndarray, centre: np.ndarray) -> int:
    """Returns the row of the point (n, D) nearest to `centre` (D,). Among equally near points the first one wins."""
    distances = np.linalg.norm(np.asarray(points, dtype=np.float64) - centre, axis=1)
    return int(np.flatnonzero(distances <= distances.min() * (1 + 1e-9))[0])


def most_central(points: np.ndarray) -> int:
    """Returns the row of the point (n, D) with the least mean distance to the others. The first of equals wins."""
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
    """Computes the map of one task.

    Args:
        episodes: (n,) episode_index of the task's scored episodes.
        success: (n,) bool.
        embeddings: (n, D) whole-episode embeddings h_i.
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
    noise = successes - int(references.sizes.sum())
    return (text + ("." if not noise else f"; {_count(noise, 'success', 'es')} called noise, no reference."),)


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
    """Returns the strategy's name. A number is a DBSCAN radius."""
    name = references.strategy
    return f"radius {name}" if name[:1].isdigit() or name[:1] == "." else name


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"
