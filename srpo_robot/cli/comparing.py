"""`srpo-robot compare`: policies side by side, and the conclusions that their difference allows."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from srpo_robot.cli.console import console, say, shortened, table, waiting, warn, write_json
from srpo_robot.cli.options import CompareOptions
from srpo_robot.errors import StaleTable, UsageError
from srpo_robot.evaluation.comparison import (
    Contender,
    Needed,
    PolicyComparison,
    amount_effect,
    check_trials,
    compare,
    how_many,
    task_of,
)
from srpo_robot.evaluation.protocol import open_study
from srpo_robot.evaluation.statistics import Effect, Rate, holm, success_rate
from srpo_robot.evaluation.trials import read_trials
from srpo_robot.records import Trial


@dataclass(frozen=True)
class Entrant:
    """A policy to compare, and the dataset that its trials were recorded to (None: not known)."""

    contender: Contender
    dataset: Path | None


@dataclass(frozen=True)
class Progress:
    """The second outcome: the effect on final progress over `trials` trials or pairs, measured in `profile`."""

    effect: Effect
    trials: int
    profile: str


def compare_command(options: CompareOptions) -> list[PolicyComparison]:
    """Compares every policy of the runs with the first one, or with --baseline, and prints the result.

    Raises:
        UsageError: fewer than two policies, different tasks, no trial that counts, an unknown baseline or task, or a
            difference or power outside 0 to 1.
        DatasetError: a run has no journal, or its journal has a label outside the choices.
    """
    _check_numbers(options)
    entrants = [entrant for run in options.runs for entrant in load_run(run, options.unblind)]
    entrants = _of_task(_distinct(entrants, options.runs), options.task)
    names = [entrant.contender.name for entrant in entrants]
    place, entrants = _baseline(names, options.baseline), _short(entrants)
    policies = {entrant.contender.name: name for entrant, name in zip(entrants, names, strict=True)}
    base = entrants[place]
    others = [entrant for entrant in entrants if entrant is not base]
    if not others:
        raise UsageError(f"{base.contender.name} alone cannot be compared; give a second run, or a protocol's output")
    comparisons = [compare(base.contender, other.contender, options.alpha, options.margin) for other in others]
    adjusted = holm([comparison.effect.p for comparison in comparisons])
    _print_rates([base, *others])
    _print_effects(comparisons, adjusted, options.alpha)
    rows = []
    for other, comparison, p in zip(others, comparisons, adjusted, strict=True):
        needed = _needed(comparison, options)
        progress = _progress(base, other, comparison, options)
        score = score_effect(base.contender, other.contender, comparison, options.alpha)
        _print_one(comparison, p, needed, progress, options)
        if score is not None:
            say(_amount_sentence("Final score", comparison, *score))
        rows.append(_json_row(comparison, p, needed, progress, score))
    content = {"policies": policies, "baseline": base.contender.name, "alpha": options.alpha, "comparisons": rows}
    write_json(options.json_path, content)
    return comparisons


# --- reading runs -------------------------------------------------------------------------------------------------


def load_run(folder: Path, unblind: bool = False) -> list[Entrant]:
    """Returns the policies of a run's folder in the order they were named. Raises as `read_trials` and `open_study`."""
    study = open_study(folder)
    trials = read_trials(folder)
    check_trials(trials, str(folder / "trials.jsonl"))
    if not trials:
        raise UsageError(f"{folder} has no trials yet; run some first: srpo-robot run")
    dataset = folder / "dataset" if (folder / "dataset").is_dir() else None
    if study is None:
        names = list(dict.fromkeys(trial.policy for trial in trials))
        shown = {name: name for name in names}
    else:
        trials = study.trials()
        shown = {letter: study.name(letter, unblind) for letter in study.protocol.policies}
        names = (
            list(shown) if all(shown[x] != x for x in shown) else sorted(shown)
        )  # the order of the key would tell which is which
    return [Entrant(Contender(shown[n], tuple(t for t in trials if t.policy == n)), dataset) for n in names]


