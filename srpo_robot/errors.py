"""The package's exceptions. Each deliberate error is a `SrpoRobotError` whose one-line message says what would work."""


class SrpoRobotError(Exception):
    """Base class of all errors. The command line exits with `exit_code`: 1 for a failure, 2 for bad usage or input."""

    exit_code = 1


class UsageError(SrpoRobotError):
    """Bad usage: an invalid option, an unknown name or unusable input."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is missing, misspelt or out of range."""


class DatasetError(UsageError):
    """A folder holds no dataset, or one that this package cannot read."""


class UnlabelledError(DatasetError):
    """Episodes have no success label. An unlabelled episode is never counted as a failure."""


class UndecodableFrame(DatasetError):
    """A frame of the recorded video cannot be decoded. The message names episode, camera and frame."""


class StaleTable(UsageError):
    """A table under DATASET/srpo was computed from other data or another parent table."""


class ScoringError(UsageError):
    """Progress is undefined, for example because a task has no success or an embedding is NaN."""


class CheckpointError(UsageError):
    """A policy or encoder checkpoint is incomplete or does not match the recipe or dataset."""


class TrainingError(SrpoRobotError):
    """Training cannot continue, for example because the loss is NaN or all weights are zero."""


class ArmError(SrpoRobotError):
    """The arm refused a command, faulted, or received a command outside its limits. It holds or has stopped."""


class CommandRefused(ArmError):
    """A command is not finite or has the wrong shape. It must not reach an arm."""


class CameraError(ArmError):
    """A camera is missing, frozen, too slow, set differently from its recipe, or swapped with another camera."""


class PolicyError(SrpoRobotError):
    """A policy crashed or did not answer in time. The arm holds until the run ends."""


class UndecodableActions(SrpoRobotError):
    """A policy's output cannot be decoded into actions. The arm holds, and the trial is judged as it stands."""


def one_line(error: BaseException) -> str:
    """Returns the error's text on one line, as the command line prints it."""
    return " ".join(str(error).split()) or type(error).__name__
