"""Commands `srpo-robot benchmark-progress` and `srpo-robot audit`: test a score on the lab's own episodes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srpo_robot.buffer.labels import require_labels
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli.benchmark_options import AuditOptions, BenchmarkOptions, check
from srpo_robot.cli.console import bar, console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.devices import resolve
from srpo_robot.errors import StaleTable, UsageError
from srpo_robot.numerics import cell
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder_names import CAUTIONS, EMBEDDED

if TYPE_CHECKING:  # these import torch, zarr or lerobot: a typo must be answered before that
    from srpo_robot.buffer.episodes import Buffer
    from srpo_robot.progress.evidence.audit import AuditResult, Evidence
    from srpo_robot.progress.evidence.baselines import Scorer
    from srpo_robot.progress.evidence.benchmark import OracleRow, ScorerRow
    from srpo_robot.progress.evidence.metrics import Estimate, Resampling
    from srpo_robot.progress.pipeline import Provenance
    from srpo_robot.progress.score import Scores, WindowEmbeddings

SHOWN = ("sc", "mono", "mmd", "js", "smd", "auc")
TITLES = {"sc": "SC", "mono": "Mono", "mmd": "MMD", "js": "JS", "smd": "SMD", "auc": "AUC"}
ENDS_ONLY = 1_000_000  # stride that leaves only an episode's first and last window, enough for a final progress


@dataclass(frozen=True)
class Candidate:
    """The score under test: a dataset, an encoder and a config in profile `loo`. Both commands use it."""

    buffer: Buffer
    encoder: Any
    config: ScoringConfig

    @property
    def provenance(self) -> Provenance:
        """Returns the provenance of the score under test."""
        from srpo_robot.progress.pipeline import provenance

        return provenance(self.buffer, self.encoder, self.config)


def prepare(options: BenchmarkOptions | AuditOptions) -> Candidate:
    """Opens the dataset, resolves the config of the score under test and loads its encoder.

    Raises:
        DatasetError, UnlabelledError, ScoringError: the dataset cannot be scored.
        CheckpointError: the encoder cannot be loaded.
    """
    with waiting(f"opening {options.dataset}"):
        buffer = open_buffer(options.dataset)
    require_labels(buffer)
    with waiting("loading libraries"):
        from srpo_robot.progress.embed import resolved
        from srpo_robot.progress.encoder import load_encoder
        from srpo_robot.progress.pipeline import check_scorable

    name, dtype, config = _under_test(buffer, options)
    check_scorable(buffer, config)
    if name in CAUTIONS:
        warn(CAUTIONS[name])
    with waiting(f"loading {name}"):
        encoder = load_encoder(name, resolve(options.device), dtype, frames_per_clip=config.frames_per_clip)
    return Candidate(buffer, encoder, resolved(config, buffer, encoder))


def _under_test(buffer: Buffer, options: BenchmarkOptions | AuditOptions) -> tuple[str, str, ScoringConfig]:
    """Returns encoder, dtype and config that the dataset was scored with, or the defaults, changed by the options."""
    from srpo_robot.progress.pipeline import read_provenance

    try:
        before = read_provenance(buffer)
        name, dtype, config = before.encoder.name, before.encoder.dtype, before.config
    except StaleTable:
        name, dtype, config = EMBEDDED, "float32", ScoringConfig()
    if options.score.encoder not in (None, name):
        # Another encoder uses its own clip length, unless the options set one.
        config = replace(config, frames_per_clip=None)
    return options.score.encoder or name, options.dtype or dtype, options.score.applied(config.for_profile("loo"))


def embed_under_test(candidate: Candidate) -> Sequence[WindowEmbeddings | None]:
    """Returns the windows of the score under test. They come from the store if the dataset was scored before."""
    from srpo_robot.cli.scoring import embed_with_bar
    from srpo_robot.progress.pipeline import combined

    return combined(embed_with_bar(candidate.buffer, candidate.encoder, candidate.config, skip_bad=False))


def score_others(candidate: Candidate, scorers: Sequence[Scorer], config: ScoringConfig) -> dict[str, Scores]:
    """Scores the same episodes with negative controls and baselines, each with its own progress bar."""
    from srpo_robot.progress.evidence.baselines import score_with
    from srpo_robot.progress.pipeline import STORE
    from srpo_robot.progress.store import EmbeddingStore

    store, result = EmbeddingStore(candidate.buffer.sidecar / STORE), {}
    for scorer in scorers:
        with bar(scorer.name, len(candidate.buffer.episodes), "episode") as progress:
            result[scorer.name] = score_with(
                scorer,
                candidate.buffer,
                store,
                candidate.encoder,
                config,
                on_episode=lambda episode, fresh, shown=progress: shown.advance(),
            )
            progress.at(len(candidate.buffer.episodes))
    return result


# --- benchmark-progress -------------------------------------------------------------------------------------------


def benchmark_command(options: BenchmarkOptions) -> None:
    """Prints the table of appendix A and writes the files DATASET/srpo/benchmark.*."""
    check(options)
    from srpo_robot.progress.evidence.metrics import Resampling

    chosen = chosen_scorers(options)
    resampling = Resampling(options.resamples, options.resamples, seed=options.seed)
    candidate = prepare(options)
    policies = read_policies(options.policies, candidate.buffer) if options.policies else None
    external = _external(options, candidate)
    windows = embed_under_test(candidate)
    rows = _own_rows(candidate, windows, options, external, policies, resampling)
    rows += _true_rows(candidate, resampling)
    for name, scores in score_others(candidate, chosen, candidate.config).items():
        rows.append(_other_row(candidate, next(s for s in chosen if s.name == name), scores, policies, resampling))
    print_rows(rows, candidate)
    content: dict[str, Any] = asdict(candidate.provenance) | {"rows": [row_json(row) for row in rows]}
    content["alpha"] = _print_alphas(candidate, windows) if "alpha" in options.ablate else []
    content["counterfactuals"] = _print_counterfactuals(candidate, windows, options) if options.counterfactuals else []
    content["oracle"] = _print_oracle(candidate, windows, options.horizon, resampling)
    _write_files(candidate, rows, options)
    write_json(options.json, content)


def chosen_scorers(options: BenchmarkOptions) -> list[Scorer]:
    """Returns the scorers named by --scorer, or all of them, and `image` if --image names an encoder.

    Raises:
        UsageError: a scorer is unknown, or `image` is requested without --image.
        CheckpointError: the image encoder cannot be loaded.
    """
    from srpo_robot.progress.evidence.baselines import SCORERS, image_scorer, scorer_named

    names = [name for name in options.scorers if name != "image"] if options.scorers else list(SCORERS)
    if "image" in options.scorers and options.image is None:
        raise UsageError("the scorer 'image' needs an encoder: --image facebook/dinov2-small, or a folder")
    chosen = [scorer_named(name) for name in names if name != "none"]
    if options.image is not None:
        from srpo_robot.progress.image_encoder import load_image_encoder

        with waiting(f"loading {options.image}"):
            chosen.append(image_scorer(load_image_encoder(options.image, resolve(options.device)), options.image))
    return chosen


def read_policies(path: Path, buffer: Buffer) -> list[str]:
    """Reads the policy that moved the arm in each episode from a CSV "episode_index,policy". "" if it is not listed.

    Raises:
        UsageError: the file or a column is missing, or the dataset lacks a listed episode.
    """
    try:
        rows = list(csv.DictReader(path.open(newline="", encoding="utf-8-sig")))
        policies = {int(row["episode_index"]): str(row["policy"]).strip() for row in rows}
    except (OSError, KeyError, ValueError, UnicodeDecodeError):
        raise UsageError(f"{path} is no CSV with the columns episode_index,policy") from None
    unknown = sorted(set(policies) - {episode.index for episode in buffer.episodes})
    if unknown:
        raise UsageError(f"{path} names episode {unknown[0]}, which {buffer.root} does not have")
    return [policies.get(episode.index, "") for episode in buffer.episodes]


def _external(options: BenchmarkOptions, candidate: Candidate) -> dict[str, np.ndarray] | None:
    from srpo_robot.cli.scoring import external_from

    return external_from(options.reference, candidate.encoder, candidate.config) if options.reference else None


def _own_rows(
    candidate: Candidate,
    windows: Sequence[WindowEmbeddings | None],
    options: BenchmarkOptions,
    external: dict[str, np.ndarray] | None,
    policies: list[str] | None,
    resampling: Resampling,
) -> list[ScorerRow]:
    from srpo_robot.progress.evidence.benchmark import own_rows

    ablations = [name for name in options.ablate if name != "alpha"]
    return own_rows(candidate.buffer.episodes, windows, candidate.config, ablations, external, policies, resampling)


def _true_rows(candidate: Candidate, resampling: Resampling) -> list[ScorerRow]:
    """Returns rows with the simulator's true state as the encoder, the result of a perfect encoder.

    Returns no rows if the dataset does not record the true state.
    """
    from srpo_robot.progress.evidence.benchmark import own_rows

    windows = _true_windows(candidate)
    if windows is None:
        return []
    rows = own_rows(candidate.buffer.episodes, windows, candidate.config, resampling=resampling)
    return [replace(row, name=f"true state, {row.name}", meaning="a perfect encoder") for row in rows]


def _other_row(
    candidate: Candidate, scorer: Scorer, scores: Scores, policies: list[str] | None, resampling: Resampling
) -> ScorerRow:
    from srpo_robot.progress.evidence.benchmark import measure

    frozen = scorer.transform == "frozen-tail"
    return measure(
        scorer.name, scorer.meaning, candidate.buffer.episodes, scores, scorer.control, frozen, policies, resampling
    )


def print_rows(rows: list[ScorerRow], candidate: Candidate) -> None:
    """Prints one table per task if there are at most five tasks, and the macro mean."""
    tasks = [task_table.task for task_table in rows[0].tables]
    for task in tasks if len(tasks) <= 5 else []:
        tables = [next((t.estimates for t in row.tables if t.task == task), {}) for row in rows]
        counts = next(t for t in rows[0].tables if t.task == task)
        print_table(f"{task}: {counts.successes} successes, {counts.failures} failures", rows, tables)
        print_undefined(rows, tables)
    if len(tasks) != 1:
        means = [row.macro for row in rows]
        print_table(f"mean over {len(tasks)} tasks", rows, means)
        print_undefined(rows, means)
    say("Below the line: negative controls, which the score must beat. 95 % and p belong to AUC.")
    say("paper: a success is measured against its own end, so its AUC, MMD, JS and SMD are true by construction.")
    for row in rows:
        if row.tail is not None:
            say(f"{row.name}: progress changes by {number(row.tail.value)} after everything has stopped.")
        if math.isfinite(row.ranking.value):
            say(f"{row.name}: ranks policies as their success rates do: Kendall's tau {number(row.ranking.value, 2)}.")


def print_table(title: str, rows: list[ScorerRow], tables: list[dict[str, Estimate]]) -> None:
    """Prints one row per scorer, negative controls last. An undefined metric is a dash; see `print_undefined`."""
    result = table(title, "scorer", *(TITLES[name] for name in SHOWN), "95 %", "p")
    section = False
    for row, estimates in sorted(zip(rows, tables, strict=True), key=lambda pair: pair[0].control):
        if row.control and not section:
            result.add_section()
            section = True
        cells = [cell(estimates[name].value, 2) for name in SHOWN if estimates]
        auc = estimates.get("auc")
        span = "-" if auc is None or math.isnan(auc.low) else f"{auc.low:.2f}-{auc.high:.2f}"
        p = cell(None if auc is None else auc.p)
        result.add_row(row.name, *cells, span, p, style="dim" if row.control else None)
    console.print(result)


def print_undefined(rows: list[ScorerRow], tables: list[dict[str, Estimate]]) -> None:
    """Prints why metrics are undefined, one line per reason with the scorers and metrics that it concerns."""
    reasons: dict[str, list[str]] = {}
    for row, estimates in zip(rows, tables, strict=True):
        for name in SHOWN:
            estimate = estimates.get(name)
            if estimate is not None and (math.isnan(estimate.value) or estimate.undefined):
                text = f"{estimate.reason or 'without progress'} ({estimate.undefined} left out)"
                reasons.setdefault(text, []).append(f"{row.name} {TITLES[name]}")
    for text, names in reasons.items():
        say(f"[dim]undefined: {text}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}[/]")


def row_json(row: ScorerRow) -> dict[str, Any]:
    """Returns a row with all numbers, ready for JSON."""
    return {
        "scorer": row.name,
        "meaning": row.meaning,
        "null": row.control,  # the key of earlier versions stays
        "macro": {name: asdict(estimate) for name, estimate in row.macro.items()},
        "tasks": {
            task_table.task: {
                "successes": task_table.successes,
                "failures": task_table.failures,
                "left_out": task_table.left_out,
                **{name: asdict(estimate) for name, estimate in task_table.estimates.items()},
            }
            for task_table in row.tables
        },
        "policy_ranking": asdict(row.ranking),
        "tail": None if row.tail is None else asdict(row.tail),
    }


def _print_alphas(candidate: Candidate, windows: Sequence[WindowEmbeddings | None]) -> list[dict[str, Any]]:
    from srpo_robot.progress.evidence.benchmark import alpha_sweep

    rows = alpha_sweep(candidate.buffer.episodes, windows, candidate.config)
    result = table("reward by alpha (eq. 5)", "alpha", "mean of failures", "highest", "variance among failures")
    for row in rows:
        result.add_row(f"{row.alpha:g}", number(row.failure), number(row.highest_failure), number(row.within))
    console.print(result)
    return [asdict(row) for row in rows]


def _print_counterfactuals(
    candidate: Candidate, windows: Sequence[WindowEmbeddings | None], options: BenchmarkOptions
) -> list[dict[str, Any]]:
    """Prints the score's over-reward for endings that are known to be wrong. Works with one camera only.

    Raises:
        UsageError: the score uses several cameras.
    """
    from srpo_robot.progress.evidence.counterfactual import parse_colours
    from srpo_robot.progress.evidence.overreward import over_rewards

    colours = parse_colours(options.swap_colours) if options.swap_colours else None
    if len(candidate.config.cameras) > 1:
        raise UsageError("counterfactuals are made for one camera; name one: --camera NAME")
    with bar("counterfactuals", options.counterfactuals, "success") as progress:
        rows = over_rewards(
            candidate.buffer,
            candidate.encoder,
            candidate.config,
            windows,
            options.counterfactuals,
            options.seed,
            lambda episode: progress.advance(note=f"episode {episode.index}"),
            colours,
        )
    result = table(
        "wrong endings, profile loo: an excess above 0 pays for what did not happen",
        "variant", "made", "final p", "of its success", "excess", "share above 0",
    )  # fmt: skip
    for row in rows:
        cells = (cell(value, 2) for value in (row.final, row.source, row.excess, row.share))
        result.add_row(row.variant, str(row.count), *cells)
    console.print(result)
    return [asdict(row) for row in rows]


def _true_windows(candidate: Candidate) -> Sequence[WindowEmbeddings] | None:
    """Returns the true state at each window's end. None if the dataset does not record it."""
    from srpo_robot.mock.truth import FEATURES, read_truth, true_windows

    if any(name not in candidate.buffer.meta.features for name in FEATURES):
        return None
    return true_windows(read_truth(candidate.buffer), candidate.buffer.episodes, candidate.config)


