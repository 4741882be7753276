"""The trial protocol: fixes policies, layouts and their order before the first trial.

A person who chooses the next layout or policy, or decides that a trial "did not count", can favour a policy without
intent. A sheet therefore fixes all of it. Layouts are drawn from a seed, and every policy is tried once on each layout.
The policies of a layout are tried one after the other in random order, so that drift during the day affects all of them
alike. The sheet has letters instead of names. Every trial that began is in the journal, and is void only with a reason.
"""

from __future__ import annotations

import difflib
import json
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from srpo_robot.errors import DatasetError, RecipeError, UsageError
from srpo_robot.evaluation.comparison import check_trials
from srpo_robot.evaluation.trials import JOURNAL, append_trial, read_trials
from srpo_robot.files import write_whole
from srpo_robot.recipes import build, digest
from srpo_robot.records import Trial
from srpo_robot.renames import SHEET_KEYS, current_keys

FORMAT = 1
ATTEMPTS = 3  # number of void trials after which a row stays void
INTERRUPTED = "interrupted"  # prefix of the note of an interrupted trial
_FIRST_SEED, _LAST_SEED = 1_000_000, 2**31 - 1  # range apart from the seeds of demonstrations and plain runs
RUN, SHEET, KEY, BEGUN = "run.json", "protocol.json", "protocol.key.json", "begun.json"


@dataclass(frozen=True)
class SheetLayout:
    """One scene. `seed` defines it. `scene` describes it as JSON values, or is {} if only a person knows it."""

    name: str
    task: str  # name of a recipe in datasets/
    seed: int
    scene: dict[str, Any]


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of the sheet, with the layout's name and the policy's letter."""

    trial: int
    layout: str
    policy: str


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The sheet of a protocol. A separate key maps letters to policies, so that the operator may read the sheet.

    Attributes:
        format: version of the file format.
        arm: name of a recipe in hardware/.
        randomization: amount of the mock arm's visual randomization.
        seed: seed of all random draws.
        key: hash of the key.
        layouts: scenes by task.
        rows: trials in order.
    """

    format: int
    arm: str
    randomization: float
    seed: int
    key: str
    layouts: tuple[SheetLayout, ...]
    rows: tuple[PlannedTrial, ...]

    def layout(self, row: PlannedTrial) -> SheetLayout:
        """Returns the scene of a row."""
        return next(layout for layout in self.layouts if layout.name == row.layout)


@dataclass(frozen=True)
class Protocol:
    """A sheet and its key. `policies` maps letters to checkpoints."""

    sheet: Sheet
    policies: dict[str, str]

    @property
    def digest(self) -> str:
        """Hash of sheet and key. It uses the sheet's old keys, so that a study can go on after an update."""
        old = {new: key for key, new in SHEET_KEYS.items()}
        return digest({"sheet": current_keys(asdict(self.sheet), old), "policies": self.policies})


# --- writing a sheet ----------------------------------------------------------------------------------------------


def draw_protocol(
    arm: str,
    tasks: Sequence[str],
    policies: Sequence[str],
    trials: int,
    seed: int,
    scene: Callable[[str, int], dict[str, Any]],
    by_task: bool = False,
    randomization: float = 0.0,
) -> Protocol:
    """Draws a protocol: `trials` layouts per task, every policy once on each layout.

    Args:
        arm: name of a recipe in hardware/.
        tasks: names of task recipes, without duplicates.
        policies: checkpoints, without duplicates.
        trials: number of layouts per task.
        seed: seed of all random draws.
        scene: (task, seed) -> layout as JSON values.
        by_task: whether to run one task after the other, so that the table is set once per task. Otherwise one layout
            of every task is run in turn, so that the study may stop at any time with equal trials of all tasks.
        randomization: amount of the mock arm's visual randomization.

    Raises:
        UsageError: tasks or policies are missing or duplicated, there are more policies than letters, or fewer than one
            trial.
    """
    for option, names in (("--task", tasks), ("--policy", policies)):
        duplicates = [name for name, count in Counter(names).items() if count > 1]
        if duplicates:
            raise UsageError(f"{option} {duplicates[0]} is given twice")
        if not names:
            raise UsageError(f"a protocol needs at least one {option}")
    if len(policies) > len(string.ascii_uppercase) or trials < 1:
        raise UsageError(f"{len(policies)} policies and {trials} trials; at most 26 policies, at least 1 trial")
    rng = np.random.default_rng(seed)
    letters = [string.ascii_uppercase[int(i)] for i in rng.permutation(len(policies))]
    key = dict(zip(letters, policies, strict=True))  # in the given order, because the first policy is the baseline
    seeds = rng.choice(_LAST_SEED - _FIRST_SEED, (len(tasks), trials), replace=False) + _FIRST_SEED
    layouts = tuple(
        SheetLayout(f"{task}-{n:0{len(str(trials))}d}", task, int(s), scene(task, int(s)))
        for task, task_seeds in zip(tasks, seeds, strict=True)
        for n, s in enumerate(task_seeds, start=1)
    )
    grid = np.arange(len(layouts)).reshape(len(tasks), trials)  # the seeds are already in random order
    order = rng.permutation(grid) if by_task else rng.permuted(grid.T, axis=1)
    turns = [(layouts[int(i)].name, letters[int(p)]) for i in order.ravel() for p in rng.permutation(len(letters))]
    rows = tuple(PlannedTrial(number, *turn) for number, turn in enumerate(turns))
    sheet = Sheet(
        format=FORMAT,
        arm=arm,
        randomization=randomization,
        seed=seed,
        key=digest(key),
        layouts=layouts,
        rows=rows,
    )
    return Protocol(sheet, key)


