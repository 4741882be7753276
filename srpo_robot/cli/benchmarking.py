"""Commands `srpo-robot benchmark-progress` and `srpo-robot audit`: test a score on the lab's own episodes."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.labels import require_labels
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.cli.console import bar, console, number, say, table, waiting, warn, write_json
from srpo_robot.cli.devices import resolve
from srpo_robot.errors import StaleTable, UsageError
from srpo_robot.progress.pipeline import STORE, ScoreSettings, check_scorable, read_settings
from srpo_robot.progress.score import Rules
from srpo_robot.progress.windows import WindowSpec, parse_windows

if TYPE_CHECKING:
    from srpo_robot.progress.evidence.audit import AuditResult, Evidence
    from srpo_robot.progress.evidence.baselines import Scorer
    from srpo_robot.progress.evidence.benchmark import OracleRow, ScorerRow
    from srpo_robot.progress.evidence.metrics import Estimate, Resampling
    from srpo_robot.progress.score import Scores, WindowEmbeddings

SHOWN = ("sc", "mono", "mmd", "js", "smd", "auc")
TITLES = {"sc": "SC", "mono": "Mono", "mmd": "MMD", "js": "JS", "smd": "SMD", "auc": "AUC"}
ENDS_ONLY = 1_000_000  # stride that leaves only an episode's first and last window, enough for a final progress


@dataclass(frozen=True)
class UnderTest:
    """Options that select the score under test.

    None means the setting that the dataset was scored with, or the default of score-dataset if it was never scored.
    """

    dataset: str
    encoder: str | None = None
    cameras: tuple[str, ...] = ()
    windows: str | None = None
    window_shape: str | None = None
    min_window: int | None = None
    frames_per_clip: int | None = None
    device: str = "auto"
    dtype: str | None = None


@dataclass(frozen=True)
class BenchmarkOptions:
    """Options of `benchmark-progress`. Its help describes them."""

    test: UnderTest
    scorers: tuple[str, ...] = ()
    image: str | None = None
    ablate: tuple[str, ...] = ()
    reference: str | None = None
    policies: Path | None = None
    episode: int | None = None
    counterfactuals: int = 0
    colours: str = ""
    horizon: int = 10
    resamples: int = 1000
    seed: int = 0
    latex: bool = False
    json_path: Path | None = None


@dataclass(frozen=True)
class Candidate:
    """The score under test: a dataset, an encoder and the settings. Both commands use it."""

    buffer: Buffer
    encoder: Any
    settings: ScoreSettings

    @property
    def rules(self) -> Rules:
        """Returns the rules of the score under test in profile `loo`, with that profile's references and value."""
        return replace(self.settings.rules, profile="loo", references="", value="")


def prepare(test: UnderTest) -> Candidate:
    """Opens the dataset, resolves the settings of the score under test and loads its encoder.

    Raises:
        DatasetError, UnlabelledError, ScoringError: the dataset cannot be scored.
        CheckpointError: the encoder cannot be loaded.
    """
    from srpo_robot.progress.encoder import CAUTIONS, load_encoder

    with waiting(f"opening {test.dataset}"):
        buffer = open_buffer(test.dataset)
    require_labels(buffer)
    settings = _settings(buffer, test)
    check_scorable(buffer, Rules("loo", skip_tasks=settings.rules.skip_tasks))
    if settings.encoder in CAUTIONS:
        warn(CAUTIONS[settings.encoder])
    with waiting(f"loading {settings.encoder}"):
        encoder = load_encoder(
            settings.encoder,
            resolve(test.device),
            settings.dtype,
            frames_per_clip=settings.windows.frames_per_clip,
        )
    return Candidate(buffer, encoder, replace(settings, windows=settings.windows.resolved(encoder.frames_per_clip)))


def _settings(buffer: Buffer, test: UnderTest) -> ScoreSettings:
    """Returns the settings that the dataset was scored with, or the defaults, overridden by the options."""
    from srpo_robot.progress.encoder import EMBEDDED

    try:
        before = read_settings(buffer)
    except StaleTable:
        before = ScoreSettings(EMBEDDED, (buffer.camera(None),), parse_windows("stride:4"))
    # Another encoder uses its own clip length, unless the options set one.
    same_encoder = test.encoder in (None, before.encoder)
    spec = before.windows if same_encoder else replace(before.windows, frames_per_clip=None)
    if test.windows is not None:
        parsed = parse_windows(test.windows)
        spec = replace(spec, kind=parsed.kind, stride=parsed.stride)
    options = {"shape": test.window_shape, "min_window": test.min_window, "frames_per_clip": test.frames_per_clip}
    spec = replace(spec, **{key: value for key, value in options.items() if value is not None}, repeat="linspace")
    cameras = tuple(dict.fromkeys(buffer.camera(name) for name in test.cameras)) or before.cameras
    return replace(
        before,
        encoder=test.encoder or before.encoder,
        cameras=cameras,
        windows=spec,
        dtype=test.dtype or before.dtype,
    )


