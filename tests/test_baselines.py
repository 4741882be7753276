"""Negative controls and baselines: each removes its part of the video, and all of them use the one pipeline."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SQUARES, moving_square, record_squares
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.errors import UsageError
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.embed import embed_frames, store_key
from srpo_robot.progress.encoder import Encoder, HoldsFrames, load_encoder
from srpo_robot.progress.evidence import baselines
from srpo_robot.progress.evidence.baselines import (
    CONTROL_TO_BEAT,
    NEGATIVE_CONTROLS,
    SCORERS,
    TRANSFORMS,
    PixelFrame,
    PixelMean,
    Transformed,
    episode_transform,
    frozen_from,
    image_scorer,
    length_curves,
    pixel_curves,
    score_with,
    scorer_named,
    time_curves,
)
from srpo_robot.progress.evidence.metrics import Resampling, final_progress, separation, task_metrics
from srpo_robot.progress.score import (
    CONSTANT,
    NO_SUCCESS,
    ONE_WINDOW,
    SKIPPED_EPISODE,
    SKIPPED_TASK,
    Scores,
    WindowEmbeddings,
)
from srpo_robot.progress.store import EmbeddingStore
from srpo_robot.progress.windows import PREFIX
from srpo_robot.records import Episode

FRONT = "observation.images.front"
SPEC = ScoringConfig(windows="stride:2", min_window=4)
LOO = replace(SPEC, cameras=(FRONT,), profile="loo")


def noise_video(length: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)


def episode(index: int, length: int, success: bool | None, task: str = "go") -> Episode:
    return Episode(index=index, task=task, length=length, fps=10.0, first_frame=0, cameras=(FRONT,), success=success)


class LastFrames:
    """Embeds a clip as the corner pixel of each of its frames, in order, so that any change of a clip shows."""

    name, dtype, identity, frames_per_clip, batch_clips = "last-frames", "float32", "last-frames", 4, 3

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        return frames

    def encode(self, clips: np.ndarray) -> np.ndarray:
        return clips[:, :, 0, 0, 0].astype(np.float32) + 1


def numbered(length: int) -> np.ndarray:
    """Returns frames in which every pixel is the frame's number."""
    return np.broadcast_to(np.arange(length, dtype=np.uint8)[:, None, None, None], (length, 4, 4, 3)).copy()


# --- pixels


def test_a_clips_mean_image_by_hand():
    encoder = PixelMean(size=2, frames=4)
    clips = np.zeros((2, 4, 2, 2, 3), dtype=np.uint8)
    clips[0, :, 0, 1, 2] = [10, 20, 30, 41]
    embeddings = encoder.encode(clips)
    assert (embeddings.dtype, embeddings.shape) == (np.float32, (2, 12))
    assert embeddings[0].reshape(2, 2, 3)[0, 1, 2] == pytest.approx((25.25 + 1) / 256)
    assert np.all(embeddings[1] == 1 / 256)  # black is not zero: a zero embedding is an error
    assert PixelFrame(2).encode(clips)[0].reshape(2, 2, 3)[0, 1, 2] == pytest.approx(42 / 256)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (32, 32), (720, 1280)])
