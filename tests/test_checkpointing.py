import json
import stat
from pathlib import Path

import pytest
import safetensors
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BloomForCausalLM

from training.batching import collate_padded
from training.checkpointing import check_run_dir, save_model, untied
from training.consts import END
from training.errors import UserError
from training.model import load_model


@pytest.fixture(scope="module")
def saved(base: str, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BloomForCausalLM]:
    directory = tmp_path_factory.mktemp("saved")
    model = load_model(base, tokenizer)
    model.config.use_cache = False  # as transformers' Trainer sets it
    save_model(model, tokenizer, directory)
    return directory, model


def test_plain_transformers_loads_the_saved_model_with_equal_logits(saved, tokenizer) -> None:
    directory, model = saved
    plain = AutoModelForCausalLM.from_pretrained(directory)
    assert type(plain) is BloomForCausalLM
    batch = collate_padded([{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}])
    assert torch.equal(plain(**batch).logits, model(**batch).logits)
    assert AutoTokenizer.from_pretrained(directory).chat_template == tokenizer.chat_template


def test_its_configuration(saved, tokenizer) -> None:
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
    move = Path.chmod

    def chmod(self: Path, mode: int) -> None:
        present.append({file.name for file in tmp_path.iterdir() if file.is_file()})
        move(self, mode)

    monkeypatch.setattr(Path, "chmod", chmod)
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
    storages = {tensor.untyped_storage().data_ptr() for tensor in untied(model, state_dict).values()}
    assert len(storages) == len(state_dict) - 1  # the tied head is gone


def test_a_run_directory_that_holds_anything_is_refused(tmp_path: Path) -> None:
    check_run_dir(tmp_path)
    check_run_dir(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"holds something already.*--run-name"):
        check_run_dir(tmp_path)


def test_a_run_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="cannot be written"):
        check_run_dir(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "kept"
