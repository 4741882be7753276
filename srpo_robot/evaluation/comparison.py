"""Compares the journals of two policies: forms pairs of trials and applies the tests of `statistics`."""

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
    """One policy and its trials, in the order of the run."""

    name: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class TaskRow:
    """One task: both success rates, and the outcomes on the layouts that both policies were tried on."""

    task: str
    a: Rate
    b: Rate
    pairs: Pairs


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The sample size that detects a difference.

    Attributes:
        difference: size of the difference.
        base: A's rate, from which the difference is measured. It is shrunk towards one half as by Agresti and Coull,
            because 0 of 5 is not 0 %.
        power: probability that the test then detects the difference.
        total: number of layouts for both (paired), or trials of each (unpaired), counted from zero. None if it exceeds
            `power.MOST`.
        more: number of layouts or trials that remain to be run.
        sequential: number of layouts after which the sequential test has stopped with that probability.
    """

    difference: float
    base: float
    power: float
    total: int | None
    more: int | None
    sequential: int | None


@dataclass(frozen=True, kw_only=True)
class PolicyComparison:
    """The comparison of policy B with policy A.

    Attributes:
        a, b: names of the policies.
        rates: success rates of A and B over all decided trials.
        tasks: results by task.
        pairs: outcomes on the layouts of all tasks that both policies were tried on.
        paired: effect over the pairs. None if there are no pairs.
        unpaired: effect over all trials, stratified by task.
        by_layout: whether to quote the paired effect. True if at least half of the smaller run's trials are paired.
        void: numbers of unresolved void trials of A and B. See `unresolved`.
        if_void_failed: the quoted effect if unresolved void trials count as failures. None if there are none.
        interim: result of the sequential test, over pairs if `by_layout`, else over the tasks' trials in order.
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
        """The effect to quote."""
        return self.paired if self.by_layout and self.paired is not None else self.unpaired


def task_of(trial: Trial) -> str:
    """Returns the task's name if the layout has it, else the instruction."""
    return str(trial.layout.get("task") or trial.task)


def check_trials(trials: Sequence[Trial], source: str) -> None:
    """Raises DatasetError if a trial's verdict is not true, false or null, or if a void trial has no reason."""
    for trial in trials:
        if trial.success is not None and not isinstance(trial.success, bool):
            raise DatasetError(
                f"{source}: trial {trial.trial} has the label {trial.success!r}; choices: true, false, or null with a "
                "note that says why it is void"
            )
        if trial.success is None and not trial.note.strip():
            raise DatasetError(f"{source}: trial {trial.trial} is void without a reason; write one into its note")


def compare(a: Contender, b: Contender, alpha: float = 0.05, margin: float | None = None) -> PolicyComparison:
    """Compares B with A. `alpha` is 1 - confidence, and `margin` is the equivalence margin of the sequential test.

    Raises:
        UsageError: a policy has no decided trial, or the policies were run on different tasks.
    """
    for side in (a, b):
        if all(trial.success is None for trial in side.trials):
            raise UsageError(f"{side.name} has no trial that counts; run some first: srpo-robot run")
    tasks = sorted({task_of(t) for t in a.trials})
    tasks_b = sorted({task_of(t) for t in b.trials})
    if tasks != tasks_b:
        raise UsageError(
            f"different tasks: {a.name} was run on {', '.join(tasks)}, {b.name} on {', '.join(tasks_b)}; "
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
    """Pairs decided trials of the same layout (task and seed), in the order in which the pairs were completed.

    If both policies were tried on a layout several times, their first trials form a pair, their second trials form a
    pair, and so on.
    """
    first, second = _by_layout(a), _by_layout(b)
    pairs = [(first[key], second[key]) for key in first.keys() & second.keys()]
    return sorted(pairs, key=lambda pair: (max(t.trial for t in pair), min(t.trial for t in pair), task_of(pair[0])))


def in_order(a: Sequence[Trial], b: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
    """Pairs the n-th decided trial of A with the n-th of B within each task. Used if there are no shared layouts."""
    pairs = []
    for task in sorted({task_of(t) for t in a}):
        sides = [[t for t in side if task_of(t) == task and t.success is not None] for side in (a, b)]
        pairs += zip(*sides, strict=False)
    return sorted(pairs, key=lambda pair: max(t.trial for t in pair))


def unresolved(trials: Sequence[Trial]) -> list[Trial]:
    """Returns one void trial for each layout that has no decided trial."""
    decided = {(task_of(t), t.seed) for t in trials if t.success is not None}
    void = {(task_of(t), t.seed): t for t in trials if (task_of(t), t.seed) not in decided}
    return list(void.values())


def how_many(
    comparison: PolicyComparison, difference: float, power: float = 0.8, alpha: float = 0.05, base: float | None = None
) -> Needed:
    """Computes the sample size that detects a difference. Raises ValueError as `power.rates` and `power.needed`.

    `base`: A's true rate. With None, it is estimated from A's trials.
    """
    rate_a = comparison.rates[0]
    start = (rate_a.successes + 2) / (rate_a.trials + 4) if base is None else base
    if comparison.by_layout:
        total, have = pairs_needed(start, difference, power, alpha), comparison.pairs.layouts
    else:
        total, have = trials_needed(start, difference, power, alpha), min(rate.trials for rate in comparison.rates)
    return Needed(
        difference=difference,
        base=start,
        power=power,
        total=total,
        more=None if total is None else max(total - have, 0),
        sequential=sequential_pairs_needed(start, difference, power, alpha),
    )


def amount_effect(
    a: Sequence[Trial], b: Sequence[Trial], amount: Callable[[Trial], float], by_layout: bool, alpha: float = 0.05
) -> tuple[Effect, int]:
    """Returns the effect on a measured outcome, and the number of its trials (of its pairs if `by_layout`).

    Args:
        a, b: trials of the two policies.
        amount: returns the outcome of a trial, for example final progress. Trials with a non-finite outcome are
            skipped.
        by_layout: whether to compute the paired effect.
        alpha: 1 - confidence.

    Raises:
        ValueError: no task has outcomes of both policies.
    """

    def known(trial: Trial) -> bool:
        return trial.success is not None and bool(np.isfinite(amount(trial)))

    a, b = [t for t in a if known(t)], [t for t in b if known(t)]
    pairs = matched(a, b) if by_layout else []
    groups = []
    for task in sorted({task_of(t) for t in a}):
        if by_layout:
            task_pairs = [pair for pair in pairs if task_of(pair[0]) == task]
            columns = [[pair[side] for pair in task_pairs] for side in (0, 1)]
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
    """Returns decided trials by task, seed, and number of earlier trials of the same layout."""
    counts: Counter[tuple[str, int]] = Counter()
    table = {}
    for trial in trials:
        if trial.success is not None:
            key = task_of(trial), trial.seed
            table[*key, counts[key]] = trial
            counts[key] += 1
    return table
