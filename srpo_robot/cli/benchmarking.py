"""`srpo-robot benchmark-progress` and `srpo-robot audit`: what is a score worth on this lab's own episodes?"""

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
from srpo_robot.numerics import cell
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
ENDS_ONLY = 1_000_000  # stride that leaves an episode's first and last window: all that a final progress needs


@dataclass(frozen=True)
class UnderTest:
    """Options that say which score is meant; None: as the dataset was scored, else the defaults of score-dataset."""

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
    """The options of `benchmark-progress`; see its help."""

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
    """What both commands work on."""

    buffer: Buffer
    encoder: Any
    settings: ScoreSettings

    @property
    def rules(self) -> Rules:
        """Of the score under test, in profile `loo` and without what belongs to another profile."""
        return replace(self.settings.rules, profile="loo", references="", value="")


def prepare(test: UnderTest) -> Candidate:
    """Open the dataset, find out which score is meant, load its encoder.

    Raises:
        DatasetError, UnlabelledError, ScoringError: what cannot be scored cannot be judged.
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
    """As scored where it was, with what the options say over it."""
    from srpo_robot.progress.encoder import EMBEDDED

    try:
        before = read_settings(buffer)
    except StaleTable:
        before = ScoreSettings(EMBEDDED, (buffer.camera(None),), parse_windows("stride:4"))
    # Another encoder brings its own clip length, unless one is asked for.
    own = test.encoder in (None, before.encoder)
    spec = before.windows if own else replace(before.windows, frames_per_clip=None)
    if test.windows is not None:
        named = parse_windows(test.windows)
        spec = replace(spec, kind=named.kind, stride=named.stride)
    given = {"shape": test.window_shape, "min_window": test.min_window, "frames_per_clip": test.frames_per_clip}
    spec = replace(spec, **{key: value for key, value in given.items() if value is not None}, repeat="linspace")
    cameras = tuple(dict.fromkeys(buffer.camera(name) for name in test.cameras)) or before.cameras
    return replace(
        before,
        encoder=test.encoder or before.encoder,
        cameras=cameras,
        windows=spec,
        dtype=test.dtype or before.dtype,
    )


def embed_under_test(bench: Candidate) -> Sequence[WindowEmbeddings | None]:
    """Windows of the score under test; from the store where it was scored before."""
    from srpo_robot.cli.scoring import embed_with_bar
    from srpo_robot.progress.pipeline import combined

    return combined(embed_with_bar(bench.buffer, bench.encoder, bench.settings, skip_bad=False))


def score_others(bench: Candidate, scorers: Sequence[Scorer], spec: WindowSpec) -> dict[str, Scores]:
    """Nulls and rivals on the same episodes, each under a bar of its own."""
    from srpo_robot.progress.evidence.baselines import score_with
    from srpo_robot.progress.store import EmbeddingStore

    store, found = EmbeddingStore(bench.buffer.sidecar / STORE), {}
    for scorer in scorers:
        with bar(scorer.name, len(bench.buffer.episodes), "episode") as progress:
            found[scorer.name] = score_with(
                scorer,
                bench.buffer,
                store,
                bench.settings.cameras,
                bench.encoder,
                spec,
                bench.rules,
                on_episode=lambda episode, fresh, shown=progress: shown.advance(),
            )
            progress.at(len(bench.buffer.episodes))
    return found


# --- benchmark-progress -------------------------------------------------------------------------------------------


def benchmark_command(options: BenchmarkOptions) -> None:
    """Appendix A's table, and files DATASET/srpo/benchmark.* beside it."""
    from srpo_robot.progress.evidence.metrics import Resampling

    chosen = chosen_scorers(options)
    resampling = Resampling(options.resamples, options.resamples, seed=options.seed)
    bench = prepare(options.test)
    policies = read_policies(options.policies, bench.buffer) if options.policies else None
    external = _external(options, bench)
    windows = embed_under_test(bench)
    rows = _own_rows(bench, windows, options, external, policies, resampling)
    rows += _true_rows(bench, resampling)
    spec = bench.settings.windows
    for name, scores in score_others(bench, chosen, spec).items():
        rows.append(_other_row(bench, next(s for s in chosen if s.name == name), scores, policies, resampling))
    print_rows(rows, bench)
    content: dict[str, Any] = {"settings": asdict(bench.settings), "rows": [row_json(row) for row in rows]}
    content["alpha"] = _print_alphas(bench, windows) if "alpha" in options.ablate else []
    content["counterfactuals"] = _print_counterfactuals(bench, windows, options) if options.counterfactuals else []
    content["oracle"] = _print_oracle(bench, windows, options.horizon, resampling)
    _write_files(bench, rows, options)
    write_json(options.json_path, content)


