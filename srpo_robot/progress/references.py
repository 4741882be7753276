"""References of a task: what its failures are measured against (eq. 3), by named strategy. Never across tasks.

A strategy turns whole-episode embeddings h_i of successes, (S, D), into `References`; whatever it does, the rest of the
package only asks `references.distance(embeddings)`. A new one is a function and a line in `STRATEGIES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.preprocessing import StandardScaler

from srpo_robot.errors import ScoringError, UsageError
from srpo_robot.renames import REFERENCES, current

MIN_CLUSTERED = 4  # fewer successes than this: nothing to cluster
SIIRL_EPS = 0.5  # siiRL's radius, in the scaled space
EXTERNAL = "external"


@dataclass(frozen=True, eq=False)
class References:
    """What episodes of a task are measured against.

    Attributes:
        centres: (k, D) points [embedding units].
        sizes: (k,) successes behind each centre.
        noise: successes that the clustering called noise.
        eps: neighbourhood radius, [embedding units], for `siirl` [standard deviations]; NaN where there is none.
        members: k arrays, rows of the successes that each centre stands for. For `medoid` its whole cluster.
        strategy: name of what built it.
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
        """One cluster out of many successes: the centre is their plain mean, a weak reference for varied layouts."""
        return self.k == 1 and int(self.sizes[0]) >= MIN_CLUSTERED

    def distance(self, embeddings: np.ndarray) -> np.ndarray:
        """L2 distance of each embedding (n, D) to the references: (n,) [embedding units] (eq. 4 where `nearest` is 1).

        Memory n * k numbers, time n * k * D. Distances are exact (no expansion into dot products), so a point on a
        centre is at 0.
        """
        distances = cdist(np.asarray(embeddings, dtype=np.float64), self.centres)
        count = min(self.nearest, self.k)
        return np.sort(np.partition(distances, count - 1, axis=1)[:, :count], axis=1).mean(axis=1)


@dataclass(frozen=True)
class Strategy:
    """A way to get references; call it with successes (S, D).

    Attributes:
        name: as it was asked for.
        build: checked float64 points (S, D), S >= 1, to references.
        external: the points are another dataset's, not the task's own successes.
    """

    name: str
    build: Callable[[np.ndarray], References]
    external: bool = False

    def __call__(self, successes: np.ndarray) -> References:
        """References of the successes (S, D).

        Raises:
            ScoringError: no success, or a value that is not finite.
        """
        if len(successes) == 0:
            raise ScoringError("a task without a success has no reference; label one, or --skip-task it")
        if not np.isfinite(successes).all():
            raise ScoringError("a success has an embedding that is not finite; embed the dataset again")
        return self.build(np.asarray(successes, dtype=np.float64))


def parse_references(name: str) -> Strategy:
    """The strategy of that name.

    `dbscan-auto`, `mean`, `nearest`, `knn3`, `medoid`, `hdbscan`, `siirl`; a number: DBSCAN with that radius [embedding units];
    `external`: reference episodes of another dataset, each its own centre (the paper's "w/o self-reference");
    `external:NAME`: those episodes under another strategy, so that an ablation changes one thing only.

    Raises:
        UsageError: no such strategy; the message lists those there are.
    """
    name = current(name, REFERENCES)
    outer, _, inner = name.partition(":")
    if outer == EXTERNAL and inner != EXTERNAL and ":" not in inner and not (name.endswith(":")):
        return Strategy(name, parse_references(inner or "nearest").build, external=True)
    if name in STRATEGIES:
        return Strategy(name, STRATEGIES[name])
    eps = _positive(name)
    if eps is None:
        raise UsageError(
            f"no references {name!r}; there are: {', '.join(STRATEGIES)}, {EXTERNAL}, {EXTERNAL}:NAME, "
            "or a number (the radius of DBSCAN, for example 0.7)"
        )
    return Strategy(name, lambda points: _fixed_eps(points, eps, name))


def nn2_references(successes: np.ndarray) -> References:
    """The default, by name `dbscan-auto` (ours; the paper gives no radius): DBSCAN on the successes' embeddings (S, D).

    Raw L2, min_samples 2, eps twice the median nearest neighbour's distance; noise points stay as singletons; fewer
    than 4 successes, or mostly copies of each other: their mean.

    Raises:
        ScoringError: no success, or a value that is not finite.
    """
    return Strategy("dbscan-auto", _dbscan_auto)(successes)


