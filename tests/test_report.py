"""Tests of strategy maps and the report page: hand-computed values, and figures and markup of small datasets."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SQUARES, record_squares
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from srpo_robot.awr.weighting import weights_of
from srpo_robot.awr.weights_table import TABLE as ADVANTAGE
from srpo_robot.awr.weights_table import read_weights, write_weights
from srpo_robot.buffer.episodes import Buffer
from srpo_robot.buffer.labels import Label, write_labels
from srpo_robot.buffer.opening import open_buffer
from srpo_robot.buffer.tables import write_table
from srpo_robot.cli.reporting import report_dataset
from srpo_robot.errors import StaleTable, UndecodableFrame
from srpo_robot.progress.config import ScoringConfig
from srpo_robot.progress.encoder import load_encoder
from srpo_robot.progress.pipeline import STORE, TABLE, read_progress, score_buffer
from srpo_robot.progress.references import parse_references
from srpo_robot.progress.score import WindowEmbeddings
from srpo_robot.recipes import Weighting
from srpo_robot.report import dataset_page, strategy_figure
from srpo_robot.report.dataset import Embeddings, matched, read_scored, worst_falls
from srpo_robot.report.dataset_page import make_report, with_strips
from srpo_robot.report.figures import draw_weights
from srpo_robot.report.frames import film_strip, spread, tiled
from srpo_robot.report.page import Section, data_block, part, write_page
from srpo_robot.report.regress import Match, Regress, nearest_windows, window_at, worst_regress
from srpo_robot.report.strategy import OUTSIDE, medoid, most_central, principal_plane, strategy_map
from srpo_robot.report.strategy_figure import draw_strategy_maps, file_names

FRONT = "observation.images.front"
EVIL = "go right</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")

# --- the worst regress


def test_a_regress_by_hand():
    assert worst_regress(np.array([0.0, 0.6, 0.5, 0.9, 0.7, 0.8, 0.4, 1.0])) == Regress(3, 6, 0.5)
    assert worst_regress(np.array([0.0, 0.5, 0.5, 1.0])) is None  # a plateau is not a fall
    assert worst_regress(np.array([0.3])) is None
    assert worst_regress(np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])) == Regress(
        1, 2, 1.0
    )  # the first that ends, then the shortest


@pytest.mark.parametrize("value", [np.zeros(0), np.array([0.0, np.nan]), np.array([np.inf, 0.0])])
def test_a_regress_of_undefined_values_is_an_error(value):
    with pytest.raises(ValueError, match="finite"):
        worst_regress(value)


@given(arrays(np.float64, st.integers(1, 30), elements=st.integers(-9, 9).map(lambda n: n / 8)))  # exact
def test_the_regress_equals_a_brute_force_search(value):
    pairs = [(value[s] - value[e], -e, s) for e in range(len(value)) for s in range(e)]
    drop, end, start = max(pairs, default=(0.0, 0, 0))
    regress = worst_regress(value)
    assert regress == (Regress(start, -end, drop) if drop > 0 else None)
    if regress is not None:  # equal to the most negative run of increments
        increments = np.diff(value)
        runs = [increments[s:e].sum() for s in range(len(value)) for e in range(s + 1, len(value))]
        assert regress.drop == -min(runs)


def test_the_window_of_a_frame_is_the_last_one_that_ended():
    windows = WindowEmbeddings(np.array([4, 8, 11]), np.array([[1.0], [2.0], [3.0]]))
    assert [float(window_at(windows, frame)[0]) for frame in (0, 4, 7, 8, 11)] == [1, 1, 1, 2, 3]


def test_the_nearest_success_is_of_another_group():
    queries = np.array([[0.0, 0.0], [5.0, 0.0]])
    same = WindowEmbeddings(np.array([3, 6]), np.array([[0.0, 0.0], [5.0, 0.0]]))
    other = WindowEmbeddings(np.array([2, 9]), np.array([[3.0, 4.0], [5.0, 2.0]]))
    matches = nearest_windows(queries, ["a", "b"], [(7, "a", same), (8, "c", other)])
    assert matches == [Match(8, 2, 5.0), Match(7, 6, 0.0)]
    assert nearest_windows(queries[:1], ["a"], [(7, "a", same)]) == [None]


# --- the strategy map


def test_the_plane_by_hand():
    points = np.array([[13.0, 20.0], [7.0, 20.0], [10.0, 21.0], [10.0, 19.0]])
    plane = principal_plane(points)
    assert plane.origin.tolist() == pytest.approx([10, 20])
    assert plane.shares.tolist() == pytest.approx([0.9, 0.1])  # variances 9 + 9 and 1 + 1
    assert np.abs(plane.project(points)).tolist() == [pytest.approx(row) for row in ([3, 0], [3, 0], [0, 1], [0, 1])]
    assert np.abs(plane.project(np.array([[10.0, 22.0]]))).tolist() == [pytest.approx([0, 2])]


def test_the_plane_of_one_two_and_equal_points():
    for points in (np.array([[1.0, 2.0, 3.0]]), np.full((5, 3), 0.1)):
        plane = principal_plane(points)
        assert np.isnan(plane.shares).all()
        assert plane.project(points).tolist() == np.zeros((len(points), 2)).tolist()
    two = principal_plane(np.array([[0.0, 0.0, 0.0], [3.0, 0.0, 4.0]]))
    assert two.shares.tolist() == pytest.approx([1, 0])
    assert np.abs(two.project(np.array([[3.0, 0.0, 4.0]]))).tolist() == [pytest.approx([2.5, 0])]


@given(st.integers(0, 1000), st.integers(3, 12), st.integers(2, 6))
def test_points_of_a_plane_keep_their_distances(seed, count, width):
    rng = np.random.default_rng(seed)
    flat = rng.normal(size=(count, 2))
    points = flat @ np.linalg.qr(rng.normal(size=(width, 2)))[0].T + rng.normal(size=width)
    plane = principal_plane(points)
    projections = plane.project(points)
    for a, b in zip(projections, flat, strict=True):
        assert np.linalg.norm(projections - a, axis=1) == pytest.approx(np.linalg.norm(flat - b, axis=1), abs=1e-9)
    assert plane.shares.sum() == pytest.approx(1)
    assert np.sort(principal_plane(points[::-1]).shares) == pytest.approx(np.sort(plane.shares))


def test_the_medoid_and_the_most_central_by_hand():
    points = np.array([[0.0], [1.0], [9.0], [2.0]])
    assert medoid(points, np.array([3.0])) == 3
    assert medoid(points[:2], np.array([0.5])) == 0  # the first of two equally near points
    assert most_central(points) == 1  # sums 12, 10, 24, 10: the first of the equal ones
    assert most_central(points[[0, 3, 1]]) == 2


def two_blobs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Episodes 10..18: failures 12 and 17, successes near 0 (10, 11, 13), near 100 (14, 15, 16), and 18 far away."""
    along = np.array([0.0, 1.0, 50.0, 3.0, 100.0, 101.0, 102.5, 60.0, 500.0])
    success = np.array([True, True, False, True, True, True, True, False, True])
    return np.arange(10, 19), success, np.column_stack([along, np.zeros(9), along * 0])