def chosen_scorers(options: BenchmarkOptions) -> list[Scorer]:
    """Those that --scorer names, else all; `image` where --image names an encoder.

    Raises:
        UsageError: no such scorer, or `image` without --image.
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
    """What moved the arm in each episode, from a CSV "episode_index,policy"; "" where it is not said.

    Raises:
        UsageError: no such file, no such columns, or an episode that is not there.
    """
    try:
        rows = list(csv.DictReader(path.open(newline="", encoding="utf-8-sig")))
        named = {int(row["episode_index"]): str(row["policy"]).strip() for row in rows}
    except (OSError, KeyError, ValueError, UnicodeDecodeError):
        raise UsageError(f"{path} is no CSV with the columns episode_index,policy") from None
    unknown = sorted(set(named) - {episode.index for episode in buffer.episodes})
    if unknown:
        raise UsageError(f"{path} names episode {unknown[0]}, which {buffer.root} does not have")
    return [named.get(episode.index, "") for episode in buffer.episodes]


def _external(options: BenchmarkOptions, bench: Candidate) -> dict[str, np.ndarray] | None:
    from srpo_robot.cli.scoring import external_from

    return external_from(options.reference, bench.encoder, bench.settings) if options.reference else None


def _own_rows(
    bench: Candidate,
    windows: Sequence[WindowEmbeddings | None],
    options: BenchmarkOptions,
    external: dict[str, np.ndarray] | None,
    policies: list[str] | None,
    resampling: Resampling,
) -> list[ScorerRow]:
    from srpo_robot.progress.evidence.benchmark import own_rows

    ablations = [name for name in options.ablate if name != "alpha"]
    return own_rows(bench.buffer.episodes, windows, bench.rules, ablations, external, policies, resampling)


def _true_rows(bench: Candidate, resampling: Resampling) -> list[ScorerRow]:
    """The simulator's true state as encoder, where it was recorded: what a perfect encoder would reach."""
    from srpo_robot.progress.evidence.benchmark import own_rows

    windows = _true_windows(bench)
    if windows is None:
        return []
    rows = own_rows(bench.buffer.episodes, windows, bench.rules, resampling=resampling)
    return [replace(row, name=f"true state, {row.name}", meaning="a perfect encoder") for row in rows]


def _other_row(
    bench: Candidate, scorer: Scorer, scores: Scores, policies: list[str] | None, resampling: Resampling
) -> ScorerRow:
    from srpo_robot.progress.evidence.benchmark import measure

    frozen = scorer.transform == "frozen-tail"
    return measure(
        scorer.name, scorer.meaning, bench.buffer.episodes, scores, scorer.null, frozen, policies, resampling
    )


def print_rows(rows: list[ScorerRow], bench: Candidate) -> None:
    """One table a task where there are few, and the macro mean."""
    tasks = [found.task for found in rows[0].tables]
    for task in tasks if len(tasks) <= 5 else []:
        tables = [next((t.estimates for t in row.tables if t.task == task), {}) for row in rows]
        counts = next(t for t in rows[0].tables if t.task == task)
        print_table(f"{task}: {counts.successes} successes, {counts.failures} failures", rows, tables)
    if len(tasks) != 1:
        print_table(f"mean over {len(tasks)} tasks", rows, [row.macro for row in rows])
    say("Below the line: nulls, which the score must beat. 95 % and p belong to AUC.")
    say("paper: a success is measured against its own end, so its AUC, MMD, JS and SMD are true by construction.")
    for row in rows:
        if row.tail is not None:
            say(f"{row.name}: progress changes by {number(row.tail.value)} after everything has stopped.")
        if math.isfinite(row.ranking.value):
            say(f"{row.name}: ranks policies as their success rates do: Kendall's tau {number(row.ranking.value, 2)}.")


