"""The trial protocol: which policy is tried on which layout, in which order, decided before the first trial.

Whoever chooses the next layout, or which policy is next, or that a trial "did not count", can help a policy without
meaning to. So all of it stands in a sheet: layouts drawn from a seed, every policy once on each, the policies of a
layout in random order one after the other (what drifts during the day then hits all of them alike), and letters instead
of names. A trial that was begun is in the journal, whatever became of it, and is void only with a reason.
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
ATTEMPTS = 3  # a row that was void this often is left void
INTERRUPTED = "interrupted"  # how the note of a trial begins that was not brought to its end
_FIRST_SEED, _LAST_SEED = 1_000_000, 2**31 - 1  # away from those of demonstrations and of plain runs
RUN, SHEET, KEY, BEGUN = "run.json", "protocol.json", "protocol.key.json", "begun.json"


@dataclass(frozen=True)
class SheetLayout:
    """One scene. `seed` lays it out; `scene` says in JSON-able values what that is, {} where only a person knows."""

    name: str
    task: str  # a recipe of datasets/
    seed: int
    scene: dict[str, Any]


@dataclass(frozen=True)
class PlannedTrial:
    """One trial of the sheet: layout by name, policy by letter."""

    trial: int
    layout: str
    policy: str


@dataclass(frozen=True)
class Sheet:
    """A protocol. The letters' meaning is in the key beside it, so that the sheet may lie on the operator's desk.

    Attributes:
        format: of this file.
        arm: a recipe of hardware/.
        randomization: how much the mock arm's light and cameras vary.
        seed: everything was drawn from.
        key: hash of the key that belongs to it.
        layouts: the scenes, by task.
        rows: the trials, in order.
    """

    format: int
    arm: str
    randomization: float
    seed: int
    key: str
    layouts: tuple[SheetLayout, ...]
    rows: tuple[PlannedTrial, ...]

    def layout(self, row: PlannedTrial) -> SheetLayout:
        """The scene of a row."""
        return next(layout for layout in self.layouts if layout.name == row.layout)


@dataclass(frozen=True)
class Protocol:
    """A sheet and what its letters mean: letter -> checkpoint."""

    sheet: Sheet
    policies: dict[str, str]

    @property
    def digest(self) -> str:
        """Changes with any change to sheet or key."""
        return digest({"sheet": asdict(self.sheet), "policies": self.policies})


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
    """Draw a protocol: `trials` layouts a task, every policy once on each.

    Args:
        tasks: names of recipes; policies: checkpoints. Each once.
        scene: (task, seed) -> the layout, JSON-able.
        by_task: one task after the other, so that the table is set once a task; else a layout of every task in turn,
            so that the study may be stopped at any time with all tasks tried alike.

    Raises:
        UsageError: no or twice the same task or policy, more policies than letters, fewer than one trial.
    """
    for what, names in (("--task", tasks), ("--policy", policies)):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if not names or twice:
            raise UsageError(f"{what} {twice[0]} is given twice" if twice else f"a protocol needs at least one {what}")
    if len(policies) > len(string.ascii_uppercase) or trials < 1:
        raise UsageError(f"{len(policies)} policies and {trials} trials; at most 26 policies, at least 1 trial")
    rng = np.random.default_rng(seed)
    letters = [string.ascii_uppercase[int(i)] for i in rng.permutation(len(policies))]
    key = dict(zip(letters, policies, strict=True))  # in the order given: the first is what others are compared with
    seeds = rng.choice(_LAST_SEED - _FIRST_SEED, (len(tasks), trials), replace=False) + _FIRST_SEED
    layouts = tuple(
        SheetLayout(f"{task}-{n:0{len(str(trials))}d}", task, int(s), scene(task, int(s)))
        for task, own in zip(tasks, seeds, strict=True)
        for n, s in enumerate(own, start=1)
    )
    grid = np.arange(len(layouts)).reshape(len(tasks), trials)  # the seeds are in random order as it is
    order = rng.permutation(grid) if by_task else rng.permuted(grid.T, axis=1)
    turns = [(layouts[int(i)].name, letters[int(p)]) for i in order.ravel() for p in rng.permutation(len(letters))]
    rows = tuple(PlannedTrial(number, *turn) for number, turn in enumerate(turns))
    return Protocol(Sheet(FORMAT, arm, randomization, seed, digest(key), layouts, rows), key)


def key_path(path: Path) -> Path:
    """Where the key of the sheet `path` is."""
    return path.with_name(f"{path.stem}.key.json")


def write_protocol(path: Path, protocol: Protocol) -> None:
    """Write sheet and key; never over another one.

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
    for name, items in lists.items():  # one line an item: a person reads, prints and compares it
        parts.append(f" {json.dumps(name)}: [\n" + ",\n".join("  " + json.dumps(item) for item in items) + "\n ]")
    write_whole(path, "{\n" + ",\n".join(parts) + "\n}\n", sync=True)


