"""The encoder against transformers' own model and processor, and what it refuses."""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Predictor
from transformers.models.vjepa2.video_processing_vjepa2 import VJEPA2VideoProcessor

from srpo_robot.errors import CheckpointError, UsageError
from srpo_robot.progress.encoder import (
    EMBEDDED,
    EMBEDDED_CONFIG,
    Geometry,
    RopeTable,
    load_encoder,
    measured_tflops,
    tflop_per_clip,
)


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


# --- clips of other lengths, rotary tables, precision, cost


@pytest.mark.parametrize("frames", [2, 4, 6, 10])
def test_a_clip_of_any_even_length_embeds_as_transformers_own_model(tiny_encoder_folder, frames):
    encoder, model = load_encoder(str(tiny_encoder_folder)), VJEPA2Model.from_pretrained(tiny_encoder_folder).eval()
    clip = encoder.prepare(random_video(frames, 48, 64))
    pixels = torch.from_numpy(clip).permute(0, 3, 1, 2)[None].float() / 255
    mean, std = (torch.tensor(v).view(1, 1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        theirs = model.get_vision_features((pixels - mean) / std).mean(dim=1).numpy()
    assert encoder.encode(clip[None]) == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("width", "heads"), [(32, 2), (80, 1)])  # heads of 16 and 80: with and without a rest
def test_rotary_tables_change_nothing_in_float32(width, heads):
    torch.manual_seed(0)
    sizes = EMBEDDED_CONFIG | {"crop_size": 64, "hidden_size": width, "num_attention_heads": heads}
    model = VJEPA2Model(VJEPA2Config(**sizes)).eval()
    videos = [torch.randn(2, frames, 3, 64, 64) for frames in (8, 4, 16)]  # shorter and longer than the one before
    with torch.no_grad():
        theirs = [model.encoder(video).last_hidden_state for video in videos]
        rope = RopeTable(model.encoder.layer[0].attention)
        rope.install(model.encoder)
        for video, expected in zip(videos, theirs, strict=True):
            rope.fit(expected.shape[1], video.device, video.dtype)
            assert (model.encoder(video).last_hidden_state - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_moves_an_embedding_by_little(dtype):
    full, half = load_encoder(EMBEDDED), load_encoder(EMBEDDED, dtype=dtype)
    clips = np.stack([full.prepare(random_video(16, 100 + i, 120)) for i in range(2)])
    expected = full.encode(clips)
    error = np.linalg.norm(half.encode(clips) - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert np.all(error < 0.02)


def test_attention_implementations_agree_and_share_an_identity(tiny_encoder_folder):
    sdpa, eager = (load_encoder(str(tiny_encoder_folder), attention=name) for name in ("sdpa", "eager"))
    clip = sdpa.prepare(random_video(4, 48, 64))[None]
    assert sdpa.encode(clip) == pytest.approx(eager.encode(clip), rel=1e-4, abs=1e-5)
    assert sdpa.identity == eager.identity


def test_another_clip_length_is_the_same_encoder_with_other_batches(tiny_encoder_folder):
    usual, longer = load_encoder(EMBEDDED), load_encoder(EMBEDDED, frames_per_clip=64)
    assert (usual.frames_per_clip, longer.frames_per_clip) == (16, 64)
    assert usual.identity == longer.identity
    assert (usual.batch_clips, longer.batch_clips) == (8, 3)  # 288 and 1152 tokens


def test_the_predictor_is_gone_after_load(tiny_encoder_folder):
    def predictors() -> list[int]:
        gc.collect()
        return [id(x) for x in gc.get_objects() if type(x) is VJEPA2Predictor]

    before = predictors()
    encoder = load_encoder(str(tiny_encoder_folder))
    assert set(predictors()) <= set(before)
    assert encoder.identity


@pytest.mark.parametrize(
    ("layers", "hidden", "mlp_ratio", "crop", "frames", "tflop"),
    [
        (24, 1024, 4, 256, 8, 0.725),  # L/256; the numbers are FlopCounterMode's
        (24, 1024, 4, 256, 16, 1.656),
        (24, 1024, 4, 256, 64, 11.571),
        (32, 1280, 4, 256, 16, 3.272),  # H/256
        (32, 1280, 4, 256, 64, 21.335),
        (40, 1408, 48 / 11, 384, 16, 14.105),  # g/384
        (40, 1408, 48 / 11, 384, 64, 113.821),
    ],
)
def test_the_cost_of_a_clip(layers, hidden, mlp_ratio, crop, frames, tflop):
    assert tflop_per_clip(Geometry(layers, hidden, mlp_ratio, crop), frames) == pytest.approx(tflop, rel=0.01)


def test_the_cost_of_a_clip_is_what_pytorch_counts(tiny_encoder_folder):
    encoder = load_encoder(str(tiny_encoder_folder), attention="eager")
    clip = encoder.prepare(random_video(4, 48, 64))[None]
    with FlopCounterMode(display=False) as counter:
        encoder.encode(clip)
    assert tflop_per_clip(encoder.geometry, 4) == pytest.approx(counter.get_total_flops() / 1e12, rel=0.01)
    assert measured_tflops(encoder) > 0


# --- refusals


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_an_odd_clip_is_refused_before_its_last_frame_is_dropped(tiny_encoder_folder, frames):
    encoder = load_encoder(str(tiny_encoder_folder))
    with pytest.raises(UsageError, match=f"a clip of {frames} frames: V-JEPA 2 sees 2 at a time"):
        encoder.encode(encoder.prepare(random_video(frames, 48, 64))[None])
    with pytest.raises(UsageError, match=f"give {max(2, frames - 1)} or {frames + 1}"):
        load_encoder(str(tiny_encoder_folder), frames_per_clip=frames)


def test_frames_of_another_size_are_refused(tiny_encoder_folder):
    encoder = load_encoder(str(tiny_encoder_folder))
    for wrong in (random_video(4, 48, 48), random_video(4, 32, 32).astype(np.float32)):
        with pytest.raises(UsageError, match="takes uint8 frames of 32x32x3, as its prepare"):
            encoder.encode(wrong[None])


def test_an_attention_that_does_not_run_is_refused(tiny_encoder_folder):
    with pytest.raises(UsageError, match="no attention 'flex'; there are: sdpa, eager"):
        load_encoder(str(tiny_encoder_folder), attention="flex")
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(UsageError, match="'flash_attention_2' does not run here .*; sdpa does"):
            load_encoder(str(tiny_encoder_folder), attention="flash_attention_2")


def test_an_extra_weight_is_refused(tiny_encoder_folder, tmp_path):
    folder = shutil.copytree(tiny_encoder_folder, tmp_path / "more")
    weights = load_file(folder / "model.safetensors") | {"encoder.layer.9.extra": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing or do not match"):
        load_encoder(str(folder))


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
