"""Image encoders of transformers on tiny checkpoints: the same numbers as transformers' own, and the refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

from srpo_robot.errors import CheckpointError, UsageError
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.embed import embed_frames, store_key
from srpo_robot.progress.image_encoder import ImageEncoder, load_image_encoder

hf: Any = transformers  # its generated configs have no signatures that a type checker could follow
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
VISION = SIZES | {"intermediate_size": 64, "patch_size": 8}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
SQUARE = {"height": 32, "width": 32}


def vit(model: str = "ViTModel") -> tuple[Any, Any]:
    vit_model = getattr(hf, model)(hf.ViTConfig(**VISION))
    return vit_model, hf.ViTImageProcessor(size=SQUARE)


def dinov2() -> tuple[Any, Any]:
    model = hf.Dinov2Model(hf.Dinov2Config(**SIZES, patch_size=8))
    return model, hf.BitImageProcessor(size={"shortest_edge": 36}, crop_size=SQUARE)


def clip_vision() -> tuple[Any, Any]:
    model = hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION))
    return model, hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)


def clip() -> tuple[Any, Any]:
    text = TEXT | {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = hf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    return hf.CLIPModel(config), clip_vision()[1]


def siglip_vision() -> tuple[Any, Any]:
    model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION))
    return model, hf.SiglipImageProcessor(size=SQUARE)


def resnet() -> tuple[Any, Any]:
    config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return hf.ResNetModel(config), hf.ConvNextImageProcessor(size={"shortest_edge": 32})


def mae() -> tuple[Any, Any]:
    return hf.ViTMSNModel(hf.ViTMSNConfig(**VISION)), vit()[1]


MODELS: dict[str, tuple[Callable[[], tuple[Any, Any]], str, int]] = {
    "vit": (vit, "pooler-output", 32),
    "vit-classifier": (lambda: vit("ViTForImageClassification"), "class-token", 32),
    "dinov2": (dinov2, "pooler-output", 32),
    "clip-vision": (clip_vision, "pooler-output", 32),
    "clip": (clip, "image-features", 24),
    "siglip-vision": (siglip_vision, "pooler-output", 32),
    "resnet": (resnet, "pooler-output", 16),
    "vit-msn": (mae, "class-token", 32),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per model of `MODELS`."""
    root = tmp_path_factory.mktemp("images")
    for name, (make, _, _) in MODELS.items():
        torch.manual_seed(0)
        model, processor = make()
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return root


def video(frames: int = 4, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def reference(folder: Path, frames: np.ndarray, pooling: str) -> np.ndarray:
    """Embeds frames (T, H, W, 3) as (T, D) by transformers' own processor and model."""
    images = torch.from_numpy(frames).permute(0, 3, 1, 2)
    pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    options = {"add_pooling_layer": False} if folder.name == "vit-classifier" else {}
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        if pooling == "image-features":
            return model.get_image_features(pixel_values=pixels).pooler_output.numpy()
        output = model(pixels)
    features = output.last_hidden_state[:, 0] if pooling == "class-token" else output.pooler_output
    return features.flatten(1).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_equal_those_of_transformers_processor_and_model(folders, name):
    _, pooling, width = MODELS[name]
    encoder, frames = load_image_encoder(str(folders / name)), video()
    prepared = encoder.prepare(frames)
    embeddings = encoder.encode(prepared[:, None])
    assert encoder.pooling == pooling
    assert (prepared.dtype, embeddings.dtype, embeddings.shape) == (np.uint8, np.float32, (4, width))
    assert embeddings == pytest.approx(reference(folders / name, frames, pooling), rel=1e-3, abs=1e-5)
    assert np.ptp(embeddings, axis=0).max() > 1e-4  # different frames have different embeddings


def test_only_the_last_frame_of_a_clip_counts(folders):
    encoder = load_image_encoder(str(folders / "dinov2"))
    prepared = encoder.prepare(video(6))
    clips = np.stack([prepared[[0, 1, 5]], prepared[[3, 2, 5]]])
    assert encoder.encode(clips)[0] == pytest.approx(encoder.encode(clips)[1])
    assert encoder.encode(clips[:1])[0] == pytest.approx(encoder.encode(prepared[5][None, None])[0], abs=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        ScoringConfig(windows="dense"),
        ScoringConfig(windows="stride:3", window_shape="recent"),
        ScoringConfig(windows="nested"),
    ],
    ids=str,
)
def test_every_window_is_embedded_by_its_last_frame(folders, spec):
    encoder = load_image_encoder(str(folders / "vit"))
    prepared = encoder.prepare(video(30))
    windows = embed_frames(prepared, encoder, spec)
    alone = encoder.encode(prepared[windows.ends][:, None])
    assert windows.embeddings == pytest.approx(alone, rel=1e-3, abs=1e-5)


