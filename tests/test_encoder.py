"""The encoder against transformers' own model and processor, and its refusals."""

from __future__ import annotations

import gc
import importlib.util
import json
import re
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
    EMBEDDED_CONFIG,
    Geometry,
    VJEPA2Encoder,
    load_encoder,
    measured_tflops,
    tflop_per_clip,
)
from srpo_robot.progress.encoder_names import EMBEDDED, PUBLISHED, RANDOM
from srpo_robot.progress.vjepa2 import BLOCKS, BytePatches, RopeTable, attend_in_blocks, blocks_are_faster


def normalised(clips: np.ndarray) -> torch.Tensor:
    """Runs V-JEPA 2's processor: uint8 (B, F, S, S, 3) -> float32 (B, F, 3, S, S)."""
    mean, std = (torch.tensor(v).view(1, 1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255 - mean) / std


def random_video(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (37, 51), (32, 32), (240, 320), (720, 1280)])
def test_prepared_frames_equal_transformers_processor_bit_for_bit(tiny_encoder_folder, height, width):
    encoder = load_encoder(str(tiny_encoder_folder))
    video = random_video(4, height, width)
    processor = VJEPA2VideoProcessor(size={"shortest_edge": encoder.resize_px}, crop_size=encoder.crop_px)
    reference = processor(
        torch.from_numpy(video).permute(0, 3, 1, 2), do_normalize=False, do_rescale=False, return_tensors="pt"
    )
    prepared = torch.from_numpy(encoder.prepare(video)).permute(0, 3, 1, 2)
    assert torch.equal(prepared, reference["pixel_values_videos"][0].to(torch.uint8))


def test_embeddings_equal_get_vision_features_on_the_processors_pixels(tiny_encoder_folder):
    encoder, model = load_encoder(str(tiny_encoder_folder)), VJEPA2Model.from_pretrained(tiny_encoder_folder).eval()
    processor = VJEPA2VideoProcessor(size={"shortest_edge": encoder.resize_px}, crop_size=encoder.crop_px)
    videos = [random_video(4, 48, 64), random_video(4, 64, 64)]
    embeddings = encoder.encode(np.stack([encoder.prepare(v) for v in videos]))
    assert (embeddings.shape, embeddings.dtype) == ((2, 32), np.float32)
    for row, video in zip(embeddings, videos, strict=True):
        pixels = processor(torch.from_numpy(video).permute(0, 3, 1, 2), return_tensors="pt")["pixel_values_videos"]
        with torch.no_grad():
            reference = model.get_vision_features(pixels).mean(dim=1)[0].numpy()
        assert row == pytest.approx(reference, rel=1e-4, abs=1e-5)


def test_an_embedding_does_not_depend_on_its_batch(tiny_encoder_folder):
    encoder = load_encoder(str(tiny_encoder_folder))
    clips = np.stack([encoder.prepare(random_video(4, 40 + i, 50)) for i in range(3)])
    alone = np.concatenate([encoder.encode(clip[None]) for clip in clips])
    assert encoder.encode(clips) == pytest.approx(alone, rel=1e-4, abs=1e-5)


def test_the_embedded_encoder_is_the_same_every_time_and_leaves_the_seed_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = load_encoder(RANDOM), load_encoder(RANDOM)
    assert (first.name, first.dtype) == (RANDOM, "float32")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.identity == second.identity
    assert first.identity != load_encoder(RANDOM, dtype="bfloat16").identity


def test_identity_follows_the_weights(tiny_encoder_folder, tmp_path):
    folder = shutil.copytree(tiny_encoder_folder, tmp_path / "changed")
    weights = load_file(folder / "model.safetensors")
    key = next(k for k in weights if k.startswith("encoder"))
    weights[key] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_encoder(str(folder)).identity != load_encoder(str(tiny_encoder_folder)).identity


def test_stored_embeddings_keep_their_name(tiny_encoder_folder):
    """Equal weights keep the identity under which stores were written."""
    model = VJEPA2Model.from_pretrained(tiny_encoder_folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.5)
    assert VJEPA2Encoder(model).identity == "249d839205a8b3b0"


def test_pooling_over_tokens(tiny_encoder_folder):
    mean, largest = (load_encoder(str(tiny_encoder_folder), pool=pool) for pool in ("mean", "max"))
    model = VJEPA2Model.from_pretrained(tiny_encoder_folder).eval()
    clip = mean.prepare(random_video(4, 48, 64))
    with torch.no_grad():
        tokens = model.encoder(normalised(clip[None])).last_hidden_state[0]
    assert mean.encode(clip[None])[0] == pytest.approx(tokens.mean(dim=0).numpy(), abs=1e-5)
    assert largest.encode(clip[None])[0] == pytest.approx(tokens.max(dim=0).values.numpy(), abs=1e-5)
    assert mean.identity == load_encoder(str(tiny_encoder_folder)).identity != largest.identity


