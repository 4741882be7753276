"""Video encoders behind one function, `encode(clips)`. V-JEPA 2 from transformers, by Hub id or folder, or embedded.

Only the encoder runs: the published model's default call adds a predictor over twice the tokens.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf
from transformers import AutoConfig, VJEPA2Config, VJEPA2Model
from transformers.utils import logging as transformers_logging

from srpo_robot.errors import CheckpointError, UsageError, one_line
from srpo_robot.progress.vjepa2 import BLOCKS, BytePatches, RopeTable, blocks_are_faster

EMBEDDED = "embedded"
RANDOM = "embedded-random"
EMBEDDED_FOLDER = Path(__file__).parent / "embedded"  # saved with save_pretrained; PROVENANCE.md is beside it
PUBLISHED = (  # V-JEPA 2 L, H, g and g at 384 px
    "facebook/vjepa2-vitl-fpc64-256",
    "facebook/vjepa2-vith-fpc64-256",
    "facebook/vjepa2-vitg-fpc64-256",
    "facebook/vjepa2-vitg-fpc64-384",
)
EMBEDDED_CONFIG: dict[str, Any] = {
    "crop_size": 96,
    "frames_per_clip": 16,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "mlp_ratio": 4,
    "pred_hidden_size": 48,  # the predictor is dropped after load: as small as it may be
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
    "pred_num_mask_tokens": 1,
}
CAUTIONS = {  # said wherever these score
    EMBEDDED: "the embedded encoder was trained on video of the mock cell alone, a demo; for real video name a "
    "published V-JEPA 2, for example --encoder facebook/vjepa2-vitl-fpc64-256",
    RANDOM: "the embedded-random encoder has random weights: it shows the plumbing, its scores mean nothing",
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
POOLS = ("mean", "max")  # over tokens; the paper's is the mean
GPU_TOKENS = 65_536  # tokens in a batch: enough to fill a large GPU
CPU_TOKENS = 4096  # larger batches are slower on a CPU: they leave its cache


class Encoder(Protocol):
    """A frozen video encoder. A new one is one file with these four names (`identity` to `encode`)."""

    identity: str  # changes whenever the same clip would get another embedding
    frames_per_clip: int  # F, what a clip has unless the windows say otherwise
    batch_clips: int  # clips of F frames that one call should get for speed; shorter clips go in larger batches

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resize and crop frames once: uint8 (T, H, W, 3) -> uint8 (T, S, S, 3), what `encode` takes."""
        ...

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """Embed clips of prepared frames: uint8 (B, F, S, S, 3) -> float32 (B, D)."""
        ...


@runtime_checkable
class HoldsFrames(Protocol):
    """An encoder on another device: it gets an episode's frames once, and windows are gathered where they are."""

    def hold(self, frames: np.ndarray) -> Any:
        """uint8 (T, S, S, 3) -> the same, indexable by frame numbers, in the form that `encode` takes."""
        ...


