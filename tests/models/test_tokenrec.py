"""TokenRec end to end on the toy data, and what must hold for it to be trusted: no leakage, same seed same numbers,
faithful fold-in, checkpoints that load without their backbone's source."""

import copy

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_trainer

from recbole_tokenrec.checkpoints import load_checkpoint
from recbole_tokenrec.errors import CheckpointError, ConfigError, DataError, TrainingError
from recbole_tokenrec.models import tokenrec
from recbole_tokenrec.training.stages import CollaborativeStage, LLMStage

SMALL = {
    "llm_backbone": "t5-scratch-tiny",
    "cf_embedding_size": 16,
    "cf_epochs": 30,
    "cf_train_batch_size": 16,
    "mq_num_codebooks": 3,
    "mq_codebook_size": 16,
    "mq_codeword_dim": 16,
    "mq_hidden_size": 32,
    "mq_epochs": 2,
    "mq_min_steps": 60,
    "mq_train_batch_size": 16,
    "llm_epochs": 4,
    "llm_eval_step": 2,
    "llm_train_batch_size": 16,
    "topk": [5, 20],
    "stage_cache": False,
}
OWN_LOSS = {"cf_loss": "own", "llm_user_tokens": "all", "prompt_decoder_items": 0}

DECODER = {"prompt_decoder_items": 3, "llm_horizon": 2}
ORDERLESS = {"prompt_order": "shuffled", "cf_targets": "random", "prompt_decoder_items": 0}


@pytest.fixture
def fit(build, tmp_path):
    """``fit(**keys)``: (trainer, train, valid, test) after training on the toy data."""

    def run(**keys):
        config, model, train, valid, test = build(
            "TokenRec", **{**SMALL, "checkpoint_dir": str(tmp_path / "saved"), **keys}
        )
        trainer = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
        trainer.fit(train, valid, verbose=False)
        return trainer, train, valid, test

    return run


@pytest.mark.recipe
@pytest.mark.parametrize(
    "keys",
    [
        {"preset": "tuned"},
        {"preset": "user_id_only"},
        {"preset": "tuned", **ORDERLESS, "prompt_style": "compact"},
        {**ORDERLESS, "cf_targets": "all", "cf_recency": 0.5, "cf_target_recency": 0.3},
        {"preset": "tuned", "prompt": "unseen", "history_at_test": "train_valid"},
        {"preset": "tuned", "cf_sampled_items": 20, "llm_sampled_items": 20},
        {"preset": "tuned", **DECODER},
        {"preset": "tuned", "cf_targets": ["next", "all", "random"]},
    ],
    ids=["tuned", "user_id_only", "shuffled", "all targets", "unseen", "sampled", "decoder", "side by side"],
)
def test_learns_the_toy_groups(fit, keys):
    trainer, _, _, test = fit(**keys)
    result = trainer.evaluate(test)
    assert result["hit@5"] > 0.8  # popularity: about one in eight
    assert trainer.reports["item_tokenizer"]["explained_variance"] > 0


@pytest.mark.recipe
def test_paper_preset_trains_a_pretrained_t5_and_its_loss_falls(fit, tiny_t5):
    keys = {"preset": "paper", "llm_backbone": str(tiny_t5), "cf_train_batch_size": 64, "cf_epochs": 5}
    losses = []
    for epochs in (1, 4):
        trainer, _, _, test = fit(**keys, llm_epochs=epochs)
        losses.append(trainer.reports["llm"]["loss"])
    assert trainer.model.backbone_origin["source"] == "folder"
    assert losses[1] < 0.9 * losses[0]
    assert 0 <= trainer.evaluate(test)["hit@5"] <= 1


@pytest.mark.recipe
def test_same_seed_same_numbers_with_and_without_the_stage_cache(fit):
    plain, _, _, test = fit()
    expected = plain.evaluate(test)
    first, _, _, test = fit(stage_cache=True)
    assert not first.reports["cf"]["cached"]
    again, _, _, test = fit(stage_cache=True)
    assert all(again.reports[name]["cached"] for name in ("cf", "user_tokenizer", "item_tokenizer"))
    for trainer in (first, again):
        assert trainer.evaluate(test) == expected
        assert trainer.best_valid_result == plain.best_valid_result
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


