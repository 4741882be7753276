"""The baseline `image`: any image encoder of transformers on the last frame of a window.

It replaces the paper's ImageBind, which is not free for commercial use. It is an `Encoder` like the others, so windows,
store and score stay the same.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.utils import logging as transformers_logging

from srpo_robot.errors import CheckpointError, one_line
from srpo_robot.progress.encoder import TORCH_DTYPES
from srpo_robot.progress.encoder_names import check_dtype

EXAMPLE = "facebook/dinov2-base"
BATCH_IMAGES = {"cpu": 16}  # images in one call; any other device: 256


class ImageEncoder:
    """An image model on the last frame of each clip; the other frames of the clip are ignored.

    The embedding of an image is the first of these that the model has: the projected embedding of a text-image model
    (CLIP, SigLIP); its own `pooler_output`; the class token; the mean over all tokens or places. `pooling` names it.
    """

    frames_per_clip = 2  # the smallest number that a window may have

    def __init__(self, model: Any, processor: Any, device: str = "cpu", dtype: str = "float32") -> None:
        """`model` and its image `processor`; errors as `load_image_encoder`."""
        check_dtype(dtype)
        self.name, self.dtype = str(getattr(model, "name_or_path", "")), dtype
        self._device, self._dtype = torch.device(device), TORCH_DTYPES[dtype]
        self._model, self._processor = model.to(self._device, self._dtype).eval(), processor
        self.batch_clips = BATCH_IMAGES.get(self._device.type, 256)
        self._mean, self._std = self._normalisation()
        self.pooling = self._pooling()
        self.identity = self._identity(dtype)

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """Resizes and crops like the model's processor: uint8 (T, H, W, 3) -> uint8 (T, S, S', 3).

        The processor works on bytes up to this point; `encode` scales and normalises.
        """
        video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
        pixels = self._processor(video, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
        return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def hold(self, frames: np.ndarray) -> torch.Tensor:
        """See `HoldsFrames.hold`."""
        return torch.from_numpy(frames).to(self._device)

    @torch.inference_mode()
    def encode(self, clips: np.ndarray | torch.Tensor) -> np.ndarray:
        """Embeds the last frame of each clip: uint8 (B, F, S, S', 3) -> float32 (B, D)."""
        images = torch.as_tensor(clips)[:, -1].to(self._device).permute(0, 3, 1, 2)
        pixels = ((images.float() - self._mean) / self._std).to(self._dtype)
        return self._pooled(pixels).float().cpu().numpy()

    def _normalisation(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and deviation in bytes, (3, 1, 1) each, of the processor's rescaling and normalising."""
        scale = float(self._processor.rescale_factor) if self._processor.do_rescale else 1.0
        plain = not self._processor.do_normalize
        mean = [0.0] * 3 if plain else self._processor.image_mean
        std = [1.0] * 3 if plain else self._processor.image_std
        return tuple(torch.tensor(v, device=self._device).view(3, 1, 1) / scale for v in (mean, std))  # pyright: ignore

    def _pooling(self) -> str:
        if hasattr(self._model, "get_image_features"):
            return "image-features"
        side = self.prepare(np.zeros((1, 64, 64, 3), dtype=np.uint8))
        with torch.inference_mode():
            output = self._model(torch.zeros(1, 3, *side.shape[1:3], device=self._device, dtype=self._dtype))
        if getattr(output, "pooler_output", None) is not None:
            return "pooler-output"
        tokens = [name for name, _ in self._model.named_parameters() if name.endswith(("cls_token", "class_embedding"))]
        return "class-token" if tokens else "mean"

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S') -> (B, D)."""
        if self.pooling == "image-features":
            features = self._model.get_image_features(pixel_values=pixels)
            return features if isinstance(features, torch.Tensor) else features.pooler_output
        output = self._model(pixels)
        if self.pooling == "pooler-output":
            return output.pooler_output.flatten(1)  # a convolutional model gives (B, D, 1, 1)
        hidden = output.last_hidden_state
        if self.pooling == "class-token":
            return hidden[:, 0]
        return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))

    def _identity(self, dtype: str) -> str:
        """Returns a hash of the weights, the preparation, the precision and the pooling."""
        preparation = {k: v for k, v in self._processor.to_dict().items() if not k.startswith("_")}
        content = [dtype, self.pooling, type(self._processor).__name__, preparation]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
        for key, tensor in sorted(self._model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return f"image-{digest.hexdigest()[:16]}"


def load_image_encoder(name: str, device: str = "cpu", dtype: str = "float32") -> ImageEncoder:
    """Loads the image encoder `name`: a local folder saved with `save_pretrained`, or a Hub id.

    A folder holds model and image processor. Examples are DINOv2, CLIP, SigLIP or a ViT. Heads for another purpose (a
    classifier) are left out. A ViT without a trained pooler is read by its class token.

    Raises:
        CheckpointError: `name` is no image model, has no processor, its weights are missing or do not match, or the
            Hub does not answer.
        UsageError: an unknown dtype.
    """
    folder = Path(name)
    if not folder.is_dir() and (name.count("/") != 1 or name.startswith((".", "/"))):
        raise CheckpointError(f"no image encoder {name!r}; give a folder, or a Hub id like {EXAMPLE!r}")
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it reports unused heads; the weights that matter are checked here
    try:
        AutoConfig.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name)
        model = _load(name)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        why = one_line(error)[:160]
        raise CheckpointError(
            f"cannot load {name} as an image encoder: {why}; without a network give a folder on this machine that "
            "holds a model and its preprocessor_config.json"
        ) from None
    finally:
        transformers_logging.set_verbosity(level)
    if model.main_input_name != "pixel_values" and not hasattr(model, "get_image_features"):
        raise CheckpointError(f"{name} is a {model.config.model_type!r} model, which takes no images; try {EXAMPLE}")
    encoder = ImageEncoder(model, processor, device, dtype)
    encoder.name = name
    return encoder


def _load(name: str) -> Any:
    """Returns the model. Raises CheckpointError if a weight that it uses is not in the checkpoint."""
    model, info = _loaded(name)
    untrained = {str(key) for key in info["missing_keys"]}
    if untrained and all(key.startswith("pooler.") for key in untrained):
        model, info = _loaded(name, add_pooling_layer=False)
    used = [name for name, module in model.named_children() if module is not None]
    extra = [key for key in info["unexpected_keys"] if str(key).split(".")[0] in used]
    shapes = [key for key, *_ in info["mismatched_keys"]]
    wrong = [*info["missing_keys"], *shapes, *extra]
    if wrong:
        raise CheckpointError(f"{name}: {len(wrong)} weights are missing or do not match, for example {wrong[0]!r}")
    return model


def _loaded(name: str, **options: bool) -> tuple[Any, dict[str, Any]]:
    # Weights of another shape are listed here, and `_load` refuses them: transformers would raise a wall of text.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded: Any = AutoModel.from_pretrained(name, dtype=torch.float32, **options)
    return loaded