def nearest_distance(embeddings: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """L2 distance of each embedding (n, D) to the nearest of `centres` (k, D): (n,) (eq. 4)."""
    points = np.asarray(embeddings, dtype=np.float64)
    return cdist(points, np.asarray(centres, dtype=np.float64)).min(axis=1)


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _grouped(
    points: np.ndarray, members: Sequence[np.ndarray], noise: int, eps: float, strategy: str, nearest: int = 1
) -> References:
    """References at the means of `members`."""
    centres = np.stack([points[rows].mean(axis=0) for rows in members])
    return References(centres, np.array([len(rows) for rows in members]), noise, eps, tuple(members), strategy, nearest)


def _clusters(labels: np.ndarray, singletons: bool = True) -> list[np.ndarray]:
    """Rows of each cluster of a scikit-learn labelling, then (with `singletons`) each noise point by itself."""
    found = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    return found + [np.array([row]) for row in np.flatnonzero(labels < 0) if singletons]


def _mean(points: np.ndarray, strategy: str = "mean", noise: int = 0, eps: float = math.nan) -> References:
    """One centre: the mean of all successes."""
    return _grouped(points, [np.arange(len(points))], noise, eps, strategy)


def _each(points: np.ndarray, strategy: str, nearest: int) -> References:
    return _grouped(points, [np.array([row]) for row in range(len(points))], 0, math.nan, strategy, nearest)


def _nearest(points: np.ndarray) -> References:
    """Every success is its own centre: the paper's ablation "w/o cluster"."""
    return _each(points, "nearest", 1)


def _knn3(points: np.ndarray) -> References:
    """Mean of the distances to the 3 nearest successes (all of them where there are fewer); ours.

    Not the distance to the mean point of the 3: that point averages layouts, which is what made the plain mean a weak
    reference, and it jumps where a neighbour changes. The mean distance is 1-Lipschitz in the embedding, so a curve
    has no steps that the video has not.
    """
    return _each(points, "knn3", 3)


def _dbscan(points: np.ndarray, distances: np.ndarray, eps: float, strategy: str) -> References:
    labels = DBSCAN(eps=eps, min_samples=2, metric="precomputed").fit_predict(distances)
    return _grouped(points, _clusters(labels), int((labels < 0).sum()), eps, strategy)


def _dbscan_auto(points: np.ndarray) -> References:
    if len(points) < MIN_CLUSTERED:
        return _mean(points, "dbscan-auto")
    distances = cdist(points, points)
    eps = 2.0 * float(np.median((distances + np.diag(np.full(len(points), np.inf))).min(axis=1)))
    if eps == 0.0:  # most successes are copies of each other
        return _mean(points, "dbscan-auto")
    return _dbscan(points, distances, eps, "dbscan-auto")


def _fixed_eps(points: np.ndarray, eps: float, strategy: str) -> References:
    """DBSCAN with a radius that was asked for: raw L2, min_samples 2, noise as singletons (eq. 3)."""
    if len(points) < MIN_CLUSTERED:
        return _mean(points, strategy)
    return _dbscan(points, cdist(points, points), eps, strategy)


def _medoid(points: np.ndarray) -> References:
    """The clusters of dbscan-auto, each stood for by the real success that is nearest to its centre; ours.

    Two successes are equally near to their mean: such a tie goes to the lexicographically smaller embedding, so that
    the order of episodes does not matter.
    """
    clusters = _dbscan_auto(points)
    centres = []
    for centre, rows in zip(clusters.centres, clusters.members, strict=True):
        distances = np.linalg.norm(points[rows] - centre, axis=1)
        tied = points[rows[distances <= distances.min() * (1 + 1e-9)]]
        centres.append(min(tied, key=tuple))
    return References(np.stack(centres), clusters.sizes, clusters.noise, clusters.eps, clusters.members, "medoid")


def _hdbscan(points: np.ndarray) -> References:
    """HDBSCAN, raw L2, min_cluster_size 2, noise as singletons; it has no radius to choose. Ours.

    It never returns one cluster for everything: successes in one blob are split or become noise, that is singletons.
    """
    if len(points) < MIN_CLUSTERED:
        return _mean(points, "hdbscan")
    clustering = HDBSCAN(min_cluster_size=2, copy=True)  # pyright: ignore[reportArgumentType]  # its stub says str
    labels = clustering.fit_predict(points)
    return _grouped(points, _clusters(labels), int((labels < 0).sum()), math.nan, "hdbscan")


def _siirl(points: np.ndarray) -> References:
    """As siiRL does it: features standardised over the successes, DBSCAN eps 0.5, min_samples 2 in that space.

    Noise is dropped where there is a cluster; where there is none the mean of all successes stands in. The latter is
    the usual case: after scaling, the mean squared distance of a pair is exactly 2 D n/(n-1), so 0.5 joins only
    near-duplicates. Centres are means in the raw space (siiRL's inverse transform of the scaled mean is the same).
    """
    labels = DBSCAN(eps=SIIRL_EPS, min_samples=2).fit_predict(StandardScaler().fit_transform(points))
    noise = int((labels < 0).sum())
    members = _clusters(labels, singletons=False)
    return _grouped(points, members, noise, SIIRL_EPS, "siirl") if members else _mean(points, "siirl", noise, SIIRL_EPS)


STRATEGIES: dict[str, Callable[[np.ndarray], References]] = {
    "dbscan-auto": _dbscan_auto,
    "mean": _mean,
    "nearest": _nearest,
    "knn3": _knn3,
    "medoid": _medoid,
    "hdbscan": _hdbscan,
    "siirl": _siirl,
}