def map_blobs(name: str):
    episodes, success, points = two_blobs()
    sources = [] if name.startswith("external") else episodes[success]
    return strategy_map(
        "go", episodes, success, points, parse_references(name)(points[success]), np.array(sources, dtype=int)
    )


def test_clusters_are_numbered_by_size_and_shown_by_a_real_success():
    blob_map = map_blobs("5")  # radius 5: {10, 11, 13}, {14, 15, 16}, and 18 alone
    assert blob_map.cluster.tolist() == [0, 0, OUTSIDE, 0, 1, 1, 1, OUTSIDE, OUTSIDE]
    assert [(s.size, int(blob_map.episodes[s.medoid])) for s in blob_map.strips] == [(3, 11), (3, 15), (1, 18)]
    assert blob_map.centres.shape == (3, 2)
    assert blob_map.shares.tolist() == pytest.approx([1, 0])
    assert blob_map.notes == ("radius 5: 2 clusters and 1 success alone, each its own reference.",)
    assert [strategy_figure._strip_name(blob_map, n) for n in range(3)] == [
        "cluster 1: 3 successes, medoid episode 11",
        "cluster 2: 3 successes, medoid episode 15",
        "alone: episode 18",
    ]


@pytest.mark.parametrize("name", ["nearest", "knn3"])
def test_without_clusters_only_the_most_central_success_is_shown(name):
    blob_map = map_blobs(name)
    assert not blob_map.clustered
    assert [(s.size, int(blob_map.episodes[s.medoid])) for s in blob_map.strips] == [(7, 14)]  # the median of the seven
    assert blob_map.centres.shape == (0, 2)
    assert "each success is its own reference" in blob_map.notes[0]


def test_external_references_are_stars_without_strips():
    blob_map = map_blobs("external")
    assert blob_map.strips == ()
    assert blob_map.centres.shape == (7, 2)
    assert "another dataset" in blob_map.notes[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mean", "the mean of all 7 successes, as asked for"),
        ("1000", "radius 1000 degenerated: all 7 successes form one cluster"),
    ],
)
def test_a_single_reference_is_noted(name, says):
    blob_map = map_blobs(name)
    assert len(blob_map.strips) == 1
    assert says in blob_map.notes[0]