def test_prepared_frames_are_small_squares_with_the_same_mean(height, width):
    video = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    video[:, : height // 2] //= 4
    small = PixelMean(16).prepare(video)
    assert (small.shape, small.dtype) == ((3, 16, 16, 3), np.uint8)
    assert small.mean(axis=(1, 2)) == pytest.approx(video.mean(axis=(1, 2)), abs=2.5)


def test_recent_windows_of_10_frames_are_the_mean_of_the_last_10():
    """From frame 10 on a window always has ten frames, so no frame is repeated."""
    video, encoder = noise_video(40), PixelMean(8)
    spec = SCORERS[CONTROL_TO_BEAT].config(ScoringConfig(windows="stride:3"))
    assert (spec.window_shape, spec.frames_per_clip, spec.stride, spec.min_window) == ("recent", 10, 3, 10)
    windows = embed_frames(encoder.prepare(video), encoder, spec)
    for end, row in zip(windows.ends, windows.embeddings, strict=True):
        expected = encoder.prepare(video)[end - 9 : end + 1].mean(axis=0).ravel()
        assert row * 256 - 1 == pytest.approx(expected, abs=1e-3)


def test_a_prefix_of_at_most_its_clip_is_the_cumulative_mean_of_all_its_frames():
    video, encoder = noise_video(16), PixelMean(8, frames=16)
    windows = embed_frames(encoder.prepare(video), encoder, ScoringConfig(windows="dense"))
    assert windows.embeddings[-1] * 256 - 1 == pytest.approx(video.mean(axis=0).ravel(), abs=1e-3)


def test_pixel_encoders_differ_in_identity_by_what_they_embed():
    assert len({PixelMean(32).identity, PixelMean(16).identity, PixelFrame(32).identity}) == 3
    # the clip length belongs to the windows, not to the encoder
    assert PixelMean(32, 10).identity == PixelMean(32, 64).identity
    with pytest.raises(UsageError, match="images of 0 px"):
        PixelMean(0)


# --- the L1 baseline of appendix B


def pixel_windows(*rows: list[list[float]]) -> list[WindowEmbeddings]:
    return [WindowEmbeddings(np.arange(10, 10 + len(r)), np.array(r, dtype=np.float32)) for r in rows]


def test_pixel_progress_by_hand():
    episodes = [episode(0, 13, True), episode(1, 12, True), episode(2, 13, False)]
    windows = pixel_windows([[0, 0], [1, 2], [2, 2]], [[5, 5], [3, 4]], [[0, 0], [2, 1], [4, 4]])
    curves = pixel_curves(episodes, windows)
    assert curves[0].distance[10:].tolist() == [4, 1, 0]  # L1, not L2
    assert curves[0].progress[10:].tolist() == [0, 0.75, 1]
    assert curves[1].progress[-1] == 1.0
    # the failure's distance is to the nearest last frame of a success, (2, 2) or (3, 4)
    assert curves[2].distance[10:].tolist() == [4, 1, 1]
    assert curves[2].progress[10:].tolist() == [0, 0.75, 0.75]
    assert np.isnan(curves[0].distance[:10]).all()
    assert (curves[0].progress[:10] == 0).all()
    assert np.flatnonzero(curves[0].scored).tolist() == [10, 11, 12]


def test_pixel_progress_that_is_undefined_says_why():
    episodes = [episode(0, 12, True), episode(1, 12, False), episode(2, 11, False), episode(3, 12, False, "other")]
    windows = [*pixel_windows([[1, 1], [1, 1]]), None, *pixel_windows([[4, 4]], [[1, 2], [3, 4]])]
    curves = pixel_curves(episodes, windows)
    assert [curve.reason for curve in curves] == [CONSTANT, SKIPPED_EPISODE, ONE_WINDOW, NO_SUCCESS]
    assert all(np.isnan(curve.progress).all() for curve in curves)


# --- length and time


def test_length_is_a_share_of_the_tasks_longest_episode():
    curves = length_curves([episode(0, 10, True), episode(1, 5, False), episode(2, 4, True, "other")])
    assert [curve.progress[-1] for curve in curves] == [1.0, 0.5, 1.0]
    assert curves[1].progress.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=2, max_size=12))
def test_the_auc_of_length_is_the_auc_of_the_episode_lengths(rows):
    success = [good for _, good in rows]
    curves = length_curves([episode(i, n, good) for i, (n, good) in enumerate(rows)])
    estimate = separation(final_progress(curves), success, Resampling(0, 0)).estimates["auc"].value
    if len(set(success)) < 2:
        assert math.isnan(estimate)
    else:
        assert estimate == pytest.approx(roc_auc_score(success, [n for n, _ in rows]))


