"""References of a task: the points that its failures are measured against (eq. 3), by named strategy.

A strategy turns whole-episode embeddings h_i of successes, (S, D), into `References`, never across tasks. The rest of
the package only calls `references.distance(embeddings)`. A new strategy is a function here, a line in `BUILDERS`, and a
name in `config.STRATEGIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.preprocessing import StandardScaler

from srpo_robot.errors import ScoringError
from srpo_robot.progress.config import parse_reference_name

MIN_CLUSTERED = 4  # with fewer successes there is nothing to cluster
SIIRL_EPS = 0.5  # siiRL's radius, in the scaled space


@dataclass(frozen=True, eq=False, kw_only=True)
class References:
    """Points that episodes of a task are measured against.

    Attributes:
        centres: (k, D) points [embedding units].
        sizes: (k,) number of successes behind each centre.
        noise: number of successes that the clustering called noise.
        eps: neighbourhood radius [embedding units], for `siirl` [standard deviations]; NaN if the strategy has none.
        members: k arrays, rows of the successes that each centre stands for. For `medoid` its whole cluster.
        strategy: name of the strategy that built it.
        nearest: a distance is the mean of the distances to this many nearest centres (1: eq. 4).
    """

    centres: np.ndarray
    sizes: np.ndarray
    noise: int
    eps: float
    members: tuple[np.ndarray, ...] = ()
    strategy: str = "dbscan-auto"
    nearest: int = 1

    @property
    def k(self) -> int:
        """Number of centres."""
        return len(self.centres)

    @property
    def degenerate(self) -> bool:
        """True if many successes form one cluster: the centre is their plain mean, weak for varied layouts."""
        return self.k == 1 and int(self.sizes[0]) >= MIN_CLUSTERED

    def distance(self, embeddings: np.ndarray) -> np.ndarray:
        """Returns the L2 distance of each embedding (n, D) to the references: (n,) [embedding units].

        This is eq. 4 if `nearest` is 1. Memory n * k numbers, time n * k * D. Distances are exact (no expansion into
        dot products), so a point on a centre is at 0.
        """
        distances = cdist(np.asarray(embeddings, dtype=np.float64), self.centres)
        count = min(self.nearest, self.k)
        return np.sort(np.partition(distances, count - 1, axis=1)[:, :count], axis=1).mean(axis=1)


@dataclass(frozen=True)
class Strategy:
    """A way to build references. Call it with the embeddings of successes (S, D).

    Attributes:
        name: its name, as in `ScoringConfig.references`.
        build: turns checked float64 points (S, D), S >= 1, into references.
        external: the points are another dataset's successes, not the task's own.
    """

    name: str
    build: Callable[[np.ndarray], References]
    external: bool = False

    def __call__(self, successes: np.ndarray) -> References:
        """Returns the references of the successes (S, D).

        Raises:
            ScoringError: there is no success, or an embedding is not finite.
        """
        if len(successes) == 0:
            raise ScoringError("a task without a success has no reference; label one, or --skip-task it")
        if not np.isfinite(successes).all():
            raise ScoringError("a success has an embedding that is not finite; embed the dataset again")
        return self.build(np.asarray(successes, dtype=np.float64))


def parse_references(name: str) -> Strategy:
    """Returns the strategy of that name. See `config.parse_reference_name` for the names and the errors."""
    parsed = parse_reference_name(name)
    eps = parsed.eps
    if eps is None:
        return Strategy(parsed.name, BUILDERS[parsed.strategy], parsed.external)
    label = parsed.name.removeprefix("external:")
    return Strategy(parsed.name, lambda points: _fixed_eps(points, eps, label), parsed.external)


def _grouped(
    points: np.ndarray, members: Sequence[np.ndarray], noise: int, eps: float, strategy: str, nearest: int = 1
) -> References:
    """Returns references at the means of `members`."""
    centres = np.stack([points[rows].mean(axis=0) for rows in members])
    return References(
        centres=centres,
        sizes=np.array([len(rows) for rows in members]),
        noise=noise,
        eps=eps,
        members=tuple(members),
        strategy=strategy,
        nearest=nearest,
    )


def _clusters(labels: np.ndarray, singletons: bool = True) -> list[np.ndarray]:
    """Returns the rows of each cluster of scikit-learn labels, then (if `singletons`) each noise point by itself."""
    clusters = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    return clusters + [np.array([row]) for row in np.flatnonzero(labels < 0) if singletons]


def _mean(points: np.ndarray, strategy: str = "mean", noise: int = 0, eps: float = math.nan) -> References:
    """One centre: the mean of all successes."""
    return _grouped(points, [np.arange(len(points))], noise, eps, strategy)


def _each(points: np.ndarray, strategy: str, nearest: int) -> References:
    """Every success is its own centre."""
    return _grouped(points, [np.array([row]) for row in range(len(points))], 0, math.nan, strategy, nearest)


def _nearest(points: np.ndarray) -> References:
    """Every success is its own centre: the paper's ablation "w/o cluster"."""
    return _each(points, "nearest", 1)


