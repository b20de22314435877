"""Benchmarks measure what they say: the reference mode computes the package's numbers, the page is its JSON's."""

import json
import operator
import os

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from benchmarks import tables
from benchmarks.end_to_end import PARTS, rows_before, rows_of
from benchmarks.harness import Timing, in_a_process, side_by_side
from benchmarks.reference import DECODER_TOKENS, PROMPT_TOKENS, Reference
from benchmarks.retrieval import hardness, local_dimension, synthetic_items
from benchmarks.scaling import fits
from benchmarks.subset import drawn
from benchmarks.templates import user_vectors
from benchmarks.workload import TOKEN_PROMPT, untrained
from recbole_tokenrec.retrieval import ExactIndex


@pytest.fixture
def model(toy_data):
    keys = {**TOKEN_PROMPT, "mq_codebook_size": 16, "prompt_max_history": 5}
    return untrained("toy", str(toy_data), 7, preset="tuned", **keys)[0]


@pytest.mark.recipe
def test_the_reference_mode_finds_the_packages_user_vectors_in_the_released_shape(model, monkeypatch):
    shapes = []
    reference = Reference(model)
    original = reference.llm.backbone.forward

    def spy(**inputs):
        shapes.append((inputs["input_ids"].shape[1], inputs["decoder_input_ids"].shape[1]))
        return original(**inputs)

    monkeypatch.setattr(reference.llm.backbone, "forward", spy)
    users = torch.tensor([1, 2, 9, 20])
    model.eval()
    torch.testing.assert_close(reference.encode_users(users), model.encode_users(users), rtol=1e-3, atol=1e-4)
    assert shapes == [(PROMPT_TOKENS, DECODER_TOKENS)]


@pytest.mark.recipe
def test_the_reference_mode_learns_the_pairs_it_is_given(model):
    torch.manual_seed(0)
    reference = Reference(model)
    before = {name: value.clone() for name, value in reference.llm.state_dict().items()}
    users = torch.tensor([3, 4])
    reference.train_step(users, torch.stack([model.histories.of_user(user)[0] for user in users.tolist()]))
    changed = [name for name, value in reference.llm.state_dict().items() if not torch.equal(value, before[name])]
    assert any("encoder" in name for name in changed) and any("projection" in name for name in changed)
    own = model.llm.state_dict()
    assert all(torch.equal(own[name], value) for name, value in before.items())  # a copy was trained


@pytest.mark.recipe
def test_each_template_is_asked_as_the_model_itself_would_ask_it(model):
    found = user_vectors(model)
    assert len(found) == model.prompts.num_templates + 1
    users = torch.arange(model.n_users)
    for prompt, name in (("seen", "template 0"), ("unseen", "template 10 (unseen)")):
        model.settings.prompt = prompt
        torch.testing.assert_close(found[name], F.normalize(model.encode_users(users), dim=-1))
    assert not torch.allclose(found["template 0"], found["template 10 (unseen)"])
    seen = [found[f"template {number}"] for number in range(10)]
    torch.testing.assert_close(found["mean of the seen"], sum(seen) / 10)


@pytest.mark.unit
def test_cases_alternate_and_the_warm_up_does_not_count():
    order = []
    timings = side_by_side({name: lambda name=name: order.append(name) for name in "ab"}, rounds=3, warmup=2)
    assert order == list("ab") * 5
    assert len(timings["a"].wall) == len(timings["b"].cpu) == 3
    assert Timing([3.0, 1.0, 2.0], [1.0, 1.0, 9.0]).median() == 2.0


@pytest.mark.unit
def test_line_fit():
    names = ("cf", "user_codebooks", "user_tokenizer", "item_tokenizer", "llm", "evaluation")
    rows = [
        {"users": n, **{f"{name}_cpu_s": 2 + 0.003 * n for name in names}, "peak_rss_mb": n**2} for n in (1, 10, 100)
    ]
    found = fits(rows)
    assert found["llm_cpu_s"]["per_1000_users"] == pytest.approx(3) and found["llm_cpu_s"]["r2"] == pytest.approx(1)
    assert found["llm_cpu_s"]["intercept"] == pytest.approx(2) and found["peak_rss_mb"]["r2"] < 0.999


