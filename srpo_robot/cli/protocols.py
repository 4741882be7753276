"""`srpo-robot protocol` writes a sheet of trials, `srpo-robot run --protocol` runs it."""

from __future__ import annotations

import json
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from srpo_robot.cli.console import bar, console, say, shortened, table, warn, write_json
from srpo_robot.cli.running import TRIAL_WIDE_STARTS, load_any_policy, load_recipes, make_recorder
from srpo_robot.cli.sessions import LiveOptions, LiveSession, make_session
from srpo_robot.errors import RecipeError, UsageError, one_line
from srpo_robot.evaluation.operator import Quit
from srpo_robot.evaluation.policy import Policy
from srpo_robot.evaluation.power import discordance, paired_power
from srpo_robot.evaluation.protocol import (
    INTERRUPTED,
    PlannedTrial,
    Protocol,
    SheetLayout,
    Study,
    begin_study,
    begin_trial,
    draw_protocol,
    end_trial,
    key_path,
    read_protocol,
    void_trial,
    write_protocol,
)
from srpo_robot.evaluation.statistics import success_rate
from srpo_robot.recipes import HardwareRecipe, TaskRecipe, load
from srpo_robot.records import Trial

REASONS = {
    "l": "the scene was not laid out as the sheet says",
    "t": "somebody or something touched arm, objects or table",
    "c": "a camera or the light failed",
    "a": "the arm or the gripper failed",
    "k": "a wrong key was pressed",
}
_PLANNED = (0.3, (0.1, 0.2, 0.3))  # a rate, and differences from it, for which a sheet's power is printed


def new_protocol(
    output: Path,
    arm: str,
    tasks: tuple[str, ...],
    policies: tuple[str, ...],
    trials: int,
    seed: int,
    by_task: bool,
    randomization: float,
) -> None:
    """Draw a sheet, write it with its key, and say what it can show.

    Raises:
        RecipeError: an unknown arm or task.
        UsageError: see `draw_protocol` and `write_protocol`; tasks that cannot be recorded into one dataset.
    """
    recipes = [load_recipes(arm, task)[1] for task in tasks]
    _check_alike(recipes)
    by_name = {recipe.name: recipe for recipe in recipes}
    names = [recipe.name for recipe in recipes]
    protocol = draw_protocol(
        arm, names, policies, trials, seed, lambda task, s: scene(arm, by_name[task], s), by_task, randomization
    )
    write_protocol(output, protocol)
    rows, layouts = len(protocol.sheet.rows), protocol.sheet.layouts
    say(f"{output}: {rows} trials: {len(policies)} policies on {len(layouts)} layouts ({', '.join(names)}).")
    swapped = sum(bool(layout.scene.get("swapped")) for layout in layouts)
    say(f"Target and distractor are swapped in {swapped} of {len(layouts)} layouts.")
    say(f"What the letters mean is in {key_path(output)}: keep it from who judges the trials.")
    if len(policies) > 1:
        base, sizes = _PLANNED
        chances = [f"{size:.0%}: {paired_power(len(layouts), *discordance(base, size)):.0%}" for size in sizes]
        say(f"Chance that a difference is shown (from a rate of {base:.0%}, exact McNemar): {', '.join(chances)}.")
    say(f"Run it: srpo-robot run --protocol {output} --output FOLDER")


def run_protocol(path: Path, live: LiveOptions, blind: bool, device: str, json_path: Path | None) -> list[Trial]:
    """Run what a protocol still lacks; the same command goes on from where it stopped.

    Raises:
        UsageError: the sheet, or a folder that does not go with it; see `read_protocol` and `begin_study`. A layout
            that the cell does not lay out as the sheet has it; a dry run.
        RecipeError, CheckpointError, DatasetError: see what is loaded.
        ArmError, PolicyError: a fault; the trial is in the journal as void, with it as the reason.
    """
    if live.dry_run:
        raise UsageError("a protocol has no dry run; give --policy and --task with --dry-run")
    protocol = read_protocol(path)
    _check_scenes(path, protocol)
    study = begin_study(live.output, protocol, blind)
    try:
        with StudyArm(study, live, device) as bench:
            _run_rows(study, bench)
    except Quit:
        say(f"Ended; {len(study.pending())} trials are left, the same command goes on from there.")
    trials = study.trials()
    _print_study(study, trials)
    rates = {name: success_rate([t for t in trials if t.policy == name])._asdict() for name in protocol.policies}
    write_json(json_path, {"success_rates": rates, "trials": [asdict(trial) for trial in trials]})
    return trials


def _run_rows(study: Study, bench: StudyArm) -> None:
    sheet, total = study.protocol.sheet, len(study.protocol.sheet.rows)
    is_live = load(HardwareRecipe, "hardware", sheet.arm).kind != "mock"  # its operator needs the screen: no bar
    with nullcontext() if is_live else bar("trials", total, "trial") as progress:
        while pending := study.pending():
            row = pending[0]
            layout = sheet.layout(row)
            swapped = ", swapped" if layout.scene.get("swapped") else ""
            what = f"{layout.name}{swapped}, policy {study.name(row.policy)}"
            if progress is None:
                say(f"\n[bold]trial {total - len(pending) + 1} of {total}[/]: {what}")
            else:
                progress.at(total - len(pending), what)
            trial = bench.run(row, layout)
            if trial.success is None:
                warn(f"trial {row.trial} is void: {trial.note}")
        if progress is not None:
            progress.at(total)


