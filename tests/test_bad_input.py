"""Every mistake a user can make is one message on stderr and exit code 2: no traceback, nothing written or changed.

One table a kind of input; each row is what was wrong, the class of the error and its text, word for word up to paths.
"""

import gzip
import hashlib
import json
import os
import re
import shutil

import pytest

from recbole_tokenrec import errors
from recbole_tokenrec.cli.main import main
from recbole_tokenrec.configuration import make_config
from recbole_tokenrec.datacheck import load_data

pytestmark = pytest.mark.unit

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"
ROWS = "".join(f"u{u}\ti{(u + i) % 9}\t{i}\n" for u in range(4) for i in range(6))
OWN = ["--cf_loss=own", "--llm_user_tokens=all", "--prompt_decoder_items=0"]

CONFIGURATION = [
    # RecBole's keys, for every model
    ("BPR", ["--epochs=abc"], "epochs: 'abc' is not allowed; allowed: int in [1, inf)"),
    ("BPR", ["--epochs=0"], "epochs: 0 is not allowed; allowed: int in [1, inf)"),
    ("BPR", ["--seed=abc"], "seed: 'abc' is not allowed; allowed: int in [0, 4294967295]"),
    ("BPR", ["--seed=-1"], "seed: -1 is not allowed; allowed: int in [0, 4294967295]"),
    ("BPR", ["--train_batch_size=0"], "train_batch_size: 0 is not allowed; allowed: int in [1, inf)"),
    ("BPR", ["--eval_batch_size=x"], "eval_batch_size: 'x' is not allowed; allowed: int in [1, inf)"),
    ("BPR", ["--learning_rate=-1"], "learning_rate: -1 is not allowed; allowed: float in (0, inf)"),
    ("BPR", ["--learning_rate=.nan"], "learning_rate: nan is not allowed; allowed: float in (0, inf)"),
    ("BPR", ["--embedding_size=-4"], "embedding_size: -4 is not allowed; allowed: int in [1, inf)"),
    ("BPR", ["--learner=adma"], "learner: 'adma' is not allowed; allowed: one of adam, adamw, sgd, adagrad, rmsprop, "
     "sparse_adam, muon; did you mean 'adam'?"),
    ("BPR", ["--learner=muon"], "learner: 'muon' is not allowed for BPR; allowed: adam, adamw, sgd, adagrad, rmsprop, "
     "sparse_adam, and of SASRecCE, BERT4RecCE, S3RecCE muon"),
    ("BPR", ["--clip_grad_norm=x"], "clip_grad_norm: 'x' is not allowed; allowed: a mapping"),
    ("BPR", ["--use_gpu=maybe"], "use_gpu: 'maybe' is not allowed; allowed: true or false"),
    ("BPR", ["--state=LOUD"], "state: 'LOUD' is not allowed; allowed: one of debug, info, warning, error, critical"),
    ("BPR", ["--load_col={inter: foo}"], "load_col: {inter: 'foo'} is not allowed; allowed: a list of columns, "),
    ("BPR", ["--load_col=3"], "load_col: 3 is not allowed; allowed: a mapping"),
    ("BPR", ["--field_separator="], "field_separator: None is not allowed; allowed: one character"),
    ("BPR", ["--topk=[]"], "topk: [] is not allowed; allowed: a list of int in [1, inf)"),
    ("BPR", ["--topk=[0]"], "model 'BPR': topk must be a positive integer or a list of positive integers, but get `0`"),
    ("BPR", ["--metrics=[]"], "metrics: [] is not allowed; allowed: a list of RecBole's, such as NDCG"),
    ("BPR", ["--metrics=[Foo]"], "model 'BPR': There is no metric named 'Foo'"),
    ("BPR", ["--valid_metric=NDCG@7"], "valid_metric: 'NDCG@7' is not allowed; allowed: one of Hit@3, NDCG@3"),
    ("BPR", ["--valid_metric=3"], "valid_metric: 3 is not allowed; allowed: a text such as NDCG@20"),
    ("BPR", ["--eval_args={split: {LS: nonsense}}"], "eval_args: split: {'LS': 'nonsense'} is not allowed; allowed: "
     "LS: valid_and_test (there must be a validation and a test set)"),
    ("BPR", ["--eval_args={split: {RS: [1, 2]}}"], "eval_args: split: {'RS': [1, 2]} is not allowed; allowed: RS: a "
     "list of three numbers above 0, e.g. [0.8, 0.1, 0.1]"),
    ("BPR", ["--eval_args={split: {RS: [0.9, 0.1, 0.0]}}"], "eval_args: split: {'RS': [0.9, 0.1, 0.0]} is not allowed"),
    ("BPR", ["--eval_args={order: XX}"], "eval_args: order: 'XX' is not allowed; allowed: TO (by time) or RO (random)"),
    ("BPR", ["--encoding=foo"], "encoding: 'foo' is not allowed; allowed: one of Python's"),
    ("BPR", ["--eval_args={mode: odd}"], "model 'BPR': the mode [odd] in eval_args is not supported."),
    ("BPR", ["--user_inter_num_interval=x"], "user_inter_num_interval: 'x' is not allowed; allowed: an interval like "
     '"[5,inf)" or empty'),
    ("BPR", ["--val_interval={user_id: 3}"], "val_interval: {user_id: 3} is not allowed; allowed: an interval like "
     '"[3,inf)" or a list'),
    ("BPR", ["--val_interval={timestamp: '3,inf'}"], "val_interval: {timestamp: '3,inf'} is not allowed; allowed: an "
     'interval like "[3,inf)" or a list'),
    ("BPR", ["--val_interval={timestamp: '[1,2);[b,5]'}"], "val_interval: {timestamp: '[1,2);[b,5]'} is not allowed"),
    ("BPR", ["--item_inter_num_interval=[5,x)"], "item_inter_num_interval: '[5,x)' is not allowed"),
    ("BPR", ["--eval_args={spilt: {RS: [0.8, 0.1, 0.1]}}"], "eval_args: the part 'spilt' is not known; allowed: split, "
     "order, group_by, mode; did you mean 'split'?"),
    ("BPR", ["--train_neg_sample_args={distribution: uniform, sample_num: 1, alpha: 1, dynmic: true}"],
     "train_neg_sample_args: the part 'dynmic' is not known; allowed: distribution, sample_num, alpha, dynamic, "
     "candidate_num; did you mean 'dynamic'?"),
    ("LightGCNSoftmax", ["--precision=fp16"], "precision: 'fp16' is not allowed; allowed: one of auto, fp32, bf16"),
    ("BERT4RecCE", ["--mask_ratio=1.5"], "mask_ratio: 1.5 is not allowed; allowed: float in [0, 1]"),
    ("SASRecCE", ["--n_layers=0"], "n_layers: 0 is not allowed; allowed: int in [1, inf)"),
    ("S3RecCE", ["--n_heads=0"], "n_heads: 0 is not allowed; allowed: int in [1, inf)"),
    ("SASRecCE", ["--hidden_size=-4"], "hidden_size: -4 is not allowed; allowed: int in [1, inf)"),
    ("SASRecCE", ["--inner_size="], "inner_size: a value is needed; allowed: int in [1, inf)"),
    ("BERT4RecCE", ["--layer_norm_eps=-1"], "layer_norm_eps: -1 is not allowed; allowed: float in (0, inf)"),
    ("S3RecCE", ["--hidden_dropout_prob=1.5"], "hidden_dropout_prob: 1.5 is not allowed; allowed: float in [0, 1]"),
    ("SASRecCE", ["--hidden_act=gelo"], "hidden_act: 'gelo' is not allowed; allowed: one of gelu, relu, swish, tanh, "
     "sigmoid; did you mean 'gelu'?"),
    ("BPR", ["--eval_args={mode: labeled}"], "eval_args: mode: labeled needs metrics of labels, such as AUC; metrics "
     "is ['Hit', 'NDCG']"),
    ("TokenRec", ["--eval_args={mode: labeled}"], "eval_args: mode: labeled is not allowed; allowed: full, uniN or "
     "popN"),
    ("BPR", ["--resume=true"], "argument --resume: ignored explicit argument 'true'"),
    ("BPR", ["--checkpoint_every_seconds=-1"], "checkpoint_every_seconds: -1 is not allowed; allowed: float in [0, "
     "inf) or empty"),
    ("BPR", ["--preset", "tuned"], "preset: 'tuned' was set, but BPR has no presets"),
    # unknown names and files
    ("BRP", [], "unknown model 'BRP'; did you mean 'BPR'?"),
    (",", [], "--model: at least one name is needed"),
    ("BPR", ["--embeding_size=3"], "unknown configuration key 'embeding_size'; did you mean 'embedding_size'?"),
    ("BPR", ["surplus"], "'surplus' is not understood; settings are given as --key=value"),
    ("BPR", ["--=3"], "'--=3' is not understood; settings are given as --key=value"),
    ("BPR", ["--config_files", "missing.yaml"], "config_files: missing.yaml cannot be read (No such file or "),
    ("BPR", ["--config_files", "broken.yaml"], "config_files: broken.yaml is not YAML: "),
    ("BPR", ["--config_files", "list.yaml"], "config_files: list.yaml must hold keys and values, not list"),
    ("BPR", ["--config_files", "binary.yaml"], "config_files: binary.yaml is not YAML: "),
    ("BPR", ["--config_files", "mini"], "config_files: mini cannot be read (Is a directory)"),
    ("BPR", ["--dataset", "../mini"], "dataset: '../mini' is not allowed; allowed: a name, without a path"),
    ("BPR", ["--dataset", ""], "dataset: '' is not allowed; allowed: a name, without a path"),
    ("BPR", ["--result_file", "mini"], "result_file: mini is a folder; allowed: a file's name"),
    ("BPR", ["--output_dir", "/proc/x"], "checkpoint_dir: the folder /proc/x cannot be made"),
    # TokenRec's own keys
    ("TokenRec", ["--epochs=1"], "epochs: TokenRec trains in stages, each with a key of its own: cf_epochs, mq_epochs, "
     "llm_epochs"),
    ("TokenRec", ["--learner=sgd"], "unknown configuration key 'learner'"),
    ("TokenRec", ["--mq_codebook_size=1"], "mq_codebook_size: 1 is not allowed; allowed: int in [2, inf)"),
    ("TokenRec", ["--mq_masking_ratio=2"], "mq_masking_ratio: 2 is not allowed; allowed: float in [0, 1]"),
    ("TokenRec", ["--mq_skip=3"], "mq_skip: 3 is not allowed; allowed: true or false"),
    ("TokenRec", ["--mq_num_codebooks="], "mq_num_codebooks: a value is needed; allowed: int in [1, 64]"),
    ("TokenRec", ["--llm_temperature=.inf"], "llm_temperature: inf is not allowed; allowed: float in (0, inf)"),
    ("TokenRec", ["--id_tokenizer=qr"], "id_tokenizer: 'qr' is not allowed; allowed: one of mq, mq_frozen, rq, kmeans; "
     "did you mean 'rq'?"),
    ("TokenRec", ["--preset", "best"], "preset: 'best' is not known; allowed: paper, tuned, user_id_only"),
    ("TokenRec", ["--cf_config={embeding: 3}"], "cf_config: LightGCN has no key 'embeding'"),
    # contradictions
    ("TokenRec", ["--llm_target_ratio=[0.3, 0.1]"], "llm_target_ratio: [0.3, 0.1] is not allowed; allowed: two shares "
     "[low, high] within (0, 1)"),
    ("TokenRec", ["--prompt_order=sequential", "--llm_batching=interactions"], "prompt_order: 'sequential' needs "
     "llm_batching: users; it is 'interactions'"),
    ("TokenRec", ["--cf_loss=own"], "llm_user_tokens: 'visible' needs cf_loss: softmax_cosine and cf_user_table: "),
    ("TokenRec", ["--cf_model=BPR"], "cf_model: 'BPR' has a loss of its own; set cf_loss: own (softmax_cosine needs "
     "LightGCN)"),
    ("TokenRec", ["--cf_n_layers=0", "--cf_targets=all"], "cf_n_layers: 0 leaves users without a representation; set "
     "cf_user_table: true"),
    ("TokenRec", ["--train_neg_sample_args={distribution: uniform, sample_num: 1, alpha: 1.0, dynamic: true, "
     "candidate_num: 2}", "--llm_batching=interactions", "--prompt_order=shuffled", "--llm_item_dropout=0"],
     "train_neg_sample_args: dynamic: true is not allowed with llm_batching: interactions"),
    ("TokenRec", [*OWN, "--cf_model=GTN"], "cf_model: 'GTN' is none of RecBole's that learn user and item embeddings; "
     "allowed: e.g. LightGCN, BPR, NGCF, SGL"),
    ("TokenRec", [*OWN, "--cf_model=EASE"], "cf_model: 'EASE' is none of RecBole's that learn user and item"),
    ("TokenRec", [*OWN, "--cf_model=LightGNN"], "cf_model: RecBole has no model 'LightGNN'"),
    ("TokenRec", [*OWN, "--cf_model=SASRec"], "cf_model: 'SASRec' is no GeneralRecommender"),
    ("TokenRec", [*OWN, "--cf_model=NCL"], "cf_model: 'NCL' is trained by steps of its own, which this "),
    ("TokenRec", [*OWN, "--cf_model=Pop"], "cf_model: 'Pop' keeps no user and item embeddings"),
    # prompts: the history is cut, but the template and one item must fit
    ("TokenRec", ["--prompt_max_history=0"], "prompt_max_history: 0 is not allowed; allowed: int in [1, inf)"),
    ("TokenRec", ["--prompt_max_tokens=16"], "prompt_max_tokens: 16 is not allowed; allowed: int in ["),
]  # fmt: skip

