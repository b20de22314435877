"""LTGNN: memories against the closed-form fixed point, sampling against its expectation, and the toy data."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.graph import normalised_adjacency
from recbole_tokenrec.models.ltgnn import Graph, Memory, _ImplicitLayer, product, random_subsets

N_USERS, N_ITEMS, D = 12, 9, 4
N = N_USERS + N_ITEMS


@pytest.fixture
def matrix():
    """Adjacency of a random graph whose last user has no item."""
    edges = (np.random.default_rng(3).random((N_USERS, N_ITEMS)) < 0.6).astype(float)
    edges[-1] = 0
    return normalised_adjacency(sp.csr_matrix(edges))


def random_table(seed):
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed))


def dense(rows):
    starts, columns, values = rows
    return sp.csr_matrix((values, columns, starts), shape=(len(starts) - 1, N)).toarray()


def fixed_point(matrix, alpha, e_in):
    walk = np.eye(len(e_in)) - (1 - alpha) * matrix.toarray()
    return torch.from_numpy(alpha * np.linalg.solve(walk, e_in.double().numpy())).float()


@pytest.mark.unit
def test_subsets_are_subsets_and_uniform():
    torch.manual_seed(0)
    draws, k = 20000, 4
    for size in (4, 7, 30):
        chosen = random_subsets(torch.full((draws,), size), k)
        assert chosen.shape == (draws, k) and chosen.min() >= 0 and chosen.max() < size
        assert (chosen.sort(dim=1).values.diff(dim=1) > 0).all()
        share = torch.bincount(chosen.flatten(), minlength=size) / draws
        deviation = (k / size * (1 - k / size) / draws) ** 0.5
        assert ((share - k / size).abs() <= 4.5 * deviation).all()


@pytest.mark.unit
def test_rows_whole_and_sampled(matrix):
    graph, nodes = Graph(matrix, "cpu"), torch.tensor([N - 1, 3, 0, N_USERS - 1])
    np.testing.assert_array_equal(dense(graph.rows(nodes)), matrix.toarray()[nodes])
    np.testing.assert_array_equal(dense(graph.rows(nodes, limit=N)), matrix.toarray()[nodes])
    sample = dense(graph.rows(nodes, limit=3))
    degree = np.diff(matrix.indptr)[nodes]
    np.testing.assert_array_equal((sample != 0).sum(axis=1), np.minimum(degree, 3))
    kept = sample != 0
    scaled = matrix.toarray()[nodes] * (degree / np.maximum(np.minimum(degree, 3), 1))[:, None]
    np.testing.assert_allclose(sample[kept], scaled[kept], rtol=1e-6)


@pytest.mark.unit
def test_product_is_the_sparse_product(matrix):
    table = random_table(1)
    expected = torch.from_numpy(matrix.toarray()) @ table
    torch.testing.assert_close(product(Graph(matrix, "cpu").all_rows(), table), expected)


@pytest.mark.unit
@pytest.mark.parametrize("variance_reduction", [False, True])
def test_sampled_sums_are_unbiased(matrix, variance_reduction):
    torch.manual_seed(0)
    graph, draws = Graph(matrix, "cpu"), 4000
    nodes = torch.arange(N).repeat(draws)
    memory = Memory(random_table(1), variance_reduction)
    if variance_reduction:
        memory.take_snapshot(graph)
        memory.table += 0.1 * random_table(2)  # what a few steps of training change
    exact = product(graph.rows(nodes), memory.table)
    error = (memory.neighbour_sums(nodes, graph.rows(nodes, 3)) - exact).view(draws, N, D)
    allowed = 4.5 * error.std(dim=0) / draws**0.5 + 1e-5  # (N, D), 84 numbers: 4.5 standard errors
    assert (error.mean(dim=0).abs() <= allowed).all()
    assert error.abs().max() > 0.01  # it did sample


@pytest.mark.unit
def test_snapshot_reduces_the_variance(matrix):
    torch.manual_seed(0)
    graph, nodes = Graph(matrix, "cpu"), torch.arange(N).repeat(300)
    plain, reduced = Memory(random_table(1), False), Memory(random_table(1), True)
    reduced.take_snapshot(graph)
    for memory in (plain, reduced):
        memory.table += 0.1 * random_table(2)
    exact = product(graph.rows(nodes), plain.table)
    errors = []
    for memory in (plain, reduced):
        sums = memory.neighbour_sums(nodes, graph.rows(nodes, 3))
        errors.append((sums - exact).pow(2).mean().item())
    assert errors[1] < errors[0] / 20


@pytest.mark.unit
@pytest.mark.parametrize("alpha", [0.2, 0.45, 0.9])
def test_exact_steps_reach_the_fixed_point_of_outputs_and_gradients(matrix, alpha):
    """Random batches of nodes, each moved by one layer from memory, with E_in and dL/dE held still."""
    generator = torch.Generator().manual_seed(0)
    graph, e_in, loss_gradient = Graph(matrix, "cpu"), random_table(1), random_table(2)
    outputs, gradients = Memory(torch.zeros(N, D), False), Memory(torch.zeros(N, D), False)
    for _ in range(120):
        nodes = torch.randperm(N, generator=generator)[: 3 * N // 4].sort().values
        batch = e_in[nodes].requires_grad_()
        out = _ImplicitLayer.apply(batch, alpha, nodes, graph.rows(nodes), outputs, gradients)
        out.backward(loss_gradient[nodes])
        torch.testing.assert_close(batch.grad, gradients.table[nodes])
    # A is symmetric: the gradient through the inverse is the inverse applied to the gradient.
    for memory, source in ((outputs, e_in), (gradients, loss_gradient)):
        torch.testing.assert_close(memory.table, fixed_point(matrix, alpha, source), rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_scores_are_those_of_the_corrected_fixed_point(build):
    _, model, train, *_ = build("LTGNN", embedding_size=8, eval_layers=60, output_correction=0.2)
    adjacency = normalised_adjacency(train._dataset.inter_matrix(form="csr"))
    e_in = model.ego_embeddings().detach()
    expected = (fixed_point(adjacency, model.alpha, e_in) - 0.2 * e_in) / 0.8
    torch.testing.assert_close(torch.cat(model.forward()).detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.outputs.table, model.propagate(e_in, 7))  # what training starts from


def train_steps(model, train, epochs, learner=torch.optim.SparseAdam):
    optimizer, losses = learner(model.parameters(), lr=0.01), []
    for _ in range(epochs):
        model.train()
        for batch in train:
            optimizer.zero_grad()
            loss = model.calculate_loss(batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.unit
def test_sampling_all_neighbours_is_exact(build):
    trained = []
    for num_neighbors in (-1, 10_000):
        _, model, train, *_ = build("LTGNN", num_neighbors=num_neighbors, train_batch_size=128)
        losses = train_steps(model, train, epochs=2)
        tables = model.ego_embeddings(), model.outputs.table, model.gradients.table
        trained.append((torch.tensor(losses), *tables))
    for exact, sampled in zip(*trained):
        torch.testing.assert_close(sampled, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.unit
def test_dense_learner_gets_the_same_gradient(build):
    gradients = []
    for learner in ("sparse_adam", "adam"):
        _, model, train, *_ = build("LTGNN", learner=learner, num_neighbors=-1)
        model.calculate_loss(next(iter(train))).backward()
        gradients.append(model.item_embedding.weight.grad)
    assert gradients[0].is_sparse and not gradients[1].is_sparse
    torch.testing.assert_close(gradients[0].to_dense(), gradients[1])


@pytest.mark.unit
def test_memories_are_saved_and_snapshots_are_not(build):
    _, model, train, *_ = build("LTGNN", num_neighbors=3)
    train_steps(model, train, epochs=1)
    state = model.state_dict()
    assert {"outputs.table", "gradients.table"} < set(state) and not any("snapshot" in key for key in state)
    _, fresh, *_ = build("LTGNN", num_neighbors=3, seed=1)
    fresh.load_state_dict(state)
    torch.testing.assert_close(fresh.outputs.table, model.outputs.table)
    assert model.gradients.table.abs().sum() > 0
    fresh.train()
    fresh.calculate_loss(next(iter(train)))
    torch.testing.assert_close(fresh.outputs.snapshot, model.outputs.table)  # taken anew from the memory


@pytest.mark.unit
def test_scores_cache_and_padding(build):
    _, model, train, *_ = build("LTGNN", embedding_size=8, num_neighbors=3)
    model.eval()
    users = torch.tensor([1, 5, 5])
    padding = torch.tensor([0, model.n_users])
    untouched = model.outputs.table[padding].clone()
    with torch.no_grad():
        scores = model.full_sort_predict(Interaction({"user_id": users})).view(3, model.n_items)
        pairs = Interaction({"user_id": users, "item_id": torch.tensor([3, 1, 40])})
        torch.testing.assert_close(model.predict(pairs), scores[[0, 1, 2], [3, 1, 40]])
        assert model.restore_user_e is not None
        model.user_embedding.weight[0] = 1e6
        model.item_embedding.weight[0] = 1e6
    model.calculate_loss(next(iter(train))).backward()
    assert model.restore_user_e is None  # stale once it trains
    with torch.no_grad():
        again = model.full_sort_predict(Interaction({"user_id": users})).view(3, model.n_items)
    torch.testing.assert_close(again[:, 1:], scores[:, 1:])
    torch.testing.assert_close(model.outputs.table[padding], untouched)
    assert not model.gradients.table[padding].any()


@pytest.mark.unit
@pytest.mark.parametrize(
    "key, value",
    [
        ("alpha", 0.0),
        ("alpha", 1),
        ("alpha", "half"),
        ("num_neighbors", 0),
        ("num_neighbors", -2),
        ("num_neighbors", 1.5),
        ("eval_layers", 0),
        ("output_correction", 1.0),
        ("reg_weight", -1e-4),
        ("embedding_size", 0),
    ],
)
def test_wrong_keys_are_named(build, key, value):
    with pytest.raises(ConfigError, match=key):
        build("LTGNN", **{key: value})


@pytest.mark.recipe
@pytest.mark.parametrize("num_neighbors", [-1, 3])
def test_learns_the_toy_data(learn_toy, num_neighbors):
    popular = learn_toy("Pop", eval_step=1)
    result = learn_toy("LTGNN", num_neighbors=num_neighbors, learning_rate=0.05)
    assert result["hit@5"] > max(0.9, popular["hit@5"] + 0.4)
    assert result["ndcg@20"] > popular["ndcg@20"] + 0.2
