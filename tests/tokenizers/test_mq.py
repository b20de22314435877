"""MQ-Tokenizer: the equations by hand, the origin of every gradient, round trips, dead codewords."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from recbole_tokenrec.tokenizers import TOKENIZERS, MQTokenizer
from recbole_tokenrec.tokenizers.mq import KWayMLP, k_means, nearest_codeword

pytestmark = pytest.mark.unit


def small(k=3, size=8, dim=6, **options):
    torch.manual_seed(1)
    tokenizer = MQTokenizer(dim, k, size, codeword_dim=4, hidden_size=10, masking_ratio=0.0, **options)
    torch.nn.init.normal_(tokenizer.codebooks)
    return tokenizer


def linear_example():
    """K = 2, d = d_c = 2, encoders and decoder the identity (the short cuts alone), so that all can be done by hand."""
    tokenizer = MQTokenizer(2, 2, 2, codeword_dim=2, hidden_size=2, masking_ratio=0.0, beta=0.25, skip=True)
    with torch.no_grad():
        for parameter in (*tokenizer.encoders.parameters(), *tokenizer.decoder.parameters()):
            parameter.zero_()
        tokenizer.encoder_skip.weights[0].copy_(torch.eye(2).expand(2, 2, 2))
        tokenizer.decoder_skip.weight.copy_(torch.eye(2))
        tokenizer.decoder_skip.bias.zero_()
        tokenizer.codebooks.copy_(torch.tensor([[[1.0, 1.0], [3.0, 1.0]], [[0.0, 2.0], [5.0, 5.0]]]))
    return tokenizer


def test_equations_9_11_12_13_by_hand():
    tokenizer = linear_example()
    output = tokenizer(torch.tensor([[2.5, 1.5]]))  # a^1 = a^2 = (2.5, 1.5)
    # distances: book 1: (1,1) 2.5, (3,1) 0.5 -> word 1; book 2: (0,2) 6.5, (5,5) 18.5 -> word 0
    assert output.indices.tolist() == [[1, 0]]
    # Eq. 9: mean of (3,1) and (0,2) = (1.5, 1.5), through the identity
    np.testing.assert_allclose(output.quantized.detach().numpy(), [[1.5, 1.5]], atol=1e-6)
    # Eq. 10: (2.5-1.5)^2 + 0 = 1; Eq. 11 = Eq. 12: 0.5 + 6.5 = 7
    assert output.losses["reconstruction"].item() == pytest.approx(1.0, abs=1e-6)
    assert output.losses["codebook"].item() == pytest.approx(7.0, abs=1e-6)
    assert output.losses["commitment"].item() == pytest.approx(7.0, abs=1e-6)
    assert tokenizer.loss(output).item() == pytest.approx(1 + 7 + 0.25 * 7, abs=1e-6)


def test_straight_through_gradient_reaches_the_encoders_unchanged():
    tokenizer = linear_example()
    encoded = []

    def keep(module, inputs, output):
        output.retain_grad()
        encoded.append(output)

    tokenizer.encoder_skip.register_forward_hook(keep)
    tokenizer(torch.tensor([[2.5, 1.5]])).losses["reconstruction"].backward()
    # d/da of |q - mean(c)|^2 through the identity decoder: 2 (r - q) / K = (-1, 0) for each of K = 2 ways
    np.testing.assert_allclose(encoded[0].grad.numpy(), [[[-1.0, 0.0]], [[-1.0, 0.0]]], atol=1e-6)
    assert tokenizer.codebooks.grad is None  # Eq. 10 gives the codebooks nothing


@pytest.mark.parametrize(
    ("loss", "encoders", "codebooks", "decoder"),
    [("reconstruction", True, False, True), ("codebook", False, True, False), ("commitment", True, False, False)],
)
def test_each_loss_trains_the_right_parameters(loss, encoders, codebooks, decoder):
    tokenizer = small()
    tokenizer(torch.randn(16, 6)).losses[loss].backward()

    def moved(parameters):
        return {p.grad is not None and bool(p.grad.abs().sum() > 0) for p in parameters}

    assert moved(tokenizer.encoders.parameters()) == {encoders}
    assert moved([tokenizer.codebooks]) == {codebooks}
    assert moved(tokenizer.decoder.parameters()) == {decoder}


def test_every_way_and_every_layer_receives_gradient():
    tokenizer = small()
    tokenizer.loss(tokenizer(torch.randn(64, 6))).backward()
    for weight in tokenizer.encoders.weights:
        assert (weight.grad.flatten(1).abs().sum(dim=1) > 0).all()  # each of the K encoders
    assert (tokenizer.codebooks.grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_k_way_mlp_equals_k_separate_mlps():
    stack = KWayMLP(3, [5, 7, 4])
    x = torch.randn(9, 5)
    for way, out in enumerate(stack(x)):
        hidden = torch.nn.functional.gelu(x @ stack.weights[0][way] + stack.biases[0][way])
        torch.testing.assert_close(out, hidden @ stack.weights[1][way] + stack.biases[1][way])


def test_nearest_codeword_equals_brute_force():
    encoded, books = torch.randn(3, 20, 4), torch.randn(3, 11, 4)
    brute = (encoded.unsqueeze(2) - books.unsqueeze(1)).pow(2).sum(-1).argmin(-1)
    assert torch.equal(nearest_codeword(encoded, books), brute)


def test_masking_hides_the_given_share_anew_at_each_call_and_not_at_evaluation():
    tokenizer = MQTokenizer(50, 2, 4, masking_ratio=0.3)
    x = torch.ones(400, 50)
    first, second = tokenizer.mask(x), tokenizer.mask(x)
    assert float((first == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    assert torch.equal(tokenizer.eval().mask(x), x)


def test_codes_codewords_codes_round_trip():
    tokenizer = small()
    codes = torch.randint(0, 8, (30, 3))
    vectors = tokenizer.codewords(codes)  # (30, K, d_c)
    assert torch.equal(nearest_codeword(vectors.transpose(0, 1), tokenizer.codebooks).T, codes)


@pytest.mark.parametrize("skip", [False, True])
def test_codes_of_many_rows_are_those_of_few(skip, monkeypatch):
    torch.manual_seed(0)
    tokenizer = MQTokenizer(16, 3, 8, codeword_dim=5, hidden_size=12, skip=skip).eval()
    x = torch.randn(500, 16)
    tokenizer.fit_scale(x)
    for parameter in tokenizer.parameters():  # nothing is 0, nor small
        torch.nn.init.normal_(parameter)
    calls = []
    for most in (2**26, 3 * 8 * 100):  # all at once, and in parts of 100 rows
        monkeypatch.setattr("recbole_tokenrec.tokenizers.mq._MOST_DISTANCES", most)
        calls.append(tokenizer.encode(x))
    assert torch.equal(calls[0], tokenizer(x).indices) and torch.equal(calls[0], calls[1])


def test_encode_is_deterministic_and_agrees_with_forward():
    tokenizer = small().eval()
    x = torch.randn(10, 6)
    output = tokenizer(x)
    assert torch.equal(tokenizer.encode(x), output.indices)
    assert torch.equal(tokenizer.encode_all(x, batch_size=3), output.indices)
    torch.testing.assert_close(tokenizer.decode(output.indices), output.quantized)


def test_scale_is_measured_and_undone():
    x = 5 + 0.01 * torch.randn(200, 6)
    tokenizer = small()
    tokenizer.fit_scale(x)
    assert tokenizer.standardise(x).pow(2).mean().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(tokenizer.restore(tokenizer.standardise(x)), x)


def test_kmeans_start_beats_random_codebooks_and_survives_few_rows():
    torch.manual_seed(0)
    tokenizer = MQTokenizer(6, 2, 16, codeword_dim=4, hidden_size=10)
    centres = torch.randn(16, 6) * 3
    x = centres[torch.randint(0, 16, (300,))] + 0.01 * torch.randn(300, 6)
    tokenizer.fit_scale(x)
    random_loss = tokenizer.eval()(x).losses["commitment"]
    tokenizer.start_from(x, seed=0)
    assert tokenizer(x).losses["commitment"] < 0.05 * random_loss
    tokenizer.start_from(x[:3], seed=0)  # fewer rows than codewords
    assert torch.isfinite(tokenizer.codebooks).all()


def test_dead_codewords_move_onto_entities():
    tokenizer = small(size=32)
    with torch.no_grad():
        tokenizer.codebooks[:, 5:] += 1000  # nobody is near them
    x = torch.randn(100, 6)
    codes = tokenizer.encode_all(x)
    use = torch.stack([column.bincount(minlength=32) for column in codes.T])
    assert tokenizer.revive_dead_codewords(x, use) == int((use == 0).sum())
    again = torch.stack([column.bincount(minlength=32) for column in tokenizer.encode_all(x).T])
    assert (again > 0).float().mean() > 0.8


def test_training_explains_most_of_clustered_data():
    torch.manual_seed(0)
    centres = torch.randn(12, 8)
    x = centres[torch.randint(0, 12, (400,))] + 0.05 * torch.randn(400, 8)
    tokenizer = MQTokenizer(8, 2, 16, codeword_dim=8, hidden_size=32, masking_ratio=0.1)
    tokenizer.fit_scale(x)
    tokenizer.start_from(x, seed=0)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        tokenizer.loss(tokenizer(x)).backward()
        optimizer.step()
    assert tokenizer.explained_variance(x, tokenizer.encode_all(x)) > 0.85


def test_a_start_from_the_data_gives_every_codebook_something_of_its_own():
    torch.manual_seed(0)
    x = torch.randn(600, 12) @ torch.randn(12, 12)
    explained = []
    for ways in (1, 2, 4):
        tokenizer = MQTokenizer(12, ways, 32, codeword_dim=12, hidden_size=16, skip=True)
        tokenizer.fit_scale(x)
        tokenizer.start_from(x, seed=0)
        explained.append(tokenizer.explained_variance(x, tokenizer.encode_all(x)))
    assert explained[0] < explained[1] < explained[2] and explained[2] > 0.85


def test_parts_of_a_large_job_give_what_the_whole_gives(monkeypatch):
    tokenizer = small()
    x = torch.randn(50, 6)
    encoded = tokenizer.encoded(x)
    whole = nearest_codeword(encoded, tokenizer.codebooks)
    monkeypatch.setattr("recbole_tokenrec.tokenizers.mq._MOST_DISTANCES", 3 * 8 * 7)  # seven rows at once
    assert torch.equal(nearest_codeword(encoded, tokenizer.codebooks), whole)
    torch.testing.assert_close(tokenizer.encoded_in_chunks(x), encoded)


def test_a_start_from_many_rows_reads_a_part_of_them(monkeypatch):
    monkeypatch.setattr("recbole_tokenrec.tokenizers.mq.ROWS_PER_CODEWORD", 30)
    tokenizer = small(skip=True)
    x = torch.randn(4000, 6)
    sizes = []
    original = tokenizer.encoded

    def spy(rows):
        sizes.append(len(rows))
        return original(rows)

    monkeypatch.setattr(tokenizer, "encoded", spy)
    tokenizer.start_from(x, seed=0)
    assert sum(sizes) == 30 * 8
    monkeypatch.setattr(tokenizer, "encoded", original)
    assert tokenizer.explained_variance(x, tokenizer.encode_all(x)) > 0.5


@pytest.mark.filterwarnings("error")
def test_k_means_of_rows_that_differ_by_rounding_only_does_not_warn():
    rows = torch.eye(4).repeat(10, 1) + 1e-8 * torch.arange(40).unsqueeze(1)
    labels = k_means([rows], 12, seed=0).reshape(10, 4)
    assert labels.max() < 12 and labels.min() >= 0
    assert len({label for column in labels.T for label in column.unique().tolist()}) == sum(
        len(column.unique()) for column in labels.T
    )  # rows of two axes share no cluster


def test_k_means_gives_equal_rows_one_cluster_and_needs_no_more_rows_than_clusters():
    rows = torch.tensor([[0.0, 1.0], [5.0, 5.0], [0.0, 1.0], [9.0, 0.0]])
    labels = k_means([rows], 8, seed=0)[0]
    assert labels.dtype == torch.int64 and labels[0] == labels[2] and len(labels.unique()) == 3


def test_k_means_of_several_parts_is_that_of_each_whatever_the_threads_and_leaves_their_number_as_it_was():
    torch.manual_seed(0)
    parts = [torch.randn(500, width) for width in (2, 3, 5, 2)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = k_means(parts, 16, seed=3)
        torch.set_num_threads(3)
        pools = {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}
        torch.testing.assert_close(k_means(parts, 16, seed=3), alone, rtol=0, atol=0)
        assert torch.get_num_threads() == 3
        assert {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()} == pools
    finally:
        torch.set_num_threads(threads)
    for way, part in enumerate(parts):
        torch.testing.assert_close(k_means([part], 16, seed=3 + way)[0], alone[way], rtol=0, atol=0)
        assert len(alone[way].unique()) == 16


@pytest.mark.parametrize("name, ways", [("mq", 3), ("mq", 20), ("kmeans", 3), ("kmeans", 20), ("mq_frozen", 3)])
def test_codewords_start_at_the_means_of_their_clusters_as_encoded(name, ways, monkeypatch):
    """With more codebooks than dimensions (20 of 12), too, where some have no axes of their own."""
    torch.manual_seed(0)
    x = torch.randn(300, 12)
    tokenizer = TOKENIZERS[name](12, ways, 16, codeword_dim=12, hidden_size=16, skip=True)
    tokenizer.fit_scale(x)
    given = []
    monkeypatch.setattr("recbole_tokenrec.tokenizers.mq.k_means", lambda *a: given.append(k_means(*a)) or given[-1])
    monkeypatch.setattr("recbole_tokenrec.tokenizers.mq._MOST_DISTANCES", ways * 12 * 70)  # seventy rows at once
    tokenizer.start_from(x, seed=0)
    encoded = tokenizer.encoded(tokenizer.standardise(x))
    for way, labels in enumerate(given[0]):
        for label in labels.unique():
            torch.testing.assert_close(tokenizer.codebooks[way, label], encoded[way, labels == label].mean(dim=0))
