"""Item IDs: unique, made from training alone, and near where items are taken together."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score

from recbole_tokenrec.generative.clustering import cluster_qr, co_occurrence, spectral_embedding
from recbole_tokenrec.generative.indexing import (
    appearance_order,
    collaborative_index,
    random_index,
    sequential_index,
)
from recbole_tokenrec.histories import Histories


def some_histories(n_users=60, n_items=90, per_user=6, groups=3, unseen=10, seed=0):
    """Users take items of their own group; the last ``unseen`` items are in nobody's training."""
    rng = np.random.default_rng(seed)
    n = n_items - unseen - 1
    users = np.repeat(np.arange(1, n_users), per_user)
    blocks = np.array_split(1 + np.arange(n), groups)
    items = np.concatenate([rng.choice(blocks[user % groups], per_user, replace=False) for user in range(1, n_users)])
    return Histories(users, items, n_users), n_items


def numbers(index):
    return np.array([0] + [int(name) for name in index.names[1:]])


@pytest.mark.unit
def test_every_item_has_an_id_of_its_own():
    histories, n_items = some_histories(unseen=25)
    for index in (
        random_index(n_items, 3),
        sequential_index(histories, n_items, 3),
        collaborative_index(histories, n_items, 3, clusters=3, cluster_size=4),  # 25 unseen items need 3 digits of 4
    ):
        assert index.names[0] == "" and len(index.names) == n_items
        assert len(set(index.names)) == n_items
        assert all(name and " " not in name for name in index.names[1:])
    assert sorted(numbers(random_index(n_items, 3))[1:]) == list(range(1001, 1000 + n_items))
    plain, prefixed = random_index(n_items, 3).names[1:], random_index(n_items, 3, "item_").names[1:]
    assert prefixed == ["item_" + name for name in plain]
    assert random_index(n_items, 3) == random_index(n_items, 3) != random_index(n_items, 4)


@pytest.mark.unit
def test_sequential_ids_follow_first_appearance():
    histories = Histories(np.array([2, 1, 1, 2, 3]), np.array([5, 3, 4, 3, 6]), 4)
    ids = numbers(sequential_index(histories, 9, seed=0))
    assert ids[[3, 4, 5, 6]].tolist() == [1001, 1002, 1003, 1004]  # user 1: 3 4; user 2: 5 (3); user 3: 6
    assert sorted(ids[[1, 2, 7, 8]]) == [1005, 1006, 1007, 1008]


@pytest.mark.unit
def test_held_out_item_cannot_be_guessed_from_its_number():
    """The guess: the number after the last new number of the user's training. It finds every held-out item under
    P5's first numbering, which walks whole histories, and almost none under ours."""
    rng = np.random.default_rng(1)
    n_users, per_user = 400, 5
    n_items = n_users * per_user + 1
    order = 1 + rng.permutation(n_items - 1)  # each user takes items that nobody took before him
    whole = order.reshape(n_users, per_user)
    training, held_out = whole[:, :-1], whole[:, -1]

    def hits(ids):
        return float(np.mean(ids[held_out] == ids[training].max(axis=1) + 1))

    users = np.repeat(np.arange(1, n_users + 1), per_user)
    leaky = Histories(users, whole.ravel(), n_users + 1)
    ours = Histories(np.repeat(np.arange(1, n_users + 1), per_user - 1), training.ravel(), n_users + 1)
    assert hits(numbers(sequential_index(leaky, n_items, 0))) == 1.0
    ids = numbers(sequential_index(ours, n_items, 0))
    assert hits(ids) < 0.01
    # nor does the order of the held-out items say whose they are
    assert abs(np.corrcoef(ids[held_out], np.arange(n_users))[0, 1]) < 0.2
    # and renaming the held-out items (RecBole numbers them by the whole file) changes nothing of the others
    seen, rest = appearance_order(ours, n_items, 0)
    assert set(seen) == set(training.ravel()) and set(rest) == set(held_out)


@pytest.mark.unit
def test_co_occurrence_counts_users():
    histories = Histories(np.array([1, 1, 1, 2, 2, 3]), np.array([1, 2, 3, 2, 3, 4]), 4)
    expected = np.zeros((5, 5))
    expected[1, 2] = expected[1, 3] = 1
    expected[2, 3] = 2
    np.testing.assert_array_equal(co_occurrence(histories, 5).toarray(), expected + expected.T)


def blocks(sizes, seed=0, noise=0.02):
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    chance = np.where(truth[:, None] == truth, 0.5, noise)
    upper = np.triu(rng.random(chance.shape) < chance, 1) * rng.integers(1, 4, chance.shape)
    return sp.csr_matrix((upper + upper.T).astype(np.float32)), truth


@pytest.mark.unit
@pytest.mark.parametrize("sizes", [(40, 60, 50), (500, 400, 300)])  # LAPACK's way and ARPACK's
def test_clusters_are_those_of_scikit_learn(sizes):
    affinity, truth = blocks(sizes)
    labels = cluster_qr(spectral_embedding(affinity, len(sizes), np.random.default_rng(0)))
    assert adjusted_rand_score(truth, labels) > 0.98
    if sum(sizes) < 1000:
        theirs = SpectralClustering(
            len(sizes), affinity="precomputed", assign_labels="cluster_qr", random_state=0
        ).fit_predict(affinity.toarray())
        assert adjusted_rand_score(theirs, labels) > 0.98


@pytest.mark.unit
def test_items_of_a_group_share_their_first_token():
    histories, n_items = some_histories(groups=3)
    index = collaborative_index(histories, n_items, 0, clusters=3, cluster_size=40)
    first = [name.split(">")[0] for name in index.names]
    groups = np.array_split(1 + np.arange(n_items - 11), 3)
    tokens = []
    for group in groups:
        kept = {first[item] for item in group if item in histories.items}
        assert len(kept) == 1
        tokens += kept
    assert len(set(tokens)) == 3
    rest = {first[item] for item in range(n_items - 10, n_items)}
    assert len(rest) == 1 and not rest & set(tokens)


@pytest.mark.unit
def test_items_without_any_partner_are_clustered_too():
    """Every user has one item: no affinity at all, and the whole is cut into parts of any size."""
    histories = Histories(np.arange(1, 201), np.arange(1, 201), 201)
    index = collaborative_index(histories, 201, 0, clusters=4, cluster_size=10)
    assert len(set(index.names[1:])) == 200
    mixed, _ = blocks((30, 30))
    isolated = sp.block_diag([mixed, sp.csr_matrix((20, 20), dtype=np.float32)], format="csr")
    vectors = spectral_embedding(isolated, 3, np.random.default_rng(0))
    assert np.isfinite(vectors).all()