DATA = [
    ("user_id:token\ttimestamp:float\nu\t1\n", "{} has no column 'item_id' (ITEM_ID_FIELD); it has: user_id, time"),
    ("user_id:token\titem_id:token\nu\ti\n", "{} has no column 'timestamp' (TIME_FIELD); it has: user_id, item_id"),
    ("user_id\titem_id\ttimestamp\nu\ti\t1\n", "column 'user_id' of {} has no type RecBole knows"),
    (HEADER.replace("\t", ",") + ROWS.replace("\t", ","), "has no type RecBole knows; write it as name:type with "
     "a type of token, token_seq, float, float_seq, separated by '\\t'"),
    (HEADER.replace("user_id", "item_id") + ROWS, "{} has the column 'item_id' more than once"),
    (HEADER.replace("item_id:token", "item_id:token_seq") + ROWS, "column 'item_id' (ITEM_ID_FIELD) of {} has the "
     "type token_seq; it must be token"),
    (HEADER.replace("user_id:token", "user_id:float") + ROWS, "column 'user_id' (USER_ID_FIELD) of {} has the type "
     "float; it must be token"),
    (HEADER.replace("timestamp:float", "timestamp:token") + ROWS, "column 'timestamp' (TIME_FIELD) of {} has the type "
     "token; it must be float"),
    (HEADER, "{} holds no interactions"),
    ("", "{} is empty"),
    (gzip.compress((HEADER + ROWS).encode(), mtime=0), "{} is gzip-compressed; unpack it first"),
    (b"\xff\xfe" + (HEADER + ROWS).encode("utf-16-le"), "{} is not text ("),
    (b"\xef\xbb\xbf" + (HEADER + ROWS).encode(), "{} begins with a byte order mark; set encoding: utf-8-sig"),
    ((HEADER + ROWS).encode() + b"u1\ti\xe9\t9\n", "RecBole cannot read it: 'utf-8' codec can't decode byte 0xe9"),
    (HEADER + ROWS + "u1\ti8\t\n", "1 of 25 rows of {} have no finite 'timestamp', by which leave-one-out orders them "
     "(first: row 25, blank); remove those rows or set eval_args: {{order: RO}}"),
    (HEADER + "u1\ti8\tsoon\n" + ROWS, "have no finite 'timestamp', by which leave-one-out orders them (first: row 1, "
     "'soon')"),
    (HEADER + ROWS.replace("\t5\n", "\tinf\n"), "4 of 24 rows of {} have no finite 'timestamp'"),
    (HEADER + ROWS.replace("i2", '"i2'), "RecBole cannot read it: "),
    (HEADER + "u\ti1\t1\nu\ti2\t2\nu\ti3\t3\nu\ti4\t4\n", "1 user(s) and 4 item(s) are left after the filters; at "
     "least 2 users and 3 items are needed"),
    (HEADER + "".join(f"u{u}\ti1\t{t}\n" for u in range(5) for t in range(4)), "5 user(s) and 1 item(s) are left"),
    (HEADER + "u\ta\t1\nu\tb\t2\nv\tc\t1\nv\ta\t2\n", "no user has 3 interactions, and leave-one-out takes one for "
     "validation and one for test"),
    (HEADER + "".join(f"{u}\t{i}\t{i}\n" for u in "vw" for i in range(5)), "Some users have interacted with all items"),
]  # fmt: skip


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``command(model, arguments)``: (exit code, error class, stderr); fails if the run wrote or changed anything."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, HEADER + ROWS)
    (tmp_path / "broken.yaml").write_text("a: [1, 2\nb: {")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "binary.yaml").write_bytes(b"\x00\xff\xfe\x80")
    raised = []
    monkeypatch.setattr(
        errors.TokenRecError, "__init__", lambda self, *a: (raised.append(type(self)), ValueError.__init__(self, *a))[1]
    )

    def run(model, arguments):
        before = snapshot(tmp_path)
        quick = [] if any("topk" in text for text in arguments) else ["--topk=[3]"]
        quick += [] if any("valid_metric" in text for text in arguments) else ["--valid_metric=NDCG@3"]
        if model == "TokenRec":  # should a mistake go unnoticed, the test fails soon
            quick += ["--cf_epochs=1", "--mq_epochs=1", "--mq_min_steps=1", "--llm_epochs=1", "--stage_cache=false"]
        named = [] if "--dataset" in arguments else ["--dataset", "mini"]
        try:
            own = [*named, "--data_path", ".", "--show_progress=false", *quick, *arguments]
            code = main(["run", "--model", model, *own])
        except SystemExit as stopped:  # argparse's own complaints
            code = stopped.code
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        after = snapshot(tmp_path)
        assert {name: digest for name, digest in after.items() if before.get(name) != digest} == {}
        return code, raised[-1] if raised else SystemExit, printed.err

    return run