def key_path(path: Path) -> Path:
    """Returns the path of the key for the sheet at `path`."""
    return path.with_name(f"{path.stem}.key.json")


def write_protocol(path: Path, protocol: Protocol) -> None:
    """Writes sheet and key. Never overwrites a file.

    Raises:
        UsageError: one of the two files exists.
    """
    for place in (path, key_path(path)):
        if place.exists():
            raise UsageError(f"{place} exists, and a protocol is never overwritten; give another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_sheet(path, protocol)


def _write_sheet(path: Path, protocol: Protocol) -> None:
    write_whole(key_path(path), json.dumps(protocol.policies, indent=1) + "\n", sync=True)
    content = asdict(protocol.sheet)
    lists = {name: content.pop(name) for name in ("layouts", "rows")}
    parts = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    for name, items in lists.items():  # one line per item, for reading, printing and diffs
        parts.append(f" {json.dumps(name)}: [\n" + ",\n".join("  " + json.dumps(item) for item in items) + "\n ]")
    write_whole(path, "{\n" + ",\n".join(parts) + "\n}\n", sync=True)


def read_protocol(path: Path) -> Protocol:
    """Reads and checks a sheet and its key.

    Raises:
        UsageError: a file is absent, is no sheet or key, has another format, or has no rows. Also if a row has an
            unknown layout or policy or is a duplicate, or if the key does not belong to the sheet.
    """
    content, policies = _load(path, "sheet"), _load(key_path(path), "key")
    version = content.get("format")
    if version != FORMAT:
        raise UsageError(f"{path} has format {version!r}, this version reads {FORMAT}; write it anew")
    try:
        sheet = build(Sheet, current_keys(content, SHEET_KEYS), str(path))
    except RecipeError as error:
        raise UsageError(str(error)) from None
    if digest(policies) != sheet.key:
        raise UsageError(f"{key_path(path)} does not belong to {path}; restore the one that was written with it")
    _check_rows(sheet, policies, str(path))
    return Protocol(sheet, policies)


def _load(path: Path, kind: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no {kind} at {path}; write one with: srpo-robot protocol --output FILE") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} cannot be read as a protocol's {kind}: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no protocol's {kind}; write one with: srpo-robot protocol --output FILE")
    return content


def _check_rows(sheet: Sheet, policies: dict[str, str], source: str) -> None:
    names = [layout.name for layout in sheet.layouts]
    if len(set(names)) < len(names):
        raise UsageError(f"{source}: two layouts share a name; give each its own")
    if not sheet.rows:
        raise UsageError(f"{source} has no rows: nothing to run; write one with: srpo-robot protocol --output FILE")
    planned = set()
    for number, row in enumerate(sheet.rows):
        if row.trial != number:
            raise UsageError(f"{source}: row {number} is numbered {row.trial}; number the rows from 0 in their order")
        if row.layout not in names:
            close = difflib.get_close_matches(row.layout, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {len(names)}: {', '.join(names[:5])}"
            raise UsageError(f"{source}: trial {row.trial} has the unknown layout {row.layout!r}{hint}")
        if row.policy not in policies:
            raise UsageError(f"{source}: trial {row.trial} has policy {row.policy!r}; there are: {', '.join(policies)}")
        if (row.layout, row.policy) in planned:
            raise UsageError(f"{source}: trial {row.trial} repeats policy {row.policy} on layout {row.layout}")
        planned.add((row.layout, row.policy))


# --- the journal of a study ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """The output folder of a protocol's run.

    Attributes:
        folder: path of the folder.
        protocol: the protocol at the start of the first trial.
        blind: whether the letters' meaning is hidden from the operator.
    """

    folder: Path
    protocol: Protocol
    blind: bool

    def trials(self) -> list[Trial]:
        """Returns the journal after a check against the sheet. Raises DatasetError if a row is not of this protocol."""
        if not (self.folder / JOURNAL).is_file():
            return []
        trials, rows, source = read_trials(self.folder), self.protocol.sheet.rows, str(self.folder / JOURNAL)
        check_trials(trials, source)
        for trial in trials:
            row = rows[trial.trial] if 0 <= trial.trial < len(rows) else None
            if row is None or (row.policy, self.protocol.sheet.layout(row).seed) != (trial.policy, trial.seed):
                raise DatasetError(f"{source}: trial {trial.trial} is not the sheet's; restore the file from a copy")
        return trials

    def pending(self) -> list[PlannedTrial]:
        """Returns the remaining rows in order: rows without a verdict that were not void `ATTEMPTS` times."""
        trials = self.trials()
        decided = {trial.trial for trial in trials if trial.success is not None}
        attempts = Counter(trial.trial for trial in trials if not trial.note.startswith(INTERRUPTED))
        return [r for r in self.protocol.sheet.rows if r.trial not in decided and attempts[r.trial] < ATTEMPTS]

    def name(self, letter: str, unblind: bool = False) -> str:
        """Returns the policy's name for display: its letter while a blind study is unfinished, else its checkpoint."""
        is_hidden = self.blind and not unblind and bool(self.pending())
        return letter if is_hidden else self.protocol.policies[letter]


def begin_study(folder: Path, protocol: Protocol, blind: bool) -> Study:
    """Creates or continues a study. Adds a void row to the journal for a trial that began but has no row.

    Raises:
        UsageError: the folder has other content, the protocol was edited after its first trial, or --blind is given for
            a study that began without it.
    """
    if not (folder / RUN).is_file():
        if folder.exists() and any(c.name not in (SHEET, KEY) and c.name[0] != "." for c in folder.iterdir()):
            raise UsageError(f"{folder} exists and is not a run; give another --output")
        folder.mkdir(parents=True, exist_ok=True)
        return _claim(folder, protocol, blind)
    settings = _load(folder / RUN, "run")
    if "protocol" not in settings:
        raise UsageError(f"{folder} holds a run without a protocol; give another --output")
    has_trials = (folder / JOURNAL).is_file() or (folder / BEGUN).is_file()
    if settings["protocol"] != protocol.digest:
        if has_trials:
            raise UsageError(
                f"the protocol was edited after its first trial; go on with the one that was begun, {folder / SHEET}, "
                "or give another --output"
            )
        return _claim(folder, protocol, blind)
    if blind and not settings["blind"]:
        if has_trials:
            raise UsageError(f"{folder} was begun with the policies' names shown; go on without --blind")
        return _claim(folder, protocol, blind)
    study = Study(folder, protocol, bool(settings["blind"]))
    _account_for_interrupted(study)
    return study


def open_study(folder: Path) -> Study | None:
    """Opens the study in `folder` for reading. Returns None if there is no protocol. Raises UsageError if damaged."""
    if not (folder / RUN).is_file():
        return None
    settings = _load(folder / RUN, "run")
    if "protocol" not in settings:
        return None
    protocol = read_protocol(folder / SHEET)
    if protocol.digest != settings["protocol"]:
        raise UsageError(f"{folder / SHEET} was edited after its first trial; restore it from a copy")
    return Study(folder, protocol, bool(settings.get("blind")))


def begin_trial(study: Study, row: PlannedTrial) -> None:
    """Records on disk that a trial begins. Call it before the arm moves. `end_trial` adds the journal's row."""
    attempt = sum(trial.trial == row.trial for trial in study.trials())
    write_whole(study.folder / BEGUN, json.dumps({"trial": row.trial, "attempt": attempt}) + "\n", sync=True)


def end_trial(study: Study, trial: Trial) -> None:
    """Adds the trial to the journal. Raises DatasetError if the trial is void without a reason."""
    check_trials([trial], str(study.folder))
    append_trial(study.folder, trial)
    (study.folder / BEGUN).unlink(missing_ok=True)


def void_trial(study: Study, row: PlannedTrial, note: str) -> Trial:
    """Returns the journal's row of a void trial."""
    layout = study.protocol.sheet.layout(row)
    scene = {"task": layout.task, **layout.scene}
    instruction = str(scene.get("instruction", layout.task))
    return Trial(
        trial=row.trial,
        task=instruction,
        policy=row.policy,
        seed=layout.seed,
        success=None,
        steps=0,
        seconds=0.0,
        layout=scene,
        note=note,
    )


def _account_for_interrupted(study: Study) -> None:
    path = study.folder / BEGUN
    if not path.is_file():
        return
    trial_start = _load(path, "begun trial")
    row = study.protocol.sheet.rows[int(trial_start["trial"])]
    if sum(trial.trial == row.trial for trial in study.trials()) <= int(trial_start["attempt"]):
        append_trial(study.folder, void_trial(study, row, f"{INTERRUPTED}: the run ended during this trial"))
    path.unlink()


def _claim(folder: Path, protocol: Protocol, blind: bool) -> Study:
    _write_sheet(folder / SHEET, protocol)
    settings = {"arm": protocol.sheet.arm, "protocol": protocol.digest, "blind": blind}
    # Written last, because its presence marks a study.
    write_whole(folder / RUN, json.dumps(settings, indent=2) + "\n", sync=True)
    return Study(folder, protocol, blind)