def test_identity_follows_weights_precision_and_preparation(folders, tmp_path):
    first, second = (load_image_encoder(str(folders / "vit")) for _ in range(2))
    assert first.identity == second.identity
    assert store_key(first, "v", ScoringConfig(windows="dense")) == store_key(
        second, "v", ScoringConfig(windows="dense")
    )
    other_identities = [load_image_encoder(str(folders / "vit"), dtype="bfloat16").identity]
    weights = load_file(folders / "vit" / "model.safetensors")
    changed_folder = shutil.copytree(folders / "vit", tmp_path / "weights")
    save_file(
        weights | {"layernorm.bias": weights["layernorm.bias"] + 1e-3},
        changed_folder / "model.safetensors",
        {"format": "pt"},
    )
    other_identities.append(load_image_encoder(str(changed_folder)).identity)
    resized_folder = shutil.copytree(folders / "vit", tmp_path / "size")
    hf.ViTImageProcessor(size=SQUARE, resample=3).save_pretrained(resized_folder)
    other_identities.append(load_image_encoder(str(resized_folder)).identity)
    assert len({first.identity, *other_identities}) == 4


def test_half_precision_moves_an_embedding_by_little(folders):
    full, half = (load_image_encoder(str(folders / "dinov2"), dtype=dtype) for dtype in ("float32", "bfloat16"))
    prepared = full.prepare(video())[:, None]
    expected = full.encode(prepared)
    assert np.linalg.norm(half.encode(prepared) - expected) / np.linalg.norm(expected) < 0.03


def test_a_model_without_pooler_and_class_token_is_averaged():
    class Plain(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> Any:
            return hf.modeling_outputs.BaseModelOutput(last_hidden_state=pixels.flatten(2).transpose(1, 2))

    processor = hf.ViTImageProcessor(size=SQUARE, do_normalize=False)
    encoder = ImageEncoder(Plain(), processor)
    assert encoder.pooling == "mean"
    prepared = encoder.prepare(video())
    assert encoder.encode(prepared[:, None]) == pytest.approx(prepared.mean(axis=(1, 2)) / 255, rel=1e-5)


# --- refusals


def refusal(name: str) -> str:
    with pytest.raises(CheckpointError) as error:
        load_image_encoder(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_name_that_is_unknown_or_needs_the_network():
    assert "give a folder, or a Hub id like" in refusal("dinov2")
    assert "give a folder, or a Hub id like" in refusal("./nowhere/model")
    assert "without a network give a folder on this machine" in refusal("somebody/some-model")


def test_a_folder_without_config_processor_or_weights(folders, tmp_path):
    for missing in ("config.json", "preprocessor_config.json", "model.safetensors"):
        folder = shutil.copytree(folders / "vit", tmp_path / missing)
        (folder / missing).unlink()
        assert "cannot load" in refusal(str(folder))


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_that_do_not_match(folders, tmp_path, change):
    folder = shutil.copytree(folders / "vit", tmp_path / change)
    weights = load_file(folder / "model.safetensors")
    key = "encoder.layer.1.output.dense.weight"
    assert key in weights
    if change == "missing":
        del weights[key]
    elif change == "extra":
        weights["encoder.layer.2.output.dense.weight"] = weights[key].clone()
    else:
        weights[key] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert key.replace("layer.1", "layer.2" if change == "extra" else "layer.1") in refusal(str(folder))


def test_a_model_of_text_or_video_is_refused(tiny_encoder_folder, tmp_path):
    config = hf.BertConfig(**TEXT)
    hf.BertModel(config).save_pretrained(tmp_path / "bert")
    assert "cannot load" in refusal(str(tmp_path / "bert"))
    hf.ViTImageProcessor(size=SQUARE).save_pretrained(tmp_path / "bert")
    assert "which takes no images" in refusal(str(tmp_path / "bert"))
    video_model = shutil.copytree(tiny_encoder_folder, tmp_path / "video")
    hf.ViTImageProcessor(size=SQUARE).save_pretrained(video_model)
    assert "'vjepa2' model, which takes no images" in refusal(str(video_model))


def test_an_unknown_dtype(folders):
    with pytest.raises(UsageError, match="no dtype 'int8'; there are"):
        load_image_encoder(str(folders / "vit"), dtype="int8")
