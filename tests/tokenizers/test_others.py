"""RQ, k-means and frozen MQ keep MQ's contract: encode = forward, decode(encode) = quantized, a start from the data."""

import pytest
import torch

from recbole_tokenrec.tokenizers import TOKENIZERS, FrozenMQTokenizer, KMeansTokenizer, RQTokenizer

pytestmark = pytest.mark.unit
OPTIONS = {"codeword_dim": 12, "hidden_size": 16, "masking_ratio": 0.2, "beta": 0.5, "skip": True}


def data(n=400):
    torch.manual_seed(0)
    return torch.randn(n, 12) @ torch.randn(12, 12)


def started(name, ways=3, size=16):
    torch.manual_seed(1)
    tokenizer = TOKENIZERS[name](12, ways, size, **OPTIONS)
    tokenizer.fit_scale(data())
    tokenizer.start_from(data(), seed=0)
    return tokenizer


@pytest.mark.parametrize("name", TOKENIZERS)
def test_contract(name):
    tokenizer = started(name).eval()
    x = data()[:50]
    output = tokenizer(x)
    assert output.quantized.shape == (50, 12) and output.indices.shape == (50, 3)
    assert output.indices.min() >= 0 and output.indices.max() < 16
    assert torch.equal(tokenizer.encode(x), output.indices)
    assert torch.equal(tokenizer.encode_all(x, batch_size=7), output.indices)
    torch.testing.assert_close(tokenizer.decode(output.indices), output.quantized)
    assert tokenizer.codewords(output.indices).shape == (50, 3, 12)
    assert tokenizer.loss(output).dim() == 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_training_lowers_the_loss_and_keeps_more_of_the_data(name):
    tokenizer = started(name)
    tokenizer.masking_ratio = 0.0
    x = data()
    before = tokenizer.explained_variance(x, tokenizer.encode_all(x))
    optimizer = torch.optim.AdamW([p for p in tokenizer.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        tokenizer.loss(tokenizer(x)).backward()
        optimizer.step()
    after = tokenizer.explained_variance(x, tokenizer.encode_all(x))
    assert after > max(before, 0.3)


@pytest.mark.parametrize("name", ["mq", "rq", "kmeans"])
def test_a_further_codebook_keeps_more(name):
    x = data()
    kept = [t.explained_variance(x, t.encode_all(x)) for t in (started(name, ways) for ways in (1, 2, 4))]
    assert kept[0] < kept[1] < kept[2]


def test_residual_quantisation_by_hand():
    """Encoder and decoder the identity; 5.2 = 4 + 1 + 0.2: book one takes 4, book two what is left."""
    tokenizer = RQTokenizer(1, 2, 2, codeword_dim=1, hidden_size=2, masking_ratio=0.0, beta=0.25, skip=True)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.zero_()
        tokenizer.encoder_skip.weights[0].fill_(1.0)
        tokenizer.decoder_skip.weight.fill_(1.0)
        tokenizer.codebooks.copy_(torch.tensor([[[4.0], [-4.0]], [[1.0], [-1.0]]]))
    output = tokenizer(torch.tensor([[5.2]]))
    assert output.indices.tolist() == [[0, 0]]
    assert output.quantized.item() == pytest.approx(5.0)
    assert output.losses["reconstruction"].item() == pytest.approx(0.04, abs=1e-5)
    # residuals 5.2 and 1.2 against codewords 4 and 1
    assert output.losses["codebook"].item() == pytest.approx(1.44 + 0.04, abs=1e-5)
    assert output.losses["commitment"].item() == pytest.approx(1.44 + 0.04, abs=1e-5)


def test_what_is_frozen_stays():
    frozen, kmeans = started("mq_frozen"), started("kmeans")
    assert isinstance(frozen, FrozenMQTokenizer) and isinstance(kmeans, KMeansTokenizer)
    for tokenizer in (frozen, kmeans):
        tokenizer.loss(tokenizer(data())).backward()
    assert all(p.grad is None for p in frozen.encoders.parameters())
    assert frozen.codebooks.grad is not None and frozen.decoder_skip.weight.grad is not None
    assert kmeans.codebooks.grad is None and kmeans.decoder_skip.weight.grad is not None


def test_dead_codewords_of_residual_books_move_onto_residuals():
    tokenizer = started("rq", size=32)
    with torch.no_grad():
        tokenizer.codebooks[:, 8:] += 1000
    x = data()
    use = torch.stack([column.bincount(minlength=32) for column in tokenizer.encode_all(x).T])
    assert tokenizer.revive_dead_codewords(x, use) == int((use == 0).sum()) >= 48
    again = torch.stack([column.bincount(minlength=32) for column in tokenizer.encode_all(x).T])
    assert (again > 0).float().mean() > 0.6
