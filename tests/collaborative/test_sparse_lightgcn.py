"""Our LightGCN is RecBole's: same matrix, same scores, same loss and gradients; only faster."""

import numpy as np
import pytest
import torch

from recbole_tokenrec.collaborative.sparse_lightgcn import SparseLightGCN

pytestmark = pytest.mark.unit


@pytest.fixture
def pair(toy_data):
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender import LightGCN

    keys = {"data_path": str(toy_data), "state": "ERROR", "use_gpu": False, "n_layers": 3}
    config = Config(model="LightGCN", dataset="toy", config_dict=keys)
    train, *_ = data_preparation(config, create_dataset(config))
    models = [cls(config, train._dataset) for cls in (LightGCN, SparseLightGCN)]
    models[1].load_state_dict(models[0].state_dict())
    return (*models, next(iter(train)))


def test_adjacency_is_the_same(pair):
    theirs, ours, _ = pair
    np.testing.assert_allclose(
        ours.norm_adj_matrix.tensor.to_dense().numpy(), theirs.norm_adj_matrix.to_dense().numpy(), rtol=1e-5, atol=1e-7
    )


def test_loss_gradients_and_scores_are_the_same(pair):
    theirs, ours, batch = pair
    losses = [model.calculate_loss(batch) for model in (theirs, ours)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(ours.user_embedding.weight.grad, theirs.user_embedding.weight.grad)
    torch.testing.assert_close(ours.item_embedding.weight.grad, theirs.item_embedding.weight.grad)
    torch.testing.assert_close(ours.full_sort_predict(batch), theirs.full_sort_predict(batch))


@pytest.mark.parametrize("n_layers", [1, 3])
def test_fold_in_is_the_propagation_without_the_users_own_embedding(pair, n_layers):
    from recbole_tokenrec.histories import Histories

    _, model, _ = pair
    model.n_layers = n_layers
    matrix = model.interaction_matrix
    histories = Histories(matrix.row.astype(int), matrix.col.astype(int), model.n_users)
    folded = model.fold_in(histories.rows(), histories.items, histories.ages(), model.n_users)
    users, _ = model.forward()
    expected = users - model.user_embedding.weight / (n_layers + 1)
    torch.testing.assert_close(folded[1:], expected[1:], rtol=1e-4, atol=1e-6)
