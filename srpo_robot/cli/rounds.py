"""The flywheel: `srpo-robot append` puts trials back into the buffer, `srpo-robot rounds` compares the rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_robot.buffer.opening import check_dataset
from srpo_robot.cli.comparing import load_run, show_p, show_points, show_rate
from srpo_robot.cli.console import console, say, table, waiting, write_json
from srpo_robot.cli.options import RoundsOptions
from srpo_robot.errors import UsageError
from srpo_robot.evaluation.comparison import Contender, PolicyComparison, compare
from srpo_robot.evaluation.statistics import Rate, success_rate


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of the flywheel.

    Attributes:
        number: 0-based. The other rounds are compared with round 0.
        folder: the run's folder.
        policy: name of the policy.
        rate: success rate of the policy.
        against_first: comparison with round 0; None for round 0 itself.
        p: p-value that holds at every interim look and for any number of later rounds; NaN for round 0.
    """

    number: int
    folder: Path
    policy: str
    rate: Rate
    against_first: PolicyComparison | None
    p: float


def rounds_command(options: RoundsOptions) -> list[Round]:
    """Prints the success rate by round, each against round 0.

    Raises:
        UsageError: a folder holds several policies or no trial that counts, or the runs are on different tasks.
        DatasetError: a run has no journal, or its journal has a label outside the choices.
    """
    sides = [_contender(folder) for folder in options.runs]
    rounds = []
    for number, (folder, side) in enumerate(zip(options.runs, sides, strict=True)):
        comparison = compare(sides[0], side, options.alpha) if number else None
        p = float("nan") if comparison is None else spent(comparison.interim.p, number)
        rate = success_rate(side.trials)
        rounds.append(Round(number=number, folder=folder, policy=side.name, rate=rate, against_first=comparison, p=p))
    _print(rounds, options.alpha)
    write_json(options.json_path, {"alpha": options.alpha, "rounds": [_json_row(item) for item in rounds]})
    return rounds


def spent(p: float, number: int) -> float:
    """Returns the p-value of round `number` (1, 2, ...), adjusted for all earlier and later rounds.

    Round k is tested at alpha / (k (k + 1)). Over all k these levels add up to alpha.
    """
    return min(1.0, p * number * (number + 1))


def append_command(dataset: Path, runs: tuple[Path, ...]) -> None:
    """Appends the recorded trials of runs (or other datasets) to a buffer.

    Raises:
        DatasetError: see `append`.
        UsageError: a run was not recorded to its own folder.
    """
    sources = [_recorded(run) for run in runs]
    for folder in [*([dataset] if dataset.exists() else []), *sources]:
        check_dataset(folder)
    from srpo_robot.buffer.appending import append

    with waiting(f"appending to {dataset}"):
        added, total = append(dataset, sources)
    say(f"{dataset}: {added} episodes added; {total} in all.")
    say(f"Score them (what is embedded stays embedded): srpo-robot score-dataset {dataset}")


def _recorded(run: Path) -> Path:
    if (run / "meta").is_dir() or not run.is_dir():
        return run  # a dataset itself; `check_dataset` refuses anything else
    if not (run / "dataset").is_dir():
        raise UsageError(f"{run} holds no recorded trials; give a dataset, or a run that has RUN/dataset")
    return run / "dataset"


def _contender(folder: Path) -> Contender:
    entrants = load_run(folder)
    if len(entrants) > 1:
        raise UsageError(f"{folder} holds {len(entrants)} policies; a round is a run of one: see srpo-robot compare")
    side = entrants[0].contender
    if all(trial.success is None for trial in side.trials):
        raise UsageError(f"{folder} has no trial that counts; run some first: srpo-robot run")
    return side


def _print(rounds: list[Round], alpha: float) -> None:
    result = table(
        "success by round", "round", "policy", "success (Wilson's 95 % interval)", "against round 0",
        f"{1 - alpha:.0%} at any time", "p at any time",
    )  # fmt: skip
    for item in rounds:
        cells = ("", "", "")
        if item.against_first is not None:
            interim = item.against_first.interim
            span = f"{100 * interim.low:.0f} to {100 * interim.high:.0f}"
            cells = (show_points(item.against_first.effect), span, show_p(item.p))
        result.add_row(str(item.number), item.policy, show_rate(item.rate), *cells)
    console.print(result)
    shown = [item for item in rounds if item.p <= alpha]
    if shown:
        words = ", ".join(f"{item.number} ({_direction(item)})" for item in shown)
        say(f"A difference from round 0 is shown for round {words}.")
    elif len(rounds) > 1:
        say("No round is shown to differ from round 0 yet.")


def _direction(item: Round) -> str:
    assert item.against_first is not None
    return "better" if item.against_first.effect.difference > 0 else "worse"


def _json_row(item: Round) -> dict[str, Any]:
    row: dict[str, Any] = {"round": item.number, "folder": str(item.folder), "policy": item.policy}
    row["rate"] = item.rate._asdict()
    if item.against_first is not None:
        row |= {
            "effect": item.against_first.effect._asdict(),
            "interim": item.against_first.interim._asdict(),
            "p": item.p,
        }
    return row