# --- the published sizes


SHAPES = {  # width of heads and MLPs and size of crops as published, with fewer heads and layers
    "L/256": {"hidden_size": 128, "num_attention_heads": 2, "crop_size": 256},
    "H/256": {"hidden_size": 160, "num_attention_heads": 2, "crop_size": 256},
    "g/256": {"hidden_size": 704, "num_attention_heads": 11, "mlp_ratio": 48 / 11, "crop_size": 256},
    "g/384": {"hidden_size": 704, "num_attention_heads": 11, "mlp_ratio": 48 / 11, "crop_size": 384},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpoints_of_the_published_shapes_embed_as_transformers_own_model(shape, tmp_path):
    torch.manual_seed(0)
    sizes = EMBEDDED_CONFIG | SHAPES[shape] | {"num_hidden_layers": 1, "frames_per_clip": 64}
    VJEPA2Model(VJEPA2Config(**sizes)).save_pretrained(tmp_path)
    model = VJEPA2Model.from_pretrained(tmp_path).eval()
    encoder = load_encoder(str(tmp_path), pool="max")  # a single wrong token shows in the maximum
    assert encoder.frames_per_clip == 64
    assert encoder.geometry.tokens(64) == 32 * (256 if encoder.crop_px == 256 else 576)
    clip = encoder.prepare(random_video(4, 480, 640))[None]
    with torch.no_grad():
        reference = model.encoder(normalised(clip)).last_hidden_state.amax(dim=1).numpy()
    assert encoder.encode(clip) == pytest.approx(reference, abs=1e-5)


# --- clips of other lengths, rotary tables, patches, attention, precision, cost


@pytest.mark.parametrize("frames", [2, 4, 6, 10])
def test_a_clip_of_any_even_length_embeds_as_transformers_own_model(tiny_encoder_folder, frames):
    encoder, model = load_encoder(str(tiny_encoder_folder)), VJEPA2Model.from_pretrained(tiny_encoder_folder).eval()
    clip = encoder.prepare(random_video(frames, 48, 64))
    with torch.no_grad():
        reference = model.get_vision_features(normalised(clip[None])).mean(dim=1).numpy()
    assert encoder.encode(clip[None]) == pytest.approx(reference, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("width", "heads"), [(32, 2), (80, 1)])  # heads of 16 and 80, with and without a remainder
def test_rotary_tables_give_the_same_output_in_float32(width, heads):
    torch.manual_seed(0)
    sizes = EMBEDDED_CONFIG | {"crop_size": 64, "hidden_size": width, "num_attention_heads": heads}
    model = VJEPA2Model(VJEPA2Config(**sizes)).eval()
    videos = [torch.randn(2, frames, 3, 64, 64) for frames in (8, 4, 16)]  # shorter and longer than the previous video
    with torch.no_grad():
        references = [model.encoder(video).last_hidden_state for video in videos]
        rope = RopeTable(model.encoder.layer[0].attention)
        rope.install(model.encoder)
        for video, expected in zip(videos, references, strict=True):
            rope.fit(expected.shape[1], video.device, video.dtype)
            assert (model.encoder(video).last_hidden_state - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_patches_of_bytes_are_the_patch_convolution_of_normalised_pixels(dtype):
    torch.manual_seed(0)
    model = VJEPA2Model(VJEPA2Config(**EMBEDDED_CONFIG))
    clips = np.stack([random_video(6, 96, 96), np.full((6, 96, 96, 3), 255, dtype=np.uint8)])
    with torch.no_grad():
        exact = model.encoder.embeddings(normalised(clips))
        patches = BytePatches(model.encoder.embeddings, model.config).to(dtype)(torch.from_numpy(clips)).float()
        reference = model.encoder.embeddings.to(dtype)(normalised(clips)).float()
    assert patches.shape == exact.shape == (2, 3 * 36, 192)
    assert (patches - exact).abs().max() <= (1e-5 if dtype == torch.float32 else 2 * (reference - exact).abs().max())


@pytest.mark.parametrize(("tokens", "width"), [(40, 48), (200, 64), (129, 80)])  # one block, four and three
def test_attention_in_blocks_is_attention(tokens, width, monkeypatch):
    monkeypatch.setattr("srpo_robot.progress.vjepa2._BLOCK_SCORES", 1)  # gives the fewest rows that a block may have
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, tokens, 3, width).transpose(1, 2) for _ in range(3))
    output, _ = attend_in_blocks(torch.nn.Identity(), query, key, value, None, 0.2)
    reference = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.2)
    assert (output.transpose(1, 2) - reference).abs().max() <= 1e-5


