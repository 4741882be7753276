"""Tests of reference strategies: hand-computed cases on a line, and properties."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from sklearn.preprocessing import StandardScaler

from srpo_robot.errors import ScoringError, UsageError
from srpo_robot.progress.config import STRATEGIES, ScoringConfig
from srpo_robot.progress.references import BUILDERS, parse_references
from srpo_robot.renames import RenamedWarning

TWO_PAIRS_AND_ONE = np.array([[0.0], [0.1], [5.0], [5.2], [7.0]])


def centres(name: str, points: np.ndarray) -> list[float]:
    return parse_references(name)(points).centres.ravel().tolist()


def members(name: str, points: np.ndarray) -> list[list[int]]:
    return [rows.tolist() for rows in parse_references(name)(points).members]


# --- by hand


def test_dbscan_auto_lists_the_successes_of_each_centre():
    result = parse_references("dbscan-auto")(TWO_PAIRS_AND_ONE)
    assert result.centres.ravel() == pytest.approx([0.05, 5.1, 7.0])
    assert (result.k, result.sizes.tolist(), result.noise, result.eps) == (3, [2, 2, 1], 1, pytest.approx(0.4))
    assert members("dbscan-auto", TWO_PAIRS_AND_ONE) == [[0, 1], [2, 3], [4]]


def test_a_number_is_the_radius():
    assert centres("0.15", TWO_PAIRS_AND_ONE) == pytest.approx([0.05, 5.0, 5.2, 7.0])
    assert members("0.15", TWO_PAIRS_AND_ONE) == [[0, 1], [2], [3], [4]]
    assert centres("2", TWO_PAIRS_AND_ONE) == pytest.approx([0.05, 17.2 / 3])  # 5, 5.2 and 7 form one cluster
    result = parse_references("2")(TWO_PAIRS_AND_ONE)
    assert (result.eps, result.noise, result.strategy) == (2.0, 0, "2")


def test_mean_is_the_mean_of_all():
    assert centres("mean", TWO_PAIRS_AND_ONE) == pytest.approx([17.3 / 5])
    assert members("mean", TWO_PAIRS_AND_ONE) == [[0, 1, 2, 3, 4]]


def test_nearest_and_knn3_keep_every_success():
    for name in ("nearest", "knn3"):
        assert centres(name, TWO_PAIRS_AND_ONE) == TWO_PAIRS_AND_ONE.ravel().tolist()
        assert members(name, TWO_PAIRS_AND_ONE) == [[0], [1], [2], [3], [4]]
    query = np.array([[6.0], [0.0]])
    assert parse_references("nearest")(TWO_PAIRS_AND_ONE).distance(query) == pytest.approx([0.8, 0.0])
    # from 6: 5.2, 5 and 7 are .8, 1 and 1 away. From 0: itself, .1 and 5
    assert parse_references("knn3")(TWO_PAIRS_AND_ONE).distance(query) == pytest.approx([2.8 / 3, 5.1 / 3])


def test_knn3_is_the_mean_distance_not_the_distance_to_the_mean():
    around = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    assert parse_references("knn3")(around).distance(np.zeros((1, 2))) == pytest.approx([4 / 3])


def test_knn3_of_two_successes_is_the_mean_over_both():
    assert parse_references("knn3")(np.array([[0.0], [2.0]])).distance(np.array([[3.0]])) == pytest.approx([2.0])


def test_medoid_is_a_real_success_of_each_cluster():
    points = np.array([[0.0], [0.1], [0.15], [5.1], [5.2], [5.28], [9.0]])
    assert centres("medoid", points) == [0.1, 5.2, 9.0]
    assert members("medoid", points) == [[0, 1, 2], [3, 4, 5], [6]]
    assert centres("medoid", np.array([[0.0], [0.01], [0.1]])) == [0.01]  # mean .037. Fewer than 4: all of them


def test_a_tie_of_medoids_goes_to_the_smaller_embedding_in_any_order():
    assert centres("medoid", np.array([[2.0], [1.0]])) == [1.0]
    assert centres("medoid", np.array([[1.0], [2.0]])) == [1.0]


def test_hdbscan_finds_two_clusters_and_keeps_noise():
    points = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2], [50.0]])
    result = parse_references("hdbscan")(points)
    assert result.centres.ravel() == pytest.approx([0.1, 5.1, 50.0])
    assert (result.sizes.tolist(), result.noise) == ([3, 3, 1], 1)
    assert np.isnan(result.eps)


def test_siirl_joins_in_the_scaled_space_and_centres_in_the_raw_one():
    # The std of 0 0 10 10 is 5: scaled -1 -1 1 1, gaps 2 > .5. A fifth point at 5 (std 4.47) is noise.
    points = np.array([[0.0], [0.0], [10.0], [10.0], [5.0]])
    result = parse_references("siirl")(points)
    assert result.centres.ravel().tolist() == [0.0, 10.0]
    assert (result.sizes.tolist(), result.noise, result.eps) == ([2, 2], 1, 0.5)


def test_siirl_without_a_cluster_is_the_mean():
    result = parse_references("siirl")(np.array([[0.0], [1.0], [2.0], [3.0]]))  # std 1.118: gaps .89 > .5
    assert result.centres.ravel().tolist() == [1.5]
    assert (result.noise, result.degenerate) == (4, True)


def test_external_points_are_centres_of_their_own_or_clustered_by_name():
    assert parse_references("external").external
    assert centres("external", TWO_PAIRS_AND_ONE) == TWO_PAIRS_AND_ONE.ravel().tolist()
    assert parse_references("external:mean").external
    assert centres("external:mean", TWO_PAIRS_AND_ONE) == pytest.approx([3.46])


@pytest.mark.parametrize("name", ["dbscan-auto", "0.7", "hdbscan", "mean"])
def test_fewer_than_four_successes_use_their_mean(name):
    assert centres(name, np.array([[0.0], [0.2], [10.0]])) == pytest.approx([3.4])


@pytest.mark.parametrize("name", [*STRATEGIES, "0.7", "external"])
def test_one_success_is_the_centre(name):
    result = parse_references(name)(np.array([[3.0, 4.0]]))
    assert result.centres.tolist() == [[3.0, 4.0]]
    assert result.distance(np.zeros((1, 2))).tolist() == [5.0]
    assert not result.degenerate


@pytest.mark.parametrize("name", [*STRATEGIES, "0.7"])
def test_copies_of_one_success_are_at_distance_zero(name):
    assert parse_references(name)(np.ones((6, 3))).distance(np.ones((1, 3))).tolist() == [0.0]


# --- refusals


@pytest.mark.parametrize(
    "name", ["", "nn3", "0", "-1", "nan", "inf", "external:", "external:none", "external:external"]
)
def test_an_unknown_name_is_refused_with_the_list(name):
    with pytest.raises(
        UsageError, match=r"there are: dbscan-auto, mean, nearest, knn3, medoid, hdbscan, siirl, external"
    ):
        parse_references(name)


def test_an_empty_set_and_nan_are_refused():
    with pytest.raises(ScoringError, match="no reference"):
        parse_references("mean")(np.zeros((0, 3)))
    with pytest.raises(ScoringError, match="not finite"):
        parse_references("mean")(np.full((2, 3), np.nan))


# --- properties

clouds = st.integers(0, 2**32 - 1).map(
    lambda seed: (lambda rng: rng.normal(size=(12, 3)) + rng.integers(0, 3, size=(12, 1)) * 8)(
        np.random.default_rng(seed)
    )
)


@pytest.mark.parametrize("name", [*STRATEGIES, "0.7"])
@given(points=clouds, order=st.permutations(range(12)))
@settings(max_examples=15)
def test_distances_do_not_depend_on_the_order_of_successes(name, points, order):
    query = points[:4] + 0.3
    straight = parse_references(name)(points).distance(query)
    assert parse_references(name)(points[list(order)]).distance(query) == pytest.approx(straight, abs=1e-9)


@pytest.mark.parametrize("name", [*STRATEGIES, "0.7"])
@given(points=clouds)
@settings(max_examples=15)
def test_every_centre_lists_its_members(name, points):
    result = parse_references(name)(points)
    rows = np.concatenate(result.members)
    assert len(set(rows.tolist())) == len(rows)
    assert [len(group) for group in result.members] == result.sizes.tolist()
    assert len(rows) == 12 or (name == "siirl" and len(rows) == 12 - result.noise)
    if name != "medoid":
        assert result.centres == pytest.approx(np.stack([points[group].mean(axis=0) for group in result.members]))


@given(clouds, st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_small_step_changes_a_distance_by_no_more_than_the_step(points, seed):
    rng = np.random.default_rng(seed)
    start, step = rng.normal(size=(1, 3)) * 8, rng.normal(size=(1, 3)) * 0.1
    for name in ("dbscan-auto", "knn3", "nearest"):
        measure = parse_references(name)(points).distance
        assert abs(measure(start + step) - measure(start))[0] <= np.linalg.norm(step) + 1e-12


@given(st.integers(2, 20), st.integers(1, 400), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_after_a_standard_scaler_the_mean_squared_pair_distance_is_known(n, dim, seed):
    """siiRL's radius of 0.5 joins only near-duplicates, because 2Dn/(n-1) is about 2D for any data."""
    points = np.random.default_rng(seed).normal(size=(n, dim)).cumsum(axis=0)
    distances = pdist(StandardScaler().fit_transform(points), "sqeuclidean")
    assert distances.mean() == pytest.approx(2 * dim * n / (n - 1), rel=1e-6)


def test_every_named_strategy_has_a_builder():
    assert tuple(BUILDERS) == STRATEGIES
    assert [parse_references(name).name for name in (*STRATEGIES, "external:mean")] == [*STRATEGIES, "external:mean"]


def test_old_names_warn_once_and_name_the_new_one():
    for old, new in (("nn2", "dbscan-auto"), ("external:nn2", "external:dbscan-auto")):
        with pytest.warns(RenamedWarning, match="'nn2' is now called 'dbscan-auto'") as warnings:
            assert ScoringConfig(references=old).references == new
        assert len(warnings) == 1
    for old, new in (("eq5", "reward"), ("phase", "knn-time"), ("return", "knn-return")):
        with pytest.warns(RenamedWarning, match=f"'{old}' is now called '{new}'") as warnings:
            assert ScoringConfig(value=old).value == new
        assert len(warnings) == 1
