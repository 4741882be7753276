"""The encoder against transformers' own model and processor, and what it refuses."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import VJEPA2Model
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from srpo_robot.errors import CheckpointError, UsageError
from srpo_robot.progress.encoder import EMBEDDED, load_encoder


def random_video(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (37, 51), (32, 32), (240, 320), (720, 1280)])
def test_prepared_frames_equal_transformers_processor_bit_for_bit(tiny_encoder_folder, height, width):
    encoder = load_encoder(str(tiny_encoder_folder))
    video = random_video(4, height, width)
    processor = VJEPA2VideoProcessor(size={"shortest_edge": encoder.resize_px}, crop_size=encoder.crop_px)
    theirs = processor(
        torch.from_numpy(video).permute(0, 3, 1, 2), do_normalize=False, do_rescale=False, return_tensors="pt"
    )
    ours = torch.from_numpy(encoder.prepare(video)).permute(0, 3, 1, 2)
    assert torch.equal(ours, theirs["pixel_values_videos"][0].to(torch.uint8))


def test_embeddings_equal_get_vision_features_on_the_processors_pixels(tiny_encoder_folder):
    encoder, model = load_encoder(str(tiny_encoder_folder)), VJEPA2Model.from_pretrained(tiny_encoder_folder).eval()
    processor = VJEPA2VideoProcessor(size={"shortest_edge": encoder.resize_px}, crop_size=encoder.crop_px)
    videos = [random_video(4, 48, 64), random_video(4, 64, 64)]
    ours = encoder.encode(np.stack([encoder.prepare(v) for v in videos]))
    assert (ours.shape, ours.dtype) == ((2, 32), np.float32)
    for row, video in zip(ours, videos, strict=True):
        pixels = processor(torch.from_numpy(video).permute(0, 3, 1, 2), return_tensors="pt")["pixel_values_videos"]
        with torch.no_grad():
            theirs = model.get_vision_features(pixels).mean(dim=1)[0].numpy()
        assert row == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(tiny_encoder_folder):
    encoder = load_encoder(str(tiny_encoder_folder))
    clips = np.stack([encoder.prepare(random_video(4, 40 + i, 50)) for i in range(3)])
    alone = np.concatenate([encoder.encode(clip[None]) for clip in clips])
    assert encoder.encode(clips) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_the_embedded_encoder_is_the_same_every_time_and_leaves_the_seed_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = load_encoder(EMBEDDED), load_encoder(EMBEDDED)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.identity == second.identity
    assert first.identity != load_encoder(EMBEDDED, dtype="bfloat16").identity


def test_identity_follows_the_weights(tiny_encoder_folder, tmp_path):
    changed = shutil.copytree(tiny_encoder_folder, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    key = next(k for k in weights if k.startswith("encoder"))
    weights[key] += 1e-3
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(changed)).identity != load_encoder(str(tiny_encoder_folder)).identity


# --- refusals


def test_a_checkpoint_without_its_weights_is_refused(tiny_encoder_folder, tmp_path):
    folder = shutil.copytree(tiny_encoder_folder, tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights file"):
        load_encoder(str(folder))


def test_a_missing_weight_is_refused(tiny_encoder_folder, tmp_path):
    folder = shutil.copytree(tiny_encoder_folder, tmp_path / "less")
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(k for k in weights if k.startswith("encoder")))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing or do not match"):
        load_encoder(str(folder))


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a 'bert' model; V-JEPA 2 is needed"):
        load_encoder(str(tmp_path))


def test_names_that_are_nothing():
    with pytest.raises(CheckpointError, match=r"no encoder 'vjepa3'; give 'embedded-random'"):
        load_encoder("vjepa3")
    with pytest.raises(CheckpointError, match="without a network give a folder"):
        load_encoder("facebook/vjepa2-vitl-fpc64-256")
    with pytest.raises(UsageError, match="no dtype 'int4'; there are: float32"):
        load_encoder(EMBEDDED, dtype="int4")