class StudyArm:
    """The arm set up for one task after another, and the policies. A context manager: leaving it stops the arm."""

    def __init__(self, study: Study, live: LiveOptions, device: str) -> None:
        self._study, self._live, self._device = study, replace(live, keep_redone=True), device
        self._open = ExitStack()
        self._task_name = ""
        self._policies: dict[str, Policy] = {}

    def __enter__(self) -> StudyArm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def run(self, row: PlannedTrial, layout: SheetLayout) -> Trial:
        """One trial, from its begin to its row in the journal, also where it ends by a fault, which is then raised."""
        if layout.task != self._task_name:
            self._set_up(layout.task)
        policy = self._policy(row.policy)
        begin_trial(self._study, row)
        try:
            outcome = self._session.run(row.trial, policy, layout.seed, self._recorder)
        except BaseException as error:
            end_trial(self._study, void_trial(self._study, row, _reason(error)))
            raise
        note = self._why_redone() if outcome.redo else outcome.note
        outcome = replace(outcome, note=note, layout={**layout.scene, **outcome.layout, "task": layout.task})
        trial = outcome.as_trial(row.trial, self._task.instruction, row.policy, layout.seed)
        end_trial(self._study, trial)
        self._session.settle(outcome)
        return trial

    def _why_redone(self) -> str:
        """The person's reason: a trial is not thrown away because of how it went."""
        choices = ", ".join(f"{key}: {reason}" for key, reason in REASONS.items())
        assert isinstance(self._session, LiveSession)  # the mock's physics wants nothing redone
        return f"redone by hand: {REASONS[self._session.ask(f'Why is it void? {choices}', REASONS)]}"

    def _set_up(self, task: str) -> None:
        self._open.close()  # one arm, and one recorder, at a time
        sheet = self._study.protocol.sheet
        hardware, self._task = load_recipes(sheet.arm, task)
        session = make_session(
            hardware, self._task, self._live, wide_starts=TRIAL_WIDE_STARTS, randomization=sheet.randomization
        )
        recorder = make_recorder(self._study.folder / "dataset", hardware, self._task, session.space)
        self._recorder = self._open.enter_context(recorder)
        self._session = self._open.enter_context(session)
        self._task_name = task

    def _policy(self, letter: str) -> Policy:
        """Loaded once: all tasks of a sheet have the same cameras and actions, and an episode sets the instruction."""
        if letter not in self._policies:
            checkpoint, shown = self._study.protocol.policies[letter], self._study.name(letter)
            self._policies[letter] = load_any_policy(checkpoint, self._session.space, self._task, self._device, shown)
        return self._policies[letter]


def _reason(error: BaseException) -> str:
    if isinstance(error, Quit | KeyboardInterrupt | SystemExit):
        return f"{INTERRUPTED}: ended by hand"
    return one_line(error)


def scene(arm: str, task: TaskRecipe, seed: int) -> dict[str, Any]:
    """Where the things of a task lie for a seed; {} for a real arm's task that only a person can lay out.

    Raises:
        RecipeError: a mock arm whose cell does not have the task.
    """
    from srpo_robot.mock.tasks import layout

    try:
        return json.loads(json.dumps(layout(task, seed).as_json()))  # as a sheet gives it back: tuples are lists
    except RecipeError:
        if load_recipes(arm, task.name)[0].kind == "mock":
            raise
        return {}


def _check_alike(recipes: list[TaskRecipe]) -> None:
    for recipe in recipes[1:]:
        if (recipe.cameras, recipe.action_space) != (recipes[0].cameras, recipes[0].action_space):
            raise UsageError(
                f"{recipes[0].name} and {recipe.name} differ in cameras or action space, so one dataset cannot hold both; "
                "write a protocol for each"
            )


def _check_scenes(path: Path, protocol: Protocol) -> None:
    sheet = protocol.sheet
    recipes = {task: load_recipes(sheet.arm, task)[1] for task in {layout.task for layout in sheet.layouts}}
    _check_alike(list(recipes.values()))
    for layout in sheet.layouts:
        if scene(sheet.arm, recipes[layout.task], layout.seed) != layout.scene:
            raise UsageError(
                f"{path}: layout {layout.name} is not what the task {layout.task} lays out for seed {layout.seed}; "
                "restore the sheet or the recipe, or write a new protocol"
            )


def _print_study(study: Study, trials: list[Trial]) -> None:
    made = table(str(study.folder), "policy", "success", "trials", "rate", "95 % interval (Wilson)", "void")
    letters = sorted(study.protocol.policies)
    for letter, name in zip(letters, shortened([study.name(letter) for letter in letters]), strict=True):
        own = [trial for trial in trials if trial.policy == letter]
        rate = success_rate(own)
        made.add_row(
            name,
            str(rate.successes),
            str(rate.trials),
            "undefined" if rate.trials == 0 else f"{rate.rate:.0%}",
            f"{rate.low:.0%} to {rate.high:.0%}",
            str(len(own) - rate.trials),
        )
    console.print(made)
    say(f"Who is better, and how sure that is: srpo-robot compare {study.folder}")