def read_protocol(path: Path) -> Protocol:
    """Read and check a sheet and its key.

    Raises:
        UsageError: absent, not a sheet, of a newer format, without rows; a row with an unknown layout or policy, or
            one that is there twice; a key that does not belong to it.
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


def _load(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no {what} at {path}; write one with: srpo-robot protocol --output FILE") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} cannot be read as a protocol's {what}: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no protocol's {what}; write one with: srpo-robot protocol --output FILE")
    return content


def _check_rows(sheet: Sheet, policies: dict[str, str], where: str) -> None:
    names = [layout.name for layout in sheet.layouts]
    if len(set(names)) < len(names):
        raise UsageError(f"{where}: two layouts share a name; give each its own")
    if not sheet.rows:
        raise UsageError(f"{where} has no rows: nothing to run; write one with: srpo-robot protocol --output FILE")
    seen = set()
    for place, row in enumerate(sheet.rows):
        if row.trial != place:
            raise UsageError(f"{where}: row {place} is numbered {row.trial}; number the rows from 0 in their order")
        if row.layout not in names:
            close = difflib.get_close_matches(row.layout, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {len(names)}: {', '.join(names[:5])}"
            raise UsageError(f"{where}: trial {row.trial} has the unknown layout {row.layout!r}{hint}")
        if row.policy not in policies:
            raise UsageError(f"{where}: trial {row.trial} has policy {row.policy!r}; there are: {', '.join(policies)}")
        if (row.layout, row.policy) in seen:
            raise UsageError(f"{where}: trial {row.trial} repeats policy {row.policy} on layout {row.layout}")
        seen.add((row.layout, row.policy))


# --- the journal of a study ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """The output folder of a protocol's run.

    Attributes:
        folder: it.
        protocol: as it was when the first trial began.
        blind: the operator is not told what the letters mean.
    """

    folder: Path
    protocol: Protocol
    blind: bool

    def trials(self) -> list[Trial]:
        """The journal, checked against the sheet. Raises DatasetError where a row cannot be one of this protocol."""
        if not (self.folder / JOURNAL).is_file():
            return []
        trials, rows, where = read_trials(self.folder), self.protocol.sheet.rows, str(self.folder / JOURNAL)
        check_trials(trials, where)
        for trial in trials:
            row = rows[trial.trial] if 0 <= trial.trial < len(rows) else None
            if row is None or (row.policy, self.protocol.sheet.layout(row).seed) != (trial.policy, trial.seed):
                raise DatasetError(f"{where}: trial {trial.trial} is not the sheet's; restore the file from a copy")
        return trials

    def pending(self) -> list[PlannedTrial]:
        """The rows that are still to be run, in order: those without a verdict, unless void `ATTEMPTS` times."""
        trials = self.trials()
        decided = {trial.trial for trial in trials if trial.success is not None}
        tried = Counter(trial.trial for trial in trials if not trial.note.startswith(INTERRUPTED))
        return [r for r in self.protocol.sheet.rows if r.trial not in decided and tried[r.trial] < ATTEMPTS]

    def name(self, letter: str, unblind: bool = False) -> str:
        """What a policy may be called: its letter as long as the study is blind and not at its end."""
        hidden = self.blind and not unblind and bool(self.pending())
        return letter if hidden else self.protocol.policies[letter]


def begin_study(folder: Path, protocol: Protocol, blind: bool) -> Study:
    """Open the folder of a study, or go on with one. What was begun and has no row in the journal gets a void one.

    Raises:
        UsageError: the folder holds something else; the protocol was edited after its first trial; --blind for a study
            that began without.
    """
    if not (folder / RUN).is_file():
        if folder.exists() and any(c.name not in (SHEET, KEY) and c.name[0] != "." for c in folder.iterdir()):
            raise UsageError(f"{folder} exists and is not a run; give another --output")
        folder.mkdir(parents=True, exist_ok=True)
        return _claim(folder, protocol, blind)
    settings = _load(folder / RUN, "run")
    if "protocol" not in settings:
        raise UsageError(f"{folder} holds a run without a protocol; give another --output")
    begun = (folder / JOURNAL).is_file() or (folder / BEGUN).is_file()
    if settings["protocol"] != protocol.digest:
        if begun:
            raise UsageError(
                f"the protocol was edited after its first trial; go on with the one that was begun, {folder / SHEET}, "
                "or give another --output"
            )
        return _claim(folder, protocol, blind)
    if blind and not settings["blind"]:
        if begun:
            raise UsageError(f"{folder} was begun with the policies' names shown; go on without --blind")
        return _claim(folder, protocol, blind)
    study = Study(folder, protocol, bool(settings["blind"]))
    _account_for_interrupted(study)
    return study


def open_study(folder: Path) -> Study | None:
    """The study in `folder`, to read; None where it holds no protocol. Raises UsageError where it is damaged."""
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
    """Note that this trial begins, before anything moves. Its row in the journal follows by `end_trial`."""
    attempt = sum(trial.trial == row.trial for trial in study.trials())
    write_whole(study.folder / BEGUN, json.dumps({"trial": row.trial, "attempt": attempt}) + "\n", sync=True)


def end_trial(study: Study, trial: Trial) -> None:
    """Put the trial that was begun into the journal. Raises DatasetError where it is void without a reason."""
    check_trials([trial], str(study.folder))
    append_trial(study.folder, trial)
    (study.folder / BEGUN).unlink(missing_ok=True)


def void_trial(study: Study, row: PlannedTrial, note: str) -> Trial:
    """The journal's row of a trial that came to nothing."""
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
    begun = _load(path, "begun trial")
    row = study.protocol.sheet.rows[int(begun["trial"])]
    if sum(trial.trial == row.trial for trial in study.trials()) <= int(begun["attempt"]):
        append_trial(study.folder, void_trial(study, row, f"{INTERRUPTED}: the run ended during this trial"))
    path.unlink()


def _claim(folder: Path, protocol: Protocol, blind: bool) -> Study:
    _write_sheet(folder / SHEET, protocol)
    settings = {"arm": protocol.sheet.arm, "protocol": protocol.digest, "blind": blind}
    # Last: a folder without this file is not begun.
    write_whole(folder / RUN, json.dumps(settings, indent=2) + "\n", sync=True)
    return Study(folder, protocol, blind)