def write(folder, content):
    (folder / "mini").mkdir(exist_ok=True)
    (folder / "mini" / "mini.inter").write_bytes(content if isinstance(content, bytes) else content.encode())


def snapshot(folder) -> dict:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(("model", "arguments", "text"), CONFIGURATION, ids=lambda value: str(value)[:40])
def test_configuration(model, arguments, text, command):
    code, kind, printed = command(model, arguments)
    assert code == 2 and text in printed
    assert kind is (SystemExit if text.startswith("argument") else errors.ConfigError)


@pytest.mark.parametrize(("content", "text"), DATA, ids=range(len(DATA)))
def test_data(content, text, command, tmp_path):
    write(tmp_path, content)
    code, kind, printed = command("BPR", [])
    assert code == 2 and text.format("mini/mini.inter") in printed
    assert kind is errors.DataError
    assert printed.startswith("error: dataset 'mini': ") or "WARNING" in printed.splitlines()[0]


@pytest.mark.parametrize("argument", ["--alias_of_item_id=foo", "--transform=foo"])
def test_settings_of_which_recbole_dies(argument, command):
    code, kind, printed = command("BPR", [argument])
    assert (code, kind) == (2, errors.DataError)
    assert printed.startswith("error: dataset 'mini': RecBole cannot read it with these settings (")