def print_table(title: str, rows: list[ScorerRow], tables: list[dict[str, Estimate]]) -> None:
    """A row a scorer, the nulls last. What is undefined is a dash, and its count and reason stand below."""
    shown: list[tuple[ScorerRow, dict[str, Estimate]]] = []
    made = table(title, "scorer", *(TITLES[name] for name in SHOWN), "95 %", "p")
    for row, found in sorted(zip(rows, tables, strict=True), key=lambda pair: pair[0].null):
        if row.null and not any(before.null for before, _ in shown):
            made.add_section()
        shown.append((row, found))
        cells = [cell(found[name].value, 2) for name in SHOWN if found]
        auc = found.get("auc")
        span = "-" if auc is None or math.isnan(auc.low) else f"{auc.low:.2f}-{auc.high:.2f}"
        p = cell(None if auc is None else auc.p)
        made.add_row(row.name, *cells, span, p, style="dim" if row.null else None)
    console.print(made)
    why: dict[str, list[str]] = {}
    for row, found in zip(rows, tables, strict=True):
        for name in SHOWN:
            own = found.get(name)
            if own is not None and (math.isnan(own.value) or own.undefined):
                text = f"{own.reason or 'without progress'} ({own.undefined} left out)"
                why.setdefault(text, []).append(f"{row.name} {TITLES[name]}")
    for text, names in why.items():
        say(f"[dim]undefined: {text}: {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}[/]")


def row_json(row: ScorerRow) -> dict[str, Any]:
    """A row with every number, JSON-able."""
    return {
        "scorer": row.name,
        "meaning": row.meaning,
        "null": row.null,
        "macro": {name: asdict(found) for name, found in row.macro.items()},
        "tasks": {
            found.task: {
                "successes": found.successes,
                "failures": found.failures,
                "left_out": found.left_out,
                **{name: asdict(estimate) for name, estimate in found.estimates.items()},
            }
            for found in row.tables
        },
        "policy_ranking": asdict(row.ranking),
        "tail": None if row.tail is None else asdict(row.tail),
    }


def _print_alphas(bench: Candidate, windows: Sequence[WindowEmbeddings | None]) -> list[dict[str, Any]]:
    from srpo_robot.progress.evidence.benchmark import alpha_sweep

    rows = alpha_sweep(bench.buffer.episodes, windows, bench.rules)
    made = table("reward by alpha (eq. 5)", "alpha", "mean of failures", "highest", "variance among failures")
    for row in rows:
        made.add_row(f"{row.alpha:g}", number(row.failure), number(row.highest_failure), number(row.within))
    console.print(made)
    return [asdict(row) for row in rows]


def _print_counterfactuals(
    bench: Candidate, windows: Sequence[WindowEmbeddings | None], options: BenchmarkOptions
) -> list[dict[str, Any]]:
    """What the score pays for endings that are known to be wrong; from the first camera alone.

    Raises:
        UsageError: several cameras.
    """
    from srpo_robot.progress.evidence.counterfactual import parse_colours
    from srpo_robot.progress.evidence.overreward import over_rewards

    colours = parse_colours(options.colours) if options.colours else None
    camera, *more = bench.settings.cameras
    if more:
        raise UsageError("counterfactuals are made for one camera; name one: --camera NAME")
    with bar("counterfactuals", options.counterfactuals, "success") as progress:
        rows = over_rewards(
            bench.buffer,
            camera,
            bench.encoder,
            bench.settings.windows,
            windows,
            bench.rules,
            options.counterfactuals,
            options.seed,
            lambda episode: progress.advance(note=f"episode {episode.index}"),
            colours,
        )
    made = table(
        "wrong endings, profile loo: an excess above 0 pays for what did not happen",
        "variant", "made", "final p", "of its success", "excess", "share above 0",
    )  # fmt: skip
    for row in rows:
        cells = (cell(value, 2) for value in (row.final, row.source, row.excess, row.share))
        made.add_row(row.variant, str(row.count), *cells)
    console.print(made)
    return [asdict(row) for row in rows]