def _distinct(entrants: list[Entrant], runs: tuple[Path, ...]) -> list[Entrant]:
    """Adds numbers to the names of policies that are in several runs."""
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError("the same run is given twice; give each once")
    names = [entrant.contender.name for entrant in entrants]
    renamed = []
    for place, (entrant, name) in enumerate(zip(entrants, names, strict=True)):
        if names.count(name) > 1:
            entrant = replace(entrant, contender=replace(entrant.contender, name=f"{name} #{place + 1}"))
        renamed.append(entrant)
    return renamed


def _of_task(entrants: list[Entrant], task: str) -> list[Entrant]:
    if not task:
        return entrants
    known = sorted({task_of(trial) for entrant in entrants for trial in entrant.contender.trials})
    if task not in known:
        raise UsageError(f"no trial of task {task!r}; there are: {', '.join(known)}")
    return [
        replace(e, contender=Contender(e.contender.name, tuple(t for t in e.contender.trials if task_of(t) == task)))
        for e in entrants
    ]


def _short(entrants: list[Entrant]) -> list[Entrant]:
    names = shortened([entrant.contender.name for entrant in entrants])
    return [replace(e, contender=replace(e.contender, name=name)) for e, name in zip(entrants, names, strict=True)]


def _baseline(names: list[str], name: str) -> int:
    """Returns the index of the policy `name`, given in full or as the tables show it; 0 if `name` is empty."""
    for known in (names, shortened(names)):
        if not name or name in known:
            return known.index(name) if name else 0
    raise UsageError(f"no policy {name!r} in these runs; there are: {', '.join(names)}")


def _check_numbers(options: CompareOptions) -> None:
    for name, value in (("--alpha", options.alpha), ("--power", options.power), ("--difference", options.difference)):
        if not 0 < value < 1:
            raise UsageError(f"{name} is {value}; give a share between 0 and 1, for example 0.2 for 20 points")


# --- the second outcome and the plan ------------------------------------------------------------------------------


def _needed(comparison: PolicyComparison, options: CompareOptions) -> Needed | None:
    try:
        return how_many(comparison, options.difference, options.power, options.alpha)
    except ValueError:
        return None  # no rate is so far from the baseline's


def _progress(base: Entrant, other: Entrant, comparison: PolicyComparison, options: CompareOptions) -> Progress | str:
    """Returns the effect on final progress, or the reason why there is none."""
    datasets = {options.dataset} if options.dataset is not None else {base.dataset, other.dataset}
    place = datasets.pop()
    if datasets:
        return (
            "the runs were recorded to different datasets, whose progress has different zeros; record both to one "
            "(run --record-to, or a protocol) or append them to one (srpo-robot append), and give it by --dataset"
        )
    if place is None:
        return "where the trials were recorded is not known; give --dataset"
    from srpo_robot.buffer.opening import open_buffer
    from srpo_robot.progress.pipeline import read_curves, read_provenance

    try:
        with waiting(f"reading {place}"):
            buffer = open_buffer(place)
            final = {curve.episode_index: float(curve.progress[-1]) for curve in read_curves(buffer)}
            profile = read_provenance(buffer).config.profile
        sides = base.contender.trials, other.contender.trials
        effect, count = amount_effect(
            *sides, lambda trial: final.get(trial.episode_index, math.nan), comparison.by_layout, options.alpha
        )
    except StaleTable as error:
        return str(error)
    except ValueError:
        return f"no trial of both has an episode with progress in {place}"
    return Progress(effect, count, profile)


def score_effect(a: Contender, b: Contender, comparison: PolicyComparison, alpha: float) -> tuple[Effect, int] | None:
    """Returns the effect on the trials' scores and the number of trials or pairs; None if every score is 0 or 1."""

    def amount(trial: Trial) -> float:
        return math.nan if trial.score is None else trial.score

    if not any(0.0 < amount(trial) < 1.0 for side in (a, b) for trial in side.trials):
        return None
    try:
        return amount_effect(a.trials, b.trials, amount, comparison.by_layout, alpha)
    except ValueError:  # one side was recorded before trials had scores
        return None


