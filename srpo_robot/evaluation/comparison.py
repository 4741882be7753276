"""Two policies' journals side by side: which trials are pairs, and everything `statistics` has to say about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from srpo_robot.errors import DatasetError, UsageError
from srpo_robot.evaluation.power import pairs_needed, sequential_pairs_needed, trials_needed
from srpo_robot.evaluation.sequential import InterimResult, monitor
from srpo_robot.evaluation.statistics import (
    Effect,
    Pairs,
    Rate,
    Stratum,
    mean_effect,
    paired_effect,
    stratified_effect,
    success_rate,
)
from srpo_robot.records import Trial


@dataclass(frozen=True)
class Contender:
    """One policy and its trials, in the order they were run."""

    name: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class TaskRow:
    """One task: both rates, and the layouts that both were tried on."""

    task: str
    a: Rate
    b: Rate
    pairs: Pairs


@dataclass(frozen=True)
class Needed:
    """How many trials show a difference.

    Attributes:
        difference: its size.
        base: A's rate that it is measured from, drawn towards one half as Agresti and Coull do: 0 of 5 is not 0 %.
        power: the chance that it is then shown.
        total: layouts for both (paired), or trials of each (unpaired), counted from zero; None: too many to name.
        more: those still to run.
        sequential: layouts after which the sequential test has stopped with that chance.
    """

    difference: float
    base: float
    power: float
    total: int | None
    more: int | None
    sequential: int | None


@dataclass(frozen=True)
class PolicyComparison:
    """B against A.

    Attributes:
        a, b: their names.
        rates: of A and B over all decided trials.
        tasks: task by task.
        pairs: layouts that both were tried on, all tasks.
        paired: effect over these; None where there is none.
        unpaired: effect over all trials, stratified by task.
        by_layout: which of the two is the one to quote: most of the smaller run's trials have their partner.
        void: void trials that were never made good, of A and B.
        if_void_failed: the quoted effect where these count as failures; None where there are none.
        interim: the sequential test, over layouts where `by_layout`, else over the tasks' trials in order.
    """

    a: str
    b: str
    rates: tuple[Rate, Rate]
    tasks: tuple[TaskRow, ...]
    pairs: Pairs
    paired: Effect | None
    unpaired: Effect
    by_layout: bool
    void: tuple[int, int]
    if_void_failed: Effect | None
    interim: InterimResult

    @property
    def effect(self) -> Effect:
        """The one to quote."""
        return self.paired if self.by_layout and self.paired is not None else self.unpaired


def task_of(trial: Trial) -> str:
    """The task's name where the layout has it, else the instruction."""
    return str(trial.layout.get("task") or trial.task)


def check_trials(trials: Sequence[Trial], where: str) -> None:
    """Raise DatasetError where a trial's verdict is none of the choices, or a void trial gives no reason."""
    for trial in trials:
        if trial.success is not None and not isinstance(trial.success, bool):
            raise DatasetError(
                f"{where}: trial {trial.trial} has the label {trial.success!r}; choices: true, false, or null with a "
                "note that says why it is void"
            )
        if trial.success is None and not trial.note.strip():
            raise DatasetError(f"{where}: trial {trial.trial} is void without a reason; write one into its note")


def compare(a: Contender, b: Contender, alpha: float = 0.05, margin: float | None = None) -> PolicyComparison:
    """Everything about B against A; `alpha` is 1 - confidence, `margin` a difference too small to matter.

    Raises:
        UsageError: one of them has no decided trial, or they were run on different tasks.
    """
    for side in (a, b):
        if all(trial.success is None for trial in side.trials):
            raise UsageError(f"{side.name} has no trial that counts; run some first: srpo-robot run")
    tasks = sorted({task_of(t) for t in a.trials})
    others = sorted({task_of(t) for t in b.trials})
    if tasks != others:
        raise UsageError(
            f"different tasks: {a.name} was run on {', '.join(tasks)}, {b.name} on {', '.join(others)}; "
            "compare them on one with --task"
        )
    rows = tuple(_task_row(task, a.trials, b.trials) for task in tasks)
    pairs = Pairs(*np.sum([row.pairs for row in rows], axis=0).tolist())
    by_layout = 2 * pairs.layouts >= min(sum(row.a.trials for row in rows), sum(row.b.trials for row in rows))
    paired, unpaired = _effects(rows, pairs, alpha)
    void = len(unresolved(a.trials)), len(unresolved(b.trials))
    pairs_in_order = matched(a.trials, b.trials) if by_layout else in_order(a.trials, b.trials)
    return PolicyComparison(
        a=a.name,
        b=b.name,
        rates=(success_rate(a.trials), success_rate(b.trials)),
        tasks=rows,
        pairs=pairs,
        paired=paired,
        unpaired=unpaired,
        by_layout=by_layout,
        void=void,
        if_void_failed=_if_void_failed(a, b, tasks, by_layout, alpha) if any(void) else None,
        interim=monitor([(bool(x.success), bool(y.success)) for x, y in pairs_in_order], alpha, margin),
    )


