"""CoLLM-gen: soft tokens, what each stage tunes, the yes/no score, LoRA, and the toy data."""

import glob
import importlib.util

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model, run_recbole

from recbole_tokenrec.errors import BackboneError, ConfigError, TrainingError
from recbole_tokenrec.generative.trainer import GenerativeTrainer
from recbole_tokenrec.models.collm import NEXT_ITEM, TEXT, YES_OR_NO

MINI = {"llm_backbone": "t5-scratch-mini", "cid_clusters": 4, "cid_cluster_size": 12, "cf_epochs": 2, "max_history": 4}


@pytest.fixture
def collm(build):
    return lambda **keys: build("CoLLM", **{**MINI, **keys})


def with_vectors(model):
    torch.manual_seed(0)
    model.vectors.normal_()
    return model


@pytest.mark.unit
def test_soft_tokens_stand_beside_their_entities(collm):
    _, model, *_ = collm()
    with_vectors(model)
    ids, marks = model.prompt(YES_OR_NO, 3, [5, 6], 9)
    rows = [3, *(model.n_users + item for item in (5, 6)), 3, model.n_users + 9]
    assert [mark for mark in marks if mark] == rows
    at = marks.index(model.n_users + 5)
    name = model.words.tokens(model.item_names[5])
    assert ids[at - len(name) : at] == name
    batch = model.collate([(ids, marks), model.prompt(NEXT_ITEM, 4, [7])])
    inputs, mask = model.embed(batch)
    soft = batch.marks > 0
    table = model.backbone.get_input_embeddings().weight
    torch.testing.assert_close(inputs[soft], model.projection(model.vectors[batch.marks[soft]]))
    torch.testing.assert_close(inputs[~soft], table[batch.input_ids[~soft]])
    model.stage = TEXT
    text_ids, text_marks = model.prompt(YES_OR_NO, 3, [5, 6], 9)
    assert not any(text_marks) and text_ids == [token for token, mark in zip(ids, marks) if not mark]
    assert model.tokenizer.unk_token_id not in text_ids


@pytest.mark.unit
@pytest.mark.parametrize("tune_backbone", [False, True])
def test_each_stage_tunes_its_own_part(collm, tune_backbone):
    config, model, train, valid, _ = collm(
        epochs=1, text_epochs=1, eval_step=2, train_batch_size=168, tune_backbone=tune_backbone, max_history=1
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stages, step = [], GenerativeTrainer._train_epoch

    class Watched(GenerativeTrainer):
        def _train_epoch(self, *args, **kwargs):
            loss = step(self, *args, **kwargs)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            stages.append((model.stage, state))
            return loss

    Watched(config, model).fit(train, valid, verbose=False, saved=False)
    (text, middle), (soft, after) = stages
    assert (text, soft) == ("text", "soft")

    def moved(old, new):
        return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}

    assert moved(before, middle) == {"backbone", "vectors"}
    assert moved(middle, after) == ({"projection", "backbone"} if tune_backbone else {"projection"})
    assert model.vectors.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.unit
def test_predict_is_the_logit_of_yes_and_hides_the_item_asked_for(collm):
    _, model, *_ = collm()
    with_vectors(model).eval()
    user, history = 4, model.samples.latest(4, 99)
    asked, prompts = [history[2], history[2] % model.n_items + 1], []
    original = model.prompt

    def prompt(template, user, items, target=0):
        prompts.append((template, items, target))
        return original(template, user, items, target)

    model.prompt = prompt
    scores = model.predict(Interaction({"user_id": torch.tensor([user, user]), "item_id": torch.tensor(asked)}))
    assert scores.shape == (2,) and scores[0] != scores[1]
    template, items, target = prompts[0]
    assert template == YES_OR_NO and target == history[2] and items == [i for i in history if i != target][-4:]
    model.yes_id = model.words.tokens("no")[0]
    other = model.predict(Interaction({"user_id": torch.tensor([user]), "item_id": torch.tensor(asked[:1])}))
    assert other[0] != scores[0]


