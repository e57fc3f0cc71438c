import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from training.common.errors import UserError
from training.common.hub import (
    ADAPTER_CONFIG,
    check_base_model,
    check_model_path,
    is_adapter,
    model_directory,
)


@pytest.mark.parametrize("path", ["./nope", "/nope", "~/nope", "a/b/c"])
def test_a_path_that_is_not_there_is_no_model(path: str) -> None:
    with pytest.raises(UserError, match="no such model directory"):
        check_model_path(path)


def test_a_directory_is_a_model_by_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without config\.json"):
        check_model_path(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    check_model_path(str(tmp_path))
    check_base_model(str(tmp_path))
    assert not is_adapter(str(tmp_path))


def test_an_adapter_is_a_model_but_no_base(tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text("{}")
    assert is_adapter(str(tmp_path))
    check_model_path(str(tmp_path))
    with pytest.raises(UserError, match=r"an adapter; merge it .*training\.merge_adapter"):
        check_base_model(str(tmp_path))


@pytest.mark.parametrize("config", ["config.json", ADAPTER_CONFIG])
def test_a_run_directory_stands_for_its_model(tmp_path: Path, config: str) -> None:
    run, model = str(tmp_path), str(tmp_path / "model")
    assert model_directory(run) == run  # nothing there yet
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / config).write_text("{}")
    assert model_directory(run) == model_directory(model) == model
    (tmp_path / config).write_text("{}")  # as in the runs of earlier versions
    assert model_directory(run) == run
    for name in ("org/name", "name", "./nope"):
        assert model_directory(name) == name


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 538090408\n"


def directory_with(directory: Path, files: dict[str, bytes]) -> str:
    for name, content in (
        {"config.json": b"{}", "model.safetensors": save({"a": np.ones(9)})} | files
    ).items():
        (directory / name).write_bytes(content)
    return str(directory)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer.model",
        "model.safetensors",
        "model-00002-of-00003.safetensors",
        "adapter_model.safetensors",
    ],
)
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    path = directory_with(tmp_path, {name: POINTER})
    with pytest.raises(UserError, match=r"a git-lfs pointer.*run `git lfs pull` in") as error:
        check_model_path(path)
    assert str(error.value).startswith(f"{tmp_path / name}: ")


def test_files_that_nothing_reads_may_be_pointers(tmp_path: Path) -> None:
    others = ("consolidated.safetensors", "flax_model.msgpack", "pytorch_model.bin")
    check_model_path(directory_with(tmp_path, dict.fromkeys(others, POINTER)))


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_weights_that_end_too_early_are_named(tmp_path: Path, name: str, kept: int) -> None:
    path = directory_with(tmp_path, {name: save({"a": np.ones(9)})[:kept]})
    with pytest.raises(UserError, match=r"broken or incomplete weights .*; fetch the file again") as error:
        check_model_path(path)
    assert str(error.value).startswith(f"{tmp_path / name}: ")


@pytest.mark.parametrize(
    ("kept", "problem"), [(None, ""), (100, "incomplete weights"), (5, "incomplete weights")]
)
def test_weights_in_pytorchs_format_count_where_there_are_no_others(
    tmp_path: Path, kept: int | None, problem: str
) -> None:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 40)
    path = directory_with(tmp_path, {"pytorch_model.bin": whole.getvalue()[:kept]})
    check_model_path(path)
    (tmp_path / "model.safetensors").unlink()
    if not problem:
        check_model_path(path)
        return
    with pytest.raises(UserError, match=problem):
        check_model_path(path)


def test_a_link_to_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = directory_with(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"model\.safetensors: No such file or directory"):
        check_model_path(path)
