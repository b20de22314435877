"""S3RecCE: RecBole's losses and scores for the same weights and masks, sound masks, and a pre-training that learns."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_trainer

from recbole_tokenrec.errors import ConfigError
from recbole_tokenrec.training.loaders import HISTORY, HISTORY_LENGTH

SMALL = {"hidden_size": 16, "inner_size": 32, "MAX_ITEM_LIST_LENGTH": 6, "train_batch_size": 16}
COLUMNS = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class", "year"]}
WEIGHTS = ("mip_weight", "sp_weight", "aap_weight", "map_weight")


@pytest.fixture
def attributed(toy_data, tmp_path):
    """Keys for the toy data with an .item file: one or two classes an item, and a number."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.inter").write_text((toy_data / "toy" / "toy.inter").read_text())
    rows = [f"g{g}i{i}\tgroup{g}{' odd' * (i % 2)}\t{1990 + i}" for g in range(4) for i in range(12)]
    (tmp_path / "toy" / "toy.item").write_text("\n".join(["item_id:token\tclass:token_seq\tyear:float", *rows]) + "\n")
    return {"data_path": str(tmp_path), "load_col": COLUMNS, "item_attribute": "class"}


@pytest.fixture
def crowd(tmp_path):
    """Folder of a data set ``toy``: 320 users, each of whom takes 9 of the 12 items of his group."""
    rng = np.random.default_rng(0)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(320):
        rows += [f"u{user}\tg{user % 4}i{item}\t{time}" for time, item in enumerate(rng.permutation(12)[:9], 1)]
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.inter").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.fixture
def twins(build, attributed):
    """``twins(**keys)``: our model and RecBole's with the same weights, far from their start."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model

    def make(**keys):
        _, ours, train, *_ = build("S3RecCE", **SMALL, **attributed, **keys)
        torch.manual_seed(0)
        for parameter in ours.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        settings = {**SMALL, **attributed, **keys, "train_neg_sample_args": None, "state": "ERROR", "use_gpu": False}
        config = Config(model="S3Rec", dataset="toy", config_dict=settings)
        theirs = get_model("S3Rec")(config, data_preparation(config, create_dataset(config))[0]._dataset)
        theirs.load_state_dict(ours.state_dict())
        return ours.eval(), theirs.eval()

    return make


def windows(number, width=6):
    """Left-aligned windows of different items, ``number`` (B,) in each."""
    history = torch.stack([1 + torch.randperm(48)[:width] for _ in number])
    return history.masked_fill(torch.arange(width) >= torch.tensor(number).unsqueeze(1), 0), torch.tensor(number)


@pytest.mark.recipe
@pytest.mark.parametrize("only", WEIGHTS)
def test_each_objective_is_recboles_for_the_same_masks(twins, only):
    ours, theirs = twins(**{**dict.fromkeys(WEIGHTS, 0.0), only: 0.7})
    history, number = windows([6] * 20)  # full ones: RecBole aligns them on the right
    drawn = ours.corrupt(history, number)
    features = ours.attributes[history]  # (B, M, attributes)
    assert features.shape[2] == 5 and set(features.sum(dim=2).unique().tolist()) == {1, 2}
    masks = (drawn.items, history, drawn.negatives, drawn.context, drawn.segment, drawn.other)
    with torch.no_grad():
        expected = theirs.pretrain(features, *masks)
        found = ours.pretraining_loss(history, drawn)
    assert found > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.recipe
def test_the_same_weights_give_recboles_scores(twins):
    ours, theirs = twins()
    users = torch.tensor([1, 5, 20])
    history, number = ours.histories.latest(users, 6)
    with torch.no_grad():
        expected = theirs.full_sort_predict(Interaction({"item_id_list": history, "item_length": number}))
        found = ours.full_sort_predict(Interaction({"user_id": users})).view(3, -1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_a_window_in_a_batch_loses_what_it_loses_alone(build, attributed):
    _, model, *_ = build("S3RecCE", **SMALL, **attributed)
    model.eval()
    history, number = windows([6, 2, 4, 3])
    drawn = model.corrupt(history, number)
    alone = [
        model.pretraining_loss(history[b : b + 1, :n], type(drawn)(*(part[b : b + 1, :n] for part in drawn)))
        for b, n in enumerate(number.tolist())
    ]
    torch.testing.assert_close(model.pretraining_loss(history, drawn), sum(alone), rtol=1e-5, atol=1e-4)
    model.pretraining = True
    torch.manual_seed(3)
    mean = model.calculate_loss(Interaction({HISTORY: history, HISTORY_LENGTH: number}))
    torch.manual_seed(3)
    torch.testing.assert_close(mean, model.pretraining_loss(history, model.corrupt(history, number)) / 4)


@pytest.mark.unit
def test_masks_and_segments_are_what_the_paper_says(build):
    _, model, *_ = build("S3RecCE", **SMALL, mask_ratio=0.3)
    history, number = windows([2, 3, 4, 5, 6] * 400)
    there, mask = history > 0, model.n_items
    drawn = model.corrupt(history, number)
    assert not (drawn.masked & ~there).any()
    assert drawn.masked.sum() / there.sum() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(drawn.items, torch.where(drawn.masked, mask, history))

    assert not drawn.negatives[~drawn.masked].any()
    own = (drawn.negatives.unsqueeze(2) == history.unsqueeze(1)).any(dim=2)
    assert not own[drawn.masked].any()
    assert set(drawn.negatives[drawn.masked].tolist()) == set(range(1, model.n_items))

    inside = drawn.context == mask
    length = inside.sum(dim=1)
    assert (length >= 1).all() and (length <= number // 2).all()
    assert {tuple(pair) for pair in torch.stack([number, length], dim=1).tolist()} == {
        (n, most) for n in range(2, 7) for most in range(1, n // 2 + 1)
    }
    starts = inside.int().argmax(dim=1)
    assert torch.equal(inside, (torch.arange(6) >= starts[:, None]) & (torch.arange(6) < (starts + length)[:, None]))
    assert all((starts[number == n] == 0).any() and (starts + length == n)[number == n].any() for n in range(2, 7))
    assert torch.equal(drawn.context[~inside], history[~inside])
    assert torch.equal(drawn.segment, torch.where(inside, history, torch.where(there, mask, 0)))

    # the other segment stands at the same place and is a piece of the training histories
    assert torch.equal(drawn.other[~inside], drawn.segment[~inside])
    items = model.histories.items.tolist()
    pieces = {tuple(items[i : i + n]) for n in range(1, 4) for i in range(len(items) - n + 1)}
    rows = [tuple(row[chosen].tolist()) for row, chosen in zip(drawn.other, inside)]
    assert set(rows) <= pieces and len(set(rows)) > 100


@pytest.mark.unit
def test_without_an_attribute_the_two_objectives_and_their_layers_are_left_out(build, attributed):
    _, plain, *_ = build("S3RecCE", **SMALL)
    _, full, *_ = build("S3RecCE", **SMALL, **attributed, aap_weight=0.0, map_weight=0.0)
    extra = {key for key in full.state_dict() if key.startswith(("feature_embedding", "aap_norm", "map_norm"))}
    assert len(extra) == 5 and set(plain.state_dict()) == set(full.state_dict()) - extra
    plain.load_state_dict({key: value for key, value in full.state_dict().items() if key not in extra})
    history, number = windows([6, 3, 5])
    drawn = plain.corrupt(history, number)
    plain.eval(), full.eval()
    torch.testing.assert_close(plain.pretraining_loss(history, drawn), full.pretraining_loss(history, drawn))


@pytest.mark.recipe
def test_pre_training_learns_the_groups_and_fine_tuning_starts_from_it(build, crowd):
    keys = {**SMALL, "hidden_size": 32, "mask_ratio": 0.4, "learning_rate": 2e-3, "sp_weight": 0.0}
    config, model, train, valid, _ = build(
        "S3RecCE", **keys, data_path=str(crowd), pretrain_epochs=13, epochs=2, eval_step=1
    )

    def told_apart():
        """Share of masked items that agree more with the state than an item from outside the window does."""
        model.eval()
        torch.manual_seed(1)
        users = torch.arange(1, model.n_users)
        history, number = model.histories.latest(users, 6)
        drawn = model.corrupt(history, number)
        with torch.no_grad():
            asked = model.mip_norm(model.states(drawn.items, causal=False)[drawn.masked])
            right, wrong = (
                (asked * model.item_embedding(items[drawn.masked])).sum(dim=1) for items in (history, drawn.negatives)
            )
        return (right > wrong).float().mean().item()

    trainer = get_trainer(config["MODEL_TYPE"], "S3RecCE")(config, model)
    before, seen, validated = told_apart(), [], []
    original, valid_epoch = trainer._train_epoch, trainer._valid_epoch

    def spy(data, epoch, *args, **kwargs):
        if epoch == 0 and seen:  # fine-tuning begins
            seen.append(told_apart())
            assert not validated and not trainer.optimizer.state
        elif not seen:
            seen.append("pre-training")
        assert model.pretraining == (len(seen) == 1)
        return original(data, epoch, *args, **kwargs)

    def spy_valid(*args, **kwargs):
        validated.append(model.pretraining)
        return valid_epoch(*args, **kwargs)

    trainer._train_epoch, trainer._valid_epoch = spy, spy_valid
    trainer.fit(train, valid, verbose=False, saved=False)
    assert before < 0.6 < 0.72 < seen[1]  # an item of his group that he has not seen is a negative, too
    assert validated == [False, False] and len(trainer.train_loss_dict) == 2


@pytest.mark.unit
@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"pretrain_epochs": -1}, "pretrain_epochs: -1 is not allowed"),
        ({"mask_ratio": 0.0}, "mask_ratio: 0.0 is not allowed"),
        ({"sp_weight": -1.0}, "sp_weight: -1.0 is not allowed"),
        ({"item_attribute": "clas"}, "item_attribute: 'clas' is not allowed; .* names \\(class\\)"),
        ({"item_attribute": "year"}, "item_attribute: 'year' is not allowed"),
        ({"load_col": {"inter": COLUMNS["inter"]}}, "item_attribute: 'class' is not allowed; .*none is loaded"),
    ],
)
def test_wrong_settings_are_named(build, attributed, keys, text):
    with pytest.raises(ConfigError, match=text):
        build("S3RecCE", **{**SMALL, **attributed, **keys})