@pytest.mark.unit
def test_synthetic_items_lie_where_trained_ones_do_and_in_as_many_dimensions():
    generator = torch.Generator().manual_seed(0)
    trained = torch.zeros(1601, 20)  # two crowds that share no direction, after the padding item
    trained[1:801, :5] = torch.randn(800, 5, generator=generator)
    trained[801:, 5:11] = torch.randn(800, 6, generator=generator)
    items = synthetic_items(trained, 1600, seed=1, chunk=700)
    assert items.shape == (1601, 20) and not items[0].any() and not items[:, 11:].any()
    torch.testing.assert_close(items[1:].norm(dim=1), torch.ones(1600))
    first, second = items[1:, :5].norm(dim=1) > 0, items[1:, 5:11].norm(dim=1) > 0
    assert (first ^ second).all() and 700 < int(first.sum()) < 900
    assert torch.equal(items, synthetic_items(trained, 1600, seed=1, chunk=700))
    queries = F.normalize(trained[[3, 900]], dim=-1)
    found = [hardness(ExactIndex(vectors), queries, "") for vectors in (trained, items)]
    assert found[0]["items"] == found[1]["items"] == 1600 and found[0]["query_cosines"][0] == pytest.approx(1)
    assert 3.5 < found[0]["item_dimension"] < 5.5  # directions in 5 and 6 dimensions: surfaces of 4 and 5
    assert found[1]["item_dimension"] == pytest.approx(found[0]["item_dimension"], rel=0.2)
    assert found[0]["item_cosines"][0] > found[0]["item_cosines"][1] > 0.7


@pytest.mark.unit
def test_local_dimension_is_that_of_the_surface():
    generator = torch.Generator().manual_seed(0)
    for dim in (2, 6):
        points = torch.zeros(2000, 20)
        points[:, :dim] = torch.rand(2000, dim, generator=generator)
        distances = torch.cdist(points, points).topk(21, largest=False).values[:, 1:]
        assert local_dimension(distances) == pytest.approx(dim, rel=0.15)


@pytest.mark.unit
def test_an_error_in_a_measured_process_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        in_a_process(operator.truediv, 1, 0)
    assert in_a_process(os.getpid) != os.getpid()


@pytest.mark.unit
def test_end_to_end_prefers_trainings_whose_stages_were_not_cached(tmp_path):
    def record(seed, cached, **others):
        stage = {"cached": cached, "seconds": 1.0, "peak_rss_mb": 100.0 * seed}
        return {
            "label": "TokenRec", "seed": seed, "data": {"name": "toy", "users": 4, "items": 5, "interactions": 9},
            "config": {"preset": "tuned"}, "seconds": dict.fromkeys((*PARTS, "train"), float(seed)),
            "peak_rss_mb": 250.0,
            "cpu_seconds": {"train": 5.0, "evaluation": 1.0}, "stages": {"cf": stage}, **others,
        }  # fmt: skip

    records = [record(1, True), record(3, False), record(2, False), record(0, False, label="x")]
    for number, content in enumerate(records):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    model = {**record(9, True), "name": "TokenRec", "config": {"preset": "user_id_only"}}
    (tmp_path / "run.json").write_text(json.dumps({"models": [model], "dataset": model["data"], "seed": 9}))
    first, second = rows_of([tmp_path])
    assert (first["preset"], first["seed"], first["cpu_seconds"], first["seconds"]["all"]) == ("tuned", 2, 6.0, 12.0)
    assert (second["preset"], second["seed"], second["cpu_seconds"]) == ("user_id_only", 9, None)
    assert (first["peak_rss_mb"], second["peak_rss_mb"]) == (250.0, 900.0)  # of a cached stage: its own training's


@pytest.mark.unit
def test_end_to_end_keeps_what_the_folders_do_not_hold_with_its_date(tmp_path):
    assert rows_before(tmp_path / "none.json") == []
    rows = [{"dataset": "a", "preset": "tuned"}, {"dataset": "b", "preset": "tuned", "date": "older", "commit": "0"}]
    (tmp_path / "r.json").write_text(json.dumps({"machine": {"date": "old"}, "commit": "1", "rows": rows}))
    first, second = rows_before(tmp_path / "r.json")
    assert (first["date"], first["commit"]) == ("old", "1") and (second["date"], second["commit"]) == ("older", "0")


@pytest.mark.unit
def test_the_pages_show_what_the_json_files_say():
    text = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert tables.page(text) == text
    for name, (file, _) in tables.TABLES.items():
        assert f"<!-- table {name} -->" in text
        if (tables.RESULTS / f"{file}.json").exists():
            content = json.loads((tables.RESULTS / f"{file}.json").read_text())
            assert content["machine"]["threads"] >= 1 and np.isfinite(content["machine"]["load_average"]).all()


@pytest.mark.unit
def test_a_subset_has_whole_users_in_their_order():
    rows = pd.DataFrame({"user_id:token": list("abcabcabcd"), "item_id:token": [str(n) for n in range(10)]})
    part = drawn(rows, 50, seed=1)
    kept = set(part["user_id:token"])
    assert len(kept) == 2
    assert part.equals(rows[rows["user_id:token"].isin(kept)])
    assert drawn(rows, 50, seed=1).equals(part)
    assert len({tuple(drawn(rows, 50, seed)["user_id:token"].unique()) for seed in range(10)}) > 1
