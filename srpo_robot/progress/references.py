"""References of a task: centres of its successes, clustered on whole-episode embeddings (eq. 3). Never across tasks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import DBSCAN

from srpo_robot.errors import ScoringError

MIN_CLUSTERED = 4  # fewer successes than this: their mean


@dataclass(frozen=True, eq=False)
class References:
    """What failures of a task are measured against.

    Attributes:
        centres: (k, D) cluster means; noise points stay as centres of their own.
        sizes: (k,) successes behind each centre.
        noise: successes that DBSCAN called noise.
        eps: neighbourhood radius [embedding units]; NaN where nothing was clustered.
    """

    centres: np.ndarray
    sizes: np.ndarray
    noise: int
    eps: float

    @property
    def degenerate(self) -> bool:
        """One cluster out of many successes: the centre is their plain mean, a weak reference for varied layouts."""
        return len(self.centres) == 1 and int(self.sizes[0]) >= MIN_CLUSTERED


def nn2_references(successes: np.ndarray) -> References:
    """DBSCAN on the successes' embeddings (S, D): raw L2, min_samples 2, eps twice the median nearest neighbour's.

    Raises:
        ScoringError: no success, or a value that is not finite.
    """
    if len(successes) == 0:
        raise ScoringError("a task without a success has no reference; label one, or --skip-task it")
    if not np.isfinite(successes).all():
        raise ScoringError("a success has an embedding that is not finite; embed the dataset again")
    points = np.asarray(successes, dtype=np.float64)
    mean = References(points.mean(axis=0, keepdims=True), np.array([len(points)]), 0, float("nan"))
    if len(points) < MIN_CLUSTERED:
        return mean
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    eps = 2.0 * float(np.median(distances.min(axis=1)))
    if eps == 0.0:  # most successes are copies of each other
        return mean
    labels = DBSCAN(eps=eps, min_samples=2).fit_predict(points)
    clusters = [points[labels == label] for label in range(labels.max() + 1)]
    clusters += [points[i : i + 1] for i in np.flatnonzero(labels == -1)]
    centres = np.stack([cluster.mean(axis=0) for cluster in clusters])
    sizes = np.array([len(cluster) for cluster in clusters])
    return References(centres, sizes, int((labels == -1).sum()), eps)


def nearest_distance(embeddings: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """L2 distance of each embedding (n, D) to the nearest of `centres` (k, D): (n,) (eq. 4)."""
    points = np.asarray(embeddings, dtype=np.float64)
    return np.linalg.norm(points[:, None] - centres[None], axis=-1).min(axis=1)