@pytest.mark.recipe
def test_cache_entries_are_for_their_options_only_and_damage_is_noticed(fit, tmp_path):
    short = {"stage_cache": True, "cf_epochs": 4, "mq_min_steps": 10, "llm_epochs": 1}
    fit(**short)
    folder = tmp_path / "saved" / "stage_cache"
    entries = {path.name.split("-")[0]: path for path in folder.glob("*.pt")}
    assert set(entries) == {"cf", "cf_2", "cf_weights", "user_tokenizer", "item_tokenizer"}
    entries["cf"].write_bytes(entries["cf"].read_bytes()[:-200])
    other, *_ = fit(**short, mq_codebook_size=8)
    assert not any(other.reports[name]["cached"] for name in ("cf", "user_tokenizer", "item_tokenizer"))
    same, *_ = fit(**{**short, "llm_epochs": 2})
    assert all(same.reports[name]["cached"] for name in ("cf", "user_tokenizer", "item_tokenizer"))
    reseeded, *_ = fit(**short, seed=7)
    assert not reseeded.reports["cf"]["cached"]


@pytest.mark.recipe
def test_stages_of_other_code_are_not_taken_over(fit, monkeypatch):
    short = {"stage_cache": True, "cf_epochs": 4, "mq_min_steps": 10, "llm_epochs": 1}
    fit(**short)
    monkeypatch.setattr("recbole_tokenrec.training.trainer.code_digest", lambda: "another")
    for cached in (False, True):
        trainer, *_ = fit(**short)
        assert {report["cached"] for name, report in trainer.reports.items() if name != "llm"} == {cached}


@pytest.mark.recipe
def test_stages_of_another_precision_are_not_taken_over(fit):
    for precision, cached in (("bf16", False), ("fp32", False), ("fp32", True), ("bf16", True)):
        trainer, *_ = fit(stage_cache=True, precision=precision, cf_epochs=2, mq_min_steps=10, llm_epochs=1)
        assert {report["cached"] for name, report in trainer.reports.items() if name != "llm"} == {cached}


@pytest.mark.recipe
def test_without_validation_the_averaged_weights_and_equal_shares_are_kept(build, tmp_path):
    keys = {**SMALL, "checkpoint_dir": str(tmp_path), "llm_ema": 0.9, "cf_epochs": 2}
    config, model, train, _, test = build("TokenRec", **keys)
    trainer = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
    seen = {}
    before = LLMStage.unjudged

    def spy(stage):
        seen.update(last=copy.deepcopy(stage.part.state_dict()), kept=before(stage))
        return seen["kept"]

    LLMStage.unjudged = spy
    try:
        trainer.fit(train, None, verbose=False)
    finally:
        LLMStage.unjudged = before
    assert model.collaborative.mix.weights.tolist() == [0.5, 0.5]
    for name, value in model.llm.state_dict().items():
        assert torch.equal(value, seen["kept"][name]), name
    assert any(not torch.equal(value, seen["last"][name]) for name, value in seen["kept"].items())
    assert trainer.evaluate(test)["hit@5"] > 0


@pytest.mark.recipe
def test_no_stage_sees_validation_or_test_items(fit, monkeypatch):
    """Every interaction that any stage trains on is a training interaction."""
    import recbole_tokenrec.models.tokenrec as module

    seen = set()
    original = module.TokenRec.calculate_loss

    def spy(self, interaction):
        names = interaction.interaction
        if "target_rows" in names:
            users = interaction["user_id"]
            for rows, items in (("target_rows", "target_items"), ("visible_rows", "visible_items")):
                seen.update(zip(users[interaction[rows]].tolist(), interaction[items].tolist()))
            if "history" in names:
                length = interaction["history_length"]
                for user, row, n in zip(users.tolist(), interaction["history"].tolist(), length.tolist()):
                    seen.update((user, item) for item in row[:n])
        elif "item_id" in names:
            seen.update(zip(interaction["user_id"].tolist(), interaction["item_id"].tolist()))
        return original(self, interaction)

    monkeypatch.setattr(module.TokenRec, "calculate_loss", spy)
    paper = {"preset": "paper", "cf_epochs": 2, "llm_epochs": 1}
    for keys in ({"prompt_decoder_items": 0}, ORDERLESS, {**DECODER, "cf_targets": ["next", "all"]}, paper):
        seen.clear()
        trainer, train, valid, test = fit(**keys)
        features = train._dataset.inter_feat
        training = set(zip(features["user_id"].tolist(), features["item_id"].tolist()))
        held_out = set()
        for loader in (valid, test):
            features = loader._dataset.inter_feat
            held_out |= set(zip(features["user_id"].tolist(), features["item_id"].tolist()))
        assert seen <= training and not seen & held_out
        assert len(seen) > 0.95 * len(training)  # a few last items may never have been drawn as targets
        model = trainer.model
        histories = set(zip(model.histories.rows().tolist(), model.histories.items.tolist()))
        assert histories == training