def embed_under_test(candidate: Candidate) -> Sequence[WindowEmbeddings | None]:
    """Returns the windows of the score under test. They come from the store if the dataset was scored before."""
    from srpo_robot.cli.scoring import embed_with_bar
    from srpo_robot.progress.pipeline import combined

    return combined(embed_with_bar(candidate.buffer, candidate.encoder, candidate.settings, skip_bad=False))


def score_others(candidate: Candidate, scorers: Sequence[Scorer], spec: WindowSpec) -> dict[str, Scores]:
    """Scores the same episodes with negative controls and baselines, each with its own progress bar."""
    from srpo_robot.progress.evidence.baselines import score_with
    from srpo_robot.progress.store import EmbeddingStore

    store, result = EmbeddingStore(candidate.buffer.sidecar / STORE), {}
    for scorer in scorers:
        with bar(scorer.name, len(candidate.buffer.episodes), "episode") as progress:
            result[scorer.name] = score_with(
                scorer,
                candidate.buffer,
                store,
                candidate.settings.cameras,
                candidate.encoder,
                spec,
                candidate.rules,
                on_episode=lambda episode, fresh, shown=progress: shown.advance(),
            )
            progress.at(len(candidate.buffer.episodes))
    return result


# --- benchmark-progress -------------------------------------------------------------------------------------------


def benchmark_command(options: BenchmarkOptions) -> None:
    """Prints the table of appendix A and writes the files DATASET/srpo/benchmark.*."""
    from srpo_robot.progress.evidence.metrics import Resampling

    chosen = chosen_scorers(options)
    resampling = Resampling(options.resamples, options.resamples, seed=options.seed)
    candidate = prepare(options.test)
    policies = read_policies(options.policies, candidate.buffer) if options.policies else None
    external = _external(options, candidate)
    windows = embed_under_test(candidate)
    rows = _own_rows(candidate, windows, options, external, policies, resampling)
    rows += _true_rows(candidate, resampling)
    spec = candidate.settings.windows
    for name, scores in score_others(candidate, chosen, spec).items():
        rows.append(_other_row(candidate, next(s for s in chosen if s.name == name), scores, policies, resampling))
    print_rows(rows, candidate)
    content: dict[str, Any] = {"settings": asdict(candidate.settings), "rows": [row_json(row) for row in rows]}
    content["alpha"] = _print_alphas(candidate, windows) if "alpha" in options.ablate else []
    content["counterfactuals"] = _print_counterfactuals(candidate, windows, options) if options.counterfactuals else []
    content["oracle"] = _print_oracle(candidate, windows, options.horizon, resampling)
    _write_files(candidate, rows, options)
    write_json(options.json_path, content)


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
            chosen.append(image_scorer(load_image_encoder(options.image, resolve(options.test.device)), options.image))
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

    return external_from(options.reference, candidate.encoder, candidate.settings) if options.reference else None


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
    return own_rows(candidate.buffer.episodes, windows, candidate.rules, ablations, external, policies, resampling)


def _true_rows(candidate: Candidate, resampling: Resampling) -> list[ScorerRow]:
    """Returns rows with the simulator's true state as the encoder, the result of a perfect encoder.

    Returns no rows if the dataset does not record the true state.
    """
    from srpo_robot.progress.evidence.benchmark import own_rows

    windows = _true_windows(candidate)
    if windows is None:
        return []
    rows = own_rows(candidate.buffer.episodes, windows, candidate.rules, resampling=resampling)
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
    if len(tasks) != 1:
        print_table(f"mean over {len(tasks)} tasks", rows, [row.macro for row in rows])
    say("Below the line: negative controls, which the score must beat. 95 % and p belong to AUC.")
    say("paper: a success is measured against its own end, so its AUC, MMD, JS and SMD are true by construction.")
    for row in rows:
        if row.tail is not None:
            say(f"{row.name}: progress changes by {number(row.tail.value)} after everything has stopped.")
        if math.isfinite(row.ranking.value):
            say(f"{row.name}: ranks policies as their success rates do: Kendall's tau {number(row.ranking.value, 2)}.")