def _true_windows(bench: Candidate) -> Sequence[WindowEmbeddings] | None:
    """The true state at each window's end; None where the dataset does not hold it."""
    from srpo_robot.mock.truth import FEATURES, read_truth, true_windows

    if any(name not in bench.buffer.meta.features for name in FEATURES):
        return None
    spec = bench.settings.windows.resolved(bench.encoder.frames_per_clip)
    return true_windows(read_truth(bench.buffer), bench.buffer.episodes, spec)


def _print_oracle(
    bench: Candidate, windows: Sequence[WindowEmbeddings | None], horizon: int, resampling: Resampling
) -> dict[str, Any]:
    """Each step value beside the simulator's oracle, of the encoder and of the true state; {} where there is none."""
    from srpo_robot.mock.truth import STATE_NAMES, read_truth
    from srpo_robot.progress.evidence.benchmark import beside_oracle, step_values

    true = _true_windows(bench)
    if true is None:
        return {}
    truth = read_truth(bench.buffer)
    carrying = [rows[:, STATE_NAMES.index("held")] > 0.5 for rows in truth.state]
    success = [e.success for e in bench.buffer.episodes]
    found: dict[str, Any] = {}
    made = table(
        f"step values beside the simulator: correlation of gains over {horizon} frames, and is a drop noticed",
        "value", "success", "failure", "all", "drop (AUC)",
    )  # fmt: skip
    for name, own in (("encoder", windows), ("true state", true)):
        values = step_values(bench.buffer.episodes, own, bench.rules)
        first = bench.settings.windows.min_window
        rows = beside_oracle(values, truth.stage, truth.drop, carrying, success, horizon, first, resampling)
        found[name] = [asdict(row) for row in rows]
        for row in rows:
            made.add_row(f"{name}, {row.value}", *_oracle_cells(row))
    console.print(made)
    return found


def _oracle_cells(row: OracleRow) -> list[str]:
    estimates = (row.chunks.success, row.chunks.failure, row.chunks.pooled, row.drop)
    return [cell(estimate.value, 2) for estimate in estimates]


def _write_files(bench: Candidate, rows: list[ScorerRow], options: BenchmarkOptions) -> None:
    from srpo_robot.report.benchmark_figure import draw_example, example_episode

    folder = bench.buffer.sidecar
    write_csv(folder / "benchmark.csv", rows)
    files = ["benchmark.csv"]
    if options.latex:
        (folder / "benchmark.tex").write_text(latex(rows), encoding="utf-8")
        files.append("benchmark.tex")
    shown = [row for row in rows if row.name in ("loo", "pixel", "image", "pixel-last10")][:3]
    episode = example_episode(bench.buffer.episodes, options.episode)
    curves = {row.name: row.scores.curves[bench.buffer.episodes.index(episode)] for row in shown}
    frames = bench.buffer.frames(episode, bench.settings.cameras[0])
    draw_example(episode, curves, frames, folder / "benchmark.png")
    say(f"Table and example are in {folder} ({', '.join([*files, 'benchmark.png'])}).")