def test_the_time_index_has_a_perfect_shape_and_an_auc_of_one_half():
    episodes = [episode(i, 20 + i, i < 3) for i in range(6)]
    estimates = task_metrics("go", time_curves(episodes), [e.success for e in episodes], Resampling(0, 99)).estimates
    assert (estimates["sc"].value, estimates["mono"].value, estimates["auc"].value) == (1.0, 1.0, 0.5)
    assert estimates["auc"].p == 1.0
    curve = time_curves([episode(0, 1, True)])[0]
    assert (curve.reason, bool(np.isnan(curve.progress).all())) == (ONE_WINDOW, True)


# --- transforms


def clips_seen(name: str, length: int = 12, spec: ScoringConfig = SPEC, seed: int = 0) -> np.ndarray:
    """Returns the frame numbers that the encoder saw, (n, F)."""
    encoder = Transformed(LastFrames(), name, seed)
    return embed_frames(encoder.prepare(numbered(length)), encoder, spec).embeddings.astype(int) - 1


def plain_clips(length: int = 12, spec: ScoringConfig = SPEC) -> np.ndarray:
    return embed_frames(numbered(length), LastFrames(), spec).embeddings.astype(int) - 1


@pytest.mark.parametrize(
    "spec", [SPEC, replace(SPEC, window_shape="recent"), ScoringConfig(windows="dense", frames_per_clip=8)], ids=str
)
def test_shuffled_windows_have_the_same_frames_in_another_order(spec):
    shuffled, plain = clips_seen("shuffled", 30, spec), plain_clips(30, spec)
    assert np.array_equal(np.sort(shuffled, axis=1), np.sort(plain, axis=1))
    assert (shuffled != plain).any(axis=1).mean() > 0.8
    orders = {tuple(row - row.min()) for row in np.argsort(shuffled, axis=1, kind="stable")}
    assert len(orders) > 3  # one fixed order would only rename time


def test_a_reversed_episode_runs_backwards():
    assert np.array_equal(clips_seen("reversed"), 11 - plain_clips())


def test_a_frozen_tail_stands_still_from_two_thirds_on():
    assert np.array_equal(clips_seen("frozen-tail"), np.minimum(plain_clips(), 8))
    assert [frozen_from(n) for n in (1, 2, 3, 12, 100)] == [0, 1, 2, 8, 66]


