"""`srpo-robot export`: writes the scores for other trainers, and prints the command that trains with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from srpo_robot.awr import export
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import Table
from srpo_robot.cli.console import say, waiting, warn
from srpo_robot.cli.weighing import load_weighting, weigh
from srpo_robot.cli.weighting_options import ExportOptions
from srpo_robot.errors import StaleTable
from srpo_robot.recipes import PolicyRecipe, Weighting

PLUGIN = Path(__file__).resolve().parents[1] / "plugins" / "lerobot_policy_srpo_awr"


def export_command(options: ExportOptions) -> Path:
    """Writes the file and prints how to train with it.

    Raises:
        StaleTable: the scores are missing, or of another state of the data or its labels.
        UsageError, TrainingError: see `weigh` and the functions of `awr.export`.
    """
    recipe = load_weighting(options.policy, options.weighting)
    if options.output is not None:
        export.check_suffix(options.output)
    if options.to == "recap":
        export.check_positive(options.positive)
    with waiting(f"opening {options.dataset}"):
        buffer = open_buffer(options.dataset)
        path = options.output or export.default_path(buffer, options.to)
        content = export_buffer(buffer, recipe, path, options)
    _say_audit(buffer)
    say(f"{len(content['index'])} frames: {path}")
    for line in _how_to_train(buffer, options.to, path, content):
        say(line)
    if options.to == "rabc" and (undefined := int(np.isnan(content["progress_sparse"]).sum())):
        warn(
            f"{undefined} frames have no progress; lerobot gives them weight 1, to leave them out: "
            """--sample_weighting.extra_params='{"fallback_weight": 0.0}'"""
        )
    return path


def export_buffer(buffer: Buffer, recipe: Weighting | PolicyRecipe, path: Path, options: ExportOptions) -> Table:
    """Writes the file to `path` and returns its content. Raises as `export_command`."""
    export.check_path(buffer, path, options.to)
    if options.to == "rabc":
        from srpo_robot.progress.pipeline import read_progress

        return export.export_rabc(buffer, read_progress(buffer), path)
    progress, weights = weigh(buffer, recipe)
    assert progress is not None
    if options.to == "weights":
        return export.export_weights(buffer, progress, weights, path)
    return export.export_recap(buffer, progress, weights, options.positive, path)


def _say_audit(buffer: Buffer) -> None:
    """Warns if the score's audit failed or is missing. Another trainer asks for no audit, so nothing is refused."""
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
        option = f"--sample_weighting.progress_path={path}"
        return [f"Train with: lerobot-train {root} --sample_weighting.type=rabc {option} ..."]
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
