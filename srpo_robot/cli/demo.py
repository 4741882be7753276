"""`srpo-robot demo`: the loop on the mock cell. Each stage leaves its result on disk; a second call goes on there."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from srpo_robot.cli.console import console, number, say, warn
from srpo_robot.errors import UsageError
from srpo_robot.records import Trial

if TYPE_CHECKING:
    from srpo_robot.progress.evidence.audit import AuditResult

ARM, TASK, POLICY = "mock", "put-apple", "pi0-tiny"
SEED = 0
SAY_PLAINLY = (
    "These are numbers of a mock: one simulated task, a tiny policy trained for minutes, a small encoder "
    "that has seen nothing but this mock. They show that the loop runs, not that the method works."
)


def run_demo(root: Path, episodes: int, steps: int, trials: int) -> Path:
    """Record, score, audit, train AWR and SFT, run both, write ROOT/report.html.

    Raises:
        UsageError: `root` holds a demo of other sizes.
    """
    started = time.monotonic()
    sizes = {"episodes": episodes, "steps": steps, "trials": trials}
    _claim(root, sizes)
    say(f"[bold]srpo-robot demo[/]: everything goes to {root}; Ctrl-C is safe, the same command goes on from there.\n")
    dataset = root / "dataset"
    _stage(1, "record demonstrations, half of them failures")
    _record(dataset, episodes)
    _stage(2, "score them: growing windows, V-JEPA 2 embeddings, distance to the task's own successes")
    summary = _score(dataset, root)
    _stage(3, "audit the scores: do they tell success from failure, and better than their negative controls?")
    verdict = _audit(dataset)
    runs: dict[str, list[Trial]] = {}
    schemes: tuple[tuple[str, Literal["awr", "uniform"]], ...] = (("AWR", "awr"), ("SFT", "uniform"))
    for place, (name, scheme) in enumerate(schemes):
        _stage(4 + place, f"train pi0-tiny, {name} ({scheme} weights)")
        _train(dataset, scheme, root / scheme, steps)
    for place, (name, scheme) in enumerate(schemes):
        _stage(6 + place, f"run the {name} policy on the mock arm")
        runs[name] = _run(root / scheme, root / f"run_{scheme}", trials)
    page = _report(root, dataset, summary, verdict, runs)
    warn(SAY_PLAINLY)
    say(f"Report: {page}  ({time.monotonic() - started:.0f} s)")
    return page


def _claim(root: Path, sizes: dict[str, int]) -> None:
    path = root / "demo.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if before != sizes:
            given = " ".join(f"--{key} {value}" for key, value in before.items())
            raise UsageError(f"{root} holds a demo of other sizes; give another --root, or go on with {given}")
        return
    if root.exists() and any(root.iterdir()):
        raise UsageError(f"{root} exists and is not a demo; give another --root")
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sizes) + "\n")


def _stage(place: int, what: str) -> None:
    console.print(f"\n[bold cyan]{place}/7[/] {what}")


def _record(dataset: Path, episodes: int) -> None:
    from srpo_robot.buffer.recorder import recorded_episodes
    from srpo_robot.buffer.repair import repair
    from srpo_robot.cli.running import record_demonstrations

    repair(dataset)  # what a kill -9 may have left
    missing = episodes - recorded_episodes(dataset)
    if missing > 0:
        record_demonstrations(ARM, TASK, dataset, missing, failure_rate=0.5, seed=SEED)
    else:
        say(f"{episodes} episodes are there.")


def _score(dataset: Path, root: Path) -> dict[str, Any]:
    from srpo_robot.cli.scoring import ScoreOptions, score_command

    path = root / "score.json"
    score_command(ScoreOptions(str(dataset), json_path=path))
    return json.loads(path.read_text())


def _audit(dataset: Path) -> AuditResult:
    """The verdict; the demo trains whatever it is, and says so."""
    from srpo_robot.cli.benchmarking import UnderTest, audit_command

    verdict = audit_command(UnderTest(str(dataset)), level=0.05, horizon=10, resamples=2000, json_path=None)
    if not verdict.passed:
        say("The demo goes on all the same, to show the rest of the loop; train-awr would ask for --accept-audit.")
    return verdict


def _train(dataset: Path, scheme: Literal["awr", "uniform"], output: Path, steps: int) -> None:
    from srpo_robot.awr.run_state import last_checkpoint
    from srpo_robot.buffer.opening import open_buffer
    from srpo_robot.cli.training import TrainOptions, train_buffer
    from srpo_robot.recipes import PolicyRecipe, load

    done = int(last_checkpoint(output).name) if (output / "checkpoints").is_dir() else 0
    if done >= steps:
        say(f"{output} is trained.")
        return
    recipe = replace(load(PolicyRecipe, "policies", POLICY), steps=steps, warmup_steps=min(100, steps // 4))
    options = TrainOptions(output, resume=done > 0, accept_audit=True)
    train_buffer(open_buffer(dataset), recipe, scheme, options)


def _run(checkpoint: Path, output: Path, trials: int) -> list[Trial]:
    from srpo_robot.cli.running import RunOptions, run_trials
    from srpo_robot.cli.sessions import LiveOptions

    return run_trials(RunOptions(ARM, TASK, str(checkpoint), trials, LiveOptions(output)))


def _report(
    root: Path, dataset: Path, summary: dict[str, Any], verdict: AuditResult, runs: dict[str, list[Trial]]
) -> Path:
    from srpo_robot.evaluation.statistics import success_rate
    from srpo_robot.report.figures import draw_losses
    from srpo_robot.report.page import Section, write_page

    losses = {name: _losses(root / scheme) for name, scheme in (("AWR", "awr"), ("SFT", "uniform"))}
    draw_losses(losses, root / "losses.png")
    score_rows = [["task", "episodes", "successes", "final progress, success", "failure", "reward, failure"]]
    for task, row in summary["tasks"].items():
        finals = [row[key] for key in ("final_progress_success", "final_progress_failure", "reward_failure")]
        score_rows.append(
            [task, str(row["episodes"]), str(row["successes"]), *("-" if v is None else number(v) for v in finals)]
        )
    run_rows = [["policy", "successes", "trials", "rate", "95 % interval (Wilson)"]]
    for name, trials in runs.items():
        rate = success_rate(trials)
        shown = "undefined" if rate.trials == 0 else f"{rate.rate:.0%}"
        run_rows.append([name, str(rate.successes), str(rate.trials), shown, f"{rate.low:.0%} to {rate.high:.0%}"])
    sections = [
        Section(
            "Scores",
            notes=(
                "Progress of every episode, by label. In the paper's profile a success is measured against its own "
                "end, so it ends at 1 by construction: that successes end higher than failures says nothing here.",
            ),
            warnings=tuple(summary["warnings"]),
            tables=(score_rows,),
            pictures=((dataset / "srpo" / "curves.png", "progress curves of successes and failures"),),
        ),
        Section(
            "Audit",
            notes=verdict.lines,
            warnings=() if verdict.passed else ("The audit failed: these scores have not earned a training run.",),
        ),
        Section(
            "Training",
            notes=(
                "The AWR loss is weighted by advantage, the SFT loss is not: the lines do not say who fits better.",
            ),
            pictures=((root / "losses.png", "training losses of AWR and SFT"),),
        ),
        Section(
            "Trials on the mock arm",
            notes=("With so few trials the intervals overlap: no difference between the rows is shown here.",)
            if _overlap(run_rows)
            else (),
            tables=(run_rows,),
        ),
    ]
    page = root / "report.html"
    write_page(page, "srpo-robot demo: put the apple on the plate", SAY_PLAINLY, sections)
    return page


def _overlap(rows: list[list[str]]) -> bool:
    spans = [[float(part.strip("% ")) for part in row[-1].split(" to ")] for row in rows[1:]]
    return max(low for low, _ in spans) <= min(high for _, high in spans)


def _losses(output: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["step"] for row in rows]), np.array([row["loss"] for row in rows])
