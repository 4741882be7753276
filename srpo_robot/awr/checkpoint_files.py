"""Finds a checkpoint's folder and checks its files. Imports neither torch nor lerobot: a typo is answered at once."""

from __future__ import annotations

from pathlib import Path

from srpo_robot.errors import CheckpointError, one_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")


def check_checkpoint(checkpoint: str | Path) -> None:
    """Raises CheckpointError if `checkpoint` does not exist or lacks a file that a policy is loaded from."""
    require_files(checkpoint_folder(checkpoint), *PROCESSORS)


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """Returns the folder that holds config.json and model.safetensors.

    Args:
        checkpoint: a `pretrained_model` folder, a checkpoint's folder (`checkpoints/000100`), a run's output folder
            (its last checkpoint is taken), or a Hub id, which is downloaded.

    Raises:
        CheckpointError: no such folder or Hub repository, or a file is missing.
    """
    root = Path(checkpoint)
    if root.is_dir():
        folder = _inside(root)
    elif str(checkpoint).count("/") == 1 and not str(checkpoint).startswith((".", "/", "~")):
        folder = _from_hub(str(checkpoint))
    else:
        raise CheckpointError(
            f"there is no checkpoint {checkpoint}; give a run's output folder or a Hub id (user/name)"
        )
    require_files(folder, CONFIG, WEIGHTS)
    return folder


def require_files(folder: Path, *names: str) -> None:
    """Raises CheckpointError if `folder` lacks one of the files `names`."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has no {' and no '.join(missing)}; it is incomplete: copy or download it again"
        )


def _inside(root: Path) -> Path:
    places = (root, root / "pretrained_model", root / "checkpoints" / "last" / "pretrained_model")
    for place in places:
        if (place / CONFIG).is_file() or (place / WEIGHTS).is_file():
            return place
    raise CheckpointError(
        f"{root} holds no checkpoint: no config.json there, in pretrained_model/ or checkpoints/last/"
    )


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*tokenizer/*"]))
    except Exception as error:  # the Hub client raises dozens of kinds
        why = one_line(error)[:160]
        raise CheckpointError(f"{hub_id} is no folder here and cannot be had from the Hub ({why})") from None