def _print_oracle(
    candidate: Candidate, windows: Sequence[WindowEmbeddings | None], horizon: int, resampling: Resampling
) -> dict[str, Any]:
    """Prints each step value against the simulator's oracle, once for the encoder and once for the true state.

    Returns the rows by encoder name, or {} if the dataset does not record the true state.
    """
    from srpo_robot.mock.truth import STATE_NAMES, read_truth
    from srpo_robot.progress.evidence.benchmark import beside_oracle, step_values

    true = _true_windows(candidate)
    if true is None:
        return {}
    truth = read_truth(candidate.buffer)
    carrying = [rows[:, STATE_NAMES.index("held")] > 0.5 for rows in truth.state]
    success = [e.success for e in candidate.buffer.episodes]
    content: dict[str, Any] = {}
    result = table(
        f"step values beside the simulator: correlation of gains over {horizon} frames, and is a drop noticed",
        "value", "success", "failure", "all", "drop (AUC)",
    )  # fmt: skip
    for name, encoder_windows in (("encoder", windows), ("true state", true)):
        values = step_values(candidate.buffer.episodes, encoder_windows, candidate.config)
        first = candidate.config.min_window
        rows = beside_oracle(values, truth.stage, truth.drop, carrying, success, horizon, first, resampling)
        content[name] = [asdict(row) for row in rows]
        for row in rows:
            result.add_row(f"{name}, {row.value}", *_oracle_cells(row))
    console.print(result)
    return content