def test_noise_is_independent_of_the_video_and_differs_between_episodes():
    first, second = clips_seen("noise", 100), clips_seen("noise", 100)
    assert np.array_equal(first, second)
    assert not np.array_equal(clips_seen("noise", 101)[:5], first[:5])
    frames = episode_transform("noise").frames(numbered(100), np.random.default_rng(0))
    assert (frames.shape, frames.dtype) == ((100, 4, 4, 3), np.uint8)
    assert frames.mean() == pytest.approx(127.5, abs=5)
    assert abs(np.corrcoef(frames[:, 0, 0, 0], np.arange(100))[0, 1]) < 0.3


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_depends_on_seed_and_pixels_but_not_on_batches(name):
    encoder, alone = Transformed(LastFrames(), name), Transformed(LastFrames(), name)
    alone.batch_clips = 1
    video = noise_video(20)
    in_batches, one_by_one = (embed_frames(video, e, SPEC).embeddings for e in (encoder, alone))
    assert np.array_equal(in_batches, one_by_one)
    assert np.array_equal(in_batches, embed_frames(video.copy(), encoder, SPEC, episode_index=7).embeddings)
    random = name in ("shuffled", "noise")
    other_seed = embed_frames(video, Transformed(LastFrames(), name, seed=1), SPEC).embeddings
    assert np.array_equal(in_batches, other_seed) != random


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transformed_video_has_a_key_of_its_own(name):
    encoder = LastFrames()
    keys = {store_key(e, "video", SPEC) for e in (encoder, *(Transformed(encoder, n) for n in TRANSFORMS))}
    assert len(keys) == 1 + len(TRANSFORMS)
    assert store_key(Transformed(encoder, name), "video", SPEC) != store_key(
        Transformed(encoder, name, 1), "video", SPEC
    )
    assert isinstance(Transformed(encoder, name), HoldsFrames)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_encoder_that_holds_frames_sees_the_same_as_one_that_does_not(name):
    class Holding(LastFrames):
        def hold(self, frames: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(frames)

        def encode(self, clips: np.ndarray | torch.Tensor) -> np.ndarray:
            assert isinstance(clips, torch.Tensor)
            return super().encode(clips.numpy())

    video = noise_video(20)
    holding, plain = (embed_frames(video, Transformed(e, name), SPEC).embeddings for e in (Holding(), LastFrames()))
    assert np.array_equal(holding, plain)


def test_shuffling_does_not_change_a_mean_image():
    """The pixel mean of shuffled frames is the pixel mean, so this control equals the baseline by definition."""
    encoder, video = PixelMean(8, frames=16), noise_video(30)
    plain = embed_frames(video, encoder, ScoringConfig(windows="dense")).embeddings
    assert embed_frames(
        video, Transformed(encoder, "shuffled"), ScoringConfig(windows="dense")
    ).embeddings == pytest.approx(plain)


def test_a_real_encoder_notices_every_transform(tiny_encoder_folder):
    encoder = load_encoder(str(tiny_encoder_folder))
    frames = encoder.prepare(moving_square(20, 1.0))
    plain = embed_frames(frames, encoder, SPEC).embeddings
    for name in TRANSFORMS:
        embeddings = embed_frames(frames, Transformed(encoder, name), SPEC).embeddings
        assert np.abs(embeddings - plain).max() > 1e-4, name


def test_an_unknown_name_lists_the_known_names():
    with pytest.raises(UsageError, match="no transform 'blurred'; there are: shuffled, reversed, frozen-tail, noise"):
        episode_transform("blurred")
    with pytest.raises(UsageError, match="no scorer 'vip'; there are: pixel-last10"):
        scorer_named("vip")


# --- the registry, through the pipeline


@pytest.fixture(scope="module")
def buffer(tmp_path_factory: pytest.TempPathFactory) -> Buffer:
    """Two tasks: a square that moves far or a short way. The second task is that of the `squares` fixture."""
    rows = [("go far", 20 + i, 1.0 - 0.02 * i, True) for i in range(5)]
    rows += [("go far", 20 + i, 0.3 + 0.1 * i, False) for i in range(4)]
    return open_buffer(record_squares(tmp_path_factory.mktemp("far") / "data", [*rows, *SQUARES], commit_every=13))


@pytest.fixture(scope="module")
def all_scores(buffer, tmp_path_factory, tiny_encoder_folder) -> dict[str, Scores]:
    """Every scorer's scores of `buffer`, with a random network under test."""
    store = EmbeddingStore(tmp_path_factory.mktemp("store") / "s.zarr")
    encoder = load_encoder(str(tiny_encoder_folder))
    scores = {name: score_with(s, buffer, store, encoder, LOO) for name, s in SCORERS.items()}
    scorer = image_scorer(PixelFrame(8), "a small frame")
    return scores | {scorer.name: score_with(scorer, buffer, store, encoder, LOO)}


def far_auc(scores: Scores) -> float:
    return (
        separation(final_progress(scores.curves[:9]), [True] * 5 + [False] * 4, Resampling(0, 0)).estimates["auc"].value
    )


def test_the_registry_describes_each_scorer():
    assert next(iter(NEGATIVE_CONTROLS)) == CONTROL_TO_BEAT
    assert set(NEGATIVE_CONTROLS) == {"pixel-last10", "pixel-mean", *TRANSFORMS, "length", "time"}
    assert set(SCORERS) - set(NEGATIVE_CONTROLS) == {"pixel"}
    for name, scorer in SCORERS.items():
        assert scorer.name == name == scorer_named(name).name
        assert scorer.meaning
        assert scorer.trustworthy
        assert "\n" not in scorer.meaning + scorer.trustworthy
        assert scorer.transform in ("", *TRANSFORMS)
        assert scorer.video or scorer.curves is not None


@pytest.mark.parametrize("name", [*SCORERS, "image"])
def test_every_scorer_scores_every_episode(all_scores, buffer, name):
    scores = all_scores[name]
    assert [curve.episode_index for curve in scores.curves] == [e.index for e in buffer.episodes]
    for episode_, curve, value in zip(buffer.episodes, scores.curves, scores.values, strict=True):
        assert curve.progress.shape == curve.scored.shape == value.shape == (episode_.length,)
        assert np.isfinite(curve.progress).all() or curve.reason
        values = curve.progress[np.isfinite(curve.progress)]
        assert ((values >= 0) & (values <= 1)).all()


def test_pixels_tell_far_from_near_and_noise_and_time_do_not(all_scores):
    assert far_auc(all_scores[CONTROL_TO_BEAT]) == 1.0
    assert far_auc(all_scores["image"]) == 1.0
    assert far_auc(all_scores["time"]) == 0.5
    assert far_auc(all_scores["length"]) == pytest.approx(0.6)  # by hand: 12 of 20 pairs with ties as halves
    assert all_scores["pixel"].curves[0].progress[-1] == 1.0
    assert all_scores["pixel"].curves[5].progress[-1] < 1.0


def test_a_frozen_tail_does_not_move_pixels(all_scores, buffer):
    """Scores through the store with a frame encoder: a video that stands still has constant progress."""
    encoder = Transformed(PixelFrame(8), "frozen-tail")
    video = moving_square(30, 1.0)
    windows = embed_frames(
        encoder.prepare(video),
        encoder,
        ScoringConfig(windows="dense", min_window=4, frames_per_clip=2, window_shape="recent"),
    )
    frozen = windows.embeddings[windows.ends >= frozen_from(30)]
    assert (frozen == frozen[0]).all()
    assert not (windows.embeddings == frozen[0]).all()


def test_scoring_again_does_not_embed_again(buffer, tmp_path, tiny_encoder_folder):
    store, encoder = EmbeddingStore(tmp_path / "s.zarr"), load_encoder(str(tiny_encoder_folder))
    counts: list[int] = []
    for _ in range(2):
        score_with(SCORERS["shuffled"], buffer, store, encoder, LOO, on_episode=lambda e, n: counts.append(n))
    assert min(counts[:13]) > 0
    assert counts[13:] == [0] * 13


def test_a_skipped_task_has_no_curve(buffer, tmp_path, tiny_encoder_folder):
    store, encoder = EmbeddingStore(tmp_path / "s.zarr"), load_encoder(str(tiny_encoder_folder))
    config = replace(LOO, skip_tasks=("go right",))
    for name in ("length", "pixel", CONTROL_TO_BEAT):
        scores = score_with(SCORERS[name], buffer, store, encoder, config)
        assert [c.reason for c in scores.curves[9:]] == [SKIPPED_TASK] * 4
        assert np.isnan(final_progress(scores.curves[9:])).all()
        assert np.isfinite(final_progress(scores.curves[:9])).all()


@pytest.mark.parametrize(
    "spec", [ScoringConfig(windows="nested", frames_per_clip=8), PREFIX, ScoringConfig(windows="stride:4")], ids=str
)
def test_each_scorer_adapts_the_windows_under_test(spec):
    for scorer in SCORERS.values():
        config = scorer.config(spec)
        assert config.min_window == spec.min_window
        assert config.stride == spec.stride or spec.window_kind == "nested"


def test_references_of_another_dataset_are_refused(buffer, tmp_path):
    config, encoder = replace(LOO, references="external"), LastFrames()
    with pytest.raises(UsageError, match="need the dataset's own successes"):
        score_with(SCORERS["time"], buffer, EmbeddingStore(tmp_path / "s"), encoder, config)


def test_encoders_keep_the_protocol():
    def takes(encoder: Encoder) -> str:
        return encoder.identity

    encoders: list[Encoder] = [PixelMean(), PixelFrame(), Transformed(PixelMean(), "noise")]
    assert len({takes(encoder) for encoder in encoders}) == 3
    assert baselines.SCORERS[CONTROL_TO_BEAT].control
