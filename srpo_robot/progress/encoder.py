"""Video encoders behind one function, `encode(clips)`: V-JEPA 2 from transformers, by Hub id or folder, or embedded.

Only the encoder of the model runs. The published model's default call adds a predictor over twice the tokens.
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
from srpo_robot.progress.encoder_names import (
    DTYPES,
    EMBEDDED,
    EMBEDDED_FOLDER,
    POOLS,
    PUBLISHED,
    RANDOM,
    check_attention,
    check_dtype,
    check_encoder,
)
from srpo_robot.progress.vjepa2 import BLOCKS, BytePatches, RopeTable, blocks_are_faster

EMBEDDED_CONFIG: dict[str, Any] = {
    "crop_size": 96,
    "frames_per_clip": 16,
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "mlp_ratio": 4,
    "pred_hidden_size": 48,  # the predictor is dropped after loading, so it is as small as possible
    "pred_num_hidden_layers": 1,
    "pred_num_attention_heads": 2,
    "pred_num_mask_tokens": 1,
}
TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPES}
GPU_TOKENS = 65_536  # tokens in a batch; enough to fill a large GPU
CPU_TOKENS = 4096  # larger batches do not fit into the cache of a CPU and are slower


class Encoder(Protocol):
    """A frozen video encoder. A new one is one file with these names (`name` to `encode`)."""

    name: str  # name, folder or Hub id that it was loaded by
    dtype: str  # precision it runs in, one of `DTYPES`
    identity: str  # changes whenever the same clip would get another embedding
    frames_per_clip: int  # F, frames of a clip unless the scoring config sets another number
    batch_clips: int  # clips of F frames that one call should get for speed; shorter clips go in larger batches

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resizes and crops frames once for `encode`: uint8 (T, H, W, 3) -> uint8 (T, S, S, 3)."""
        ...

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """Embeds clips of prepared frames: uint8 (B, F, S, S, 3) -> float32 (B, D)."""
        ...