def write_csv(path: Path, rows: list[ScorerRow]) -> None:
    """A line for each scorer, task (and "macro") and metric; what is undefined is empty, with its reason."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        names = ("value", "low", "high", "p", "null", "undefined", "reason")
        out.writerow(["scorer", "task", "metric", *names])
        for row in rows:
            tables = [(found.task, found.estimates) for found in row.tables] + [("macro", row.macro)]
            for task, estimates in tables:
                for metric, estimate in estimates.items():
                    cells = [getattr(estimate, name) for name in names]
                    out.writerow([row.name, task, metric, *("" if cell != cell else cell for cell in cells)])


def latex(rows: list[ScorerRow]) -> str:
    """The macro means as a booktabs table; the 95 % interval of the AUC in brackets."""
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


def audit_command(test: UnderTest, level: float, horizon: int, resamples: int, json_path: Path | None) -> AuditResult:
    """Print the verdict, write DATASET/srpo/audit.json, and return it."""
    from srpo_robot.progress.evidence.audit import FILE, write_audit
    from srpo_robot.progress.evidence.metrics import Resampling

    judge_level(level)
    bench = prepare(test)
    evidence = audit_evidence(bench, horizon, Resampling(resamples, resamples))
    verdict = write_audit(bench.buffer.sidecar / FILE, evidence, level, origin(bench.buffer, bench.settings))
    print_verdict(verdict, evidence)
    write_json(json_path, asdict(verdict) | {"evidence": asdict(evidence)})
    return verdict


def judge_level(level: float) -> None:
    """Raise UsageError for a level that cannot be, before anything is opened."""
    from srpo_robot.progress.evidence.audit import Evidence, judge

    judge(Evidence(()), level)


def audit_evidence(bench: Candidate, horizon: int, resampling: Resampling) -> Evidence:
    """Final progress in profile `loo` against its controls, and the step values against the labels."""
    from srpo_robot.progress.evidence.audit import CONTROLS, gather
    from srpo_robot.progress.evidence.baselines import scorer_named
    from srpo_robot.progress.evidence.benchmark import step_values, worst_gains
    from srpo_robot.progress.evidence.metrics import final_progress
    from srpo_robot.progress.score import score

    episodes = bench.buffer.episodes
    windows = embed_under_test(bench)
    real = final_progress(score(episodes, windows, bench.rules).curves)
    spec = bench.settings.windows
    if spec.kind != "nested":  # a final progress needs the last window only, and its order none of the others
        spec = replace(spec, kind="stride", stride=ENDS_ONLY)
    others = score_others(bench, [scorer_named(name) for name in CONTROLS], spec)
    controls = {name: final_progress(scores.curves) for name, scores in others.items()}
    values = step_values(episodes, windows, bench.rules)
    gains = {name: worst_gains(own, horizon) for name, own in values.items()}
    return gather(episodes, real, controls, gains, resampling)


def origin(buffer: Buffer, settings: ScoreSettings) -> dict[str, Any]:
    """What an audit is of: recorded data, labels, encoder, cameras and windows. The profile is always `loo`."""
    return {
        "dataset": buffer.fingerprint,
        "labels": buffer.labels_fingerprint,
        "encoder": settings.encoder,
        "cameras": list(settings.cameras),
        "windows": asdict(settings.windows),
    }


def print_verdict(verdict: AuditResult, evidence: Evidence) -> None:
    """PASS or FAIL line by line, what to do, and the step value that the labels support."""
    for line in verdict.lines:
        colour = "green" if line.startswith("PASS") else "red"
        say(f"[{colour}]{line[:4]}[/]{line[4:]}")
    if evidence.values:
        made = table("worst chunk of an episode: failure against success", "value", "AUC", "95 %", "p")
        for row in evidence.values:
            span = "-" if math.isnan(row.low) else f"{row.low:.2f} to {row.high:.2f}"
            made.add_row(row.name, cell(row.auc, 2), span, cell(row.p))
        console.print(made)
        say(f"Step value that the labels support: {verdict.value or 'none of them'}.")
    for line in verdict.advice:
        say(f"try: {line}")
    say("[bold green]The audit passed.[/]" if verdict.passed else "[bold red]The audit failed.[/]")


def gate(buffer: Buffer, level: float, accept: bool) -> None:
    """Before weights by advantage train: the audit's verdict at the recipe's level, or --accept-audit.

    Raises:
        StaleTable: never audited, or of another score (unless `accept`).
        TrainingError: it failed (unless `accept`); says what to try.
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
