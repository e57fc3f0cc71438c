"""Every command that takes a model says in one line that a file of it is not the file itself."""

import shutil
from pathlib import Path

import pytest

from evaluation import perplexity
from inference import batch, chat
from tests.conftest import SINGLE_TURN
from training import extend_vocabulary, merge_adapter, plan, trainer

COMMANDS = {
    trainer: "--input-model {model} --data-path {rows} --local-output-dir {out}",
    plan: "--input-model {model} --num-gpus 1 --gpu-memory 24",
    extend_vocabulary: "--input-model {model} --corpus {rows} --num-tokens 9 --output-dir {out}",
    merge_adapter: "--adapter {model} --output-dir {out}",
    chat: "--model {model}",
    batch: "--model {model} --input {rows} --output {out}",
    perplexity: "--model {model} --data-path {rows} --output {out}",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_pointer_of_git_lfs(command, base: str, tmp_path: Path, outcome) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    shutil.copytree(base, weights.parent)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 538090408\n")
    arguments = COMMANDS[command].format(model=weights.parent, rows=SINGLE_TURN, out=tmp_path / "out")
    status, _, err = outcome(command.main, arguments)
    problem = f"{weights}: a git-lfs pointer, and not the file that it stands for"
    assert (status, err) == (2, f"error: {problem}; run `git lfs pull` in {weights.parent}\n")
