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

EMBEDDED = "embedded-random"
PUBLISHED = "facebook/vjepa2-vitl-fpc64-256"
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
RANDOM_WARNING = "the embedded encoder has random weights: it shows the plumbing, its scores mean nothing"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
GPU_TOKENS = 65_536  # tokens in a batch: enough to fill a large GPU
CPU_TOKENS = 4096  # larger batches are slower on a CPU: they leave its cache
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in V-JEPA 2's processor


class Encoder(Protocol):
    """A frozen video encoder. A new one is one file with these four names (`identity` to `encode`)."""

    identity: str  # changes whenever the same clip would get another embedding
    frames_per_clip: int  # F, what a clip has unless the windows say otherwise
    batch_clips: int  # clips of F frames that one call should get for speed; shorter clips go in larger batches

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resize and crop frames once: uint8 (T, H, W, 3) -> uint8 (T, S, S, 3), what `encode` takes."""
        ...

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """Embed clips of prepared frames: uint8 (B, F, S, S, 3) -> float32 (B, D), the mean over tokens."""
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


class RopeTable:
    """Rotary positions computed once in float32 and shared by all layers: V-JEPA 2 makes them anew in every layer.

    In float32 the outcome is transformers' own; in bfloat16 the angles lose less. It keeps the published quirk (angles
    tiled, pairs interleaved), which the weights were trained with.
    """

    def __init__(self, attention: Any) -> None:
        """`attention`: any layer's VJEPA2RopeAttention; all of an encoder agree in their geometry."""
        self._grid, self._part, self._width = attention.grid_size, attention.d_dim, attention.attention_head_size
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def fit(self, tokens: int, device: torch.device, dtype: torch.dtype) -> None:
        """Make the tables at least `tokens` long; positions of a shorter clip are their beginning."""
        if self._tables is not None and len(self._tables[0]) >= tokens:
            return
        ids = torch.arange(tokens, device=device)
        place = ids % self._grid**2
        omega = torch.arange(self._part // 2, dtype=torch.float32, device=device) / (self._part / 2.0)
        omega = 1.0 / 10000**omega
        angle = torch.zeros(tokens, self._width, device=device)  # what no axis rotates: cos 1, sin 0
        for axis, position in enumerate((ids // self._grid**2, place // self._grid, place % self._grid)):
            span = slice(axis * self._part, (axis + 1) * self._part)
            angle[:, span] = (position.unsqueeze(-1) * omega).repeat(1, 2)
        sin = angle.sin()
        sin[:, 0::2] *= -1  # the pair (x, y) turns into (-y, x): its sign sits in the table
        self._tables = angle.cos().to(dtype), sin.to(dtype)

    def rotate(self, qk: torch.Tensor, tokens: int) -> torch.Tensor:
        """(B, heads, tokens, width) -> the same, rotated; stands in for VJEPA2RopeAttention.apply_rotary_embeddings."""
        assert self._tables is not None
        cos, sin = (table[:tokens] for table in self._tables)
        return qk * cos + qk.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) * sin

    def install(self, encoder: Any) -> None:
        """Let every layer of `encoder` use these tables."""
        for layer in encoder.layer:
            layer.attention.get_position_ids = lambda x, masks=None: x.size(1)
            layer.attention.apply_rotary_embeddings = self.rotate


class VJEPA2Encoder:
    """V-JEPA 2's encoder (transformers), mean over tokens."""

    def __init__(
        self,
        model: VJEPA2Model,
        device: str = "cpu",
        dtype: str = "float32",
        attention: str = "sdpa",
        compile: bool = False,
        frames_per_clip: int | None = None,
    ) -> None:
        """Keeps the encoder and drops the predictor. Arguments and errors as `load_encoder`."""
        if dtype not in DTYPES:
            raise UsageError(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
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
        self.identity = _identity(model, dtype)
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        _use_attention(model, attention)
        encoder: Any = model.encoder.to(self._device, self._dtype).eval()
        self._rope = RopeTable(encoder.layer[0].attention)
        self._rope.install(encoder)
        self._encoder = torch.compile(encoder, dynamic=False) if compile else encoder
        self._mean = torch.tensor(_MEAN, device=self._device).view(1, 1, 3, 1, 1) * 255
        self._std = torch.tensor(_STD, device=self._device).view(1, 1, 3, 1, 1) * 255

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resize the shorter side and crop the centre, bit for bit as transformers' VJEPA2VideoProcessor, as uint8."""
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        video = tvf.resize(video, [self.resize_px], interpolation=InterpolationMode.BILINEAR, antialias=True)
        return tvf.center_crop(video, [self.crop_px, self.crop_px]).permute(0, 2, 3, 1).contiguous().numpy()

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
        # Planes are laid out as bytes, a quarter of the traffic, and normalised in place: it shows in a small encoder.
        pixels = clips.to(self._device).permute(0, 1, 4, 2, 3).contiguous().float()
        pixels = pixels.sub_(self._mean).div_(self._std).to(self._dtype)
        self._rope.fit(self.geometry.tokens(clips.shape[1]), self._device, self._dtype)
        return self._encoder(pixels).last_hidden_state.float().mean(dim=1).cpu().numpy()

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
) -> VJEPA2Encoder:
    """The encoder `name`: "embedded-random", a local folder saved with `save_pretrained`, or a Hub id.

    Args:
        dtype: a key of `DTYPES`; it is part of the identity.
        attention: "sdpa", "eager" or "flash_attention_2"; they agree to rounding and share an identity.
        compile: torch.compile, one graph per clip length: minutes at the start, no gain on a CPU; not for nested
            windows, which have as many lengths as windows.
        frames_per_clip: F, even; None: the checkpoint's.

    Raises:
        CheckpointError: not V-JEPA 2, weights missing or not matching, or the Hub cannot be reached.
        UsageError: an unknown dtype, an attention that does not run here, an odd clip length.
    """
    model = _embedded() if name == EMBEDDED else _load(name)
    return VJEPA2Encoder(model, device, dtype, attention, compile, frames_per_clip)


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


def _use_attention(model: VJEPA2Model, attention: str) -> None:
    if attention not in ATTENTIONS:
        raise UsageError(f"no attention {attention!r}; there are: {', '.join(ATTENTIONS)}")
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise UsageError(f"attention {attention!r} does not run here ({one_line(error)[:120]}); sdpa does") from None


def _embedded() -> VJEPA2Model:
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
        raise CheckpointError(f"no encoder {name!r}; give {EMBEDDED!r}, a folder, or a Hub id like {PUBLISHED!r}")
    transformers_logging.disable_progress_bar()  # a bar for every load; this command line has its own
    try:
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, VJEPA2Config):
            raise CheckpointError(
                f"{name} is a {config.model_type!r} model; V-JEPA 2 is needed, for example {PUBLISHED}"
            )
        # crop_size fixes the RoPE grid: another size would run without error and with wrong positions.
        loaded: Any = VJEPA2Model.from_pretrained(name, config=config, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        raise CheckpointError(f"cannot load {name}: {why}; without a network give a folder on this machine") from None
    model, info = loaded
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise CheckpointError(f"{name}: {len(wrong)} weights are missing or do not match, for example {wrong[0]!r}")
    return model


def _identity(model: VJEPA2Model, dtype: str) -> str:
    """Hash of the encoder's weights, its geometry and the precision it runs in."""
    config = model.config
    geometry = [
        config.crop_size,
        config.frames_per_clip,
        config.tubelet_size,
        config.patch_size,
        dtype,
        "mean-tokens",
        "rope32",
    ]
    digest = hashlib.sha256(json.dumps(geometry).encode())
    for key, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
