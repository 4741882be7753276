"""Compares encoders by ROC-AUC of final progress on held-out video of the mock cell, with negative controls.

    python scripts/bench_encoders.py --json encoders.json
    python scripts/bench_encoders.py --encoder WORK/s0/encoder --encoder facebook/vjepa2-vitl-fpc64-256

Profile `loo` measures every episode against the other successes. Layouts, lights, tints and camera poses come from
seeds that training never used, one appearance per episode. The encoder of the package and its architecture with random
weights are always in the table. The negative controls use the first encoder. Intervals come from a bootstrap over
episodes, stratified by label. All scorers get the same episodes and labels.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pretrain_small_vjepa2 import PIXELS, Videos, demonstrations, record
from rich.console import Console
from rich.progress import track
from rich.table import Table

from srpo_robot.mock.demonstrator import Failure
from srpo_robot.progress.config import ScoringConfig, WindowShape
from srpo_robot.progress.embed import embed_frames
from srpo_robot.progress.encoder import Encoder, load_encoder
from srpo_robot.progress.encoder_names import EMBEDDED, RANDOM
from srpo_robot.progress.evidence.baselines import NEGATIVE_CONTROLS, Scorer, Transformed
from srpo_robot.progress.evidence.metrics import Estimate, Resampling, auc_difference, final_progress, separation
from srpo_robot.progress.score import score
from srpo_robot.records import Episode

SEED = 900_000  # training video uses seeds from 100000, validation from 800000
ENDS_ONLY = 1_000_000  # stride that leaves only the first and the last window, enough for a final progress
CONFIG = ScoringConfig(profile="loo")


@dataclass(frozen=True, eq=False)
class Trials:
    """Episodes with their video in memory."""

    episodes: tuple[Episode, ...]
    frames: tuple[np.ndarray, ...]
    kinds: np.ndarray

    @property
    def success(self) -> np.ndarray:
        """Returns the labels (E,) bool."""
        return np.array([bool(episode.success) for episode in self.episodes])


def load_trials(folder: Path) -> Trials:
    """Loads the episodes that `pretrain_small_vjepa2.py record` wrote."""
    videos = Videos([folder])
    episodes = tuple(
        Episode(
            index=i,
            task="put the apple on the plate",
            length=video.length,
            fps=10.0,
            first_frame=0,
            cameras=(video.camera,),
            success=video.success,
        )
        for i, video in enumerate(videos.videos)
    )
    frames = tuple(videos.frames(i, 0, np.arange(video.length)) for i, video in enumerate(videos.videos))
    return Trials(episodes, frames, np.array([video.kind for video in videos.videos]))


def recorded(folder: Path, camera: str, seed: int, successes: int, failures: int, amount: float) -> Trials:
    """Records held-out demonstrations: `successes` successes, and `failures` failures of each kind."""
    kinds = [kind for kind in Failure for _ in range(successes if kind is Failure.NONE else failures)]
    episodes = demonstrations(camera, seed, kinds, 1, amount)
    record(folder, camera, iter(track(episodes, "recording held-out video", len(kinds))))
    return load_trials(folder)


def finals(trials: Trials, encoder: Encoder, config: ScoringConfig, scorer: Scorer | None = None) -> np.ndarray:
    """Computes the final progress (E,) of the score under test, or of `scorer` if it is given."""
    if scorer is not None:
        config = scorer.config(config.resolved(encoder.frames_per_clip))
        encoder = scorer.encoder() if scorer.encoder else encoder
        encoder = Transformed(encoder, scorer.transform) if scorer.transform else encoder
        if not scorer.video:
            assert scorer.curves is not None
            return final_progress(scorer.curves(trials.episodes, ()))
    windows = [
        embed_frames(encoder.prepare(frames), encoder, config, episode.index)
        for episode, frames in zip(trials.episodes, trials.frames, strict=True)
    ]
    return final_progress(score(trials.episodes, windows, config).curves)


def measured(
    trials: Trials, encoders: Mapping[str, Encoder], amount: Resampling
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, float]]]:
    """Measures all scorers.

    Returns:
        rows: by scorer, its row (see `row`).
        differences: by scorer, AUC of the first encoder's best window shape minus the AUC of this scorer (paired).
    """
    scorings: dict[str, Callable[[], np.ndarray]] = {}
    for name, encoder in encoders.items():
        for shape in get_args(WindowShape):
            config = replace(CONFIG, windows=f"stride:{ENDS_ONLY}", window_shape=shape)
            scorings[f"{name}, {shape}"] = lambda e=encoder, c=config: finals(trials, e, c)
    first = next(iter(encoders.values()))
    for control in NEGATIVE_CONTROLS.values():
        if control.name != "time":  # it always ends at 1
            config = replace(CONFIG, windows=f"stride:{ENDS_ONLY}", window_shape="prefix")
            scorings[control.name] = lambda n=control, c=config: finals(trials, first, c, n)
    final_by_scorer = {name: scoring() for name, scoring in track(scorings.items(), "scoring")}
    rows = {name: row(final, trials, amount) for name, final in final_by_scorer.items()}
    best = max(list(rows)[: len(get_args(WindowShape))], key=lambda name: rows[name]["auc"])
    differences = {
        name: _interval_row(auc_difference(final_by_scorer[best], final, trials.success.tolist(), amount), "difference")
        for name, final in final_by_scorer.items()
        if name != best
    }
    return rows, differences


def row(final: np.ndarray, trials: Trials, amount: Resampling) -> dict[str, Any]:
    """Returns `auc`, `auc_low`, `auc_high` over all episodes, and the same by kind of failure under `failures`."""
    success = trials.success
    by_kind = {}
    for kind in dict.fromkeys(trials.kinds[~success].tolist()):
        chosen = success | (trials.kinds == kind)
        estimate = separation(final[chosen], success[chosen].tolist(), amount).estimates["auc"]
        by_kind[kind] = _interval_row(estimate, "auc")
    return _interval_row(separation(final, success.tolist(), amount).estimates["auc"], "auc") | {"failures": by_kind}


def _interval_row(estimate: Estimate, name: str) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def show(rows: dict[str, dict[str, Any]], differences: dict[str, dict[str, float]], title: str) -> None:
    """Prints the table, best scorer first."""
    kinds = list(next(iter(rows.values()))["failures"])
    result = Table("scorer", title=title)
    for column in ("AUC", "95 %", *kinds, "best less this", "95 %"):
        result.add_column(column, justify="right")
    for name, scorer_row in sorted(rows.items(), key=lambda item: -item[1]["auc"]):
        paired = differences.get(name)
        result.add_row(
            name,
            f"{scorer_row['auc']:.3f}",
            f"{scorer_row['auc_low']:.3f} to {scorer_row['auc_high']:.3f}",
            *(f"{scorer_row['failures'][kind]['auc']:.2f}" for kind in kinds),
            "" if paired is None else f"{paired['difference']:+.3f}",
            "" if paired is None else f"{paired['difference_low']:+.3f} to {paired['difference_high']:+.3f}",
        )
    Console(highlight=False, width=130).print(result)


def main() -> None:
    """Reads the options, measures, prints the table and writes the --json file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", action="append", default=[], help="folder or Hub id, besides the embedded ones")
    parser.add_argument("--data", type=Path, help="a folder that `pretrain_small_vjepa2.py record` wrote, instead")
    parser.add_argument("--camera", default="front")
    parser.add_argument("--seed", type=int, default=SEED, help="of the first held-out episode")
    parser.add_argument("--successes", type=int, default=80)
    parser.add_argument("--failures", type=int, default=20, help="of each kind")
    parser.add_argument(
        "--randomization", "--looks", type=float, default=1.0, help="how much light, tint and camera vary, 0 to 1"
    )
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--json", type=Path, help="write every number here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoders = {name: load_encoder(name) for name in (EMBEDDED, RANDOM, *options.encoder)}
    with tempfile.TemporaryDirectory() as scratch:
        folder, randomization = Path(scratch), options.randomization
        trials = (
            load_trials(options.data)
            if options.data
            else recorded(folder, options.camera, options.seed, options.successes, options.failures, randomization)
        )
        resampling = Resampling(options.resamples, permutations=0)
        rows, differences = measured(trials, encoders, resampling)
    success = trials.success
    show(
        rows, differences, f"{int(success.sum())} successes, {int((~success).sum())} failures, {PIXELS} px, profile loo"
    )
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "scorers": rows,
            "best_less_scorer": differences,
            "successes": int(success.sum()),
            "failures": int((~success).sum()),
            "config": asdict(CONFIG),
            "options": {key: value for key, value in vars(options).items() if key not in ("json", "data")},
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