@dataclass(frozen=True)
class Geometry:
    """What a V-JEPA 2 encoder's cost follows from.

    Attributes:
        layers, hidden, mlp_ratio: of the transformer.
        crop_px, patch_px, tubelet: frames are crop_px^2; a token is tubelet frames of patch_px^2.
    """

    layers: int
    hidden: int
    mlp_ratio: float
    crop_px: int
    patch_px: int = 16
    tubelet: int = 2

    def tokens(self, frames: int) -> int:
        """Tokens of a clip."""
        return (frames // self.tubelet) * (self.crop_px // self.patch_px) ** 2


def tflop_per_clip(geometry: Geometry, frames: int) -> float:
    """Forward cost of one clip of `frames` frames [TFLOP]; PyTorch's FlopCounterMode agrees to four digits.

    Linear layers L(8nh^2 + 4nh(mlp h)), attention 4n^2 h L, and the patch embedding, for n tokens of width h.
    """
    n, h, depth = geometry.tokens(frames), geometry.hidden, geometry.layers
    linear = depth * (8 * n * h**2 + 4 * n * h * geometry.mlp_ratio * h)
    patches = 2 * n * h * 3 * geometry.tubelet * geometry.patch_px**2
    return (linear + 4 * n**2 * h * depth + patches) / 1e12


class VJEPA2Encoder:
    """V-JEPA 2's encoder (transformers), pooled over tokens."""

    def __init__(
        self,
        model: VJEPA2Model,
        device: str = "cpu",
        dtype: str = "float32",
        attention: str = "sdpa",
        compile: bool = False,
        frames_per_clip: int | None = None,
        pool: str = "mean",
    ) -> None:
        """Keeps the encoder of `model`, and changes it; drops the predictor. Arguments and errors as `load_encoder`."""
        if dtype not in DTYPES:
            raise UsageError(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
        if pool not in POOLS:
            raise UsageError(f"no pool {pool!r}; there are: {', '.join(POOLS)}")
        config: Any = model.config
        self.geometry = Geometry(
            config.num_hidden_layers,
            config.hidden_size,
            config.mlp_ratio,
            config.crop_size,
            config.patch_size,
            config.tubelet_size,
        )
        self.frames_per_clip = int(config.frames_per_clip if frames_per_clip is None else frames_per_clip)
        self._check_frames(self.frames_per_clip)
        self.crop_px = self.geometry.crop_px
        # The processor's rule: the shorter side becomes 256/224 of the crop.
        self.resize_px = int(self.crop_px * 256 / 224)
        tokens = self.geometry.tokens(self.frames_per_clip)
        self.batch_clips = max(1, GPU_TOKENS // tokens) if device != "cpu" else max(1, min(8, CPU_TOKENS // tokens))
        self.identity = _identity(model, dtype, pool)
        self._device, self._dtype, self._pool = torch.device(device), DTYPES[dtype], pool
        _use_attention(model, attention, self._device, self._dtype)
        encoder: Any = model.encoder
        encoder.embeddings = BytePatches(encoder.embeddings, config)
        encoder = encoder.to(self._device, self._dtype).eval()
        self._rope = RopeTable(encoder.layer[0].attention)
        self._rope.install(encoder)
        self._encoder = torch.compile(encoder, dynamic=False) if compile else encoder

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resize the shorter side and crop the centre, bit for bit as transformers' VJEPA2VideoProcessor, as uint8."""
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        video = tvf.resize(video, [self.resize_px], interpolation=InterpolationMode.BILINEAR, antialias=True)
        # Half a pixel is rounded down, as there; torchvision's center_crop rounds it to even.
        top, left = ((side - self.crop_px) // 2 for side in video.shape[2:])
        return tvf.crop(video, top, left, self.crop_px, self.crop_px).permute(0, 2, 3, 1).contiguous().numpy()

    def hold(self, frames: np.ndarray) -> torch.Tensor:
        """See `HoldsFrames.hold`: each frame crosses to the device once, not once for every window that shows it."""
        return torch.from_numpy(frames).to(self._device)

    @torch.inference_mode()
    def encode(self, clips: np.ndarray | torch.Tensor) -> np.ndarray:
        """See `Encoder.encode`. Clips may have any even number of frames, equal within the batch.

        Raises:
            UsageError: an odd number of frames (the model would drop the last one), or frames that are not crop_px
                squares (it would run with wrong positions); both without a word.
        """
        clips = torch.as_tensor(clips)
        self._check_frames(clips.shape[1])
        if clips.shape[2:] != (self.crop_px, self.crop_px, 3) or clips.dtype != torch.uint8:
            raise UsageError(
                f"clips of {clips.dtype} {tuple(clips.shape)}: this encoder takes uint8 frames of "
                f"{self.crop_px}x{self.crop_px}x3, as its prepare() gives them"
            )
        self._rope.fit(self.geometry.tokens(clips.shape[1]), self._device, self._dtype)
        tokens = self._encoder(clips.to(self._device)).last_hidden_state
        pooled = tokens.mean(dim=1, dtype=torch.float32) if self._pool == "mean" else tokens.amax(dim=1).float()
        return pooled.cpu().numpy()

    def _check_frames(self, frames: int) -> None:
        tubelet = self.geometry.tubelet
        if frames < tubelet or frames % tubelet:
            raise UsageError(
                f"a clip of {frames} frames: V-JEPA 2 sees {tubelet} at a time and would drop the rest; "
                f"give {max(tubelet, frames - frames % tubelet)} or {frames - frames % tubelet + tubelet}"
            )


def load_encoder(
    name: str,
    device: str = "cpu",
    dtype: str = "float32",
    attention: str = "sdpa",
    compile: bool = False,
    frames_per_clip: int | None = None,
    pool: str = "mean",
) -> VJEPA2Encoder:
    """The encoder `name`: a folder saved with `save_pretrained`, a Hub id, "embedded" or "embedded-random".

    Published are facebook/vjepa2-vitl-fpc64-256 (L), -vith-fpc64-256 (H), -vitg-fpc64-256 and -vitg-fpc64-384 (g).

    Args:
        dtype: a key of `DTYPES`; it is part of the identity.
        attention: "sdpa", "eager" or "flash_attention_2"; they agree to rounding and share an identity.
        compile: torch.compile, one graph per clip length: minutes at the start, no gain on a CPU; not for nested
            windows, which have as many lengths as windows.
        frames_per_clip: F, even; None: the checkpoint's.
        pool: over tokens, "mean" (the paper) or "max"; part of the identity.

    Raises:
        CheckpointError: not V-JEPA 2, weights missing or not matching, or the Hub cannot be reached.
        UsageError: an unknown dtype or pool, an attention that does not run here, an odd clip length.
    """
    model = _random() if name == RANDOM else _load(str(EMBEDDED_FOLDER) if name == EMBEDDED else name)
    return VJEPA2Encoder(model, device, dtype, attention, compile, frames_per_clip, pool)


def measured_tflops(encoder: VJEPA2Encoder, frames: int | None = None, repeats: int = 2) -> float:
    """What this machine reaches with `encoder` [TFLOP/s]: the fastest of `repeats` full batches after a first."""
    frames = encoder.frames_per_clip if frames is None else frames
    clips = max(1, encoder.batch_clips * encoder.frames_per_clip // frames)
    batch = encoder.hold(np.zeros((clips, frames, encoder.crop_px, encoder.crop_px, 3), dtype=np.uint8))
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        encoder.encode(batch)  # the result comes back to the host, so the device is done
        seconds.append(time.perf_counter() - start)
    return clips * tflop_per_clip(encoder.geometry, frames) / min(seconds[1:])


def _use_attention(model: VJEPA2Model, attention: str, device: torch.device, dtype: torch.dtype) -> None:
    if attention not in ATTENTIONS:
        raise UsageError(f"no attention {attention!r}; there are: {', '.join(ATTENTIONS)}")
    try:
        model.set_attn_implementation(BLOCKS if attention == "sdpa" and blocks_are_faster(device, dtype) else attention)
    except (ImportError, ValueError) as error:
        raise UsageError(f"attention {attention!r} does not run here ({one_line(error)[:120]}); sdpa does") from None


def _random() -> VJEPA2Model:
    """A small V-JEPA 2 from a config with a fixed seed: 96 px, 16 frames, 192 wide, 6 layers; random weights."""
    config = VJEPA2Config(**EMBEDDED_CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VJEPA2Model(config)


def _load(name: str) -> VJEPA2Model:
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{name} has no config.json; give a folder saved with save_pretrained")
        if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
            raise CheckpointError(f"{name} has no weights file; give a folder with model.safetensors")
    elif name.count("/") != 1 or name.startswith((".", "/")):
        raise CheckpointError(f"no encoder {name!r}; give {EMBEDDED!r}, a folder, or a Hub id: {', '.join(PUBLISHED)}")
    transformers_logging.disable_progress_bar()  # a bar for every load; this command line has its own
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its table of missing weights: the error below is one line
    try:
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, VJEPA2Config):
            raise CheckpointError(
                f"{name} is a {config.model_type!r} model; V-JEPA 2 is needed: {', '.join(PUBLISHED)}"
            )
        # crop_size fixes the RoPE grid: another size would run without error and with wrong positions.
        # Shapes that differ are let through, to be named below with everything else that is wrong.
        loaded: Any = VJEPA2Model.from_pretrained(
            name, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        hint = f"without a network give a folder on this machine; published are {', '.join(PUBLISHED)}"
        hint = "give a folder saved with save_pretrained" if folder.is_dir() else hint
        raise CheckpointError(f"cannot load {name}: {why}; {hint}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    model, info = loaded
    _check_weights(name, info)
    return model


def _check_weights(name: str, info: dict[str, Any]) -> None:
    """Raise CheckpointError, with a weight of each kind, unless the checkpoint has all the model's and no other."""
    kinds = {"missing": "missing_keys", "unknown": "unexpected_keys", "of another shape": "mismatched_keys"}
    # A key of another shape comes with its shapes.
    wrong = {kind: sorted(k if isinstance(k, str) else k[0] for k in info[keys]) for kind, keys in kinds.items()}
    which = "; ".join(f"{len(keys)} {kind}, the first {keys[0]!r}" for kind, keys in wrong.items() if keys)
    if which:
        raise CheckpointError(f"{name}: its weights are not those of its config.json: {which}")


def _identity(model: VJEPA2Model, dtype: str, pool: str) -> str:
    """Hash of the encoder's weights, its geometry, the precision it runs in and what is made of its tokens."""
    config = model.config
    geometry = [
        config.crop_size,
        config.frames_per_clip,
        config.tubelet_size,
        config.patch_size,
        dtype,
        f"{pool}-tokens",
        "rope32",
    ]
    digest = hashlib.sha256(json.dumps(geometry).encode())
    for key, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