# --- printing -----------------------------------------------------------------------------------------------------


def show_rate(rate: Rate) -> str:
    """Returns a rate as "7 of 15, 47 % (25 to 70)"."""
    if rate.trials == 0:
        return "no trial"
    return f"{rate.successes} of {rate.trials}, {rate.rate:.0%} ({100 * rate.low:.0f} to {100 * rate.high:.0f})"


def show_points(effect: Effect) -> str:
    """Returns an effect as "+18 points (3 to 33)"."""
    return f"{100 * effect.difference:+.0f} points ({_span(100 * effect.low, 100 * effect.high)})"


def show_p(p: float) -> str:
    """Returns a p-value as text; never "0"."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _span(low: float, high: float) -> str:
    return f"{low:.0f} to {high:.0f}" if math.isfinite(low) and math.isfinite(high) else "undefined"


def _print_rates(entrants: list[Entrant]) -> None:
    result = table("success, with Wilson's 95 % intervals", "task", *(e.contender.name for e in entrants))
    tasks = sorted({task_of(trial) for e in entrants for trial in e.contender.trials})
    for task in tasks:
        by_policy = ([t for t in e.contender.trials if task_of(t) == task] for e in entrants)
        result.add_row(task, *(show_rate(success_rate(trials)) for trials in by_policy))
    if len(tasks) > 1:
        result.add_row("all", *(show_rate(success_rate(e.contender.trials)) for e in entrants))
    console.print(result)


def _print_effects(comparisons: list[PolicyComparison], adjusted: list[float], alpha: float) -> None:
    columns = ["policy", "test", "difference", f"{1 - alpha:.0%} interval", "p"]
    title = f"difference in success from {comparisons[0].a}, in points"
    result = table(title, *columns, *(["p (Holm)"] if len(comparisons) > 1 else []))
    for comparison, p in zip(comparisons, adjusted, strict=True):
        rows = []
        if comparison.paired is not None:
            pairs = comparison.pairs
            test = f"same layouts: {pairs.layouts}; alone {pairs.only_b} : {pairs.only_a} (exact McNemar)"
            rows.append((comparison.by_layout, test, comparison.paired))
        tasks = len(comparison.tasks)
        test = f"all trials, stratified by {tasks} tasks (exact)" if tasks > 1 else "all trials (Fisher's exact)"
        rows.append((not comparison.by_layout, test, comparison.unpaired))
        for quoted, test, effect in sorted(rows, key=lambda row: not row[0]):
            cells = [f"{100 * effect.difference:+.0f}", _span(100 * effect.low, 100 * effect.high), show_p(effect.p)]
            holm_cell = [show_p(p) if quoted else ""] if len(comparisons) > 1 else []
            result.add_row(comparison.b if quoted else "", test, *cells, *holm_cell)
    console.print(result)


def _print_one(
    comparison: PolicyComparison, p: float, needed: Needed | None, progress: Progress | str, options: CompareOptions
) -> None:
    say("")
    say(sentence(comparison, p, options.alpha))
    if comparison.if_void_failed is not None:
        a, b = comparison.void
        effect = comparison.if_void_failed
        warn(f"void and never made good: {a} of {comparison.a}, {b} of {comparison.b}; counted as failures it would be "
             f"{show_points(effect)}, p {show_p(effect.p)}")  # fmt: skip
    say(look_sentence(comparison, options.margin))
    if needed is not None:
        say(needed_sentence(comparison, needed))
    else:
        say(f"No rate lies {options.difference:.0%} from {comparison.a}'s; give a smaller --difference.")
    say(progress_sentence(comparison, progress))


def sentence(comparison: PolicyComparison, p: float, alpha: float) -> str:
    """Returns the result as a sentence. `p` is adjusted if there are several comparisons."""
    effect, a, b = comparison.effect, comparison.a, comparison.b
    span = f"{1 - alpha:.0%} interval {_span(100 * effect.low, 100 * effect.high)} points, p {show_p(p)}"
    over = f"{comparison.pairs.layouts} layouts" if comparison.by_layout else "independent trials"
    points = abs(round(100 * effect.difference))
    if p <= alpha:
        more = "more" if effect.difference > 0 else "less"
        return f"{b} succeeds {points} points {more} often than {a} ({span}, {over})."
    return f"No difference between {b} and {a} is shown: {100 * effect.difference:+.0f} points ({span}, {over})."


def look_sentence(comparison: PolicyComparison, margin: float | None) -> str:
    """Returns the decision of the sequential test, stop or go on, as a sentence."""
    interim = comparison.interim
    start = f"Tested after every one of {interim.pairs} {'layouts' if comparison.by_layout else 'pairs of trials'}: "
    span = f"p {show_p(interim.p)}, interval {_span(100 * interim.low, 100 * interim.high)} points at any time"
    if interim.decision == "difference":
        return f"{start}stop, the difference is shown, since number {interim.decided_at} ({span})."
    if interim.decision == "equivalent" and margin is not None:
        bound = f"any difference is below {100 * margin:.0f} points"
        return f"{start}stop, {bound}, since number {interim.decided_at} ({span})."
    return f"{start}go on, nothing is decided yet ({span})."


def needed_sentence(comparison: PolicyComparison, needed: Needed) -> str:
    """Says how many more trials are needed to show a difference of the given size."""
    unit = "layouts for both" if comparison.by_layout else "trials of each"
    start = f"To show {100 * needed.difference:.0f} points from {needed.base:.0%} with a chance of {needed.power:.0%}: "
    if needed.total is None or needed.more is None:
        return f"{start}more than 5000 {unit}."
    enough = f"{needed.more} more" if needed.more else "enough are there"
    sequential = "over 1000" if needed.sequential is None else str(needed.sequential)
    return f"{start}{needed.total} {unit} ({enough}); looking after every trial, {sequential} pairs."


def progress_sentence(comparison: PolicyComparison, progress: Progress | str) -> str:
    """Returns the second outcome as a sentence, or the reason why there is none."""
    if isinstance(progress, str):
        return f"Progress is not compared: {progress}"
    caution = (
        "" if progress.profile == "loo" else f" In profile {progress.profile} a success is measured against its own "
        "end, so this repeats the success rate in part; --profile loo measures both alike."
    )  # fmt: skip
    return _amount_sentence("Final progress", comparison, progress.effect, progress.trials) + caution


def _amount_sentence(name: str, comparison: PolicyComparison, effect: Effect, trials: int) -> str:
    low, high = (f"{v:+.3f}" if math.isfinite(v) else "undefined" for v in (effect.low, effect.high))
    return (
        f"{name}: {comparison.b} {effect.difference:+.3f} against {comparison.a} (interval {low} to {high}, "
        f"p {show_p(effect.p)}, {trials} {'layouts' if comparison.by_layout else 'trials'})."
    )


def _json_row(
    comparison: PolicyComparison,
    p: float,
    needed: Needed | None,
    progress: Progress | str,
    score: tuple[Effect, int] | None,
) -> dict[str, Any]:
    row = asdict(comparison)
    for name in ("pairs", "paired", "unpaired", "if_void_failed", "interim"):
        value = getattr(comparison, name)
        row[name] = None if value is None else value._asdict()
    row["rates"] = [rate._asdict() for rate in comparison.rates]
    row["tasks"] = [
        {"task": t.task, "a": t.a._asdict(), "b": t.b._asdict(), "pairs": t.pairs._asdict()} for t in comparison.tasks
    ]
    row |= {"effect": comparison.effect._asdict(), "p_adjusted": p}
    row["needed"] = None if needed is None else asdict(needed)
    if isinstance(progress, str):
        row |= {"progress": None, "progress_missing": progress}
    else:
        row["progress"] = {**progress.effect._asdict(), "trials": progress.trials, "profile": progress.profile}
    row["score"] = None if score is None else {**score[0]._asdict(), "trials": score[1]}
    return row
