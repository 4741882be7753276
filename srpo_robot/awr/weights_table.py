"""DATASET/srpo/advantage.parquet: the advantages and weights that `train-awr` or `weights` computed last."""

from __future__ import annotations

from dataclasses import asdict

from srpo_robot.awr.weighting import BufferWeights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.tables import Table, read_table, write_table

TABLE = "advantage.parquet"
FORMAT = 2  # 1: the column `advantage` held single steps, and the metadata only a hash of the weighting


def write_weights(buffer: Buffer, progress: Table, weights: BufferWeights) -> Table:
    """Writes DATASET/srpo/advantage.parquet, one row per frame in dataset order.

    Columns: index, increment, step_advantage, chunk_advantage, advantage, weight (see `weighting.BufferAdvantages`).
    `advantage` is the one that trains: below the cap, a frame with a higher advantage has a higher weight. The
    metadata holds every key of the weighting, and the content hash of the progress table as `parent`.

    Raises:
        ValueError: weights of a scheme that has no advantages.
    """
    if weights.advantages is None:
        raise ValueError(f"weights {weights.scheme!r} have no advantages to write")
    columns = {
        "index": progress["index"],
        "increment": weights.advantages.increment,
        "step_advantage": weights.advantages.step,
        "chunk_advantage": weights.advantages.chunk,
        "advantage": weights.advantages.total,
        "weight": weights.frames.values,
    }
    metadata = {
        "kind": "advantage",
        "format": FORMAT,
        "dataset": buffer.fingerprint,
        "parent": progress.metadata["content"],
        "weighting": asdict(weights.weighting),
    }
    return write_table(buffer.sidecar / TABLE, columns, metadata)


def read_weights(buffer: Buffer, progress: Table) -> Table:
    """Returns the content of DATASET/srpo/advantage.parquet.

    Raises:
        StaleTable: the table is missing, or was made by an older version, from another state of the data or from
            another score.
    """
    return read_table(
        buffer.sidecar / TABLE,
        refresh=f"srpo-robot weights {buffer.root}, or srpo-robot train-awr",
        format=FORMAT,
        dataset=buffer.fingerprint,
        parent=progress.metadata["content"],
    )
