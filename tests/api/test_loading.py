"""Opening a model costs no more memory than it must, and stays within a budget or says how much it needs."""

import shutil

import pytest
import torch
from pandas.testing import assert_frame_equal

from recbole_tokenrec import measure
from recbole_tokenrec.api import loading
from recbole_tokenrec.checkpoints import load_checkpoint
from recbole_tokenrec.collaborative.ensemble import members_of
from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.errors import CheckpointError, ConfigError, DataError
from recbole_tokenrec.pipeline import identity_of, run_model

pytestmark = pytest.mark.recipe


def test_what_was_read_is_the_model_and_nothing_is_made_twice(trained):
    payload = load_checkpoint(trained())
    model, data = loading.rebuilt(payload)
    for name in ("user_vectors", "item_vectors", "user_codes"):
        assert getattr(model, name).data_ptr() == payload["state_dict"][name].data_ptr()
    assert all(member.histories is model.histories is data.histories for member in members_of(model.collaborative))
    assert model.llm.backbone.shared.weight is model.llm.backbone.encoder.embed_tokens.weight
    assert torch.equal(model.histories.items, payload["data"]["history_items"])


def test_no_graph_is_built_to_recommend(trained):
    opened = loading.load(trained())
    opened.recommend(["g0u0", "stranger"], k=3)
    opened.recommend(histories=["g0i1", "g0i2"], k=3)  # with one layer, new users need none either
    for member in members_of(opened.model.collaborative):
        assert "to_users" not in vars(member)
        member.to_users.T  # noqa: B018 (it can be built)
        assert "to_users" in vars(member)


def test_types_are_the_models_own(trained):
    payload = load_checkpoint(trained())
    payload["state_dict"]["user_codes"] = payload["state_dict"]["user_codes"].double()
    payload["state_dict"]["item_vectors"] = payload["state_dict"]["item_vectors"].double()
    model, _ = loading.rebuilt(payload)
    assert model.user_codes.dtype == torch.int64 and model.item_vectors.dtype == torch.float32
    payload["state_dict"]["user_codes"] = payload["state_dict"]["user_codes"][1:]
    with pytest.raises(CheckpointError, match="do not fit its configuration"):
        loading.rebuilt(payload)


def test_a_model_over_the_budget_is_refused_with_the_figure_that_it_needs(trained, monkeypatch):
    path = loading.find(trained())
    least = loading.least_gb(path)
    assert least > measure.rss_mb() / 1024 > 0.05
    with pytest.raises(ConfigError, match=r"_gb: 0.05 is too little for .*\.pth: a process holds .* GB") as told:
        loading.load(path, process_budget_gb=0.05)
    assert float(str(told.value).split(" GB")[0].split()[-1]) == pytest.approx(least, abs=0.1)
    monkeypatch.setattr(loading, "least_gb", lambda _: 0.0)  # as if it grew only while it was opened
    with pytest.raises(ConfigError, match="memory_budget_gb: 0.05 is too little"):
        loading.load(path, process_budget_gb=0.05)


@pytest.mark.parametrize("name", ["TokenRec", "BPR"])
def test_what_the_open_model_leaves_bounds_the_batches(trained, name):
    budget = measure.rss_mb() / 1024 + 2
    opened = loading.load(trained(name), process_budget_gb=budget)
    left = budget - measure.rss_mb() / 1024
    scorer = opened._scorer
    if name == "TokenRec":
        assert scorer.index.memory_budget_gb == opened.model.settings.memory_budget_gb
        assert scorer.index.memory_budget_gb == pytest.approx(left / 2, abs=0.1)
    unbounded = loading.load(trained(name))
    assert_frame_equal(opened.recommend(["g0u0", "g1u1"], k=3), unbounded.recommend(["g0u0", "g1u1"], k=3))
    tight = loading._scorer(opened.model, opened.data, None, 8 * 3 * opened.data.item_num / 2**30, "exact", {})
    assert (tight.users_per_batch == 3) if name == "BPR" else (tight.index.memory_budget_gb < 1e-5)


def test_data_that_can_no_longer_be_used_are_told_in_words(trained, toy_data, tmp_path):
    shutil.copytree(toy_data / "toy", tmp_path / "toy")
    header, *rows = (tmp_path / "toy" / "toy.inter").read_text().splitlines()
    for content, text in (
        (rows[:1], "1 user\\(s\\) and 1 item\\(s\\) are left after the filters"),
        ([*rows, "g0u0\tg0i0\tsoon"], "RecBole cannot read it: "),
    ):
        (tmp_path / "toy" / "toy.inter").write_text("\n".join([header, *content]) + "\n")
        with pytest.raises(DataError, match=f"dataset 'toy': {text}"):
            loading.load(trained("BPR"), data_path=tmp_path)


@pytest.mark.parametrize("change", [
    lambda checkpoint: checkpoint.update(config={"model": "BPR"}), lambda checkpoint: checkpoint.pop("config"),
    lambda checkpoint: checkpoint["config"].final_config_dict.pop("dataset"),
    lambda checkpoint: checkpoint.update(state_dict=3),
    lambda checkpoint: checkpoint["config"].final_config_dict.update(model=3),
])  # fmt: skip
def test_foreign_checkpoints_are_refused_in_words(change, trained, tmp_path):
    checkpoint = torch.load(trained("BPR"), weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "foreign.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="foreign.pth: holds no trained model"):
        loading.load(tmp_path / "foreign.pth")


@pytest.mark.parametrize("name", ["BPR", "SASRecCE"])
def test_rows_in_another_order_are_not_taken_for_those_of_the_training(name, toy_data, tmp_path):
    """RecBole numbers ids by their first row: other items would be recommended, and nothing be said."""
    shutil.copytree(toy_data / "toy", tmp_path / "toy")
    keys = {"data_path": str(tmp_path), "checkpoint_dir": str(tmp_path / "out"), "use_gpu": False, "epochs": 1,
            "show_progress": False, "state": "ERROR"}  # fmt: skip
    config = make_config(name, "toy", overrides=keys)
    before = identity_of(config)
    checkpoint = run_model(config).row["checkpoint"]
    assert identity_of(config) == before
    items = loading.load(checkpoint).recommend(["g0u0"], k=3)["item_id"].tolist()
    header, *rows = (tmp_path / "toy" / "toy.inter").read_text().splitlines()
    (tmp_path / "toy" / "toy.inter").write_text("\n".join([header, *reversed(rows)]) + "\n")
    with pytest.raises(CheckpointError, match="changed places, by whose order RecBole numbers users and items"):
        loading.load(checkpoint)
    assert loading.load(checkpoint, data_path=toy_data).recommend(["g0u0"], k=3)["item_id"].tolist() == items
