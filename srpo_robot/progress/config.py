"""How a dataset is scored: one frozen record, shared by the command line, the score and the table that holds it.

This module imports neither torch nor scipy, so a wrong option is refused at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, get_args

import typer

from srpo_robot.errors import UsageError
from srpo_robot.renames import REFERENCES, STEP_VALUES, current

WindowKind = Literal["dense", "stride", "nested"]
WindowShape = Literal["prefix", "recent"]
Repeat = Literal["linspace", "cyclic"]
Profile = Literal["paper", "paper-literal", "siirl", "loo"]

TUBELET = 2  # frames in one token of V-JEPA 2; it silently drops the last frame of an odd clip
ALPHA = 0.8  # the paper's ceiling on a failure's reward
VALUES = ("progress", "reward", "knn-time", "knn-return")
STRATEGIES = ("dbscan-auto", "mean", "nearest", "knn3", "medoid", "hdbscan", "siirl")  # built in references.py
EXTERNAL = "external"
DEFAULT_REFERENCES = {"paper": "dbscan-auto", "paper-literal": "dbscan-auto", "siirl": "siirl", "loo": "knn3"}


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How episodes become windows, embeddings and scores. The CLI options of `score-dataset` are these fields.

    Attributes:
        cameras: camera names or feature keys; each is embedded by itself. (): the dataset's first camera.
        windows: "dense" (a window ends at every frame, the paper), "stride:K" (at every K-th) or "nested" (prefixes
            of one sampling of the whole episode).
        window_shape: "prefix" (frames 0..t, the paper) or "recent" (the last F frames up to t).
        min_window: t0, last frame of the first window.
        frames_per_clip: F, frames that represent one window, even. None: the encoder's, see `resolved`.
        profile: `paper`; `paper-literal`: its reward with the sign as printed; `siirl`: reward and references of the
            released code; `loo`: successes are measured like failures, by references that leave out their own group.
        references: a name that `parse_reference_name` accepts. "": "external" if `reference` is set, otherwise the
            profile's (`DEFAULT_REFERENCES`).
        reference: another dataset, whose successes are the external references.
        value: step value R, one of `VALUES`. "": progress.
        skip_tasks: tasks that are left out. All scores of their episodes are NaN.
        alpha: ceiling of a failure's reward and of the step value `reward`. `siirl` has its own, 0.6.
        neighbours: number of windows that `knn-time` and `knn-return` average.
        repeat: how a window shorter than F fills its clip. "linspace" repeats frames in place, "cyclic" repeats the
            whole window (siiRL). None becomes "cyclic" for the profile `siirl` and "linspace" for the others.

    Raises:
        UsageError: a value is impossible, or two values exclude each other.
    """

    cameras: Annotated[
        tuple[str, ...],
        typer.Option("--camera", help="Which camera, the first by default; repeated: their distances combined."),
    ] = ()
    windows: Annotated[
        str,
        typer.Option(
            help="dense (every frame, the paper), stride:K (K times cheaper; rms difference of progress to dense .009 "
            "at 2, .016 at 4, .026 at 8) or nested (70 times cheaper, .15); measured on 336 frames, see the README."
        ),
    ] = "stride:4"
    window_shape: Annotated[str, typer.Option(help="prefix (frames 0..t, the paper) or recent (the last ones).")] = (
        "prefix"
    )
    min_window: Annotated[int, typer.Option(help="Last frame of the first window, t0.", min=1)] = 10
    frames_per_clip: Annotated[int | None, typer.Option(help="Frames of a clip, even; the encoder's by default.")] = (
        None
    )
    profile: Annotated[
        Profile,
        typer.Option(help="How distance becomes progress and reward; loo: leave-one-out, success and failure alike."),
    ] = "paper"
    references: Annotated[
        str,
        typer.Option(
            help="dbscan-auto, a number (DBSCAN eps), mean, nearest, knn3, medoid, hdbscan, siirl, external; "
            "by default the profile's."
        ),
    ] = ""
    reference: Annotated[str | None, typer.Option(help="Another dataset whose successes are the references.")] = None
    value: Annotated[
        str, typer.Option(help="Step value that trains: progress (the paper, default), reward, knn-time or knn-return.")
    ] = ""
    skip_tasks: Annotated[
        tuple[str, ...], typer.Option("--skip-task", help="Leave this task out; may be repeated.")
    ] = ()
    alpha: float = ALPHA
    neighbours: int = 10
    repeat: Repeat | None = None

    def __post_init__(self) -> None:
        self._check_score()
        if self.repeat is None:
            object.__setattr__(self, "repeat", "cyclic" if self.profile == "siirl" else "linspace")
        object.__setattr__(self, "windows", _current_windows(self.windows))
        self._check_windows()
        if self.references:
            object.__setattr__(self, "references", parse_reference_name(self.references).name)
        if self.value:
            object.__setattr__(self, "value", parse_value(self.value))

    def _check_score(self) -> None:
        if self.profile not in get_args(Profile):
            raise UsageError(f"no profile {self.profile!r}; there are: {', '.join(get_args(Profile))}")
        if not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"alpha {self.alpha} must be at least 0, where the reward is the label, and at most 1")
        if self.neighbours < 1:
            raise UsageError(f"neighbours {self.neighbours} must be at least 1")

    def _check_windows(self) -> None:
        if self.window_shape not in get_args(WindowShape):
            shapes = ", ".join(get_args(WindowShape))
            raise UsageError(f"no window shape {self.window_shape!r}; there are: {shapes}")
        if self.min_window < 0:
            raise UsageError(f"the first window cannot end at frame {self.min_window}; give --min-window 0 or more")
        frames = self.frames_per_clip
        if frames is not None and (frames < TUBELET or frames % TUBELET):
            raise UsageError(f"no clips of {frames} frames: V-JEPA 2 sees pairs; give an even number, for example 16")
        if self.window_kind == "nested" and (self.window_shape, self.repeat) != ("prefix", "linspace"):
            raise UsageError(
                f"nested windows are prefixes of one sampling, not {self.window_shape!r} with {self.repeat!r} repeats; "
                "give prefix and linspace, or stride:4"
            )

    @property
    def window_kind(self) -> WindowKind:
        """The word before the colon of `windows`."""
        return self.windows.partition(":")[0]  # type: ignore[return-value]  # checked when the config was made

    @property
    def stride(self) -> int:
        """Frames from the end of one window to the end of the next; 1 unless `windows` is "stride:K"."""
        return int(self.windows.partition(":")[2] or 1)

    @property
    def reference_name(self) -> str:
        """Name of the reference strategy with the default filled in."""
        return self.references or (EXTERNAL if self.reference else DEFAULT_REFERENCES[self.profile])

    @property
    def value_name(self) -> str:
        """Name of the step value with the default filled in."""
        return self.value or "progress"

    def resolved(self, encoder_frames: int) -> ScoringConfig:
        """Returns the same config with F filled in: its own, otherwise the encoder's."""
        return self if self.frames_per_clip is not None else replace(self, frames_per_clip=encoder_frames)

    def for_profile(self, profile: Profile) -> ScoringConfig:
        """Returns the same windows under another profile, with its own references and progress as the step value."""
        return replace(self, profile=profile, references="", reference=None, value="")