def print_table(title: str, rows: list[ScorerRow], tables: list[dict[str, Estimate]]) -> None:
    """Prints one row per scorer, negative controls last. An undefined metric is a dash, explained below the table."""
    result = table(title, "scorer", *(TITLES[name] for name in SHOWN), "95 %", "p")
    section = False
    for row, estimates in sorted(zip(rows, tables, strict=True), key=lambda pair: pair[0].control):
        if row.control and not section:
            result.add_section()
            section = True
        values = [estimates[name].value for name in SHOWN if estimates]
        cells = ["-" if math.isnan(value) else number(value, 2) for value in values]
        auc = estimates.get("auc")
        span = "-" if auc is None or math.isnan(auc.low) else f"{auc.low:.2f}-{auc.high:.2f}"
        p = "-" if auc is None or math.isnan(auc.p) else number(auc.p)
        result.add_row(row.name, *cells, span, p, style="dim" if row.control else None)
    console.print(result)
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

    rows = alpha_sweep(candidate.buffer.episodes, windows, candidate.rules)
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

    colours = parse_colours(options.colours) if options.colours else None
    camera, *more = candidate.settings.cameras
    if more:
        raise UsageError("counterfactuals are made for one camera; name one: --camera NAME")
    with bar("counterfactuals", options.counterfactuals, "success") as progress:
        rows = over_rewards(
            candidate.buffer,
            camera,
            candidate.encoder,
            candidate.settings.windows,
            windows,
            candidate.rules,
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
        cells = ("-" if math.isnan(v) else number(v, 2) for v in (row.final, row.source, row.excess, row.share))
        result.add_row(row.variant, str(row.count), *cells)
    console.print(result)
    return [asdict(row) for row in rows]


def _true_windows(candidate: Candidate) -> Sequence[WindowEmbeddings] | None:
    """Returns the true state at each window's end. None if the dataset does not record it."""
    from srpo_robot.mock.truth import FEATURES, read_truth, true_windows

    if any(name not in candidate.buffer.meta.features for name in FEATURES):
        return None
    spec = candidate.settings.windows.resolved(candidate.encoder.frames_per_clip)
    return true_windows(read_truth(candidate.buffer), candidate.buffer.episodes, spec)


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
        values = step_values(candidate.buffer.episodes, encoder_windows, candidate.rules)
        first = candidate.settings.windows.min_window
        rows = beside_oracle(values, truth.stage, truth.drop, carrying, success, horizon, first, resampling)
        content[name] = [asdict(row) for row in rows]
        for row in rows:
            result.add_row(f"{name}, {row.value}", *_oracle_cells(row))
    console.print(result)
    return content


def _oracle_cells(row: OracleRow) -> list[str]:
    estimates = (row.chunks.success, row.chunks.failure, row.chunks.pooled, row.drop)
    return ["-" if math.isnan(e.value) else number(e.value, 2) for e in estimates]


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
    frames = candidate.buffer.frames(episode, candidate.settings.cameras[0])
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
        cells = ["--" if math.isnan(row.macro[name].value) else f"{row.macro[name].value:.3f}" for name in SHOWN]
        auc = row.macro["auc"]
        if not math.isnan(auc.low):
            cells[-1] += f" [{auc.low:.3f}, {auc.high:.3f}]"
        lines.append(" & ".join([row.name.replace("_", r"\_"), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


# --- audit --------------------------------------------------------------------------------------------------------


def audit_command(test: UnderTest, level: float, horizon: int, resamples: int, json_path: Path | None) -> AuditResult:
    """Runs the audit, writes DATASET/srpo/audit.json, prints the verdict and returns it."""
    from srpo_robot.progress.evidence.audit import FILE, write_audit
    from srpo_robot.progress.evidence.metrics import Resampling

    judge_level(level)
    candidate = prepare(test)
    evidence = audit_evidence(candidate, horizon, Resampling(resamples, resamples))
    verdict = write_audit(
        candidate.buffer.sidecar / FILE, evidence, level, origin(candidate.buffer, candidate.settings)
    )
    print_verdict(verdict, evidence)
    write_json(json_path, asdict(verdict) | {"evidence": asdict(evidence)})
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
    real = final_progress(score(episodes, windows, candidate.rules).curves)
    spec = candidate.settings.windows
    if spec.kind != "nested":  # the final progress depends on the last window only
        spec = replace(spec, kind="stride", stride=ENDS_ONLY)
    others = score_others(candidate, [scorer_named(name) for name in AUDIT_CONTROLS], spec)
    controls = {name: final_progress(scores.curves) for name, scores in others.items()}
    values = step_values(episodes, windows, candidate.rules)
    gains = {name: worst_gains(episode_values, horizon) for name, episode_values in values.items()}
    return gather(episodes, real, controls, gains, resampling)


def origin(buffer: Buffer, settings: ScoreSettings) -> dict[str, Any]:
    """Returns the origin of an audit: data, labels, encoder, cameras and windows. The profile is always `loo`."""
    return {
        "dataset": buffer.fingerprint,
        "labels": buffer.labels_fingerprint,
        "encoder": settings.encoder,
        "cameras": list(settings.cameras),
        "windows": asdict(settings.windows),
    }


def print_verdict(verdict: AuditResult, evidence: Evidence) -> None:
    """Prints the PASS and FAIL lines, the step value that the labels support, and the advice."""
    for line in verdict.lines:
        colour = "green" if line.startswith("PASS") else "red"
        say(f"[{colour}]{line[:4]}[/]{line[4:]}")
    if evidence.values:
        result = table("worst chunk of an episode: failure against success", "value", "AUC", "95 %", "p")
        for row in evidence.values:
            span = "-" if math.isnan(row.low) else f"{row.low:.2f} to {row.high:.2f}"
            cells = (
                "-" if math.isnan(row.auc) else number(row.auc, 2),
                span,
                "-" if math.isnan(row.p) else number(row.p),
            )
            result.add_row(row.name, *cells)
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

    refresh = f"srpo-robot audit {buffer.root}, or train without: --accept-audit"
    try:
        evidence = read_audit(buffer.sidecar / FILE, origin(buffer, read_settings(buffer)), refresh)
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
