"""A sample weighter with the true AWR loss, mean(w * l), in lerobot's own training loop.

lerobot's loop divides by the sum of a batch's weights, which dampens them and cancels them at batch size 1. So this
weighter multiplies the losses inside the policy's forward and gives the loop ones: (w * l).sum() / (B + 1e-6). Anything
that does not fit is an error: a frame without a weight never trains as if it had one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lerobot.utils import sample_weighting
from lerobot.utils.sample_weighting import SampleWeighter

TYPE = "srpo_awr"
DEFAULT = Path("srpo") / "awr_weights.parquet"
EXPORT = "srpo-robot export DATASET --to weights"


def register() -> None:
    """Adds the type `srpo_awr` to lerobot's factory of sample weighters. A second call changes nothing.

    Raises:
        ImportError: the factory's arguments are not those of lerobot 0.6.
    """
    original = sample_weighting.make_sample_weighter
    if getattr(original, "knows_srpo_awr", False):
        return
    parameters = list(inspect.signature(original).parameters)
    if parameters != ["config", "policy", "device", "dataset_root", "dataset_repo_id"]:
        raise ImportError(f"lerobot's make_sample_weighter takes {parameters} now; this plugin is made for lerobot 0.6")

    def make_sample_weighter(
        config: Any,
        policy: Any,
        device: torch.device,
        dataset_root: str | None = None,
        dataset_repo_id: str | None = None,
    ) -> SampleWeighter | None:
        if config is not None and config.type == TYPE:
            return _make(config, policy, device, dataset_root, dataset_repo_id)
        return original(config, policy, device, dataset_root=dataset_root, dataset_repo_id=dataset_repo_id)

    make_sample_weighter.knows_srpo_awr = True  # type: ignore[attr-defined]
    sample_weighting.make_sample_weighter = make_sample_weighter


def _make(config: Any, policy: Any, device: torch.device, root: str | None, repo_id: str | None) -> AwrWeighter:
    unknown = sorted(config.extra_params.keys() - {"path"})
    if unknown:
        raise ValueError(f"sample_weighting.extra_params has unknown {', '.join(unknown)}; {TYPE} takes path")
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    meta = LeRobotDatasetMetadata(repo_id or "local/dataset", root=root)
    path = Path(config.extra_params.get("path") or Path(meta.root) / DEFAULT)
    episodes: Any = meta.episodes
    lengths = [int(length) for length in episodes["length"]]
    return AwrWeighter(read_weights(path, lengths, Path(meta.root)), policy, device, str(path))


def read_weights(path: Path, lengths: list[int], root: Path | None = None) -> np.ndarray:
    """Reads the weights (N,) of an export, by global frame index.

    Args:
        path: file that `srpo-robot export DATASET --to weights` wrote.
        lengths: number of frames of each episode of the training dataset.
        root: the dataset's folder. If it holds a score, the export must come from that score.

    Raises:
        ValueError: the file is missing, is no such export, belongs to another dataset or an older score, or does not
            have one usable weight per frame.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; write it: {EXPORT}")
    try:
        table = pq.read_table(path)
        source = json.loads((table.schema.metadata or {})[b"srpo"])
        index, weight = table["index"].to_numpy(), table["weight"].to_numpy()
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise ValueError(f"{path} holds no weights of srpo-robot; write it: {EXPORT}") from None
    if source.get("lengths") != hashlib.sha256(json.dumps(lengths).encode()).hexdigest()[:16]:
        raise ValueError(
            f"{path} is of another dataset or another state of it ({source.get('frames')} frames, this one has "
            f"{sum(lengths)}); write it anew: {EXPORT}"
        )
    score = _score_of(root)
    if score is not None and score != source.get("parent"):
        raise ValueError(f"{path} was made from an older score of this dataset; write it anew: {EXPORT}")
    if not np.array_equal(np.sort(index), np.arange(sum(lengths))):
        raise ValueError(f"{path} does not have exactly one row for every frame; write it anew: {EXPORT}")
    if not (np.isfinite(weight) & (weight >= 0)).all() or not weight.any():
        raise ValueError(f"{path} has weights that are negative, NaN or all zero; write it anew: {EXPORT}")
    return weight[np.argsort(index)].astype(np.float32)


def _score_of(root: Path | None) -> str | None:
    """Returns the content hash of the score in the dataset's folder, None if there is no score."""
    path = None if root is None else root / "srpo" / "progress.parquet"
    if path is None or not path.is_file():
        return None
    return json.loads((pq.read_schema(path).metadata or {}).get(b"srpo", b"{}")).get("content")


class AwrWeighter(SampleWeighter):
    """Multiplies the policy's per-sample losses by the weights of their frames.

    Attributes:
        weights: (N,) float32 on the training device, by global frame index, mean 1 over the dataset.
    """

    def __init__(self, weights: np.ndarray, policy: Any, device: torch.device, name: str) -> None:
        """Raises ValueError if the policy has no per-sample loss."""
        self.weights = torch.from_numpy(weights).to(device)
        self._name = name
        self._applied = True
        self._attach(policy)

    def compute_batch_weights(self, batch: dict) -> tuple[torch.Tensor, dict]:
        """Returns ones (B,), because the policy's forward applies the weights, and statistics of the frames' weights.

        Raises:
            ValueError: the batch has no frame indices, or a frame has no weight.
            RuntimeError: the last batch's losses were not weighted, because something replaced the policy's forward.
        """
        if not self._applied:
            raise RuntimeError(f"the policy's forward does not apply the weights of {self._name}; train without them")
        weights = self._of(batch)
        self._applied = False
        stats = {"mean": float(weights.mean()), "max": float(weights.max()), "zero": int((weights == 0).sum())}
        return torch.ones_like(weights), stats

    def get_stats(self) -> dict:
        """Returns type, number of frames and effective sample size of the whole file."""
        effective = float(self.weights.sum() ** 2 / (self.weights**2).sum())
        return {"type": TYPE, "num_frames": len(self.weights), "effective_sample_size": effective}

    def _of(self, batch: dict) -> torch.Tensor:
        if "index" not in batch:
            raise ValueError("the batch has no 'index', so its frames' weights are unknown")
        index = batch["index"].reshape(-1).to(self.weights.device)
        missing = index[(index < 0) | (index >= len(self.weights))]
        if len(missing):
            raise ValueError(f"{self._name} has no weight for frames {missing[:10].tolist()}; write it anew: {EXPORT}")
        return self.weights[index]

    def _attach(self, policy: Any) -> None:
        original = policy.forward
        inner = (
            policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        )  # PEFT passes arguments through
        if "reduction" not in inspect.signature(inner.forward).parameters:
            raise ValueError(
                f"{type(inner).__name__} has no per-sample loss in this lerobot, so its samples cannot be weighed; "
                "pi0, pi05 and smolvla have one, and 'srpo-robot train-awr' trains pi0_fast too"
            )

        def forward(_: Any, *arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            if options.get("reduction") != "none":
                return result  # lerobot's evaluation loss stays unweighted
            losses, info = result
            weights = self._of(arguments[0] if arguments else options["batch"])
            if losses.shape != weights.shape:
                raise RuntimeError(f"{tuple(losses.shape)} losses for {len(weights)} frames: not one a sample")
            self._applied = True
            return losses * weights, info

        # Bound, and without functools.wraps: accelerate unwraps functions with __wrapped__ and would remove this one.
        policy.forward = MethodType(forward, policy)
