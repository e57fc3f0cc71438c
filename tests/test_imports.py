import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# The rooms that a file may import from besides its own; `consts` stands under all of them. What stands in
# `training` itself is a command. There are commands in `inference` and `evaluation` too; nobody imports one.
MAY_IMPORT = {
    "consts": set(),
    "common": {"consts"},
    "text": {"consts", "common"},
    "data": {"consts", "common", "text"},
    "model": {"consts", "common", "text"},
    "cost": {"consts", "common", "text", "data", "model"},
    "run": {"consts", "common", "text", "data", "model", "cost"},
    "card": {"consts", "common", "text", "data", "model", "cost", "run"},
    "command": {"consts", "common", "text", "data", "model", "cost", "run", "card"},
    "inference": {"consts", "common", "text", "data", "model"},
    "evaluation": {"consts", "common", "text", "data", "model", "inference"},
}


def room_of(module: str) -> str:
    """`training.text.encoding` is in `text`, `training.check` a command, `inference.chat` in `inference`."""
    package, *rest = module.split(".")
    if package != "training":
        return package
    if len(rest) > 1:
        return rest[0]
    return "consts" if rest == ["consts"] else "command"


def modules(root: Path) -> dict[str, Path]:
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for package in ("training", "inference", "evaluation")
        for path in sorted((root / package).rglob("*.py"))
        if path.name != "__init__.py"
    }


def is_command(path: Path) -> bool:
    """Whether the file does something when it is run: `if __name__ == "__main__":`."""
    tests = (node.test for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.If))
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def forbidden_imports(root: Path) -> list[str]:
    """`MODULE imports MODULE` for each import that points upwards, or to a command."""
    known = modules(root)
    commands = {module for module, path in known.items() if is_command(path)}
    found = []
    for module, path in known.items():
        allowed = {room_of(module), *MAY_IMPORT[room_of(module)]} - {"command"}
        for imported in sorted(imports(path) & known.keys()):
            if imported in commands or room_of(imported) not in allowed:
                found.append(f"{module} imports {imported}")
    return found


def imports(path: Path) -> set[str]:
    """Every module, and every name of a module, that the file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_import_points_upwards() -> None:
    assert forbidden_imports(ROOT) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("training.common.files", "from training.text.conversation import Conversation"),
        ("training.text.encoding", "from training.data import reader"),
        ("training.data.split", "import training.model.load"),
        ("training.model.load", "from training.data.collate import collate"),
        ("training.run.curves", "from training import plan"),
        ("training.run.speed", "from training.card.timing import wait_for"),
        ("training.check", "from training.convert import main"),
        ("inference.generation", "from training.run.speed import Throughput"),
        ("inference.generation", "from evaluation.tables import markdown"),
        ("training.consts", "from training.common.errors import UserError"),
        ("training.run.curves", "from inference.generation import load"),
        ("inference.resumable", "from inference.batch import read_prompts"),
        ("evaluation.report", "from evaluation import subjective"),
        ("evaluation.likelihood", "import inference.batch"),
    ],
)
def test_a_planted_arrow_is_found(module: str, planted: str, tmp_path: Path) -> None:
    for name, original in modules(ROOT).items():
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        run = 'if __name__ == "__main__":\n    pass\n' if is_command(original) else ""
        path.write_text(f"{planted}\n{run}" if name == module else run)
    (found,) = forbidden_imports(tmp_path)
    assert found.startswith(f"{module} imports ")


@pytest.mark.slow
def test_inference_loads_without_deepspeed_and_without_what_it_seldom_needs() -> None:
    code = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "from inference import batch, chat, generation\n"
        "assert not {'datasets', 'peft', 'bitsandbytes'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_training_shows_its_commands_and_seven_rooms() -> None:
    shown = {path.name for path in (ROOT / "training").iterdir()} - {
        "__pycache__",
        "__init__.py",
        "consts.py",
    }
    rooms = {name for name in shown if (ROOT / "training" / name).is_dir()}
    assert rooms == MAY_IMPORT.keys() - {"consts", "command", "inference", "evaluation"}
    assert all(is_command(ROOT / "training" / name) for name in shown - rooms)


def test_every_module_can_be_read_in_one_sitting() -> None:
    lengths = {module: len(path.read_text("utf-8").splitlines()) for module, path in modules(ROOT).items()}
    assert {module: length for module, length in lengths.items() if length > 400} == {}