def test_noise_is_noted():
    points = np.random.default_rng(0).normal(size=(5, 40))  # far apart after scaling, like real embeddings
    noise = strategy_map("go", np.arange(5), np.ones(5, bool), points, parse_references("siirl")(points), np.arange(5))
    assert "siirl called all 5 successes noise, so their mean is the reference" in noise.notes[0]
    copies = np.array([[0.0, 0.0], [0.0, 0.0], [9.0, 1.0], [2.0, 8.0]])
    noise = strategy_map("go", np.arange(4), np.ones(4, bool), copies, parse_references("siirl")(copies), np.arange(4))
    assert noise.cluster.tolist() == [0, 0, OUTSIDE, OUTSIDE]
    assert "one cluster of 2; 2 successes called noise" in noise.notes[0]


def test_few_successes_are_noted():
    points = np.eye(3)
    for count, says in ((1, "One success"), (2, "2 successes are too few")):
        references = parse_references("dbscan-auto")(points[:count])
        task_map = strategy_map("go", np.arange(3), np.arange(3) < count, points, references, np.arange(count))
        assert says in task_map.notes[0]


@given(st.integers(0, 500), st.sampled_from(["dbscan-auto", "medoid", "hdbscan", "nearest", "mean", "0.5"]))
def test_every_map_shows_members_of_its_clusters(seed, name):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(9, 4)).round(1)
    success = np.arange(9) % 3 != 0
    references = parse_references(name)(points[success])
    task_map = strategy_map("go", np.arange(9), success, points, references, np.flatnonzero(success))
    assert not (task_map.cluster[~success] != OUTSIDE).any()
    sizes = [strip.size for strip in task_map.strips]
    assert sizes == sorted(sizes, reverse=True)
    for number, strip in enumerate(task_map.strips):
        assert success[strip.medoid]
        if strip.size > 1 and name != "nearest":
            assert task_map.cluster[strip.medoid] == number
            assert (task_map.cluster == number).sum() == strip.size


# --- frames


def test_frames_are_spread_from_the_first_to_the_last():
    assert spread(100, 5).tolist() == [0, 25, 50, 74, 99]
    assert spread(3, 6).tolist() == [0, 1, 2]
    assert spread(1, 6).tolist() == [0]


def test_tiles_are_placed_in_rows_on_white():
    frames = [np.full((2, 3, 3), shade, dtype=np.uint8) for shade in (10, 20, 30)]
    sheet = tiled(frames, 2, gap=1)
    assert sheet.shape == (5, 7, 3)
    assert sheet[:2, :3].max() == 10
    assert sheet[:2, 4:].max() == 20
    assert sheet[3:, :3].max() == 30
    assert sheet[2].min() == sheet[:, 3].min() == sheet[3:, 4:].min() == 255
    assert film_strip(np.zeros((9, 48, 64, 3), dtype=np.uint8), 6, 6, 24).shape == (24, 6 * 32 + 5 * 4, 3)


def test_strips_go_to_the_first_then_evenly():
    assert with_strips([0, 1, 2, 3], [2], 9) == {0, 1, 2, 3}
    assert with_strips(list(range(10)), [8, 9], 4) == {8, 9, 0, 7}
    assert with_strips([0, 1, 2], [2, 1], 1) == {2}


def test_a_histogram_needs_a_weight():
    with pytest.raises(ValueError, match="no positive weight"):
        draw_weights({"success": np.zeros(3)})
    assert draw_weights({"success": np.ones(3)}).startswith(b"\x89PNG")  # uniform weights


# --- the page's markup