def test_attention_in_blocks_is_for_bfloat16_on_a_cpu_without_amx(tiny_encoder_folder, monkeypatch):
    cpu, half = torch.device("cpu"), torch.bfloat16
    for able, expected in (
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": True}, False),
        ({"avx512_bf16": False}, False),
        ({"neon": True, "bf16": True}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert blocks_are_faster(cpu, half) is expected
        assert not blocks_are_faster(cpu, torch.float32)
        assert not blocks_are_faster(torch.device("cuda"), half)
        model = VJEPA2Model.from_pretrained(tiny_encoder_folder)
        VJEPA2Encoder(model, dtype="bfloat16")
        assert model.config._attn_implementation == (BLOCKS if expected else "sdpa")


@pytest.mark.parametrize(("dtype", "amx"), [("bfloat16", False), ("bfloat16", True), ("float16", False)])
def test_half_precision_moves_an_embedding_by_little(dtype, amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": amx})
    full, half = load_encoder(RANDOM), load_encoder(RANDOM, dtype=dtype)
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
    usual, longer = load_encoder(RANDOM), load_encoder(RANDOM, frames_per_clip=64)
    assert (usual.frames_per_clip, longer.frames_per_clip) == (16, 64)
    assert usual.identity == longer.identity
    assert (usual.batch_clips, longer.batch_clips) == (8, 3)  # 288 and 1152 tokens


def test_the_predictor_is_removed_after_load(tiny_encoder_folder):
    def predictors() -> list[int]:
        gc.collect()
        return [id(x) for x in gc.get_objects() if type(x) is VJEPA2Predictor]

    before = predictors()
    encoder = load_encoder(str(tiny_encoder_folder))
    assert set(predictors()) <= set(before)
    assert encoder.identity


@pytest.mark.parametrize(
    ("layers", "hidden_size", "mlp_ratio", "crop", "frames", "tflop"),
    [
        (24, 1024, 4, 256, 8, 0.725),  # L/256, numbers by FlopCounterMode
        (24, 1024, 4, 256, 16, 1.656),
        (24, 1024, 4, 256, 64, 11.571),
        (32, 1280, 4, 256, 16, 3.272),  # H/256
        (32, 1280, 4, 256, 64, 21.335),
        (40, 1408, 48 / 11, 384, 16, 14.105),  # g/384
        (40, 1408, 48 / 11, 384, 64, 113.821),
    ],
)
def test_the_cost_of_a_clip(layers, hidden_size, mlp_ratio, crop, frames, tflop):
    assert tflop_per_clip(
        Geometry(layers=layers, hidden=hidden_size, mlp_ratio=mlp_ratio, crop_px=crop), frames
    ) == pytest.approx(tflop, rel=0.01)


def test_the_cost_of_a_clip_equals_pytorchs_count(tiny_encoder_folder):
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
    with pytest.raises(CheckpointError, match=r"1 unknown, the first 'encoder\.layer\.9\.extra'$"):
        load_encoder(str(folder))


def test_a_checkpoint_without_its_weights_is_refused(tiny_encoder_folder, tmp_path):
    folder = shutil.copytree(tiny_encoder_folder, tmp_path / "bare")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights file"):
        load_encoder(str(folder))


@pytest.mark.parametrize("part", ["encoder.", "predictor."])
def test_missing_weights_are_refused_by_name(tiny_encoder_folder, tmp_path, part):
    folder = shutil.copytree(tiny_encoder_folder, tmp_path / "less")
    weights = load_file(folder / "model.safetensors")
    missing = sorted(key for key in weights if key.startswith(part))
    missing = missing[:1] if part == "encoder." else missing
    save_file({k: v for k, v in weights.items() if k not in missing}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"less: .* {len(missing)} missing, the first '{re.escape(missing[0])}'$"):
        load_encoder(str(folder))


def test_a_weight_of_another_shape_is_refused(tiny_encoder_folder, tmp_path):
    folder = shutil.copytree(tiny_encoder_folder, tmp_path / "other")
    weights = load_file(folder / "model.safetensors") | {"encoder.layernorm.weight": torch.zeros(7)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 of another shape, the first 'encoder.layernorm.weight'$"):
        load_encoder(str(folder))


def test_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a 'bert' model; V-JEPA 2 is needed"):
        load_encoder(str(tmp_path))


def test_unknown_names():
    every = ", ".join(PUBLISHED)
    with pytest.raises(CheckpointError, match=f"no encoder 'vjepa3'; give 'embedded', .*: {every}$"):
        load_encoder("vjepa3")
    with pytest.raises(CheckpointError, match=f"without a network give a folder.* {every}$"):
        load_encoder("facebook/vjepa3")
    with pytest.raises(UsageError, match="no dtype 'int4'; there are: float32"):
        load_encoder(EMBEDDED, dtype="int4")
    with pytest.raises(UsageError, match="no pool 'sum'; there are: mean, max$"):
        load_encoder(EMBEDDED, pool="sum")
