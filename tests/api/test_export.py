"""An exported folder: other tools read it, and loading it gives equal recommendations."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import recbole_tokenrec
from recbole_tokenrec.errors import CheckpointError

pytestmark = pytest.mark.recipe


@pytest.fixture
def folder(recommender, tmp_path):
    files = recommender.export(tmp_path / "export")
    assert {
        "config.json", "model.safetensors", "tokenizer.json", "tokenrec.json", "tokenrec.safetensors",
        "id_tokens.json", "item_vectors.safetensors", "items.csv",
    } <= set(files)  # fmt: skip
    return tmp_path / "export"


def test_round_trip_is_exact(recommender, folder):
    again = recbole_tokenrec.load(folder)
    pd.testing.assert_frame_equal(again.recommend(k=20), recommender.recommend(k=20), check_exact=True)
    new = {"x": ["g0i1", "g0i2"]}
    pd.testing.assert_frame_equal(again.recommend(histories=new), recommender.recommend(histories=new))
    assert again.title("g1i7") == "Film 7 of 1"
    left, right = again.model.state_dict(), recommender.model.state_dict()
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_grown_models_export_too(recommender, tmp_path):
    recommender.update(pd.DataFrame({"user_id": ["new"] * 3, "item_id": ["g0i1", "g0i2", "g0x"]}))
    recommender.export(tmp_path / "grown")
    again = recbole_tokenrec.load(tmp_path / "grown")
    pd.testing.assert_frame_equal(again.recommend(k=20), recommender.recommend(k=20), check_exact=True)
    assert again.history("new") == ["g0i1", "g0i2", "g0x"]


def test_other_tools_read_it(recommender, folder):
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = json.loads((folder / "id_tokens.json").read_text())
    user, item = tokens["users"]["g1u3"], tokens["items"]["g2i5"]
    assert tokenizer.convert_tokens_to_ids(user + item) == [tokens["vocabulary"][name] for name in user + item]
    model = AutoModel.from_pretrained(folder)
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)

    # the whole way by hand: prompt, language model, projection, cosine
    ours, data = recommender.model, recommender.data
    prompt = ours.prompts.render(0, ours.user_codes[data.user_numbers["g1u3"]].tolist(), [])
    assert "".join(user) in prompt
    ids = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        start = torch.tensor([[model.config.decoder_start_token_id or model.config.pad_token_id]])
        hidden = model.eval()(**ids, decoder_input_ids=start).last_hidden_state[:, 0]
        expected = ours.llm.backbone(**ids, decoder_input_ids=start).last_hidden_state[:, 0]
    torch.testing.assert_close(hidden, expected)

    vectors = load_file(folder / "item_vectors.safetensors")["item_vectors"]
    items = pd.read_csv(folder / "items.csv", dtype=str)
    assert len(items) == len(vectors) == 48
    assert items.set_index("item_id").loc["g3i0", "title"] == "Film 0 of 3"
    row = items.index[items["item_id"] == "g3i0"][0]
    torch.testing.assert_close(vectors[row].norm(), torch.tensor(1.0))
    inside = torch.nn.functional.normalize(ours.retrieval_vectors.detach()[data.item_numbers["g3i0"]], dim=0)
    torch.testing.assert_close(vectors[row], inside)


def test_faiss_file_finds_the_same_items(recommender, folder):
    faiss = pytest.importorskip("faiss")
    from safetensors.numpy import load_file

    vectors = load_file(folder / "item_vectors.safetensors")["item_vectors"]
    scores, rows = faiss.read_index(str(folder / "items.faiss")).search(vectors, 1)
    assert (rows[:, 0] == range(48)).all() and scores.min() > 0.999


def test_without_faiss_the_rest_is_written(recommender, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "items.faiss" not in recommender.export(tmp_path / "bare")


def test_an_old_export_is_replaced_whole_and_nothing_else_is(recommender, folder, tmp_path, monkeypatch):
    from recbole_tokenrec.api import export as module

    def fails(*args, **keys):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_json", fails)
        with pytest.raises(CheckpointError, match="disk full"):
            recommender.export(folder)
    assert len(recbole_tokenrec.load(folder).recommend(k=1)) == 48  # the old one, whole
    recommender.export(folder)
    assert [path.name for path in tmp_path.iterdir() if "export" in path.name] == ["export"]

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="exists and is no export"):
        recommender.export(mine)
    assert (mine / "thesis.tex").exists()


@pytest.mark.parametrize("file", ["tokenrec.safetensors", "model.safetensors", "tokenrec.json"])
def test_a_damaged_folder_is_refused(folder, file):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        recbole_tokenrec.load(folder)


def test_a_folder_that_leads_elsewhere_is_refused(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    weights = folder / "model.safetensors"
    weights.rename(tmp_path / "elsewhere" / weights.name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"shared.weight": "../elsewhere/model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"refused, since model.safetensors.index.json leads out of the folder"):
        recbole_tokenrec.load(folder)
    index.unlink()
    weights.symlink_to(tmp_path / "elsewhere" / weights.name)
    with pytest.raises(CheckpointError, match=r"refused, since model.safetensors leads out of the folder"):
        recbole_tokenrec.load(folder)


def test_code_in_a_folder_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "someone/kernel"}))
    with pytest.raises(CheckpointError, match="names the kernel 'someone/kernel': code"):
        recbole_tokenrec.load(folder)
    (folder / "mine.py").write_text("import pathlib\npathlib.Path('ran').touch()\nclass C:\n    pass\n")
    mine = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.C"}}
    (folder / "config.json").write_text(json.dumps(mine))
    with pytest.raises(CheckpointError, match="the export cannot be read"):
        recbole_tokenrec.load(folder)
    assert not Path("ran").exists()


HOSTILE = {
    "no mapping": lambda manifest: [1],
    "no configuration": lambda manifest: {**manifest, "config": None},
    "no model": lambda manifest: {**manifest, "config": {**manifest["config"], "model": "../evil"}},
    "another model": lambda manifest: {**manifest, "config": {**manifest["config"], "model": "BPR"}},
    "no options": lambda manifest: {**manifest, "config": {**manifest["config"], "config_dict": {}}},
    "no fields": lambda manifest: {**manifest, "fields": 3},
    "odd parameters": lambda manifest: {**manifest, "other_parameter": [1]},
}


def test_a_manifest_that_says_anything_is_one_clear_error(folder, capsys):
    from recbole_tokenrec.cli.main import main

    manifest = json.loads((folder / "tokenrec.json").read_text())
    for name, change in HOSTILE.items():
        (folder / "tokenrec.json").write_text(json.dumps(change(manifest)))
        assert main(["recommend", "--checkpoint", str(folder), "--users", "g0u0"]) == 2, name
        assert capsys.readouterr().err.startswith(f"error: {folder}: "), name