def _oracle_cells(row: OracleRow) -> list[str]:
    estimates = (row.chunks.success, row.chunks.failure, row.chunks.pooled, row.drop)
    return [cell(estimate.value, 2) for estimate in estimates]


def _write_files(candidate: Candidate, rows: list[ScorerRow], options: BenchmarkOptions) -> None:
    from srpo_robot.report.benchmark_figure import draw_example, example_episode

    folder = candidate.buffer.sidecar
    write_csv(folder / "benchmark.csv", rows)
    files = ["benchmark.csv"]
    if options.latex:
        (folder / "benchmark.tex").write_text(latex(rows), encoding="utf-8")
        files.append("benchmark.tex")
    shown = [row for row in rows if row.name in ("loo", "pixel", "image", "pixel-last10")][:3]
    episode = example_episode(candidate.buffer.episodes, options.episode)
    curves = {row.name: row.scores.curves[candidate.buffer.episodes.index(episode)] for row in shown}
    frames = candidate.buffer.frames(episode, candidate.config.cameras[0])
    draw_example(episode, curves, frames, folder / "benchmark.png")
    say(f"Table and example are in {folder} ({', '.join([*files, 'benchmark.png'])}).")


def write_csv(path: Path, rows: list[ScorerRow]) -> None:
    """Writes one line per scorer, task (and "macro") and metric. An undefined number is an empty cell with a reason."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        names = ("value", "low", "high", "p", "null", "undefined", "reason")
        out.writerow(["scorer", "task", "metric", *names])
        for row in rows:
            tables = [(task_table.task, task_table.estimates) for task_table in row.tables] + [("macro", row.macro)]
            for task, estimates in tables:
                for metric, estimate in estimates.items():
                    cells = [getattr(estimate, name) for name in names]
                    out.writerow([row.name, task, metric, *("" if cell != cell else cell for cell in cells)])


def latex(rows: list[ScorerRow]) -> str:
    """Returns the macro means as a booktabs table, with the 95 % interval of the AUC in brackets."""
    lines = [r"\begin{tabular}{lrrrrrl}", r"\toprule"]
    lines += [" & ".join(["scorer", *(TITLES[name] for name in SHOWN)]) + r" \\", r"\midrule"]
    for row in rows:
        cells = [cell(row.macro[name].value, dash="--") for name in SHOWN]
        auc = row.macro["auc"]
        if not math.isnan(auc.low):
            cells[-1] += f" [{auc.low:.3f}, {auc.high:.3f}]"
        lines.append(" & ".join([row.name.replace("_", r"\_"), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


# --- audit --------------------------------------------------------------------------------------------------------


def audit_command(options: AuditOptions) -> AuditResult:
    """Runs the audit, writes DATASET/srpo/audit.json, prints the verdict and returns it."""
    check(options)
    from srpo_robot.progress.evidence.audit import FILE, write_audit
    from srpo_robot.progress.evidence.metrics import Resampling
    from srpo_robot.progress.pipeline import audit_origin

    judge_level(options.level)
    candidate = prepare(options)
    evidence = audit_evidence(candidate, options.horizon, Resampling(options.resamples, options.resamples))
    origin = audit_origin(candidate.buffer, candidate.provenance)
    verdict = write_audit(candidate.buffer.sidecar / FILE, evidence, options.level, origin)
    print_verdict(verdict, evidence)
    write_json(options.json, asdict(verdict) | {"evidence": asdict(evidence)})
    return verdict


def judge_level(level: float) -> None:
    """Raises UsageError if the level is invalid, before the dataset is opened."""
    from srpo_robot.progress.evidence.audit import Evidence, judge

    judge(Evidence(()), level)


def audit_evidence(candidate: Candidate, horizon: int, resampling: Resampling) -> Evidence:
    """Collects the evidence: final progress (`loo`) against negative controls, and step values against labels."""
    from srpo_robot.progress.evidence.audit import AUDIT_CONTROLS, gather
    from srpo_robot.progress.evidence.baselines import scorer_named
    from srpo_robot.progress.evidence.benchmark import step_values, worst_gains
    from srpo_robot.progress.evidence.metrics import final_progress
    from srpo_robot.progress.score import score

    episodes = candidate.buffer.episodes
    windows = embed_under_test(candidate)
    real = final_progress(score(episodes, windows, candidate.config).curves)
    config = candidate.config
    if config.window_kind != "nested":  # the final progress depends on the last window only
        config = replace(config, windows=f"stride:{ENDS_ONLY}")
    others = score_others(candidate, [scorer_named(name) for name in AUDIT_CONTROLS], config)
    controls = {name: final_progress(scores.curves) for name, scores in others.items()}
    values = step_values(episodes, windows, candidate.config)
    gains = {name: worst_gains(episode_values, horizon) for name, episode_values in values.items()}
    return gather(episodes, real, controls, gains, resampling)


def print_verdict(verdict: AuditResult, evidence: Evidence) -> None:
    """Prints the PASS and FAIL lines, the step value that the labels support, and the advice."""
    for line in verdict.lines:
        colour = "green" if line.startswith("PASS") else "red"
        say(f"[{colour}]{line[:4]}[/]{line[4:]}")
    if evidence.values:
        result = table("worst chunk of an episode: failure against success", "value", "AUC", "95 %", "p")
        for row in evidence.values:
            span = "-" if math.isnan(row.low) else f"{row.low:.2f} to {row.high:.2f}"
            result.add_row(row.name, cell(row.auc, 2), span, cell(row.p))
        console.print(result)
        say(f"Step value that the labels support: {verdict.value or 'none of them'}.")
    for line in verdict.advice:
        say(f"try: {line}")
    say("[bold green]The audit passed.[/]" if verdict.passed else "[bold red]The audit failed.[/]")


def gate(buffer: Buffer, level: float, accept: bool) -> None:
    """Checks the audit at the recipe's level before training with weights. `accept` is --accept-audit.

    Raises:
        StaleTable: there is no audit, or it belongs to another score (unless `accept`).
        TrainingError: the audit failed (unless `accept`). The message says what to try.
    """
    from srpo_robot.errors import TrainingError
    from srpo_robot.progress.evidence.audit import FILE, judge, read_audit
    from srpo_robot.progress.pipeline import audit_origin, read_provenance

    refresh = f"srpo-robot audit {buffer.root}, or train without: --accept-audit"
    try:
        evidence = read_audit(buffer.sidecar / FILE, audit_origin(buffer, read_provenance(buffer)), refresh)
    except StaleTable as error:
        if not accept:
            raise
        warn(f"training goes on without an audit ({error})")
        return
    verdict = judge(evidence, level)
    say(f"audit: {'passed' if verdict.passed else 'FAILED'} at level {level:g}")
    if verdict.passed:
        return
    failed = [line for line in verdict.lines if line.startswith("FAIL")]
    if not accept:
        raise TrainingError(
            f"the audit failed: {failed[0][5:]}{f' (and {len(failed) - 1} more)' if len(failed) > 1 else ''}; "
            f"{verdict.advice[0] if verdict.advice else 'see srpo-robot audit'}; to train all the same: --accept-audit"
        )
    for line in failed:
        warn(line[5:])