def test_a_page_escapes_its_text_and_lets_only_its_own_script_run(tmp_path):
    path = tmp_path / "page.html"
    write_page(
        path,
        EVIL,
        EVIL,
        [Section(title=EVIL, notes=[EVIL], tables=[[(EVIL,), (EVIL,)]], pictures=(), warnings=[EVIL])],
        script="let a = 1 < 2;",
    )
    page = path.read_text()
    assert page.count("<script") == 1
    assert "<img" not in page
    digest = base64.b64encode(hashlib.sha256(b"let a = 1 < 2;").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page
    assert "default-src 'none'" in page


def test_cells_attributes_and_captions_are_escaped_once(tmp_path):
    name = "a & b < c > \"d\" 'e'"
    path = tmp_path / "page.html"
    button = part("button", 3, name, 7)
    pictures = [(b"\xff\xd8", name)]
    write_page(path, name, name, [Section(title=name, tables=[[("task",), (name,), (button,)]], pictures=pictures)])
    page = path.read_text()
    markup = "a &amp; b &lt; c &gt; &#34;d&#34; &#39;e&#39;"
    assert f"<td>{markup}</td>" in page
    assert f'<img alt="{markup}" src="data:image/jpeg;base64,' in page
    assert f'<button type="button" data-episode="3" data-frame="7">{markup}</button>' in page
    assert page.count(markup) == 7 and name not in page


def test_a_page_without_a_script_forbids_scripts(tmp_path):
    write_page(tmp_path / "page.html", "t", "l", [])
    assert "script-src 'none'" in (tmp_path / "page.html").read_text()


def test_data_cannot_close_its_block_and_contains_no_nan():
    block = data_block("d", {"task": EVIL})
    assert block.count("</script>") == 1
    assert json.loads(block[block.index(">") + 1 : block.rindex("<")]) == {"task": EVIL}
    with pytest.raises(ValueError, match="JSON"):
        data_block("d", float("nan"))


# --- on scored datasets


def score_squares(
    root: Path,
    folder: Path,
    frames_per_clip: int | None = None,
    cameras: tuple[str, ...] = (FRONT,),
    **scoring: Any,
):
    config = ScoringConfig(
        cameras=cameras, windows="stride:4", min_window=6, frames_per_clip=frames_per_clip, **scoring
    )
    buffer = open_buffer(root)
    result = score_buffer(buffer, load_encoder(str(folder)), config)
    write_weights(buffer, result.table, weights_of(buffer, result.table, Weighting(horizon=4)))
    return buffer, result


def let_fall(buffer: Buffer, result) -> None:
    """Sets values: episode 2 rises to 0.75 at frame 10 and is at 0.25 from frame 14 on. All others rise."""
    value = np.concatenate([np.linspace(0, 1, e.length) for e in buffer.episodes])
    first = buffer.episodes[2].first_frame
    value[first : first + 22] = np.interp(np.arange(22), [0, 10, 14, 21], [0.0, 0.75, 0.25, 0.25])
    columns = {**result.table.columns, "value": value}
    progress = write_table(buffer.sidecar / TABLE, columns, result.table.metadata)
    write_weights(buffer, progress, weights_of(buffer, progress, Weighting(horizon=4)))


@pytest.fixture(scope="module")
def scored_squares(squares, tiny_encoder_folder, tmp_path_factory) -> Path:
    """A scored copy of the squares with a known fall in episode 2 and strategy maps. Tests must not change it."""
    root = shutil.copytree(squares, tmp_path_factory.mktemp("report") / "data")
    buffer, result = score_squares(root, tiny_encoder_folder)
    let_fall(buffer, result)
    draw_strategy_maps(buffer, result.scores, result.windows, FRONT)
    return root


@pytest.fixture
def scored_copy(scored_squares: Path, tmp_path: Path) -> Path:
    return shutil.copytree(scored_squares, tmp_path / "data")


def test_scoring_draws_and_lists_one_map_per_task(cli, squares_copy, tiny_encoder_folder):
    (squares_copy / "srpo" / "strategy").mkdir(parents=True)
    (squares_copy / "srpo" / "strategy" / "task_of_before.png").write_bytes(b"old")
    code, out, err = cli("score-dataset", squares_copy, "--encoder", tiny_encoder_folder, "--min-window", 6)
    assert code == 0, err
    assert "strategy/go_right.png" in out.strip().splitlines()[-1]
    files = list((squares_copy / "srpo" / "strategy").iterdir())
    assert [path.name for path in files] == ["go_right.png"]
    with Image.open(files[0]) as figure:
        assert figure.width > 1000  # with a strip beside the map


def test_many_tasks_get_maps_of_the_largest(tmp_path, tiny_encoder_folder, monkeypatch):
    root = record_squares(tmp_path / "d", [("a", 12, 1.0, True), ("b", 12, 1.0, True), ("b", 12, 0.3, False)])
    buffer, result = score_squares(root, tiny_encoder_folder)
    monkeypatch.setattr(strategy_figure, "MAX_MAPS", 1)
    assert [path.name for path in draw_strategy_maps(buffer, result.scores, result.windows, FRONT)] == ["b.png"]


class _NoVideo(Buffer):
    def frames(self, episode, camera):
        raise UndecodableFrame(f"episode {episode.index}, frame 0 cannot be decoded; record it again")


def test_an_undecodable_video_is_noted_and_the_report_continues(scored_copy, tiny_encoder_folder):
    buffer, result = score_squares(scored_copy, tiny_encoder_folder)
    copy = _NoVideo(buffer.root, buffer.meta, buffer.episodes)
    assert [path.name for path in draw_strategy_maps(copy, result.scores, result.windows, FRONT)] == ["go_right.png"]
    images = dataset_page.decode(read_scored(copy), [])
    assert images.strips == {}
    assert images.missing[3] == "episode 3, frame 0 cannot be decoded"
    page = make_report(copy, scored_copy / "page.html").read_text()
    assert "episode 2, frame 0 cannot be decoded" in page


def test_names_of_files_are_distinct_and_readable():
    assert file_names(["Go right!", "go right", "../..", "放苹果", "x" * 200]) == {
        "Go right!": "go_right.png",
        "go right": "go_right_2.png",
        "../..": "task.png",
        "放苹果": "放苹果.png",
        "x" * 200: "x" * 60 + ".png",
    }


@pytest.mark.parametrize("task", ["cost $x_1$ and $\\frac{", "放苹果", ""])
def test_a_task_name_may_be_any_text(tmp_path, task):
    points = np.random.default_rng(0).normal(size=(6, 3))
    success = np.arange(6) < 4
    references = parse_references("dbscan-auto")(points[success])
    task_map = strategy_map(task, np.arange(6), success, points, references, np.arange(4))
    strategy_figure.draw_strategy_map(task_map, [], tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_a_task_of_one_episode_is_a_plain_statement(tmp_path):
    points = np.ones((1, 3))
    task_map = strategy_map(
        "go", np.arange(1), np.ones(1, bool), points, parse_references("dbscan-auto")(points), np.arange(1)
    )
    strategy_figure.draw_strategy_map(task_map, [], tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


@pytest.mark.parametrize(("frames", "cameras"), [(None, (FRONT,)), (6, (FRONT, "observation.images.side"))])
def test_a_scores_embeddings_load_without_its_encoder(squares_copy, tiny_encoder_folder, frames, cameras):
    buffer, result = score_squares(squares_copy, tiny_encoder_folder, frames, cameras)
    embeddings = Embeddings(read_scored(buffer))
    for episode, windows in zip(buffer.episodes, result.windows, strict=True):
        entry = embeddings.of(episode)
        assert entry is not None
        assert windows is not None
        assert entry.ends.tolist() == windows.ends.tolist()
        assert entry.embeddings.tolist() == windows.embeddings.tolist()


def test_embeddings_of_another_clip_length_are_not_mistaken_for_the_scores(squares_copy, tiny_encoder_folder):
    score_squares(squares_copy, tiny_encoder_folder, 6)
    buffer, result = score_squares(squares_copy, tiny_encoder_folder)
    assert read_scored(buffer).provenance.config.frames_per_clip == 4
    embeddings = [Embeddings(read_scored(buffer)).of(episode) for episode in buffer.episodes]
    for expected, entry in zip(result.windows, embeddings, strict=True):
        assert expected is not None
        assert entry is not None
        assert entry.embeddings.tolist() == expected.embeddings.tolist()


def test_a_fall_is_compared_with_a_success_of_another_take(scored_copy):
    dataset = read_scored(open_buffer(scored_copy))
    falls = worst_falls(dataset, 9)
    assert [(fall.episode.index, fall.regress.start, fall.regress.end) for fall in falls] == [(2, 10, 14)]
    assert falls[0].regress.drop == pytest.approx(0.5)
    match = matched(dataset, falls)[0].match
    assert match is not None
    entries = [Embeddings(dataset).of(e) for e in dataset.buffer.episodes]
    failure = entries[2]
    assert failure is not None
    query = failure.embeddings[failure.ends.tolist().index(10)]
    every = {}
    for index, success in enumerate(entries[:2]):
        assert success is not None
        distances = np.linalg.norm(success.embeddings - query, axis=1)
        every |= {(index, int(t)): float(d) for t, d in zip(success.ends, distances, strict=True)}
    assert (match.episode_index, match.frame) == min(every, key=lambda key: every[key])
    assert match.distance == pytest.approx(min(every.values()))


def test_a_fall_without_a_success_of_another_take_has_no_match(squares_copy, tiny_encoder_folder):
    write_labels(open_buffer(squares_copy), {i: Label(None, "one take") for i in (0, 1, 2)})
    buffer, result = score_squares(squares_copy, tiny_encoder_folder)
    let_fall(buffer, result)
    dataset = read_scored(buffer)
    fall = matched(dataset, worst_falls(dataset, 9))[0]
    assert fall.match is None
    assert "outside its own group" in fall.why


def test_the_page_is_one_file_with_every_part_and_the_same_each_time(scored_copy):
    buffer = open_buffer(scored_copy)
    progress = []
    page = make_report(buffer, scored_copy / "page.html", lambda at, of: progress.append((at, of))).read_text()
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Summary", "Curves", "Where failures fall back", "Strategy maps", "Weights of the frames", "Episodes",
    ]  # fmt: skip
    assert "falls by 0.500" in page
    assert "effective sample size" in page
    assert 'alt="strategy map of the task go right"' in page
    page_only = page.replace("http://www.w3.org/2000/svg", "")  # a namespace, never fetched
    assert not re.search(r"https?:|(src|href)=\"(?!data:)|@import|url\((?!\$)", page_only)
    assert make_report(buffer, scored_copy / "again.html").read_text() == page


def curve_data(page: str) -> dict:
    match = re.search(r'<script type="application/json" id="curve-data">(.*?)</script>', page, re.S)
    assert match is not None
    return json.loads(match[1])


def test_the_pages_curves_equal_the_tables(scored_copy):
    buffer = open_buffer(scored_copy)
    dataset = read_scored(buffer)
    data = curve_data(make_report(buffer, scored_copy / "page.html").read_text())
    assert data["measures"] == {"progress": "progress"}
    for episode, curve in zip(buffer.episodes, data["episodes"], strict=True):
        ends = np.flatnonzero(dataset.of("scored", episode))
        assert curve["frames"] == ends.tolist()
        assert curve["progress"] == pytest.approx(dataset.of("progress", episode)[ends], abs=1e-4)
        assert curve["success"] == SQUARES[episode.index][3]
        assert curve["strip"]["frames"] == spread(episode.length, 24).tolist()
        jpeg = base64.b64decode(curve["strip"]["uri"].removeprefix("data:image/jpeg;base64,"))
        assert jpeg.startswith(b"\xff\xd8")


def test_a_large_dataset_lists_the_episodes_without_a_strip(scored_copy, monkeypatch):
    monkeypatch.setattr(dataset_page, "MAX_STRIPS", 2)
    page = make_report(open_buffer(scored_copy), scored_copy / "page.html").read_text()
    assert "2 of 4 episodes have a film strip" in page
    strips = [e["index"] for e in curve_data(page)["episodes"] if e["strip"]]
    assert strips == [0, 2]  # the episode with a fall comes first


def test_missing_parts_are_noted(scored_copy):
    shutil.rmtree(scored_copy / "srpo" / STORE)
    shutil.rmtree(scored_copy / "srpo" / "strategy")
    (scored_copy / "srpo" / ADVANTAGE).unlink()
    page = make_report(open_buffer(scored_copy), scored_copy / "page.html").read_text()
    assert "there are no embeddings at" in page
    assert not (scored_copy / "srpo" / STORE).exists()
    assert "the default weighting: beta 1, w_max 20, horizon 10" in page
    assert "srpo-robot score-dataset draws them" in page


def test_the_pages_weights_come_from_the_table_or_the_defaults(scored_copy):
    buffer = open_buffer(scored_copy)
    progress = read_progress(buffer)
    path = buffer.sidecar / ADVANTAGE
    assert (
        "the last command that weighed the dataset wrote them: beta 1, w_max 20, horizon 4"
        in make_report(buffer, scored_copy / "page.html").read_text()
    )
    table = read_weights(buffer, progress)
    write_table(path, table.columns, {key: v for key, v in table.metadata.items() if key != "format"})  # unchanged
    assert read_scored(buffer).weights == pytest.approx(weights_of(buffer, progress, Weighting()).frames.values)


def test_without_any_value_there_are_no_weights(scored_copy):
    buffer = open_buffer(scored_copy)
    progress = read_progress(buffer)
    columns = progress.columns | {"value": np.full(buffer.total_frames, np.nan)}
    write_table(buffer.sidecar / TABLE, columns, progress.metadata)
    page = make_report(buffer, scored_copy / "page.html").read_text()
    assert "There are no weights: no finite advantage to train on" in page


def test_undefined_progress_is_noted_and_never_drawn_as_a_number(tmp_path, tiny_encoder_folder):
    root = record_squares(tmp_path / "d", [*SQUARES[:3], ("go right", 4, 0.1, False)])  # shorter than the first window
    buffer, _ = score_squares(root, tiny_encoder_folder)
    page = make_report(buffer, tmp_path / "page.html").read_text()
    assert "1 episodes: 3" in page
    assert curve_data(page)["episodes"][3]["progress"] == [None]
    assert "final progress undefined" in curve_data(page)["episodes"][3]["facts"]


def test_only_successes(tmp_path, tiny_encoder_folder):
    root = record_squares(tmp_path / "d", SQUARES[:2])
    buffer, _ = score_squares(root, tiny_encoder_folder)
    assert "There is no failure." in make_report(buffer, tmp_path / "page.html").read_text()


def test_the_audit_is_shown_if_it_exists(scored_copy):
    path = scored_copy / "srpo" / "audit.json"
    path.write_text(json.dumps({"passed": False, "lines": ["shuffled <frames> 0.91"], "advice": ["try loo"]}))
    page = make_report(open_buffer(scored_copy), scored_copy / "page.html").read_text()
    assert "<h2>Audit: failed</h2>" in page
    assert "shuffled &lt;frames&gt; 0.91" in page
    assert '<p class="warning">try loo</p>' in page
    assert "is of another" not in page
    of = {"dataset": "of before", "encoder": read_scored(open_buffer(scored_copy)).provenance.encoder.identity}
    path.write_text(json.dumps({"passed": True, "lines": [], "advice": [], "origin": of}))
    page = make_report(open_buffer(scored_copy), scored_copy / "page.html").read_text()
    assert "is of another dataset than the score; run: srpo-robot audit" in page
    path.write_text('{"passed": true}')
    assert "audit.json cannot be read" in make_report(open_buffer(scored_copy), scored_copy / "page.html").read_text()


def test_the_command_writes_beside_the_tables(scored_copy, capsys):
    report_dataset(str(scored_copy), None)
    assert f"Report: {scored_copy}/srpo/report.html" in capsys.readouterr().out
    report_dataset(str(scored_copy), scored_copy / "elsewhere" / "p.html")
    assert (scored_copy / "elsewhere" / "p.html").is_file()


def test_a_dataset_that_was_not_scored_or_was_labelled_anew_names_the_command(scored_copy, squares):
    with pytest.raises(StaleTable, match="srpo-robot score-dataset"):
        make_report(open_buffer(squares), scored_copy / "page.html")
    write_labels(open_buffer(scored_copy), {3: Label(True, "")})
    with pytest.raises(StaleTable, match="srpo-robot score-dataset"):
        make_report(open_buffer(scored_copy), scored_copy / "page.html")
    assert not (scored_copy / "page.html").exists()


# --- in a browser


def browse(page: Path, fragment: str, *options: str) -> tuple[str, str]:
    """Returns (the page that the browser printed, its log) after it opened `page` and the page's script ran."""
    if not BROWSER:
        pytest.skip("no chromium or chrome on this machine to open the page with")
    result = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
         f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=3000", "--window-size=1240,1600",
         *options, f"{page.as_uri()}{fragment}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert not re.search("Uncaught|Refused|violates", result.stderr), result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def page(scored_squares, tmp_path_factory) -> Path:
    return make_report(open_buffer(scored_squares), tmp_path_factory.mktemp("page") / "page.html")


def inside(dom: str, name: str) -> str:
    match = re.search(rf'id="{name}"[^>]*>(.*?)</', dom, re.S)
    assert match is not None
    return match[1]


def test_a_page_opens_with_all_curves_and_nothing_pinned(page):
    dom, _ = browse(page, "", "--dump-dom")
    assert len(re.findall(r"<path[^>]*data-curve=", dom)) == 4
    assert inside(dom, "details-title") == "No episode chosen"
    assert "successes (2)" in dom
    assert "failures (2)" in dom


def test_the_fragment_pins_an_episode_and_a_frame(page):
    dom, _ = browse(page, "#episode=2&frame=14", "--dump-dom")
    assert inside(dom, "details-title") == "Episode 2, failure (pinned)"
    assert "frame 14 of 22, 1.4 s: progress" in inside(dom, "details-frame")
    assert "largest fall 0.500, from 1.0 to 1.4 s" in inside(dom, "details-facts")
    assert len(re.findall(r'<div class="cell', dom)) == 22
    assert re.findall(r'<div class="cell at"[^>]*data-frame="(\d+)"', dom) == ["14"]
    assert re.findall(r'<path class="curve failure on"[^>]*data-curve="(\d+)"', dom) == ["2"]


def test_a_fragment_that_names_no_episode_pins_nothing(page):
    for fragment in ("#episode=99", "#episode=<b>", "#frame=2"):
        assert inside(browse(page, fragment, "--dump-dom")[0], "details-title") == "No episode chosen"


def with_script(page: Path, script: str) -> Path:
    """Returns a copy of the page without its content policy and with a script that acts as the user."""
    copy = page.with_name("clicked.html")
    bare, policies = re.subn(r"<meta http-equiv=[^>]*>", "", page.read_text())
    assert policies == 1
    copy.write_text(bare.replace("</body>", f"<script>{script}</script></body>"))
    return copy


POINT = """
const at = (episode, event, share) => {
  const path = document.querySelector(`[data-curve="${episode}"]`), svg = path.closest("svg");
  const p = path.getPointAtLength(path.getTotalLength() * share), box = svg.getBoundingClientRect();
  const scale = box.width / svg.viewBox.baseVal.width;
  const where = { clientX: box.left + p.x * scale, clientY: box.top + p.y * scale, bubbles: true, cancelable: true };
  svg.dispatchEvent(event === "click" ? new MouseEvent(event, where) : new PointerEvent(event, where));
};
const key = (name) => document.querySelector("svg").dispatchEvent(new KeyboardEvent("keydown", { key: name }));
"""


@pytest.mark.parametrize(
    ("hand", "title"),
    [
        ("at(3, 'pointermove', 1)", "Episode 3, failure"),
        ("at(3, 'click', 1)", "Episode 3, failure (pinned)"),
        ("at(3, 'click', 1); at(0, 'pointermove', 0.7)", "Episode 3, failure (pinned)"),  # hovering does not unpin
        ("at(3, 'click', 1); at(2, 'click', 1)", "Episode 2, failure (pinned)"),
        ("at(3, 'click', 1); key('Escape')", "Episode 3, failure"),
        ("key('ArrowDown'); key('ArrowDown')", "Episode 1, success (pinned)"),
        ("document.querySelector('.fall-card button').click()", "Episode 2, failure (pinned)"),
    ],
)
def test_user_input_on_the_page(page, hand, title):
    dom, _ = browse(with_script(page, POINT + hand), "", "--dump-dom")
    assert inside(dom, "details-title") == title
    assert len(re.findall(r'<div class="cell', dom)) > 0


def test_a_click_and_the_fragment_show_the_same(page):
    dom_after_click, _ = browse(with_script(page, POINT + "at(2, 'click', 0)"), "", "--dump-dom")
    dom, _ = browse(page, "#episode=2", "--dump-dom")
    parts = ("details-title", "details-frame", "details-facts", "strip")
    assert [inside(dom_after_click, part) for part in parts] == [inside(dom, part) for part in parts]


def test_tasks_and_measures_can_be_chosen(tmp_path, tiny_encoder_folder):
    root = record_squares(tmp_path / "d", [*SQUARES, ("go left", 20, 0.9, True), ("go left", 20, 0.2, False)])
    buffer, _ = score_squares(root, tiny_encoder_folder, profile="loo", value="knn-time")
    choose = "const choose = (id, value) => { const s = document.getElementById(id); s.value = value; "
    choose += "s.dispatchEvent(new Event('change')); };"
    copy = with_script(
        make_report(buffer, tmp_path / "page.html"), choose + "choose('task', '1'); choose('measure', 'value')"
    )
    dom, _ = browse(copy, "", "--dump-dom")
    assert sorted(re.findall(r'data-curve="(\d+)"', dom)) == ["5"]  # the success has no neighbour outside its group
    assert "successes (1), 1 undefined" in dom
    assert "step value (knn-time) of 1 failures" in dom
    dom_after_choice, _ = browse(copy, "#episode=0", "--dump-dom")  # unpinned, since the task differs
    assert inside(dom_after_choice, "details-title") == "Episode 0, success"
    back = with_script(tmp_path / "page.html", choose + "choose('task', '1'); location.hash = '#episode=0'")
    dom, _ = browse(back, "", "--dump-dom")
    assert len(re.findall(r"data-curve=", dom)) == 5  # an episode of another task brings all tasks back


def test_the_rendered_page_shows_the_strip_and_the_fall(page):
    picture = page.with_name("shot.png")
    browse(page, "#episode=2", f"--screenshot={picture}")
    with Image.open(picture) as shot:
        pixels = np.asarray(shot.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110)
    assert red.sum() > 500  # the squares of the film strip
    assert (np.abs(pixels - (254, 202, 202)).max(axis=-1) < 3).sum() > 2000  # the shaded fall


def test_a_script_in_a_task_name_does_not_run(tmp_path, tiny_encoder_folder):
    root = record_squares(tmp_path / "d", [(EVIL, *values) for _, *values in SQUARES])  # type: ignore[misc]
    buffer, result = score_squares(root, tiny_encoder_folder)
    assert len(draw_strategy_maps(buffer, result.scores, result.windows, FRONT)) == 1
    report = make_report(buffer, tmp_path / "page.html")
    for copy in (report, with_script(report, "0")):  # with the content policy, and with escaping alone
        dom, _ = browse(copy, "#episode=2", "--dump-dom")
        assert "<title>d: progress</title>" in dom
        assert "go right&lt;/script&gt;" in inside(dom, "details-task")
        assert "<img src=" not in dom
