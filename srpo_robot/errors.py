"""The error tree: every refusal made on purpose is a `SrpoRobotError` of one line that says what would work."""


class SrpoRobotError(Exception):
    """Root of the tree. `exit_code` is what the command line returns: 1 for a failure, 2 for bad usage or input."""

    exit_code = 1


class UsageError(SrpoRobotError):
    """The caller asked for something that cannot be: bad option, unknown name, unusable input."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is missing, misspelt or out of range."""


class DatasetError(UsageError):
    """A folder is no dataset, or not one this package can read."""


class UnlabelledError(DatasetError):
    """Episodes have no success label. Never read as failure."""


class UndecodableFrame(DatasetError):
    """A frame of the recorded video cannot be decoded; the message names episode, camera and frame."""


class StaleTable(UsageError):
    """A table under DATASET/srpo does not belong to the data or table it is read with."""


class ScoringError(UsageError):
    """Progress is undefined for what was asked (a task with no success, a NaN embedding)."""


class CheckpointError(UsageError):
    """A policy or encoder checkpoint is incomplete or does not match."""


class TrainingError(SrpoRobotError):
    """Training cannot go on (a NaN loss, all weights zero)."""


class ArmError(SrpoRobotError):
    """The arm refused, faulted or was asked for something outside its limits; it holds or has stopped."""


class CommandRefused(ArmError):
    """A command that must not reach an arm at all: not finite, or of the wrong shape."""


class CameraError(ArmError):
    """A camera is missing, frozen, too slow, not set as the recipe says, or shows what another one should."""


class PolicyError(SrpoRobotError):
    """A policy crashed, or did not answer in time; the arm holds until the run has ended."""


class UndecodableActions(SrpoRobotError):
    """A policy's output is no action; the arm holds, and the trial is judged as it stands."""


def one_line(error: BaseException) -> str:
    """The error's text on one line, as the command line prints it."""
    return " ".join(str(error).split()) or type(error).__name__