def test_a_model_of_recboles_that_the_data_do_not_suit(command):
    code, kind, printed = command("S3Rec", [])  # wants the items' classes
    assert (code, kind) == (2, errors.ConfigError)
    assert "error: model 'S3Rec': RecBole cannot build it of these data and settings (" in printed


def test_too_many_topk_and_missing_data(command, tmp_path):
    code, kind, printed = command("BPR", ["--topk=[3, 10]"])
    assert (code, kind) == (2, errors.ConfigError)
    assert "topk: 10 is not allowed; allowed: at most the 9 items of dataset 'mini'" in printed
    (tmp_path / "mini" / "mini.inter").unlink()
    code, kind, printed = command("BPR", [])
    assert (code, kind) == (2, errors.DataError) and "mini/mini.inter does not exist" in printed
    (tmp_path / "mini" / "mini.inter").mkdir()
    code, kind, printed = command("BPR", [])
    assert (code, kind) == (2, errors.DataError) and "mini/mini.inter is a folder, not a file" in printed


def test_a_file_where_logs_are_to_go(command, tmp_path):
    (tmp_path / "log").write_text("mine")
    code, kind, printed = command("BPR", [])
    assert (code, kind) == (2, errors.ConfigError)
    assert "the current folder: the folder ./log/BPR cannot be made (Not a directory)" in printed