class ReferenceName(NamedTuple):
    """A parsed name of a reference strategy.

    Attributes:
        name: the whole name, without old words.
        strategy: one of `STRATEGIES`; "" if `eps` is given instead.
        eps: radius of DBSCAN [embedding units]; None if `strategy` is given instead.
        external: the references are another dataset's successes, not the task's own.
    """

    name: str
    strategy: str
    eps: float | None
    external: bool


def parse_reference_name(name: str) -> ReferenceName:
    """Parses the name of a reference strategy.

    Names are `dbscan-auto`, `mean`, `nearest`, `knn3`, `medoid`, `hdbscan`, `siirl`; a number: DBSCAN with that radius
    [embedding units]; `external`: successes of another dataset, each its own centre (the paper's "w/o self-reference");
    `external:NAME`: those successes under another strategy, so that an ablation changes one thing only.

    Raises:
        UsageError: no such strategy; the message lists those that exist.
    """
    name = current(name, REFERENCES)
    outer, _, inner = name.partition(":")
    if outer == EXTERNAL and inner != EXTERNAL and ":" not in inner and not name.endswith(":"):
        strategy = parse_reference_name(inner or "nearest")
        return ReferenceName(f"{EXTERNAL}:{strategy.name}" if inner else name, *strategy[1:3], external=True)
    if name in STRATEGIES:
        return ReferenceName(name, name, None, external=False)
    eps = _positive(name)
    if eps is None:
        raise UsageError(
            f"no references {name!r}; there are: {', '.join(STRATEGIES)}, {EXTERNAL}, {EXTERNAL}:NAME, "
            "or a number (the radius of DBSCAN, for example 0.7)"
        )
    return ReferenceName(name, "", eps, external=False)


def parse_value(name: str) -> str:
    """Returns the step value `name`, or its new name if `name` is an old one.

    Raises:
        UsageError: no such step value; the message lists those that exist.
    """
    name = current(name, STEP_VALUES)
    if name not in VALUES:
        raise UsageError(f"no value {name!r}; there are: {', '.join(VALUES)}")
    return name


def _current_windows(text: str) -> str:
    """Returns "dense", "stride:K" or "nested" in its shortest form. Raises UsageError for anything else."""
    kind, colon, number = text.partition(":")
    strided = kind == "stride" and number.isascii() and number.isdigit() and int(number) >= 1
    if not strided and (colon or kind not in ("dense", "nested")):
        raise UsageError(f"no window spec {text!r}; there are: dense, stride:K (for example stride:4), nested")
    return f"stride:{int(number)}" if strided else kind


def _positive(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None
