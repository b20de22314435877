"""GTN: the iteration against solvers that are none of ours, and the model on the toy data."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction
from scipy.optimize import lsq_linear

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.models.gtn import TrendFilter, scaled_incidence

# users x items; the fourth user has none
GRAPH = np.array([[1, 1, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=float)


def double(trend):
    trend.end_values, trend.node_values = trend.end_values.double(), trend.node_values.double()
    return trend


def objective(e, e_in, incidence, lambda2):
    return 0.5 * ((e - e_in) ** 2).sum() + lambda2 * np.abs(incidence @ e).sum()


def minimiser(e_in, incidence, lambda2):
    """E = E_in - D^T Z for the Z in the box that brings it closest to 0: bounded least squares, by column."""
    transposed = incidence.T.toarray().astype(float)
    duals = [lsq_linear(transposed, column, (-lambda2, lambda2), tol=1e-12).x for column in e_in.T]
    return e_in - transposed @ np.stack(duals, axis=1)


def ego():
    return np.random.default_rng(0).normal(size=(sum(GRAPH.shape), 3))


@pytest.mark.unit
def test_incidence_gives_the_laplacian_with_self_loops():
    twice = sp.coo_matrix(([1.0, 2.0], ([0, 0], [0, 0])), shape=GRAPH.shape)  # an edge that occurs again
    incidence = scaled_incidence(sp.coo_matrix(GRAPH) + twice)
    assert incidence.shape == (int(GRAPH.sum()), sum(GRAPH.shape))
    n_users, n_items = GRAPH.shape
    adjacency = np.block([[np.zeros((n_users, n_users)), GRAPH], [GRAPH.T, np.zeros((n_items, n_items))]])
    looped = adjacency + np.eye(len(adjacency))
    scale = looped.sum(axis=1) ** -0.5
    laplacian = np.eye(len(adjacency)) - scale[:, None] * looped * scale
    np.testing.assert_allclose((incidence.T @ incidence).toarray(), laplacian, atol=1e-6)
    assert np.linalg.eigvalsh(laplacian).max() < 2


@pytest.mark.unit
def test_one_edge_by_hand():
    """Two nodes of one edge: Z = clip((x - y) / sqrt(2)), E = E_in -+ Z / sqrt(2)."""
    trend = double(TrendFilter(scaled_incidence(np.ones((1, 1))), n_layers=60, lambda2=0.5))
    # the difference fits in the box and is levelled; it does not, and each end moves by 0.5 / sqrt(2)
    near = trend(torch.tensor([[1.0], [0.6]], dtype=torch.double))
    far = trend(torch.tensor([[1.0], [-3.0]], dtype=torch.double))
    assert near.flatten().tolist() == pytest.approx([0.8, 0.8], abs=1e-6)
    assert far.flatten().tolist() == pytest.approx([1 - 0.5**1.5, -3 + 0.5**1.5], abs=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize("gamma", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("lambda2", [0.05, 0.3, 5.0])
def test_iteration_lowers_the_objective_and_finds_its_minimum(gamma, lambda2):
    incidence, e_in = scaled_incidence(GRAPH), ego()
    best = minimiser(e_in, incidence, lambda2)
    floor, values = objective(best, e_in, incidence, lambda2), []
    for n_layers in (1, 3, 10, 1500):
        trend = double(TrendFilter(incidence, n_layers, lambda2, gamma=gamma))
        e = trend(torch.from_numpy(e_in)).numpy()
        values.append(objective(e, e_in, incidence, lambda2))
    start = objective(e_in, e_in, incidence, lambda2)
    assert start > values[1] > values[2] > floor - 1e-6
    assert values[-1] == pytest.approx(floor, abs=1e-5)
    np.testing.assert_allclose(e, best, atol=1e-4)


@pytest.mark.unit
@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_gradient_is_that_of_the_plain_formula(gamma):
    incidence, lambda2 = scaled_incidence(GRAPH), 0.2
    d = torch.from_numpy(incidence.toarray()).double()
    e_in = torch.from_numpy(ego()).requires_grad_()
    weight = torch.from_numpy(ego()[::-1].copy())
    e, z = e_in, torch.zeros(len(d), e_in.shape[1], dtype=torch.double)
    for _ in range(4):
        y = e - gamma * (e - e_in)
        z = (z + 0.5 / gamma * d @ (y - gamma * d.T @ z)).clamp(-lambda2, lambda2)
        e = y - gamma * d.T @ z
    assert (z.abs() == lambda2).any() and (z.abs() < lambda2).any()  # or the test would see one case only
    expected = torch.autograd.grad((e * weight).sum(), e_in)[0]
    trend = double(TrendFilter(incidence, 4, lambda2, gamma=gamma))
    first, second = trend(e_in), trend(e_in * 2)  # the workspace is used again before the first's backward
    torch.testing.assert_close(first, e)
    torch.testing.assert_close(torch.autograd.grad((first * weight).sum(), e_in)[0], expected)
    assert not torch.equal(first, second)


@pytest.mark.unit
def test_without_clipping_it_is_a_lazy_walk():
    """lambda2 out of reach, gamma 1: E = (I - beta L)^K E_in with the Laplacian L = D^T D."""
    incidence, e_in = scaled_incidence(GRAPH), ego()
    laplacian = (incidence.T @ incidence).toarray()
    walk = np.linalg.matrix_power(np.eye(len(laplacian)) - 0.5 * laplacian, 3)
    trend = double(TrendFilter(incidence, 3, lambda2=100.0))
    np.testing.assert_allclose(trend(torch.from_numpy(e_in)).numpy(), walk @ e_in, atol=1e-6)


@pytest.mark.unit
def test_scores_cache_and_padding(build):
    _, model, train, *_ = build("GTN", embedding_size=8)
    model.eval()
    users = torch.tensor([1, 5, 5])
    with torch.no_grad():
        scores = model.full_sort_predict(Interaction({"user_id": users})).view(3, model.n_items)
        pairs = Interaction({"user_id": users, "item_id": torch.tensor([3, 1, 40])})
        torch.testing.assert_close(model.predict(pairs), scores[[0, 1, 2], [3, 1, 40]])
        assert model.restore_user_e is not None
        model.user_embedding.weight[0] = 1e6
        model.item_embedding.weight[0] = 1e6
    model.calculate_loss(next(iter(train)))
    assert model.restore_user_e is None  # stale once it trains
    with torch.no_grad():
        again = model.full_sort_predict(Interaction({"user_id": users})).view(3, model.n_items)
    torch.testing.assert_close(again[:, 1:], scores[:, 1:])


@pytest.mark.unit
def test_loss_is_bpr_with_half_the_squared_norm(build):
    _, model, train, *_ = build("GTN", embedding_size=8, prop_dropout=0.0, reg_weight=0.3)
    batch = next(iter(train))
    users, items = model.forward()
    u, i, j = batch["user_id"], batch["item_id"], batch["neg_item_id"]
    difference = (users[u] * (items[j] - items[i])).sum(dim=1)
    tables = model.user_embedding.weight[u], model.item_embedding.weight[i], model.item_embedding.weight[j]
    norm = sum(table.pow(2).sum() for table in tables) / (2 * len(u))
    expected = torch.nn.functional.softplus(difference).mean() + 0.3 * norm
    torch.testing.assert_close(model.calculate_loss(batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize(
    "key, value",
    [
        ("lambda2", 0),
        ("lambda2", -1.0),
        ("lambda2", "much"),
        ("beta", 0.6),
        ("gamma", 2.0),
        ("n_layers", 0),
        ("n_layers", 2.5),
        ("prop_dropout", 1.0),
        ("reg_weight", -1e-4),
        ("embedding_size", True),
    ],
)
def test_wrong_keys_are_named(build, key, value):
    with pytest.raises(ConfigError, match=key):
        build("GTN", **{key: value})


@pytest.mark.recipe
def test_learns_the_toy_data(learn_toy):
    popular = learn_toy("Pop", eval_step=1)
    result = learn_toy("GTN", learning_rate=0.05)
    assert result["hit@5"] > max(0.9, popular["hit@5"] + 0.4)
    assert result["ndcg@20"] > popular["ndcg@20"] + 0.2
