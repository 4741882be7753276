"""`srpo-robot export`: scores for other trainers, and the command that trains with them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import Table
from srpo_robot.cli.console import say, waiting, warn
from srpo_robot.cli.weighing import WeightingOptions
from srpo_robot.errors import StaleTable
from srpo_robot.recipes import PolicyRecipe

PLUGIN = Path(__file__).resolve().parents[1] / "plugins" / "lerobot_policy_srpo_awr"


def export_command(
    dataset: str,
    kind: Literal["rabc", "weights", "recap"],
    output: Path | None,
    options: WeightingOptions,
    positive: float,
) -> Path:
    """Write the file and print how to train with it.

    Raises:
        StaleTable: the scores are missing, or of another state of the data or its labels.
        UsageError, TrainingError: see the functions of `awr.export`.
    """
    with waiting(f"opening {dataset}"):
        buffer = open_buffer(dataset)
        path, table = export_buffer(buffer, kind, output, options, positive)
    _say_audit(buffer)
    say(f"{len(table['index'])} frames: {path}")
    for line in _how_to_train(buffer, kind, path, table):
        say(line)
    if kind == "rabc" and (undefined := int(np.isnan(table["progress_sparse"]).sum())):
        warn(
            f"{undefined} frames have no progress; lerobot gives them weight 1, to leave them out: "
            """--sample_weighting.extra_params='{"fallback_weight": 0.0}'"""
        )
    return path


def export_buffer(
    buffer: Buffer,
    kind: Literal["rabc", "weights", "recap"],
    output: Path | None,
    options: WeightingOptions,
    positive: float,
) -> tuple[Path, Table]:
    """The file's path and content; raises as `export_command`."""
    from srpo_robot.awr import export
    from srpo_robot.progress.pipeline import read_progress

    path = output or export.default_path(buffer, kind)
    export.check_path(buffer, path, kind)
    progress = read_progress(buffer)
    if kind == "rabc":
        return path, export.export_rabc(buffer, progress, path)
    weighting = options.resolve(buffer)
    if kind == "weights":
        return path, export.export_weights(buffer, progress, weighting, path)
    return path, export.export_recap(buffer, progress, weighting, positive, path)


def _say_audit(buffer: Buffer) -> None:
    """Another trainer asks for no audit, so what it found is said here; nothing is refused."""
    from srpo_robot.progress.evidence.audit import FILE, judge, read_audit
    from srpo_robot.progress.pipeline import audit_origin, read_provenance

    refresh = f"srpo-robot audit {buffer.root}"
    try:
        evidence = read_audit(buffer.sidecar / FILE, audit_origin(buffer, read_provenance(buffer)), refresh)
    except StaleTable as error:
        warn(f"nothing says yet that these scores mean anything: {error}")
        return
    verdict = judge(evidence, PolicyRecipe.audit_level)
    if not verdict.passed:
        warn(f"the audit of these scores failed; see: {refresh}")


def _how_to_train(buffer: Buffer, kind: str, path: Path, table: Table) -> list[str]:
    root = f"--dataset.repo_id=local/{buffer.root.name} --dataset.root={buffer.root}"
    if kind == "rabc":
        where = f"--sample_weighting.progress_path={path}"
        return [f"Train with: lerobot-train {root} --sample_weighting.type=rabc {where} ..."]
    if kind == "weights":
        return [
            f"Once: pip install {PLUGIN}",
            f"Train with: lerobot-train {root} --sample_weighting.type=srpo_awr "
            f"""--sample_weighting.extra_params='{{"path": "{path}"}}' ...""",
        ]
    labels = table["advantage"]
    share = sum(label is True for label in labels) / len(labels)
    return [
        f"{share:.0%} of the frames are positive. advantage_text stands behind the instruction, as pi*0.6 reads it; "
        "where it is empty the instruction stays as it is."
    ]
