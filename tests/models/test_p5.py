"""P5 and CID: samples, loss, scores, checkpoints, and the toy data."""

import glob

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model, run_recbole
from transformers.modeling_outputs import BaseModelOutput

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.generative.trainer import GenerativeTrainer

MINI = {"llm_backbone": "t5-scratch-mini", "cid_clusters": 4, "cid_cluster_size": 12}


@pytest.fixture
def p5(build):
    return lambda name="P5", **keys: build(name, **{**MINI, **keys})


@pytest.mark.unit
@pytest.mark.parametrize("number", [1, 3])
def test_prompts_hold_training_items_before_the_targets(p5, number):
    """Every sample of an epoch: no held-out pair, no item at or after its first target."""
    _, model, train, valid, test = p5(train_batch_size=512, targets_per_prompt=number)
    held_out = {
        (int(user), int(item))
        for loader in (valid, test)
        for user, item in zip(loader._dataset.inter_feat["user_id"], loader._dataset.inter_feat["item_id"])
    }
    item_of = {name: item for item, name in enumerate(model.item_names) if name}
    time = {}  # of each training pair
    features = train._dataset.inter_feat
    for user, item, stamp in zip(features["user_id"], features["item_id"], features["timestamp"]):
        time[int(user), int(item)] = float(stamp)
    made = 0
    seen = []
    model.words.whole_words = lambda words: seen.append(list(words)) or ([1], [0])
    for batch in train:
        prompts, targets = model.training_prompts("sequential", batch["user_id"], batch["item_id"])
        assert len(seen) == len(prompts) == len(targets)
        for words, answers in zip(seen, targets):
            user = next(int(word[5:]) for word in words if word.startswith("user_"))
            items = [item_of[word] for word in words if word in item_of]
            stamps = [time[user, answer] for answer in answers]  # KeyError: not a training pair
            assert items and stamps == sorted(stamps) and len(stamps) <= number
            assert all(time[user, item] < stamps[0] for item in items)
            assert not {(user, item) for item in [*items, *answers]} & held_out
            made += 1
        seen.clear()
    counts = model.histories.counts()
    assert made == int(counts.sum() - (counts > 0).sum())  # each but the users' first items
    model.evaluation_prompt(1)
    items = {item_of[word] for word in seen[0] if word in item_of}
    assert items == set(model.samples.latest(1, 20)) and not {(1, item) for item in items} & held_out


@pytest.mark.unit
def test_whole_words_are_added_to_the_tokens(p5):
    _, model, *_ = p5()
    batch = model.collate([model.prompt("sequential", 0, 3, [5, 6])])
    inputs, mask = model.embed(batch)
    table = model.backbone.get_input_embeddings().weight
    torch.testing.assert_close(inputs, table[batch.input_ids] + model.whole_word.weight[batch.marks])
    digits = model.words.tokens(model.item_names[5])
    at = next(i for i in range(99) if batch.input_ids[0, i : i + len(digits)].tolist() == digits)
    assert len(set(batch.marks[0, at : at + len(digits)].tolist())) == 1  # "item", "_" and the digits: one word