@pytest.mark.recipe
def test_history_at_test_adds_the_validation_item_and_only_at_test(fit):
    trainer, _, valid, test = fit(history_at_test="train_valid", llm_epochs=1)
    histories = trainer.model.histories
    assert torch.equal(histories.known_at(valid).items, histories.items)
    longer = histories.known_at(test)
    features = valid._dataset.inter_feat
    for user, item in zip(features["user_id"].tolist(), features["item_id"].tolist()):
        assert longer.of_user(user).tolist() == [*histories.of_user(user).tolist(), item]


@pytest.mark.recipe
def test_evaluation_obeys_the_memory_budget_and_gives_the_same_metrics(fit, monkeypatch):
    trainer, _, _, test = fit(llm_epochs=1, preset="user_id_only")
    expected, model, sizes = trainer.evaluate(test), trainer.model, []
    original = type(model).full_sort_predict

    def spy(self, interaction):
        scores = original(self, interaction)
        sizes.append(scores.numel())
        return scores

    monkeypatch.setattr(type(model), "full_sort_predict", spy)
    most = 5 * model.n_items
    model.settings.memory_budget_gb = 16 * most / 2**30
    assert trainer.evaluate(test) == expected
    assert max(sizes) == most and sum(sizes) == (model.n_users - 1) * model.n_items


@pytest.mark.recipe
def test_sampled_evaluation_works_too(fit, monkeypatch):
    mode = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni20"}
    trainer, _, _, test = fit(eval_args=mode, llm_epochs=1)
    assert trainer.evaluate(test)["hit@5"] > 0.5
    model, sizes = trainer.model, []
    numbers = torch.arange(1, model.n_users).repeat_interleave(21)
    asked = Interaction({"user_id": numbers, "item_id": numbers % (model.n_items - 1) + 1})
    expected = model.predict(asked)
    original = type(model)._query_and_items
    monkeypatch.setattr(
        type(model), "_query_and_items", lambda self, users: (sizes.append(len(users)), original(self, users))[1]
    )
    model.settings.memory_budget_gb = 100 * 20 * model.item_vectors.shape[1] / 2**30
    torch.testing.assert_close(model.predict(asked), expected)
    assert max(sizes) == 100 and sum(sizes) == len(numbers)


@pytest.mark.recipe
def test_checkpoint_loads_in_recbole_and_by_itself(fit, monkeypatch):
    from recbole.quick_start import load_data_and_model

    trainer, _, _, test = fit()
    expected = trainer.evaluate(test)
    payload = load_checkpoint(trainer.saved_model_file)
    assert payload["config"]["model"] == "TokenRec"
    # a checkpoint carries its backbone: nothing is fetched to open it
    monkeypatch.setattr("recbole_tokenrec.models.tokenrec.load_backbone", lambda *a, **k: pytest.fail("fetched"))
    config, model, _, _, _, test_again = load_data_and_model(trainer.saved_model_file)
    loaded = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
    assert loaded.evaluate(test_again, load_best_model=False) == expected


@pytest.mark.recipe
def test_foreign_checkpoint_is_refused(fit, tmp_path):
    trainer, _, _, test = fit(llm_epochs=1)
    torch.save({"state_dict": {}}, tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="foreign.pth"):
        trainer.evaluate(test, model_file=str(tmp_path / "foreign.pth"))


