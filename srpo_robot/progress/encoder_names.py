"""Names of the video encoders and of their options. Imports no torch, so a wrong name is refused at once."""

from __future__ import annotations

from pathlib import Path

from srpo_robot.errors import CheckpointError, UsageError

EMBEDDED = "embedded"
RANDOM = "embedded-random"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"  # saved with save_pretrained; PROVENANCE.md is beside it
PUBLISHED = (  # V-JEPA 2 L, H, g and g at 384 px
    "facebook/vjepa2-vitl-fpc64-256",
    "facebook/vjepa2-vith-fpc64-256",
    "facebook/vjepa2-vitg-fpc64-256",
    "facebook/vjepa2-vitg-fpc64-384",
)
CAUTIONS = {  # printed whenever one of these scores
    EMBEDDED: "the embedded encoder was trained on video of the mock cell alone, a demo; for real video name a "
    "published V-JEPA 2, for example --encoder facebook/vjepa2-vitl-fpc64-256",
    RANDOM: "the embedded-random encoder has random weights: it shows the plumbing, its scores mean nothing",
}
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
POOLS = ("mean", "max")  # over tokens; the paper's is the mean


def check_encoder(name: str) -> None:
    """Raises CheckpointError if `name` is neither embedded, nor a folder with config and weights, nor a Hub id."""
    if name == RANDOM:
        return
    name = str(EMBEDDED_FOLDER) if name == EMBEDDED else name
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{name} has no config.json; give a folder saved with save_pretrained")
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise CheckpointError(f"{name} has no weights file; give a folder with model.safetensors")
    elif name.count("/") != 1 or name.startswith((".", "/")):
        raise CheckpointError(f"no encoder {name!r}; give {EMBEDDED!r}, a folder, or a Hub id: {', '.join(PUBLISHED)}")


def check_dtype(dtype: str) -> None:
    """Raises UsageError for an unknown precision."""
    if dtype not in DTYPES:
        raise UsageError(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")


def check_attention(attention: str) -> None:
    """Raises UsageError for an unknown implementation of attention."""
    if attention not in ATTENTIONS:
        raise UsageError(f"no attention {attention!r}; there are: {', '.join(ATTENTIONS)}")