@pytest.mark.unit
def test_loss_is_the_mean_over_tokens_then_samples(p5):
    _, model, *_ = p5("CID")  # IDs of several lengths
    model.eval()
    model.end_share = 1.0
    items = torch.tensor([1, 2, 3, 4, *(item for item in range(9, 49) if item in model.histories.items)][:8])
    sequences = [[*model.words.tokens(model.item_names[item]), model.words.eos_id] for item in items.tolist()]
    batch = model.collate([model.evaluation_prompt(user) for user in range(1, 9)])
    single = []
    hidden, mask = model.encode(batch)
    for row, sequence in enumerate(sequences):
        labels = torch.tensor([sequence])
        output = BaseModelOutput(last_hidden_state=hidden[row : row + 1])
        one = model.backbone(encoder_outputs=output, attention_mask=mask[row : row + 1], labels=labels)
        single.append(one.loss)
    targets = [[item] for item in items.tolist()]
    torch.testing.assert_close(model.target_loss(batch, targets), torch.stack(single).mean(), rtol=1e-4, atol=1e-5)
    few = model.collate([model.evaluation_prompt(user) for user in range(5, 9)])  # none of the longest IDs
    torch.testing.assert_close(
        model.target_loss(few, targets[4:]), torch.stack(single[4:]).mean(), rtol=1e-4, atol=1e-5
    )
    pairs = Interaction({"user_id": torch.arange(1, 9), "item_id": items})
    number = torch.tensor([len(sequence) for sequence in sequences])
    torch.testing.assert_close(model.predict(pairs), -torch.stack(single).detach() * number, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_targets_of_one_reading_do_not_see_each_other(p5):
    """Loss and gradients of several targets of one reading equal those of one target at a time."""
    _, model, *_ = p5("CID")  # IDs of several lengths
    model.eval()
    model.end_share = 1.0
    prompts = [model.evaluation_prompt(user) for user in (1, 2, 3)]
    targets = [[1, 9, 30], [4], [17, 2]]
    losses = []
    for batch, answers in (
        (prompts, targets),
        ([prompts[row] for row, part in enumerate(targets) for _ in part], [[i] for part in targets for i in part]),
    ):
        model.zero_grad()
        loss = model.target_loss(model.collate(batch), answers)
        loss.backward()
        losses.append((loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)))
    for one, other in zip(*losses):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.unit
def test_scores_are_finite_for_unseen_items_only(p5):
    _, model, *_ = p5(topk=[5, 10], eval_users=5)
    model.eval()
    users = torch.tensor([7, 1, 30, 2, 9, 7])
    scores = model.full_sort_predict(Interaction({"user_id": users})).view(len(users), model.n_items)
    assert scores.isfinite().sum(dim=1).tolist() == [11] * 6
    for row, user in zip(scores, users.tolist()):
        assert not row[[0, *model.samples.latest(user, 99)]].isfinite().any()
    torch.testing.assert_close(scores[0], scores[5])
    # a beam's score is the log-probability of the ID, but for the words that all IDs begin with
    best = scores.argmax(dim=1)
    exact = model.predict(Interaction({"user_id": users, "item_id": best}))
    assert (scores.max(dim=1).values >= exact - 1e-4).all()


@pytest.mark.unit
def test_user_without_history_is_asked_straightforwardly(p5):
    _, model, *_ = p5()
    words = model.tokenizer.decode(model.evaluation_prompt(0)[0])  # the padding user took nothing
    assert "recommended" in words
    assert "in this order" in model.tokenizer.decode(model.evaluation_prompt(1)[0])
    _, unseen, *_ = p5(prompt="unseen")
    assert "Having finished" in unseen.tokenizer.decode(unseen.evaluation_prompt(1)[0])


@pytest.mark.unit
def test_optimizer_spares_norms_and_schedule_reaches_the_end(p5):
    config, model, train, *_ = p5("CID", epochs=2, weight_decay=0.3, train_batch_size=8, embedding_lr_ratio=10)
    trainer = GenerativeTrainer(config, model)
    rates = []
    trainer._check_nan = lambda loss: rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    trainer.fit(train, None, verbose=False, saved=False)
    tables, matrices, vectors = zip(*rates)
    assert len(rates) == 2 * len(trainer.batches) > 8 and max(matrices) == 1e-3
    assert matrices == vectors == pytest.approx([value / 10 for value in tables])
    assert matrices[-1] == pytest.approx(1e-3 / len(rates), rel=0.2)
    embeddings, decayed, spared = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == embeddings["weight_decay"] == 0.3 and spared["weight_decay"] == 0
    assert all(p.dim() == 1 for p in spared["params"]) and spared["params"]
    assert model.whole_word.weight in set(embeddings["params"])