HARMLESS = {
    "duplicate rows": (HEADER + ROWS + ROWS, 4, 9, 48),
    "ids with spaces": (HEADER + ROWS.replace("u1", " u 1 ").replace("i2", "i 2"), 4, 9, 24),
    "unicode and separators of other files": (HEADER + ROWS.replace("u1", "ü☃,;|").replace("i2", "日:本"), 4, 9, 24),
    "huge ids": (HEADER + ROWS.replace("u1", "9" * 300).replace("i2", "1" * 5000), 4, 9, 24),
    "ids that pandas takes for missing": (HEADER + ROWS.replace("u1", "NA").replace("i2", "null"), 4, 9, 24),
    "numbers as ids": (HEADER + ROWS.replace("u1", "0").replace("i2", "-1"), 4, 9, 24),
    "CRLF": ((HEADER + ROWS).replace("\n", "\r\n"), 4, 9, 24),
    "no newline at the end": (HEADER + ROWS.rstrip(), 4, 9, 24),
    "blank lines": (HEADER + "\n" + ROWS.replace("\t5\n", "\t5\n\n"), 4, 9, 24),
    "users of one and of two": (HEADER + ROWS + "s1\ti1\t1\ns2\ti2\t1\ns2\ti1\t2\n", 6, 9, 27),
    "an item unseen in training": (HEADER + ROWS + "u1\tnew\t99\n", 4, 10, 25),
    "rows without an item": (HEADER + ROWS + "u1\t\t9\n", 4, 9, 24),
    "all at the same time": (HEADER + re.sub(r"\t\d\n", "\t1\n", ROWS), 4, 9, 24),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_but_usable_data_is_read_whole(name, tmp_path):
    content, users, items, rows = HARMLESS[name]
    write(tmp_path, content)
    keys = {"data_path": str(tmp_path), "state": "ERROR", "topk": [3], "valid_metric": "NDCG@3"}
    dataset, (train, valid, test) = load_data(make_config("BPR", "mini", (), keys))
    assert (dataset.user_num - 1, dataset.item_num - 1, len(dataset)) == (users, items, rows)
    assert len(train._dataset) + len(valid._dataset) + len(test._dataset) == rows


def backbone(name, folder, tiny_t5):
    """A copy of a sound backbone with one fault; returns the error's text."""
    shutil.copytree(tiny_t5, folder)
    weights = folder / "model.safetensors"
    if name == "no weights":
        weights.unlink()
        return "holds no weights (*.safetensors)"
    if name == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif name == "weights are no safetensors":
        weights.write_bytes(b"PK\x03\x04" * 300)
    elif name == "configuration is no JSON":
        (folder / "config.json").write_text("{")
    elif name == "no configuration":
        (folder / "config.json").unlink()
    elif name == "no tokenizer":
        for file in folder.glob("token*"):
            file.unlink()
        return "holds no tokenizer (tokenizer.json or spiece.model)"
    elif name == "other architecture":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "bart"}))
        return "architecture 'bart' is not supported; allowed: t5, mt5, umt5."
    elif name == "weights of another size":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "d_model": 48}))
    elif name == "a weight is missing":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        lost = "encoder.block.0.layer.0.SelfAttention.q.weight"
        del tensors[lost]
        save_file(tensors, weights, {"format": "pt"})
        return f"the weights do not fit the configuration: 1 are missing, e.g. {lost}."
    elif name == "another model's ID tokens":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["<u1-0>"])
        tokenizer.save_pretrained(folder)
        return "has the token <u1-0> already; it was exported from a TokenRec model"
    elif name == "tokenizer without padding":
        file = folder / "tokenizer_config.json"
        config = json.loads(file.read_text())
        config.pop("pad_token")
        file.write_text(json.dumps(config))
        return "the tokenizer has no padding token"
    elif name == "a kernel of the hub":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "someone/kernel"}))
        return "refused, since the configuration names the kernel 'someone/kernel': code"
    elif name == "code of its own":
        (folder / "mine.py").write_text("import pathlib\npathlib.Path('ran').touch()\nclass C:\n    pass\n")
        config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.C"}}
        (folder / "config.json").write_text(json.dumps(config))
    elif name == "vocabulary larger than the embedding":
        config = json.loads((folder / "config.json").read_text())
        assert config["vocab_size"] == 256
        from transformers import T5Config, T5Model

        T5Model(T5Config(**{**config, "vocab_size": 20})).save_pretrained(folder)
        return " tokens, the weights have embeddings for 20; they belong to different models."
    return "could not be loaded ("


BACKBONES = [
    "no weights", "weights cut short", "weights are no safetensors", "configuration is no JSON", "no configuration",
    "no tokenizer", "other architecture", "weights of another size", "a weight is missing", "another model's ID tokens",
    "tokenizer without padding", "vocabulary larger than the embedding", "a kernel of the hub", "code of its own",
]  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name, command, tiny_t5, tmp_path):
    text = backbone(name, tmp_path / "backbone", tiny_t5)
    code, kind, printed = command("TokenRec", [f"--llm_backbone={tmp_path / 'backbone'}"])
    assert code == 2 and kind is errors.BackboneError
    assert "error: llm_backbone: " in printed and text in printed
    assert os.linesep + "error" not in printed.rstrip() or printed.count("error: ") == 1