def _knn3(points: np.ndarray) -> References:
    """Mean of the distances to the 3 nearest successes (to all of them if there are fewer); ours.

    This is not the distance to the mean point of the 3. That point averages layouts, which made the plain mean a weak
    reference, and it jumps when a neighbour changes. The mean distance is 1-Lipschitz in the embedding, so a curve has
    no step that is not in the video.
    """
    return _each(points, "knn3", 3)


def _dbscan(points: np.ndarray, distances: np.ndarray, eps: float, strategy: str) -> References:
    labels = DBSCAN(eps=eps, min_samples=2, metric="precomputed").fit_predict(distances)
    return _grouped(points, _clusters(labels), int((labels < 0).sum()), eps, strategy)


def _dbscan_auto(points: np.ndarray) -> References:
    """The default, `dbscan-auto` (ours; the paper gives no radius): DBSCAN on the successes' embeddings (S, D).

    Raw L2, min_samples 2, eps twice the median distance to the nearest neighbour. Noise points stay as singletons.
    The result is the plain mean if there are fewer than 4 successes, or if most are copies of each other.
    """
    if len(points) < MIN_CLUSTERED:
        return _mean(points, "dbscan-auto")
    distances = cdist(points, points)
    eps = 2.0 * float(np.median((distances + np.diag(np.full(len(points), np.inf))).min(axis=1)))
    if eps == 0.0:  # most successes are copies of each other
        return _mean(points, "dbscan-auto")
    return _dbscan(points, distances, eps, "dbscan-auto")


def _fixed_eps(points: np.ndarray, eps: float, strategy: str) -> References:
    """DBSCAN with a given radius: raw L2, min_samples 2, noise as singletons (eq. 3)."""
    if len(points) < MIN_CLUSTERED:
        return _mean(points, strategy)
    return _dbscan(points, cdist(points, points), eps, strategy)


def _medoid(points: np.ndarray) -> References:
    """The clusters of dbscan-auto, each represented by the real success that is nearest to its centre; ours.

    Two successes are equally near to their mean. Such a tie goes to the lexicographically smaller embedding, so the
    order of episodes does not matter.
    """
    clusters = _dbscan_auto(points)
    centres = []
    for centre, rows in zip(clusters.centres, clusters.members, strict=True):
        distances = np.linalg.norm(points[rows] - centre, axis=1)
        tied = points[rows[distances <= distances.min() * (1 + 1e-9)]]
        centres.append(min(tied, key=tuple))
    return replace(clusters, centres=np.stack(centres), strategy="medoid")


def _hdbscan(points: np.ndarray) -> References:
    """HDBSCAN, raw L2, min_cluster_size 2, noise as singletons; it has no radius to choose. Ours.

    It never returns one cluster for everything. Successes in one blob are split, or become noise, that is singletons.
    """
    if len(points) < MIN_CLUSTERED:
        return _mean(points, "hdbscan")
    clustering = HDBSCAN(min_cluster_size=2, copy=True)  # pyright: ignore[reportArgumentType]  # its stub says str
    labels = clustering.fit_predict(points)
    return _grouped(points, _clusters(labels), int((labels < 0).sum()), math.nan, "hdbscan")


def _siirl(points: np.ndarray) -> References:
    """siiRL's clustering: features standardised over the successes, then DBSCAN with eps 0.5 and min_samples 2.

    Noise is dropped if there is a cluster. If there is none, the mean of all successes replaces it. The latter is the
    usual case: after scaling, the mean squared distance of a pair is exactly 2 D n/(n-1), so 0.5 joins only
    near-duplicates. Centres are means in the raw space (siiRL's inverse transform of the scaled mean is the same).
    """
    labels = DBSCAN(eps=SIIRL_EPS, min_samples=2).fit_predict(StandardScaler().fit_transform(points))
    noise = int((labels < 0).sum())
    members = _clusters(labels, singletons=False)
    return _grouped(points, members, noise, SIIRL_EPS, "siirl") if members else _mean(points, "siirl", noise, SIIRL_EPS)


BUILDERS: dict[str, Callable[[np.ndarray], References]] = {
    "dbscan-auto": _dbscan_auto,
    "mean": _mean,
    "nearest": _nearest,
    "knn3": _knn3,
    "medoid": _medoid,
    "hdbscan": _hdbscan,
    "siirl": _siirl,
}