def matched(a: Sequence[Trial], b: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Decided trials of one layout (task and seed), in the order in which the pairs were complete.

    A layout that both were tried on several times makes several pairs, first with first.
    """
    first, second = _by_layout(a), _by_layout(b)
    pairs = [(first[key], second[key]) for key in first.keys() & second.keys()]
    return sorted(pairs, key=lambda pair: (max(t.trial for t in pair), min(t.trial for t in pair), task_of(pair[0])))


def in_order(a: Sequence[Trial], b: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Decided trials of each task, the first of A with the first of B and so on: pairs for want of shared layouts."""
    found = []
    for task in sorted({task_of(t) for t in a}):
        sides = [[t for t in side if task_of(t) == task and t.success is not None] for side in (a, b)]
        found += zip(*sides, strict=False)
    return sorted(found, key=lambda pair: max(t.trial for t in pair))


def unresolved(trials: Sequence[Trial]) -> list[Trial]:
    """Void trials whose layout was not decided by another one: one for each such layout."""
    decided = {(task_of(t), t.seed) for t in trials if t.success is not None}
    lost = {(task_of(t), t.seed): t for t in trials if (task_of(t), t.seed) not in decided}
    return list(lost.values())


def how_many(
    comparison: PolicyComparison, difference: float, power: float = 0.8, alpha: float = 0.05, base: float | None = None
) -> Needed:
    """How many trials would show a difference of this size. Raises ValueError as `power.rates` and `power.needed`."""
    seen = comparison.rates[0]
    start = (seen.successes + 2) / (seen.trials + 4) if base is None else base
    if comparison.by_layout:
        total, have = pairs_needed(start, difference, power, alpha), comparison.pairs.layouts
    else:
        total, have = trials_needed(start, difference, power, alpha), min(rate.trials for rate in comparison.rates)
    sequential = sequential_pairs_needed(start, difference, power, alpha)
    return Needed(difference, start, power, total, None if total is None else max(total - have, 0), sequential)


def amount_effect(
    a: Sequence[Trial], b: Sequence[Trial], amount: Callable[[Trial], float], by_layout: bool, alpha: float = 0.05
) -> tuple[Effect, int]:
    """Effect on an amount that trials end with, and of how many trials (pairs where `by_layout`) it is.

    Args:
        amount: of a trial, final progress for one; trials where it is not finite are left out.

    Raises:
        ValueError: no task has any of both.
    """

    def known(trial: Trial) -> bool:
        return trial.success is not None and bool(np.isfinite(amount(trial)))

    a, b = [t for t in a if known(t)], [t for t in b if known(t)]
    pairs = matched(a, b) if by_layout else []
    groups = []
    for task in sorted({task_of(t) for t in a}):
        if by_layout:
            own = [pair for pair in pairs if task_of(pair[0]) == task]
            columns = [[pair[side] for pair in own] for side in (0, 1)]
        else:
            columns = [[t for t in side if task_of(t) == task] for side in (a, b)]
        first, second = (np.array([amount(t) for t in column]) for column in columns)
        groups.append((first, second))
    return mean_effect(groups, by_layout, confidence=1 - alpha), len(pairs) if by_layout else len(a) + len(b)


def _task_row(task: str, a: Sequence[Trial], b: Sequence[Trial]) -> TaskRow:
    first, second = ([t for t in side if task_of(t) == task] for side in (a, b))
    kinds = Counter((bool(x.success), bool(y.success)) for x, y in matched(first, second))
    pairs = Pairs(kinds[True, True], kinds[True, False], kinds[False, True], kinds[False, False])
    return TaskRow(task, success_rate(first), success_rate(second), pairs)


def _effects(rows: Sequence[TaskRow], pairs: Pairs, alpha: float) -> tuple[Effect | None, Effect]:
    strata = [Stratum(row.a.successes, row.a.trials, row.b.successes, row.b.trials) for row in rows]
    paired = paired_effect(pairs, 1 - alpha) if pairs.layouts else None
    try:
        return paired, stratified_effect(strata, 1 - alpha)
    except ValueError:
        raise UsageError("no task has trials of both that count; run some first: srpo-robot run") from None


def _if_void_failed(a: Contender, b: Contender, tasks: Sequence[str], by_layout: bool, alpha: float) -> Effect | None:
    sides = [
        [t for t in side.trials if t.success is not None] + [replace(t, success=False) for t in unresolved(side.trials)]
        for side in (a, b)
    ]
    rows = [_task_row(task, *sides) for task in tasks]
    paired, unpaired = _effects(rows, Pairs(*np.sum([row.pairs for row in rows], axis=0).tolist()), alpha)
    return paired if by_layout else unpaired


def _by_layout(trials: Sequence[Trial]) -> dict[tuple[str, int, int], Trial]:
    """Decided trials by task, seed and how many of that layout came before."""
    seen: Counter[tuple[str, int]] = Counter()
    found = {}
    for trial in trials:
        if trial.success is not None:
            key = task_of(trial), trial.seed
            found[*key, seen[key]] = trial
            seen[key] += 1
    return found