@pytest.mark.unit
@pytest.mark.parametrize(
    "key, value",
    [
        ("item_indexing", "xid"),
        ("tasks", []),
        ("tasks", ["sequential", "explain"]),
        ("tasks", ["sequential", "sequential"]),
        ("max_history", 0),
        ("targets_per_prompt", 0),
        ("num_beams", 0),
        ("prompts_per_sample", 1.5),
        ("prompt", "hidden"),
        ("warmup_ratio", 1.0),
        ("llm_dropout", -0.1),
        ("eval_users", True),
    ],
)
def test_wrong_keys_are_named(p5, key, value):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        p5(**{key: value})


@pytest.mark.unit
def test_cid_is_cid(p5):
    _, model, *_ = p5("CID")
    assert model.tasks == ["sequential"] and all("<CI" in name for name in model.item_names[1:])
    with pytest.raises(ConfigError, match="item_indexing"):
        p5("CID", item_indexing="sid")
    _, wide, *_ = p5("CID", cid_clusters=12, cid_cluster_size=3)
    assert len(set(wide.item_names)) == wide.n_items


@pytest.mark.recipe
def test_resumed_run_ends_as_an_uninterrupted_one(p5):
    class Kept(GenerativeTrainer):
        def _save_checkpoint(self, epoch, verbose=True, **kwargs):
            super()._save_checkpoint(epoch, False, saved_model_file=f"epoch{epoch}.pth")

    keys = {"epochs": 2, "train_batch_size": 168, "max_history": 3}
    config, model, train, *_ = p5(**keys)
    Kept(config, model).fit(train, None, verbose=False)
    config, again, train, *_ = p5(**keys)
    trainer = GenerativeTrainer(config, again)
    trainer.resume_checkpoint("epoch0.pth")
    trainer.fit(train, None, verbose=False, saved=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.recipe
@pytest.mark.parametrize("indexing", ["sid", "cid"])
def test_checkpoint_gives_the_same_scores(toy_data, indexing):
    keys = {"data_path": str(toy_data), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "epochs": 1}
    keys.update(MINI, use_gpu=False, show_progress=False, state="ERROR", train_batch_size=336, eval_step=1)
    result = run_recbole(model="P5", dataset="toy", config_dict={**keys, "item_indexing": indexing, "topk": [5, 20]})
    (file,) = glob.glob("saved/*.pth")
    config, model, _, train, _, test = load_data_and_model(file)
    trainer = GenerativeTrainer(config, model)
    trainer.eval_collector.data_collect(train)
    assert dict(trainer.evaluate(test, load_best_model=False)) == dict(result["test_result"])


@pytest.mark.recipe
def test_cid_learns_the_toy_data(learn_toy):
    keys = {"epochs": 8, "eval_step": 8, "train_batch_size": 8, "learning_rate": 3e-3, "embedding_lr_ratio": 3}
    keys["targets_per_prompt"] = 2
    result = learn_toy("CID", **MINI, **keys)
    assert result["hit@5"] > 0.9  # by popularity: about one in eight


@pytest.mark.unit
def test_styles_write_the_same_items_in_more_or_fewer_tokens(p5):
    texts, lengths = {}, {}
    for style in ("compact", "printed"):
        _, model, *_ = p5(prompt_style=style)
        ids, marks = model.prompt("sequential", 0, 3, [5, 6])
        texts[style] = [name.replace("item_", "") for name in model.item_names]
        lengths[style] = len(ids), len(model.words.tokens(model.item_names[5]))
        assert model.tokenizer.unk_token_id not in ids
        prefix = model.tokenizer.convert_ids_to_tokens(model.trie.prefix)  # of all IDs, 1001 … 1048
        assert prefix == (["item", "_", "1", "0"] if style == "printed" else ["10"])
    assert texts["compact"] == texts["printed"]
    assert lengths["compact"][1] == 2 and lengths["printed"][1] == 6  # two pairs; two signs and four digits
    assert lengths["printed"][0] - lengths["compact"][0] == 2 * 4 + 1 + 1  # items, the user's "_", the mark
