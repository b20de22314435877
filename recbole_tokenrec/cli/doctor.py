"""``recbole-tokenrec doctor``: what is installed, what of RecBole is patched and why, the device, the data found."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from recbole_tokenrec.cli.common import no_more

EXTRAS = {
    "faiss": ["faiss-cpu"], "lancedb": ["lancedb"], "serve": ["fastapi", "uvicorn"], "sweep": ["optuna"],
    "score": ["pyarrow"], "lora": ["peft"], "plot": ["matplotlib"],
}  # fmt: skip


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor", help="versions, patches, device, data", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--data_path", help="folder whose data sets are listed (default: that of ml-100k alone)")
    parser.set_defaults(handler=doctor)


def doctor(arguments, rest: list[str]) -> int:
    no_more(rest)
    for title, lines in (
        ("versions", _versions()),
        ("extras", _extras()),
        ("changes to RecBole", _patches()),
        ("device", _device()),
        ("language models", _backbones()),
        ("data", _data(arguments.data_path)),
    ):
        print(title)
        for line in lines:
            print(f"  {line}")
    return 0


def _versions() -> list[str]:
    from recbole_tokenrec.pipeline import versions

    return [f"{name} {version}" for name, version in versions().items()]


def _extras() -> list[str]:
    lines = []
    for extra, packages in EXTRAS.items():
        found = []
        for package in packages:
            try:
                found.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                found.append(f"{package} is missing: pip install 'recbole-tokenrec[{extra}]'")
        lines.append(f"{extra}: {', '.join(found)}")
    return lines


def _patches() -> list[str]:
    from recbole_tokenrec import compat

    return [
        f"{'applied   ' if patch.applied else 'not needed'} {patch.name}: {patch.why}"
        + (f" ({patch.upstream})" if patch.upstream else "")
        for patch in compat.apply()
    ]


def _device() -> list[str]:
    import torch

    from recbole_tokenrec.measure import machine
    from recbole_tokenrec.training.losses import fast_bf16

    own = machine()
    lines = [
        f"{own['cpu']} ({own['torch_cpu_capability']}), {own['memory_gib']} GiB",
        f"{own['cores']} processors, torch uses {own['threads']} threads",
        f"precision: auto is {'bf16' if fast_bf16(torch.device('cpu')) else 'fp32'} on the CPU",
    ]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(number).total_memory / 2**30
            lines.append(f"cuda:{number} {torch.cuda.get_device_name(number)}, {memory:.0f} GiB")
    else:
        lines.append("no CUDA device: everything runs on the CPU")
    return lines


def _backbones() -> list[str]:
    from recbole_tokenrec.llm.backbone import scratch_presets

    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    return [
        f"from scratch, bundled: {', '.join(scratch_presets())}",
        "Hugging Face hub: " + ("switched off by HF_HUB_OFFLINE" if offline else "asked when llm_backbone names an id"),
    ]


def _data(data_path: str | None) -> list[str]:
    import recbole

    folders = [Path(recbole.__file__).parent / "dataset_example" / "ml-100k"]
    if data_path is not None:
        if not Path(data_path).is_dir():
            return [f"{data_path}: no such folder"]
        folders += sorted(path for path in Path(data_path).iterdir() if path.is_dir())
    lines = []
    for folder in folders:
        file = folder / f"{folder.name}.inter"
        if not file.is_file():
            lines.append(f"{folder.name}: no {file.name} in {folder}")
            continue
        with open(file, "rb") as content:
            header = content.readline().decode("utf-8", "replace").split()
            rows = sum(block.count(b"\n") for block in iter(lambda: content.read(1 << 20), b""))
        titles = ", titles" if (folder / f"{folder.name}.item").is_file() else ""
        lines.append(f"{folder.name}: {rows} interactions ({', '.join(header)}){titles} in {folder}")
    return lines