@runtime_checkable
class HoldsFrames(Protocol):
    """An encoder on another device: an episode's frames move there once, and windows are gathered there."""

    def hold(self, frames: np.ndarray) -> Any:
        """Returns frames uint8 (T, S, S, 3) in a form that frame numbers index and `encode` accepts."""
        ...


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes that determine the cost of a V-JEPA 2 encoder.

    Attributes:
        layers: number of layers of the transformer.
        hidden: width of a token.
        mlp_ratio: width of the MLP's hidden layer over `hidden`.
        crop_px: side of a frame.
        patch_px: side of the patch of one token.
        tubelet: number of frames in one token.
    """

    layers: int
    hidden: int
    mlp_ratio: float
    crop_px: int
    patch_px: int = 16
    tubelet: int = 2

    def tokens(self, frames: int) -> int:
        """Returns the number of tokens of a clip."""
        return (frames // self.tubelet) * (self.crop_px // self.patch_px) ** 2


def tflop_per_clip(geometry: Geometry, frames: int) -> float:
    """Returns the forward cost of one clip of `frames` frames [TFLOP]; FlopCounterMode agrees to four digits.

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
        """Keeps the encoder of `model` and changes it; drops the predictor. Arguments and errors as `load_encoder`."""
        check_dtype(dtype)
        if pool not in POOLS:
            raise UsageError(f"no pool {pool!r}; there are: {', '.join(POOLS)}")
        config: Any = model.config
        self.geometry = Geometry(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            mlp_ratio=config.mlp_ratio,
            crop_px=config.crop_size,
            patch_px=config.patch_size,
            tubelet=config.tubelet_size,
        )
        self.frames_per_clip = int(config.frames_per_clip if frames_per_clip is None else frames_per_clip)
        self._check_frames(self.frames_per_clip)
        self.crop_px = self.geometry.crop_px
        # VJEPA2VideoProcessor's rule: the shorter side becomes 256/224 of the crop.
        self.resize_px = int(self.crop_px * 256 / 224)
        tokens = self.geometry.tokens(self.frames_per_clip)
        self.batch_clips = max(1, GPU_TOKENS // tokens) if device != "cpu" else max(1, min(8, CPU_TOKENS // tokens))
        self.name, self.dtype = str(config.name_or_path), dtype
        self.identity = _identity(model, dtype, pool)
        self._device, self._dtype, self._pool = torch.device(device), TORCH_DTYPES[dtype], pool
        _use_attention(model, attention, self._device, self._dtype)
        encoder: Any = model.encoder
        encoder.embeddings = BytePatches(encoder.embeddings, config)
        encoder = encoder.to(self._device, self._dtype).eval()
        self._rope = RopeTable(encoder.layer[0].attention)
        self._rope.install(encoder)
        self._encoder = torch.compile(encoder, dynamic=False) if compile else encoder

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resizes the shorter side and crops the centre, bit for bit like VJEPA2VideoProcessor, as uint8."""
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        video = tvf.resize(video, [self.resize_px], interpolation=InterpolationMode.BILINEAR, antialias=True)
        # Half a pixel is rounded down, as in the processor; torchvision's center_crop rounds it to even.
        top, left = ((side - self.crop_px) // 2 for side in video.shape[2:])
        return tvf.crop(video, top, left, self.crop_px, self.crop_px).permute(0, 2, 3, 1).contiguous().numpy()

    def hold(self, frames: np.ndarray) -> torch.Tensor:
        """See `HoldsFrames.hold`. Each frame moves to the device once, not once for every window that shows it."""
        return torch.from_numpy(frames).to(self._device)

    @torch.inference_mode()
    def encode(self, clips: np.ndarray | torch.Tensor) -> np.ndarray:
        """See `Encoder.encode`. Clips may have any even number of frames, equal within the batch.

        Raises:
            UsageError: an odd number of frames (the model would silently drop the last one), or frames that are not
                crop_px squares (the model would silently use wrong positions).
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
    """Loads the encoder `name`: a folder saved with `save_pretrained`, a Hub id, "embedded" or "embedded-random".

    Published: facebook/vjepa2-vitl-fpc64-256 (L), -vith-fpc64-256 (H), -vitg-fpc64-256 and -vitg-fpc64-384 (g).

    Args:
        dtype: one of `DTYPES`; it is part of the identity.
        attention: "sdpa", "eager" or "flash_attention_2"; they agree to rounding and share an identity.
        compile: use torch.compile, one graph per clip length. It costs minutes at the start and gains nothing on a CPU.
            Do not use it with nested windows, which have as many lengths as windows.
        frames_per_clip: F, even; None: the checkpoint's.
        pool: pooling over tokens, "mean" (the paper) or "max"; it is part of the identity.

    Raises:
        CheckpointError: the model is not V-JEPA 2, weights are missing or do not match, or the Hub does not answer.
        UsageError: an unknown dtype or pool, an attention that does not run here, an odd clip length.
    """
    check_encoder(name)
    model = _random() if name == RANDOM else _load(str(EMBEDDED_FOLDER) if name == EMBEDDED else name)
    encoder = VJEPA2Encoder(model, device, dtype, attention, compile, frames_per_clip, pool)
    encoder.name = name
    return encoder


def measured_tflops(encoder: VJEPA2Encoder, frames: int | None = None, repeats: int = 2) -> float:
    """Measures the speed of `encoder` on this machine [TFLOP/s]: the fastest of `repeats` batches after a warm-up."""
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
    check_attention(attention)
    try:
        model.set_attn_implementation(BLOCKS if attention == "sdpa" and blocks_are_faster(device, dtype) else attention)
    except (ImportError, ValueError) as error:
        raise UsageError(f"attention {attention!r} does not run here ({one_line(error)[:120]}); sdpa does") from None


def _random() -> VJEPA2Model:
    """Returns a small V-JEPA 2 with random weights from a fixed seed: 96 px, 16 frames, 192 wide, 6 layers."""
    config = VJEPA2Config(**EMBEDDED_CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VJEPA2Model(config)


def _load(name: str) -> VJEPA2Model:
    folder = Path(name)
    transformers_logging.disable_progress_bar()  # one bar for every file; our command line has its own
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it prints a table of missing weights; the error below is one line
    try:
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, VJEPA2Config):
            raise CheckpointError(
                f"{name} is a {config.model_type!r} model; V-JEPA 2 is needed: {', '.join(PUBLISHED)}"
            )
        # crop_size fixes the RoPE grid: another size would run without error but with wrong positions.
        # Shapes that differ are accepted here, so that `_check_weights` names them with all other mistakes.
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
    """Raises CheckpointError, with one weight of each kind, unless checkpoint and model have the same weights."""
    kinds = {"missing": "missing_keys", "unknown": "unexpected_keys", "of another shape": "mismatched_keys"}
    # Keys of another shape are tuples of name and shapes.
    wrong = {kind: sorted(k if isinstance(k, str) else k[0] for k in info[keys]) for kind, keys in kinds.items()}
    which = "; ".join(f"{len(keys)} {kind}, the first {keys[0]!r}" for kind, keys in wrong.items() if keys)
    if which:
        raise CheckpointError(f"{name}: its weights are not those of its config.json: {which}")


def _identity(model: VJEPA2Model, dtype: str, pool: str) -> str:
    """Returns a hash of the encoder's weights, its geometry, its precision and the pooling of its tokens."""
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