@pytest.mark.unit
def test_scores_are_cosines_and_predict_agrees(build):
    _, model, *_ = build("TokenRec", **SMALL)
    model.eval()
    users, items = torch.tensor([1, 2, 3, 3]), torch.tensor([4, 5, 6, 1])
    full = model.full_sort_predict(Interaction({"user_id": users})).view(4, -1)
    assert full.shape == (4, model.n_items) and float(full.detach().abs().max()) <= 1 + 1e-5
    pairs = model.predict(Interaction({"user_id": users, "item_id": items}))
    torch.testing.assert_close(pairs, full[torch.arange(4), items], rtol=1e-4, atol=1e-5)
    assert torch.equal(full[2], full[3])
    model.remember_users()
    remembered = model.full_sort_predict(Interaction({"user_id": users})).view(4, -1)
    torch.testing.assert_close(remembered, full, rtol=1e-4, atol=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize("training", [True, False])
def test_decoder_knows_what_it_has_read_and_nothing_later(build, training):
    """z at a place changes with the items read before it, and not with those after it."""
    _, model, *_ = build("TokenRec", **SMALL, **DECODER)
    model.train(training)
    codes = torch.randint(0, 16, (2, model.user_codes.shape[1]))
    model.item_codes.random_(0, 16)
    history, number = torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])
    read, read_number = torch.tensor([[4, 5, 6], [7, 8, 0]]), torch.tensor([3, 2])

    def encode(*read):
        torch.manual_seed(0)  # the same dropout
        return model.encode(codes, 0, history, number, *read)

    z = encode(read, read_number)
    assert z.shape == (2, 4, model.item_vectors.shape[1])
    if not training:  # other shapes, other dropout
        torch.testing.assert_close(z[:, 0], encode(), rtol=1e-4, atol=1e-5)
    changed = read.clone()
    changed[0, 1] = 9
    other = encode(changed, read_number)
    torch.testing.assert_close(other[0, :2], z[0, :2])
    assert (other[0, 2:] - z[0, 2:]).abs().amax(dim=-1).min() > 1e-5
    torch.testing.assert_close(other[1], z[1])


@pytest.mark.unit
def test_decoder_reads_the_latest_items_and_the_prompt_lists_those_before(build, monkeypatch):
    _, model, *_ = build("TokenRec", **SMALL, **DECODER)
    calls = []
    original = type(model).encode

    def spy(self, codes, template, history, number, read, read_number):
        for row in range(len(codes)):
            calls.append((history[row, : number[row]].tolist(), read[row, : read_number[row]].tolist()))
        return original(self, codes, template, history, number, read, read_number)

    monkeypatch.setattr(type(model), "encode", spy)
    users = torch.arange(1, model.n_users)
    model.encode_users(users)
    split = {tuple(listed + read): (listed, read) for listed, read in calls}
    limit, most = model.history_limit(), DECODER["prompt_decoder_items"]
    for user in users.tolist():
        own = model.histories.of_user(user).tolist()
        listed, read = split[tuple(own[-limit - most :])]
        assert len(read) == min(most, len(own) - 1)


