"""The short way of a single query gives T5's own numbers and gradients, and is taken for a single query only."""

import copy

import pytest
import torch

from recbole_tokenrec.llm.backbone import from_config, word_level_tokenizer
from recbole_tokenrec.llm.cross_attention import ask_as_transformers, ask_once

pytestmark = pytest.mark.unit
SIZES = {"model_type": "t5", "d_model": 32, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SIZES.update(decoder_start_token_id=0, pad_token_id=0, dropout_rate=0.0)


@pytest.fixture
def models():
    torch.manual_seed(1)
    plain = from_config(SIZES, word_level_tokenizer(["a b c d e f g"]), {"source": "test"}, dropout=0.0).model
    quick = copy.deepcopy(plain)
    ask_once(quick)
    return plain, quick


def run(model, positions=1):
    ids = torch.arange(2, 9).repeat(3, 1)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    start = torch.zeros(3, positions, dtype=torch.long)
    return model(input_ids=ids, attention_mask=mask, decoder_input_ids=start, use_cache=False).last_hidden_state


def short_ways(model):
    return [module for module in model.modules() if type(module).__name__ == "SingleQueryAttention"]


@pytest.mark.parametrize("mask", ["sdpa", "eager"])  # a boolean mask, an additive one
def test_values_and_gradients_are_t5s(models, mask):
    plain, quick = models
    quick.set_attn_implementation(mask)
    assert len(short_ways(quick)) >= 2 and not short_ways(plain)
    results = []
    for model in models:
        hidden = run(model)
        hidden.square().sum().backward()
        results.append((hidden.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-4)
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, atol=1e-4, rtol=1e-3, msg=name)


def test_keys_and_values_of_all_positions_are_not_made(models):
    _, quick = models
    calls = []
    for module in short_ways(quick):
        if module is not quick.decoder.block[0].layer[0].SelfAttention:
            for part in (module.k, module.v):
                part.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[1]))
    run(quick)
    assert 7 not in calls  # the length of the prompt


def test_several_queries_take_t5s_own_way_and_the_change_can_be_undone(models):
    plain, quick = models
    torch.testing.assert_close(run(plain.eval(), 3), run(quick.eval(), 3))
    assert set(plain.state_dict()) == set(quick.state_dict())
    ask_as_transformers(quick)
    assert not short_ways(quick)


def test_dropout_acts_on_the_weights_in_training_only():
    torch.manual_seed(1)
    model = from_config(SIZES, word_level_tokenizer(["a b c d e f g"]), {"source": "test"}, dropout=0.0).model
    ask_once(model)
    for module in short_ways(model):
        module.dropout = 0.5
    model.train()
    assert not torch.equal(run(model), run(model))
    model.eval()
    assert torch.equal(run(model), run(model))
