"""Cheap dropout is dropout: rates, scale, independence, seeds; and the attention beside it is T5's own."""

import copy

import pytest
import torch
from torch import nn

from recbole_tokenrec.llm import dropout as module
from recbole_tokenrec.llm.backbone import from_config, word_level_tokenizer

pytestmark = pytest.mark.unit
SIZES = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SIZES.update(decoder_start_token_id=0, pad_token_id=0, dropout_rate=0.1)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_rate_and_scale(p):
    torch.manual_seed(0)
    x = torch.ones(2_000_003)  # not a multiple of eight
    kept = module.dropout(x, p)
    steps = round(256 * p)
    assert abs(float((kept == 0).float().mean()) - steps / 256) < 2e-3
    assert torch.equal(kept[kept != 0].unique(), torch.tensor([256 / (256 - steps)]))
    assert abs(float(kept.mean()) - 1) < 8e-3


def test_bytes_of_one_word_and_words_of_one_call_are_independent():
    torch.manual_seed(0)
    dropped = (module.keep_factors(torch.ones(8 * 200_000), 64) == 0).float().view(-1, 8)
    together = (dropped.T @ dropped) / len(dropped)
    expected = torch.full((8, 8), 1 / 16).fill_diagonal_(1 / 4)
    torch.testing.assert_close(together, expected, atol=4e-3, rtol=0)
    neighbours = (dropped[1:] * dropped[:-1]).mean(dim=0)
    torch.testing.assert_close(neighbours, torch.full((8,), 1 / 16), atol=4e-3, rtol=0)


def test_seed_decides_and_calls_differ():
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append([module.dropout(torch.ones(4, 999), 0.3) for _ in range(2)])
    assert torch.equal(draws[0][0], draws[1][0]) and torch.equal(draws[0][1], draws[1][1])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_gradient_goes_where_values_went_and_evaluation_is_the_identity():
    x = torch.randn(50, 60, requires_grad=True)
    layer = module.Dropout(0.4)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)
    assert layer.eval()(x) is x
    assert torch.equal(module.dropout(x, 0.0), x)


def t5(rate):
    torch.manual_seed(1)
    model = from_config(SIZES, word_level_tokenizer(["a b c d e f g"]), {"source": "test"}, dropout=rate).model
    plain = copy.deepcopy(model)
    module.use_cheap_dropout(model)
    return plain, model


def run(model, positions=5, padded=False):
    """Hidden states of a decoder that reads ``positions`` tokens, with a mask of its own if ``padded``."""
    ids = torch.arange(2, 9).repeat(3, 1)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    asked = ids[:, :positions]
    decoder_mask = {"decoder_attention_mask": mask[:, :positions]} if padded else {}
    return model(
        input_ids=ids, attention_mask=mask, decoder_input_ids=asked, use_cache=False, **decoder_mask
    ).last_hidden_state


def test_t5_is_the_same_model_in_evaluation_and_has_no_dropout_of_torchs_left():
    plain, model = t5(0.1)
    torch.testing.assert_close(run(plain.eval()), run(model.eval()))
    assert not any(type(part) is nn.Dropout for part in model.modules())
    assert set(plain.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize(("positions", "padded"), [(1, False), (5, False), (5, True)])
def test_attention_with_dropout_is_t5s_own_with_masked_positions_and_gradients(positions, padded, monkeypatch):
    """The rate is kept and the factors are replaced by ones: what is left must be plain attention."""
    plain, model = t5(0.1)
    if model.encoder.config._attn_implementation != module.ATTENTION:
        pytest.skip("this transformers' T5 lets nobody choose its attention after it was built")
    monkeypatch.setattr(module, "keep_factors", lambda x, steps: torch.ones_like(x))
    for part in plain.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if hasattr(part, "relative_attention_num_buckets"):
            part.dropout = 0.0
    results = []
    for candidate in (plain, model):
        hidden = run(candidate.train(), positions, padded)
        hidden.square().sum().backward()
        results.append((hidden.detach(), {n: p.grad for n, p in candidate.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_decoder_in_training_does_not_see_what_comes_later():
    _, model = t5(0.1)
    states = []
    for later in (3, 4):
        torch.manual_seed(0)
        decoder = torch.tensor([[0, 2, later, later, 5]])
        states.append(model.train()(input_ids=torch.arange(2, 9)[None], decoder_input_ids=decoder).last_hidden_state)
    assert torch.equal(states[0][:, :2], states[1][:, :2])
    assert not torch.equal(states[0][:, 2:], states[1][:, 2:])


def test_the_chosen_attention_is_not_written_into_an_exported_configuration(tmp_path):
    from transformers import T5Model

    _, model = t5(0.1)
    model.save_pretrained(tmp_path)
    assert module.ATTENTION not in (tmp_path / "config.json").read_text()
    torch.testing.assert_close(run(T5Model.from_pretrained(tmp_path).eval()), run(model.eval()))