@pytest.mark.unit
@pytest.mark.parametrize("targets", ["next", "all", ["next", "all"]])
def test_fold_in_of_the_whole_history_is_the_users_own_vector(build, targets):
    _, model, *_ = build("TokenRec", **SMALL, cf_recency=0.7, cf_n_layers=3, cf_targets=targets)
    model.refresh_representations()
    everything = torch.ones(len(model.histories.items), dtype=torch.bool)
    own = model.tokenizer_inputs(model.user_vectors)
    torch.testing.assert_close(model.folded_in(everything)[1:], own[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize(("steps", "epochs", "expected"), [(1, None, 60), (50, None, 42), (900, None, 4), (1, 3, 3)])
def test_epochs_of_the_last_stage_by_their_steps(build, monkeypatch, steps, epochs, expected):
    _, model, train, *_ = build("TokenRec", **{**SMALL, "llm_epochs": epochs})
    stage = LLMStage(model, train)
    monkeypatch.setattr(stage, "steps_per_epoch", lambda: steps)
    assert stage.epochs() == expected


@pytest.mark.unit
@pytest.mark.parametrize(
    ("steps", "epochs", "eval_step", "expected"),
    [(1, None, None, (90, 15)), (15, None, None, (60, 10)), (900, None, None, (30, 5)), (1, 4, None, (4, 1)),
     (15, None, 7, (60, 7))],
)  # fmt: skip
def test_epochs_and_validations_of_a_collaborative_model_by_its_steps(
    build, monkeypatch, steps, epochs, eval_step, expected
):
    _, model, train, *_ = build("TokenRec", **{**SMALL, "cf_epochs": epochs, "cf_eval_step": eval_step})
    stage = CollaborativeStage(model, train)
    monkeypatch.setattr(stage, "steps_per_epoch", lambda: steps)
    assert (stage.epochs(), stage.option("eval_step")) == expected


@pytest.mark.unit
@pytest.mark.parametrize(("decay", "expected"), [("constant", [0.4] * 4), ("linear", [0.4, 0.2, 0.0, 0.0])])
def test_the_teacher_withdraws_if_asked_to(build, monkeypatch, decay, expected):
    _, model, train, *_ = build("TokenRec", **SMALL, **DECODER, llm_distill=0.4, llm_distill_decay=decay)
    stage, weights = LLMStage(model, train), []
    original = tokenrec.softmax_cosine_loss

    def spy(*arguments, teacher, **keys):
        weights.append(teacher.weight if teacher else 0.0)
        return original(*arguments, teacher=teacher, **keys)

    monkeypatch.setattr(tokenrec, "softmax_cosine_loss", spy)
    for epoch in range(4):
        stage.before_epoch(epoch)
        model.calculate_loss(next(iter(stage.batches(epoch))))
    assert weights == pytest.approx(expected)


@pytest.mark.recipe
def test_items_move_in_the_last_stage_only_if_asked_to(fit):
    for moved in (True, False):
        trainer, *_ = fit(llm_item_offset=moved, llm_ema=0.0)
        model = trainer.model
        there = torch.nn.functional.normalize(model.retrieval_vectors.detach(), dim=-1)
        near = (there * torch.nn.functional.normalize(model.item_vectors, dim=-1)).sum(dim=-1)[1:]
        assert (float((1 - near).max()) > 1e-5) == moved and near.mean() > 0.5
        assert ("llm.item_offset.weight" in model.state_dict()) == moved


@pytest.mark.unit
def test_history_without_the_target(build):
    _, model, *_ = build("TokenRec", **SMALL)
    users = torch.tensor([1, 2, 5])
    items = torch.stack([model.histories.items[model.histories.indptr[u]] for u in users])
    history, number = model._history_without(users, items, template=0)
    for user, item, row, n in zip(users.tolist(), items.tolist(), history.tolist(), number.tolist()):
        own = model.histories.items[model.histories.indptr[user] : model.histories.indptr[user + 1]].tolist()
        assert sorted(row[:n]) == sorted(set(own) - {item})


@pytest.mark.unit
def test_a_loss_that_is_not_finite_names_stage_and_place(build, monkeypatch):
    config, model, train, valid, _ = build("TokenRec", **SMALL)
    monkeypatch.setattr(type(model.collaborative), "calculate_loss", lambda *_: torch.tensor(float("nan")))
    trainer = get_trainer(config["MODEL_TYPE"], "TokenRec")(config, model)
    with pytest.raises(TrainingError, match="collaborative 1/2 stage: the loss is nan in epoch 0, step 0"):
        trainer.fit(train, valid, verbose=False)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"cf_model": "LightGNN", **OWN_LOSS}, "cf_model: RecBole has no model"),
        ({"cf_model": "SASRec", **OWN_LOSS}, "is no GeneralRecommender"),
        ({"cf_model": "Pop", **OWN_LOSS}, "keeps no user and item embeddings"),
        ({"id_tokenizer": "mqq"}, "id_tokenizer: 'mqq' is not allowed"),
    ],
)
def test_parts_that_do_not_fit(build, keys, text):
    with pytest.raises(ConfigError, match=text):
        build("TokenRec", **SMALL, **keys)


@pytest.mark.recipe
@pytest.mark.parametrize("name", ["BPR", "NGCF", "LightGCN"])
def test_other_collaborative_models(fit, name):
    trainer, _, _, test = fit(cf_model=name, **OWN_LOSS, cf_train_batch_size=128, llm_epochs=1)
    dot = trainer.evaluate_collaborative(test, "dot")
    assert dot["hit@5"] > 0.3
    assert trainer.model.stage == "llm"


@pytest.mark.unit
def test_too_little_data(build):
    config, model, train, *_ = build("TokenRec", **SMALL)
    empty = copy.copy(train._dataset)
    empty.inter_feat = train._dataset.inter_feat[np.array([], dtype=int)]
    with pytest.raises(DataError, match="too few"):
        type(model)(config, empty)
