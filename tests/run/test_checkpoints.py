import errno
import json
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomForCausalLM

from training.common.errors import UserError
from training.consts import END
from training.data.collate import collate_padded
from training.model.load import load_model
from training.model.save import save_model, untied_weights
from training.run import checkpoints
from training.run.checkpoints import (
    CheckpointWriter,
    check_is_seen,
    find_checkpoints,
    read_complete,
    warn_of_slow_save,
)


@pytest.fixture(scope="module")
def saved(base: str, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BloomForCausalLM]:
    directory = tmp_path_factory.mktemp("saved")
    model = load_model(base, tokenizer)
    model.config.use_cache = False  # as transformers' Trainer sets it
    save_model(model, tokenizer, directory)
    return directory, model


def test_plain_transformers_loads_the_saved_weights_and_gives_our_logits(saved, tokenizer) -> None:
    directory, model = saved
    plain = AutoModelForCausalLM.from_pretrained(directory)
    assert type(plain) is BloomForCausalLM
    batch = collate_padded([{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}])
    weights = model.state_dict()
    assert plain.state_dict().keys() == weights.keys()
    assert all(torch.equal(weight, weights[name]) for name, weight in plain.state_dict().items())
    torch.testing.assert_close(plain(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained(directory).chat_template == tokenizer.chat_template


def test_the_saved_configuration(saved, tokenizer) -> None:
    directory, _ = saved
    end = tokenizer.convert_tokens_to_ids(END)
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["BloomForCausalLM"]
    assert config["use_cache"] is True
    generation = json.loads((directory / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["pad_token_id"]) == (end, end)
    assert (generation["do_sample"], generation["temperature"]) == (True, 0.3)
    assert generation["repetition_penalty"] == 1.1


def test_the_tied_head_is_stored_once(saved) -> None:
    with safetensors.safe_open(saved[0] / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "transformer.word_embeddings.weight" in names
    assert "lm_head.weight" not in names


def test_files_are_readable_by_all_and_nothing_else_is_left(saved) -> None:
    files = list(saved[0].iterdir())
    assert {file.name for file in files} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o644}


def test_config_json_is_put_in_place_last(base: str, tokenizer, tmp_path: Path, monkeypatch) -> None:
    present = []
    move = Path.replace

    def replace(self: Path, target: Path) -> Path:
        present.append({file.name for file in tmp_path.iterdir() if file.is_file()})
        return move(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    save_model(load_model(base, tokenizer), tokenizer, tmp_path)
    assert "config.json" not in set().union(*present)
    assert "model.safetensors" in present[-1]
    assert (tmp_path / "config.json").exists()


def test_slices_of_one_buffer_are_saved_apart(base: str, tokenizer) -> None:
    model = load_model(base, tokenizer)
    state_dict = model.state_dict()
    buffer = torch.zeros(sum(tensor.numel() for tensor in state_dict.values()))
    start = 0
    for name, tensor in state_dict.items():
        state_dict[name] = buffer[start : start + tensor.numel()].view_as(tensor).copy_(tensor)
        start += tensor.numel()
    storages = {tensor.untyped_storage().data_ptr() for tensor in untied_weights(model, state_dict).values()}
    assert len(storages) == len(state_dict) - 1  # the tied head is gone


def one_rank(limit: int = 2) -> SimpleNamespace:
    """A stand-in with those parts of a trainer that a CheckpointWriter uses."""
    return SimpleNamespace(
        is_world_process_zero=lambda: True,
        is_local_process_zero=lambda: True,
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
        args=SimpleNamespace(world_size=1),
        save_total_limit=limit,
        is_deepspeed_enabled=False,
    )


def write_checkpoint(
    run_dir: Path, step: int, write: Callable[[Path], None], trainer: SimpleNamespace
) -> Path:
    """Save a checkpoint as a run does; `write` does what transformers would."""
    with CheckpointWriter(run_dir, trainer) as writer:
        writer.begin(step)
        write(writer.directory)
        return writer.complete()


def write(directory: Path) -> None:
    (directory / "deep").mkdir()
    (directory / "deep" / "weights").write_bytes(b"12345")
    (directory / "state").write_bytes(b"")


def test_a_checkpoint_says_what_it_holds(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 7, write, one_rank())
    assert path == tmp_path / "checkpoint-7"
    said = read_complete(path)
    assert said.pop("seconds") < 60
    assert said == {"step": 7, "world_size": 1, "files": {"deep/weights": 5, "state": 0}}
    assert find_checkpoints(tmp_path) == ([path], [])


@pytest.mark.parametrize("damage", ["cut", "missing", "no COMPLETE.json", "half a COMPLETE.json"])
def test_a_damaged_checkpoint_is_not_complete(tmp_path: Path, damage: str) -> None:
    good = write_checkpoint(tmp_path, 3, write, one_rank())
    path = write_checkpoint(tmp_path, 10, write, one_rank())
    if damage == "cut":
        (path / "deep" / "weights").write_bytes(b"1234")
    elif damage == "missing":
        (path / "state").unlink()
    elif damage == "no COMPLETE.json":
        (path / "COMPLETE.json").unlink()
    else:
        text = (path / "COMPLETE.json").read_text()
        (path / "COMPLETE.json").write_text(text[: len(text) // 2])
    assert find_checkpoints(tmp_path) == ([good], [path])


@pytest.mark.parametrize("limit", [1, 2])
def test_older_checkpoints_are_removed_only_when_the_new_one_is_complete(
    tmp_path: Path, monkeypatch, limit: int
) -> None:
    """At every call that changes the disk one is complete; age goes by the step, not by name or time."""
    seen = []

    def watched(function):
        def call(*args, **kwargs):
            seen.append([path.name for path in find_checkpoints(tmp_path)[0]])
            return function(*args, **kwargs)

        return call

    write_checkpoint(tmp_path, 9, write, one_rank(limit))
    monkeypatch.setattr(Path, "rename", watched(Path.rename))
    monkeypatch.setattr(Path, "mkdir", watched(Path.mkdir))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", watched(checkpoints.shutil.rmtree))
    monkeypatch.setattr(checkpoints, "flush", watched(checkpoints.flush))
    for step in (10, 11, 100):
        write_checkpoint(tmp_path, step, write, one_rank(limit))
    assert all(seen)
    assert max(map(len, seen)) == limit + 1
    assert [path.name for path in find_checkpoints(tmp_path)[0]] == ["checkpoint-11", "checkpoint-100"][
        -limit:
    ]
    assert find_checkpoints(tmp_path)[1] == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("basic_ios::clear: iostream error"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 920000 vs 919888"),
        safetensors.SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
)
def test_a_write_that_fails_is_one_line_and_leaves_the_one_before(tmp_path: Path, error: Exception) -> None:
    good = write_checkpoint(tmp_path, 3, write, one_rank(1))

    def fail(directory: Path) -> None:
        write(directory)
        raise error

    with pytest.raises(
        UserError, match=r"checkpoint-6: cannot be written \(.*checkpoint-3 is complete.*--resume"
    ):
        write_checkpoint(tmp_path, 6, fail, one_rank(1))
    assert find_checkpoints(tmp_path) == ([good], [])


def test_a_fault_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        write_checkpoint(tmp_path, 6, fail, one_rank())


def test_what_a_killed_save_left_goes_with_the_next(tmp_path: Path) -> None:
    for name in (".incomplete-4", "checkpoint-8"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"1")
    write_checkpoint(tmp_path, 8, write, one_rank())
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-8"]


def test_a_directory_that_only_rank_0_sees_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "DISK_PATIENCE_S", 0)
    (tmp_path / "seen").mkdir()
    check_is_seen(tmp_path / "seen")
    with pytest.raises(UserError, match="a disk that all nodes share"):
        check_is_seen(tmp_path / "unseen")


def test_a_save_that_takes_longer_than_the_launcher_waits_is_said(monkeypatch, capsys) -> None:
    warn_of_slow_save(31)
    assert capsys.readouterr().out == ""  # no launcher, no patience
    monkeypatch.setattr(checkpoints, "launchers", lambda: ["deepspeed"])
    warn_of_slow_save(29)
    assert capsys.readouterr().out == ""
    warn_of_slow_save(31)
    assert "a checkpoint took 31 s" in capsys.readouterr().out


@pytest.mark.parametrize("only_model", [False, True])
def test_the_forecast_of_a_checkpoint_is_what_it_takes(tuned: str, only_model: bool) -> None:
    """The forecast leaves out small files; the tokenizer's is large beside so small a model."""
    model = AutoModelForCausalLM.from_pretrained(tuned)
    trainer = SimpleNamespace(
        model=model, args=SimpleNamespace(save_only_model=only_model), is_deepspeed_enabled=False
    )
    files = read_complete(Path(tuned).parent / "checkpoint-120")["files"]
    large = files["model.safetensors"] + (0 if only_model else files["optimizer.pt"])
    assert checkpoints.checkpoint_bytes(trainer) == pytest.approx(large, rel=0.03)


def test_a_run_without_room_is_refused_before_it_starts(tuned: str, tmp_path: Path, monkeypatch) -> None:
    trainer = SimpleNamespace(
        model=AutoModelForCausalLM.from_pretrained(tuned),
        args=SimpleNamespace(save_only_model=False, save_steps=10),
        save_total_limit=2,
        is_deepspeed_enabled=True,
        total_steps=100,
    )
    needed = checkpoints.check_disk_space(trainer, tmp_path)
    count = sum(weight.numel() for weight in trainer.model.parameters())
    assert needed == 3 * (2 * 4 + 12) * count + 4 * count
    monkeypatch.setattr(checkpoints, "free_bytes", lambda path: needed - 1)
    with pytest.raises(UserError, match="are needed for 3 checkpoints of"):
        checkpoints.check_disk_space(trainer, tmp_path)
