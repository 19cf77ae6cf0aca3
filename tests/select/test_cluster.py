from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from resprout.tasks.select import cluster
from resprout.tasks.select.cluster import (
    DiffusionMap,
    Factors,
    choose_count,
    clustered,
    diffusion_nmf,
    distances,
    elbow,
    landmark_rows,
    numbered_by_size,
    similarity,
    width,
)
from resprout.tasks.select.embed import hidden, tfidf, unit_rows

RNG = np.random.default_rng(0)
CLUSTERERS = ("diffusion_nmf", "kmeans")


def spectrum(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    found = DiffusionMap.of(points, count, width(points, 0))
    return found.values, found.vectors


def blobs(count: int, each: int, spread: float = 0.3, dims: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(count, dims)) * 3
    points = np.concatenate([centre + rng.normal(size=(each, dims)) * spread for centre in centres])
    return points, np.repeat(np.arange(count), each)


def test_distances() -> None:
    points = RNG.normal(size=(20, 5))
    expected = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert np.allclose(distances(points), expected, atol=1e-7)


def test_spectrum_is_that_of_the_random_walk_laplacian() -> None:
    """Against numpy's eig of I - D^-1 A itself: eigenvalues, and L v = lambda v with unit v."""
    points, _ = blobs(3, 12, spread=1.5)
    far = np.linalg.norm(points[:, None] - points[None], axis=-1)
    sigma = np.median([far[i, j] for i in range(36) for j in range(i)])
    kernel = np.exp(-(far**2) / (2 * sigma**2))
    laplacian = np.eye(36) - kernel / kernel.sum(1, keepdims=True)
    expected = np.sort(np.linalg.eig(laplacian)[0].real)[:4]
    values, vectors = spectrum(points, 4)
    assert np.allclose(values, expected, atol=1e-9)
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert np.allclose(laplacian @ vectors, vectors * values, atol=1e-8)
    assert np.allclose(np.linalg.norm(vectors, axis=0), 1)


def test_equal_rows_do_not_divide_by_zero() -> None:
    values, vectors = spectrum(np.ones((6, 3)), 2)
    assert np.isfinite(values).all()
    assert np.isfinite(vectors).all()


def test_equal_rows_are_one_cluster() -> None:
    """All modes of their walk but the first are rounding noise."""
    for rows in (40, 400):
        point = np.random.default_rng(rows).normal(size=(1, 50))
        points = np.repeat(point / np.linalg.norm(point), rows, axis=0)
        assert set(diffusion_nmf(points, 4, 0)[0]) == {0}


def test_equal_rows_leave_the_width_to_those_that_differ() -> None:
    """30 rows at one point and 5 each at two others, moved by rounding noise: sigma is the median of the
    distances that differ, 300 times sqrt(2) and 25 times 2, and the points are the clusters.
    """
    corners = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    points = np.repeat(corners, [30, 5, 5], axis=0)
    points = points + RNG.normal(size=points.shape) * 1e-9
    far = np.linalg.norm(points[:, None] - points[None], axis=-1)
    kernel = np.exp(-(far**2) / (2 * np.sqrt(2) ** 2))
    expected = np.sort(np.linalg.eigvals(np.eye(40) - kernel / kernel.sum(1, keepdims=True)).real)
    values, vectors = spectrum(points, 3)
    assert np.allclose(values, expected[:3], atol=1e-6)
    assert all(
        np.ptp(vectors[start:stop], axis=0).max() < 1e-6 for start, stop in ((0, 30), (30, 35), (35, 40))
    )
    assert diffusion_nmf(points, 3, 0)[0].tolist() == [0] * 30 + [1] * 5 + [2] * 5


def test_nmf_of_a_block_matrix() -> None:
    """Two blocks of ones have rank two: error 0, and the blocks are the clusters."""
    matrix = np.kron(np.eye(2), np.ones((3, 3)))
    found = Factors.of(matrix, 2, seed=0)
    assert found.error < 0.02
    assert numbered_by_size(found.labels).tolist() == [0, 0, 0, 1, 1, 1]


def test_labels_are_the_argmax_over_w() -> None:
    from sklearn.decomposition import NMF

    points, _ = blobs(4, 15)
    phi = spectrum(points, 4)[1]
    matrix = np.abs(phi @ phi.T)
    assert np.array_equal(matrix, similarity(phi))
    weights = NMF(4, init="nndsvda", random_state=5, max_iter=400, tol=1e-3).fit_transform(matrix)
    assert np.array_equal(diffusion_nmf(points, 4, 5)[0], numbered_by_size(weights.argmax(1)))


@pytest.mark.parametrize("name", CLUSTERERS)
def test_clear_groups_are_found(name: str) -> None:
    points, truth = blobs(4, 25)
    labels, _ = clustered(points, name, 4, 0)
    assert adjusted_rand_score(truth, labels) > 0.9
    assert np.array_equal(labels, clustered(points, name, 4, 0)[0])
    counts = np.bincount(labels)
    assert (counts > 0).all()
    assert (np.diff(counts) <= 0).all()


def test_numbering() -> None:
    assert numbered_by_size(np.array([7, 2, 7, 5, 2, 7])).tolist() == [0, 1, 0, 2, 1, 0]
    assert numbered_by_size(np.array([3, 1])).tolist() == [0, 1]


@pytest.mark.parametrize("clusterer", CLUSTERERS)
def test_the_number_of_clear_groups(clusterer: str) -> None:
    """Six well-parted groups: the search must find six, or at most one off."""
    points, _ = blobs(6, 30, spread=0.2)
    count, told = choose_count(points, clusterer, seed=0)
    assert abs(count - 6) <= 1
    assert count in (told["elbow"], told["eigengap"])
    assert choose_count(points, clusterer, seed=0)[0] == count


def test_few_rows_leave_no_search() -> None:
    assert choose_count(RNG.normal(size=(16, 3)), "kmeans", 0) == (4, {})


def test_elbow() -> None:
    """1, 0.2, 0.15, 0.1, 0.05: the line from 1 to 0.05 lies highest above the second."""
    assert elbow([4, 5, 6, 7, 8], [1.0, 0.2, 0.15, 0.1, 0.05]) == 5


@pytest.mark.parametrize(
    ("texts", "alike"),
    [
        # One topic shares more words: of two equal singular values it were left to chance which is cut.
        (["boil the soup slowly", "fry the soup slowly", "hoist the sail", "mend the sail"], 0.4),
        (["番茄炒牛肉", "豆腐炒牛肉", "三角形的面积", "矩阵的面积"], 0.3),
    ],
    ids=["words", "characters without spaces"],
)
def test_tfidf_tells_topics_apart(texts: list[str], alike: float) -> None:
    cosine = tfidf(texts, 0) @ tfidf(texts, 0).T
    assert cosine[0, 1] > alike
    assert cosine[2, 3] > 0.3
    assert abs(cosine[0, 2]) < 0.1


def test_hidden_is_centred_and_of_unit_length() -> None:
    states = RNG.normal(size=(30, 8)).astype(np.float32) + 50
    found = hidden(states)
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert np.allclose(found, unit_rows((states - states.mean(0)).astype(np.float64)), atol=1e-3)
    assert np.array_equal(unit_rows(np.zeros((1, 3))), np.zeros((1, 3)))


def test_sigma_is_the_median_of_all_pairs() -> None:
    points = RNG.normal(size=(30, 4))
    pairs = [np.linalg.norm(points[i] - points[j]) for i in range(30) for j in range(i)]
    assert width(points, 0) == pytest.approx(np.median(pairs))


def test_the_rows_of_a_map_lie_where_they_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nystrom's formula is the eigenvector's own equation on the map's rows: P phi = lambda phi."""
    points, _ = blobs(3, 20, spread=1.0)
    found = DiffusionMap.of(points, 4, width(points, 0))
    assert np.allclose(found.placed(points), found.vectors, atol=1e-8)
    # One row by hand: its steps to all others, by the modes, over their eigenvalues.
    new = np.full(8, 0.5)
    near = np.exp(-((points - new) ** 2).sum(1) / (2 * found.sigma**2))
    expected = (near / near.sum()) @ found.vectors / (1 - found.values)
    assert np.allclose(found.placed(new[None])[0], expected)


def test_landmarks_find_the_clusters_that_all_rows_do() -> None:
    """2,000 rows of ten overlapping groups by 500 landmarks: an adjusted Rand index of at least 0.5."""
    points, truth = blobs(10, 200, spread=2.0, dims=16)
    dense, about = diffusion_nmf(points, 10, 0)
    by_landmarks, told = diffusion_nmf(points, 10, 0, landmarks=500)
    assert "landmarks" not in about
    assert told["landmarks"] == 500
    assert adjusted_rand_score(dense, by_landmarks) >= 0.5
    assert adjusted_rand_score(truth, by_landmarks) >= 0.5
    assert np.array_equal(by_landmarks, diffusion_nmf(points, 10, 0, landmarks=500)[0])


def test_blocks_change_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = blobs(4, 100, spread=1.0)
    whole = diffusion_nmf(points, 4, 3, landmarks=100)[0]
    monkeypatch.setattr(cluster, "BLOCK", 7)
    assert np.array_equal(diffusion_nmf(points, 4, 3, landmarks=100)[0], whole)


def test_labels_of_other_rows_are_the_nearest_non_negative_sum() -> None:
    """Against scipy's solver on the whole problem, row by row."""
    from scipy.optimize import nnls

    parts, rows = RNG.random((3, 40)), RNG.random((25, 40))
    expected = [int(nnls(parts.T, row)[0].argmax()) for row in rows]
    assert Factors(np.empty((0, 3)), parts, 0.0).labels_of(rows).tolist() == expected


def test_landmarks_are_different_rows_in_order() -> None:
    drawn = landmark_rows(100, 30, 5)
    assert len(set(drawn.tolist())) == 30
    assert (np.diff(drawn) > 0).all()
    assert not np.array_equal(drawn, landmark_rows(100, 30, 6))


def test_kmeans_on_many_rows_is_fitted_on_some(monkeypatch: pytest.MonkeyPatch) -> None:
    points, truth = blobs(4, 100)
    monkeypatch.setattr(cluster, "FITTED_ROWS", 80)
    assert adjusted_rand_score(truth, clustered(points, "kmeans", 4, 0)[0]) > 0.9
