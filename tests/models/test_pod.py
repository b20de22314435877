"""POD: tasks that alternate, continuous prompts, the bare form at evaluation, and the toy data."""

import glob

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model, run_recbole

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.models.pod import SEQUENTIAL, TOP_N

MINI = {"llm_backbone": "t5-scratch-mini", "cid_clusters": 4, "cid_cluster_size": 12}
MINI.update(num_candidates=5, max_history=4)


@pytest.fixture
def pod(build):
    return lambda **keys: build("POD", **{**MINI, **keys})


def listings(model):
    """Record the item names of every prompt that is made."""
    made, original, items = [], model.words.entities, set(model.item_names)

    def entities(words):
        words = list(words)
        made.append([word for word in words if word in items])
        return original(words)

    model.words.entities = entities
    return made


@pytest.mark.unit
def test_tasks_alternate_batch_by_batch(pod):
    _, model, train, *_ = pod(train_batch_size=64)
    tasks, made = [], model.training_prompts
    model.target_loss = lambda batch, targets: model.nothing()  # only whose turn it is matters
    model.training_prompts = lambda users, items: tasks.append(model._task) or made(users, items)
    for batch in train:
        model.calculate_loss(batch)
    assert tasks == [(SEQUENTIAL, TOP_N)[turn % 2] for turn in range(len(train))]


@pytest.mark.unit
def test_only_the_tasks_own_vectors_learn_from_it(pod):
    _, model, train, *_ = pod(prompt_length=3)
    assert model.task_prompts.weight.abs().max() <= 0.1
    for task, rows in ((0, slice(0, 3)), (1, slice(3, 6))):
        model.zero_grad()
        model.turn = task
        model.calculate_loss(next(iter(train))).backward()
        grad = model.task_prompts.weight.grad.abs().sum(dim=1)
        assert (grad[rows] > 0).all() and (grad > 0).sum() == 3


@pytest.mark.unit
def test_vectors_stand_in_front_and_only_entities_have_whole_words(pod):
    _, model, *_ = pod(prompt_length=2)
    batch = model.collate([model.prompt(SEQUENTIAL, 1, 3, [5, 6]), model.prompt(SEQUENTIAL, 0, 3, [5])])
    inputs, mask = model.embed(batch)
    assert inputs.shape[1] == batch.input_ids.shape[1] + 2 == mask.shape[1]
    torch.testing.assert_close(inputs[1, :2], model.task_prompts.weight[:2])
    assert mask[:, :2].all() and (mask[:, 2:] == batch.attention_mask).all()
    table = model.backbone.get_input_embeddings().weight
    plain = batch.marks == 0
    torch.testing.assert_close(inputs[:, 2:][plain], table[batch.input_ids][plain])
    assert sorted(set(batch.marks[0].tolist())) == [0, 1, 2, 3]


@pytest.mark.unit
def test_samples_hold_training_items_and_untaken_candidates(pod):
    _, model, train, *_ = pod(train_batch_size=512, targets_per_prompt=2)
    made, batch = listings(model), next(iter(train))
    item_of = {name: item for item, name in enumerate(model.item_names) if name}
    users = batch["user_id"].tolist()
    _, targets = model.training_prompts(batch["user_id"], batch["item_id"])
    assert len(made) == len(targets) == len(users)  # a user's first item stands for another of his
    for user, names, answers in zip(users, made, targets):
        history = model.samples.latest(user, 99)
        items = [item_of[name] for name in names]
        at = history.index(answers[0])
        assert items == history[at - len(items) : at] and items
        assert answers == history[at : at + 2]
    made.clear()
    model._task = TOP_N
    _, targets = model.training_prompts(batch["user_id"], batch["item_id"])
    for user, names, answers in zip(users, made, targets):
        items = [item_of[name] for name in names]
        assert len(items) == 5 and len(answers) == 1
        assert set(items) & set(model.samples.latest(user, 99)) == set(answers)
    assert len({names.index(model.item_names[answers[0]]) for names, answers in zip(made, targets)}) == 5


@pytest.mark.unit
def test_evaluation_uses_the_bare_form(pod):
    _, model, *_ = pod(topk=[5])
    made = listings(model)
    ids, marks = model.evaluation_prompt(4)
    assert made[0] == [model.item_names[item] for item in model.samples.latest(4, 4)]
    assert all(mark > 0 for mark in marks[:-1])  # nothing but entities
    model.eval()
    scores = model.full_sort_predict(Interaction({"user_id": torch.tensor([4, 2])})).view(2, -1)
    assert scores.isfinite().sum(dim=1).tolist() == [6, 6]
    free = pod(topk=[5], constrained=False)[1].eval()
    scores = free.full_sort_predict(Interaction({"user_id": torch.tensor([4, 2])})).view(2, -1)
    assert scores.isfinite().sum(dim=1).max() <= 6 and not scores[:, 0].isfinite().any()


@pytest.mark.unit
@pytest.mark.parametrize(
    "key, value",
    [("prompt_length", 0), ("num_candidates", 1), ("constrained", "yes"), ("item_indexing", None), ("eval_users", 2.5)],
)
def test_wrong_keys_are_named(pod, key, value):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        pod(**{key: value})


@pytest.mark.recipe
def test_learns_the_toy_data_and_comes_back_from_its_checkpoint(toy_data):
    keys = {"data_path": str(toy_data), "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, **MINI}
    keys.update(use_gpu=False, show_progress=False, state="ERROR", epochs=16, eval_step=16, topk=[5, 20])
    keys.update(item_indexing="cid", train_batch_size=32, targets_per_prompt=2, learning_rate=3e-3, llm_dropout=0.0)
    result = run_recbole(model="POD", dataset="toy", config_dict=keys)
    assert result["test_result"]["hit@5"] > 0.7  # by popularity: about one in eight
    (file,) = glob.glob("saved/*.pth")
    first, second = (load_data_and_model(file)[1].eval() for _ in range(2))
    users = Interaction({"user_id": torch.arange(1, 49)})
    torch.testing.assert_close(first.full_sort_predict(users), second.full_sort_predict(users))