@pytest.mark.unit
def test_loss_needs_vectors_and_weighs_the_question(collm):
    _, model, train, *_ = collm(llm_dropout=0.0)
    batch = next(iter(train))
    with pytest.raises(TrainingError, match="collaborative"):
        model.calculate_loss(batch)
    with_vectors(model)
    losses = []
    for weight in (0, 0.5, 1.0):
        model.yes_no_weight = weight
        torch.manual_seed(0)  # who is asked about which item
        losses.append(float(model.calculate_loss(batch)))
    assert losses[1] - losses[0] == pytest.approx((losses[2] - losses[0]) / 2, rel=1e-3) and losses[1] > losses[0]


@pytest.mark.unit
def test_lora_needs_peft_or_trains_adapters_alone(collm):
    if importlib.util.find_spec("peft") is None:
        with pytest.raises(BackboneError, match="^lora_rank: 8 .*peft"):
            collm(lora_rank=8)
        return
    _, model, *_ = collm(lora_rank=8)
    tuned = [name for name, p in model.backbone.named_parameters() if p.requires_grad]
    assert tuned and all("lora" in name for name in tuned)
    assert model.tuned_in_text and len(model.tuned_in_text) == len(tuned)


@pytest.mark.recipe
@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
def test_lora_moves_nothing_but_adapters_and_comes_back_from_its_checkpoint(toy_data):
    keys = {"data_path": str(toy_data), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, **MINI}
    keys.update(use_gpu=False, show_progress=False, state="ERROR", epochs=1, text_epochs=2, eval_step=1)
    keys.update(topk=[5, 20])
    states, fit = [], GenerativeTrainer.fit

    def watched(self, *args, **kwargs):
        states.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return fit(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GenerativeTrainer, "fit", watched)
        result = run_recbole(model="CoLLM", dataset="toy", config_dict={**keys, "lora_rank": 4})
    (file,) = glob.glob("saved/*.pth")
    config, model, _, train, _, test = load_data_and_model(file)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, states[0][name])}
    assert any("lora" in name for name in moved)
    assert all("lora" in name or name.startswith(("projection", "vectors")) for name in moved)
    trainer = GenerativeTrainer(config, model)
    trainer.eval_collector.data_collect(train)
    assert dict(trainer.evaluate(test, load_best_model=False)) == dict(result["test_result"])


@pytest.mark.unit
@pytest.mark.parametrize(
    "key, value",
    [("yes_no_weight", -1), ("lora_rank", 1.5), ("tune_backbone", 1), ("cf_epochs", 0), ("text_epochs", None)],
)
def test_wrong_keys_are_named(collm, key, value):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        collm(**{key: value})


@pytest.mark.recipe
def test_learns_the_toy_data_and_comes_back_from_its_checkpoint(toy_data):
    keys = {"data_path": str(toy_data), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, **MINI}
    keys.update(use_gpu=False, show_progress=False, state="ERROR", epochs=12, text_epochs=12, eval_step=12)
    keys.update(topk=[5, 20], item_indexing="cid", train_batch_size=32, learning_rate=3e-3, llm_dropout=0.0)
    keys.update(targets_per_prompt=2, cf_epochs=20)
    result = run_recbole(
        model="CoLLM", dataset="toy", config_dict={**keys, "tune_backbone": True, "yes_no_weight": 0}
    )
    assert result["test_result"]["hit@5"] > 0.7  # by popularity: about one in eight
    (file,) = glob.glob("saved/*.pth")
    first, second = (load_data_and_model(file)[1].eval() for _ in range(2))
    assert first.vectors.any() and first.stage == "soft"
    resumed = GenerativeTrainer(load_data_and_model(file)[0], first)
    resumed.resume_checkpoint(file)
    assert resumed.start_epoch == 12
    users = Interaction({"user_id": torch.arange(1, 49)})
    torch.testing.assert_close(first.full_sort_predict(users), second.full_sort_predict(users))
