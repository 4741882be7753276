"""Video encoders behind one function, `encode(clips)`. V-JEPA 2 from transformers, by Hub id or folder, or embedded.

Only the encoder runs: the published model's default call adds a predictor over twice the tokens.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf
from transformers import AutoConfig, VJEPA2Config, VJEPA2Model
from transformers.utils import logging as transformers_logging

from srpo_robot.errors import CheckpointError, UsageError

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
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as in V-JEPA 2's processor


class Encoder(Protocol):
    """A frozen video encoder. A new one is one file with these four names."""

    identity: str  # changes whenever the same clip would get another embedding
    frames_per_clip: int
    batch_clips: int  # clips that one call should get for speed

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resize and crop frames once: uint8 (T, H, W, 3) -> uint8 (T, S, S, 3), what `encode` takes."""
        ...

    def encode(self, clips: np.ndarray) -> np.ndarray:
        """Embed clips of prepared frames: uint8 (B, F, S, S, 3) -> float32 (B, D), the mean over tokens."""
        ...


class VJEPA2Encoder:
    """V-JEPA 2's encoder (transformers), mean over tokens (method, section 1)."""

    def __init__(self, model: VJEPA2Model, device: str = "cpu", dtype: str = "float32") -> None:
        """Keeps the encoder and drops the predictor. Raises UsageError on an unknown dtype."""
        if dtype not in DTYPES:
            raise UsageError(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
        config: Any = model.config
        self.frames_per_clip = int(config.frames_per_clip)
        self.crop_px = int(config.crop_size)
        # The processor's rule: the shorter side becomes 256/224 of the crop.
        self.resize_px = int(self.crop_px * 256 / 224)
        tokens = (self.frames_per_clip // config.tubelet_size) * (self.crop_px // config.patch_size) ** 2
        self.batch_clips = max(1, 65_536 // tokens) if device != "cpu" else max(1, min(8, 4096 // tokens))
        self.identity = _identity(model, dtype)
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        self._encoder = model.encoder.to(self._device, self._dtype).eval()
        self._mean = torch.tensor(_MEAN, device=self._device).view(1, 1, 3, 1, 1) * 255
        self._std = torch.tensor(_STD, device=self._device).view(1, 1, 3, 1, 1) * 255

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resize the shorter side and crop the centre, bit for bit as transformers' VJEPA2VideoProcessor, as uint8."""
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        video = tvf.resize(video, [self.resize_px], interpolation=InterpolationMode.BILINEAR, antialias=True)
        return tvf.center_crop(video, [self.crop_px, self.crop_px]).permute(0, 2, 3, 1).contiguous().numpy()

    @torch.inference_mode()
    def encode(self, clips: np.ndarray) -> np.ndarray:
        """See `Encoder.encode`."""
        pixels = torch.from_numpy(clips).to(self._device).permute(0, 1, 4, 2, 3).float()
        pixels = ((pixels - self._mean) / self._std).to(self._dtype)
        return self._encoder(pixels).last_hidden_state.float().mean(dim=1).cpu().numpy()


def load_encoder(name: str, device: str = "cpu", dtype: str = "float32") -> VJEPA2Encoder:
    """The encoder `name`: "embedded-random", a local folder saved with `save_pretrained`, or a Hub id.

    Raises:
        CheckpointError: not V-JEPA 2, weights missing or not matching, or the Hub cannot be reached.
    """
    model = _embedded() if name == EMBEDDED else _load(name)
    return VJEPA2Encoder(model, device, dtype)


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
    geometry = [config.crop_size, config.frames_per_clip, config.tubelet_size, config.patch_size, dtype, "mean-tokens"]
    digest = hashlib.sha256(json.dumps(geometry).encode())
    for key, tensor in sorted(model.encoder.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
