import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("training", "inference", "evaluation")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if path.name != "__init__.py"
}

# What another room may import of training.
OPEN_TO_INFERENCE = {
    f"training.{name}"
    for name in (
        "consts",
        "rows",
        "conversation",
        "encoding",
        "tokenizer",
        "adapters",
        "model",
        "modeling_bloom",
        "errors",
    )
}

# Each module may import from those before it, never the other way round.
LAYERS = [
    {"consts", "curves", "disk", "errors", "reporting", "sampling"},
    {"conversation", "hub", "machine", "cache", "split", "stopping", "throughput"},
    {"rows", "encoding", "batching", "repeats", "modeling_bloom"},
    {"tokenizer", "findings"},
    {"dataset", "model", "convert"},
    {"check", "adapters", "samples"},
    {"checkpointing", "memory"},
    {"run_dir", "run_report", "sft_trainer", "tiny_bloom", "merge_adapter", "extend_vocabulary"},
    {"planning"},
    {"trainer"},
    {"plan"},
]


def imports(path: Path) -> set[str]:
    """Our own modules that the file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        else:
            continue
        found |= names & MODULES.keys()
    return found


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("training.")])
def test_arrows_inside_training_point_down(module: str) -> None:
    layer = {f"training.{name}": number for number, names in enumerate(LAYERS) for name in names}
    assert module in layer, "give the new module its layer"
    for imported in imports(MODULES[module]):
        assert imported.startswith("training."), f"{module} imports {imported}"
        assert layer[imported] < layer[module], f"{module} imports {imported}"


@pytest.mark.parametrize("module", [m for m in MODULES if not m.startswith("training.")])
def test_other_rooms_import_only_what_is_open_to_them(module: str) -> None:
    allowed = {"inference": OPEN_TO_INFERENCE, "evaluation": OPEN_TO_INFERENCE | MODULES.keys()}
    room = module.split(".")[0]
    for imported in imports(MODULES[module]):
        assert imported.startswith(f"{room}.") or imported in allowed[room], f"{module} imports {imported}"


def test_inference_loads_without_deepspeed_and_without_what_it_seldom_needs() -> None:
    code = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from inference import batch, chat, generation\n"
        "assert not {'datasets', 'peft', 'bitsandbytes'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
