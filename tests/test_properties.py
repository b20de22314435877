"""Property tests: whatever hypothesis draws, codes come back, prompts are what the tokenizer would make of the text,
metrics are what a few lines of numpy say, and a broken file is an error of ours and no other."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recbole.evaluator import Collector, Evaluator

from recbole_tokenrec.checkpoints import load_for_recbole, save_checkpoint
from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.datacheck import load_data
from recbole_tokenrec.errors import CheckpointError, TokenRecError
from recbole_tokenrec.histories import Histories
from recbole_tokenrec.llm.backbone import add_id_tokens, load_backbone
from recbole_tokenrec.llm.prompts import PromptBuilder, all_texts
from recbole_tokenrec.tokenizers import MQTokenizer, RQTokenizer, entity_tokens, token_names
from recbole_tokenrec.tokenizers.mq import nearest_codeword

pytestmark = pytest.mark.unit

COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
few, some = settings(max_examples=15, **COMMON), settings(max_examples=60, **COMMON)

MOST_K, L = 6, 8
BACKBONE = load_backbone("t5-scratch-mini", all_texts())
IDS = {
    letter: add_id_tokens(BACKBONE, token_names(letter, MOST_K, L)).view(MOST_K, L) for letter in ("u", "v")
}


# ---- tokenizers ----------------------------------------------------------------------------------------------------


@some
@given(st.sampled_from("uv"), st.lists(st.integers(0, L - 1), min_size=1, max_size=MOST_K))
def test_codes_to_tokens_to_ids_and_back(letter, codes):
    tokens = entity_tokens(letter, codes)
    ids = BACKBONE.tokenizer("".join(tokens), add_special_tokens=False)["input_ids"]
    assert ids == [int(IDS[letter][k, code]) for k, code in enumerate(codes)]
    assert BACKBONE.tokenizer.convert_ids_to_tokens(ids) == tokens
    assert [int((IDS[letter][k] == token).nonzero()) for k, token in enumerate(ids)] == codes


@some
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 16), st.integers(1, 12))
def test_every_codeword_is_nearest_to_itself(seed, ways, size, dim):
    torch.manual_seed(seed)
    books = torch.randn(ways, size, dim)
    codes = torch.randint(0, size, (20, ways))
    words = books[torch.arange(ways), codes]  # (20, K, d_c)
    again = nearest_codeword(words.transpose(0, 1), books).T
    distance = torch.cdist(words.transpose(0, 1), books)  # where two are (nearly) the same either may be named
    assert torch.equal(again, codes) or bool((distance.gather(2, again.T.unsqueeze(2)) < 1e-2).all())


@few
@given(st.integers(0, 10**6), st.sampled_from([MQTokenizer, RQTokenizer]), st.integers(1, 4), st.booleans())
def test_encoding_is_stable_and_decoding_keeps_the_shape(seed, kind, books, skip):
    torch.manual_seed(seed)
    tokenizer = kind(6, books, L, codeword_dim=5, hidden_size=7, masking_ratio=0.5, skip=skip)
    x = torch.randn(30, 6)
    tokenizer.fit_scale(x)
    codes = tokenizer.encode_all(x)
    assert codes.shape == (30, books) and int(codes.min()) >= 0 and int(codes.max()) < L
    assert torch.equal(tokenizer.encode_all(x, batch_size=7), codes)  # no masking, no company
    assert torch.equal(tokenizer.encode_all(x.flip(0)).flip(0), codes)
    assert tokenizer.decode(codes).shape == x.shape
    torch.testing.assert_close(tokenizer.restore(tokenizer.standardise(x)), x)
    tokenizer.eval()
    assert torch.equal(tokenizer(x).indices, codes)


# ---- prompts -------------------------------------------------------------------------------------------------------


@st.composite
def prompts(draw):
    user_books, item_books = draw(st.integers(1, MOST_K)), draw(st.integers(1, MOST_K))
    builder = PromptBuilder(
        BACKBONE.tokenizer,
        IDS["u"][:user_books],
        IDS["v"][:item_books],
        draw(st.booleans()),
        draw(st.sampled_from(["printed", "compact"])),
        draw(st.integers(64, 200)),
    )
    template = draw(st.integers(0, builder.num_templates - 1))
    code = st.integers(0, L - 1)
    rows = draw(st.integers(1, 3))
    users = [[draw(code) for _ in range(user_books)] for _ in range(rows)]
    most = builder.capacity(template)
    numbers = [draw(st.integers(1, most)) if most else 0 for _ in range(rows)]
    items = [[[draw(code) for _ in range(item_books)] for _ in range(max(numbers))] for _ in range(rows)]
    return builder, template, users, items, numbers


@some
@given(prompts())
def test_a_prompt_is_the_tokenized_text_and_never_too_long(drawn):
    builder, template, users, items, numbers = drawn
    batch = builder.build(
        template, torch.tensor(users), torch.tensor(items) if builder.history else None, torch.tensor(numbers)
    )
    assert batch.input_ids.shape[1] <= builder.max_tokens
    for row, number in enumerate(numbers):
        text = builder.render(template, users[row], items[row][:number] if builder.history else ())
        length = int(batch.attention_mask[row].sum())
        assert batch.input_ids[row, :length].tolist() == BACKBONE.tokenizer(text)["input_ids"]
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * (batch.input_ids.shape[1] - length)
        assert set(batch.input_ids[row, length:].tolist()) <= {builder.pad_id}


# ---- metrics -------------------------------------------------------------------------------------------------------

TOPK = [1, 3, 10]
CONFIG = make_config(
    "BPR", "ml-100k", (), {"topk": TOPK, "metrics": ["Hit", "NDCG", "MRR", "Recall"], "valid_metric": "Hit@1"}
)


@some
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(11, 60))
def test_metrics_equal_a_plain_reference(seed, users, items):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(items, dtype=np.float32), (users, 1)), axis=1)  # no ties
    target = rng.integers(0, items, users)
    collector = Collector(CONFIG)
    collector.eval_batch_collect(torch.from_numpy(scores), None, torch.arange(users), torch.from_numpy(target))
    result = Evaluator(CONFIG).evaluate(collector.get_data_struct())
    rank = 1 + (scores > scores[np.arange(users), target][:, None]).sum(axis=1)
    for k in TOPK:
        hit = rank <= k
        assert result[f"hit@{k}"] == pytest.approx(hit.mean(), abs=1e-6)
        assert result[f"recall@{k}"] == pytest.approx(hit.mean(), abs=1e-6)
        assert result[f"ndcg@{k}"] == pytest.approx((hit / np.log2(rank + 1)).mean(), abs=1e-6)
        assert result[f"mrr@{k}"] == pytest.approx((hit / rank).mean(), abs=1e-6)


@some
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), max_size=60), st.integers(1, 6))
def test_histories_equal_a_plain_reference(pairs, most):
    users, items = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    histories = Histories(users, items, 7)
    for user in range(7):
        plain = []
        for other, item in pairs:
            if other == user:
                plain = [known for known in plain if known != item] + [item]  # the last occurrence counts
        assert histories.of_user(user).tolist() == plain
        latest, number = histories.latest(torch.tensor([user]), most)
        assert latest[0, : int(number[0])].tolist() == plain[-most:]
    assert histories.ages().tolist() == [
        age for count in histories.counts().tolist() for age in reversed(range(count))
    ]


# ---- fuzz ----------------------------------------------------------------------------------------------------------

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
INTER = (HEADER + "".join(f"u{u}\ti{(u + i) % 9}\t{i}\n" for u in range(4) for i in range(6))).encode()


def damage(data, draw_count, rng):
    """``data`` with some bytes changed, cut out or put in, or its end cut off."""
    data = bytearray(data)
    for _ in range(draw_count):
        place, what = int(rng.integers(len(data) + 1)), int(rng.integers(4))
        if what == 0 and place < len(data):
            data[place] = int(rng.integers(256))
        elif what == 1:
            del data[place : place + int(rng.integers(1, 40))]
        elif what == 2:
            data[place:place] = bytes(rng.choice(list(b'\t\n\r\0"\xff,:0aeinfE+-. '), int(rng.integers(1, 9))).tolist())
        elif rng.random() < 0.2:
            del data[place:]
        if not data:
            break
    return bytes(data)


def read_damaged_inter(folder, seed) -> str:
    rng = np.random.default_rng(seed)
    (folder / "mini").mkdir(exist_ok=True)
    (folder / "mini" / "mini.inter").write_bytes(damage(INTER, int(rng.integers(1, 9)), rng))
    keys = {"data_path": str(folder), "state": "CRITICAL", "topk": [2], "valid_metric": "NDCG@2"}
    try:
        dataset, (train, valid, test) = load_data(make_config("BPR", "mini", (), keys))
    except TokenRecError as error:
        assert str(error).startswith(("dataset 'mini': ", "topk: ")), error
        return "refused"
    assert len(train._dataset) + len(valid._dataset) + len(test._dataset) == len(dataset)
    for loader in (train, valid, test):
        next(iter(loader))
    return "read"


def read_damaged_checkpoint(folder, seed) -> str:
    rng = np.random.default_rng(seed)
    theirs, ours = folder / "theirs.pth", folder / "ours.pth"
    payload = {"state_dict": {"a": torch.arange(50.0)}, "epoch": 1, "other_parameter": None}
    if not ours.exists():
        torch.save({**payload, "config": None}, theirs, pickle_protocol=4)
        save_checkpoint(ours, payload)
    source = ours if seed % 2 else theirs
    file = folder / "damaged.pth"
    file.write_bytes(damage(source.read_bytes(), int(rng.integers(1, 6)), rng))
    try:
        loaded = load_for_recbole(file, "cpu")
    except CheckpointError as error:
        assert "damaged.pth" in str(error)
        return "refused"
    assert isinstance(loaded, dict)
    return "read"


@pytest.mark.parametrize("read", [read_damaged_inter, read_damaged_checkpoint])
def test_a_damaged_file_is_read_or_is_an_error_of_ours(read, tmp_path):
    outcomes = {read(tmp_path, seed) for seed in range(60)}
    assert outcomes == {"read", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("read", [read_damaged_inter, read_damaged_checkpoint])
def test_a_thousand_damaged_files(read, tmp_path):
    outcomes = [read(tmp_path, seed) for seed in range(1000, 2000)]
    print(read.__name__, {kind: outcomes.count(kind) for kind in set(outcomes)})
