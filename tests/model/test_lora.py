"""LoRA: held to peft on transformers' own Bloom, and to the base model that it must not touch."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from inference.generation import load, reply
from tests.conftest import LEARNT, SINGLE_TURN, write_rows
from tests.inference.prompts import TYPED, messages_of
from tests.model.card_checks import checked_card
from tests.pages import blocks, text_of
from tests.tiny_models import make_qwen
from training import merge_adapter, plan, trainer
from training.consts import CONTEXT, END
from training.data.collate import collate, collate_padded
from training.model.bloom import split_off_trainable_rows
from training.model.load import load_model
from training.model.lora import add_adapter
from training.model.save import save_model
from training.text.conversation import Conversation, Turn, from_row
from training.text.encoding import encode, encode_prompt
from training.text.tokenizer import load_base_tokenizer, load_tokenizer

SHORT = "--test-size 0 --warmup-steps 0 --no-gradient-checkpointing --logging-steps 1"


def options(base: str, rows: str, directory: Path, run_name: str, more: str) -> list[str]:
    return (
        f"--data-path {rows} --input-model {base} --local-output-dir {directory} --run-name {run_name} "
        f"--cache-dir {directory / 'cache'} --per-device-train-batch-size 2 {SHORT} {more}"
    ).split()


@pytest.fixture(scope="module")
def trained(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an adapter that was trained on LEARNT, on the random base, in that of its run."""
    directory = tmp_path_factory.mktemp("adapter")
    rows = write_rows(directory / "rows.jsonl", LEARNT)
    more = "--lora-rank 8 --max-steps 120 --lr 1e-2 --lr-scheduler linear --no-bf16 --max-length 3000"
    trainer.main.main(options(base, rows, directory, "run", more), standalone_mode=False)
    return directory / "run" / "model"


def new_tokens(base: str) -> list[int]:
    known = set(load_base_tokenizer(base).get_vocab().values())
    return sorted(set(load_tokenizer(base).get_vocab().values()) - known)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_peft_on_the_librarys_bloom(base: str, checkpointing: bool) -> None:
    """peft copies the whole embedding to train a few of its rows; our Bloom only replaces their logits."""
    tokenizer = load_tokenizer(base)
    torch.manual_seed(0)
    how = {"rank": 4, "alpha": 8, "dropout": 0.0, "target": "auto"}
    ours = add_adapter(load_model(base, tokenizer), new_tokens(base), **how)
    library = AutoModelForCausalLM.from_pretrained(base)
    library.load_state_dict(load_model(base, tokenizer).state_dict())
    rows = {"word_embeddings": new_tokens(base)}
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", trainable_token_indices=rows
    )
    theirs = get_peft_model(library, config)
    state = {name: torch.randn_like(value) * 0.1 for name, value in get_peft_model_state_dict(ours).items()}
    for model in (ours, theirs):
        set_peft_model_state_dict(model, state)
        model.train()
    if checkpointing:
        ours.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    examples = [encode(from_row(row), tokenizer) for row in LEARNT]
    loss = ours(**collate(examples)).loss
    expected = theirs(**collate_padded(examples)).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    found = {name: weight.grad for name, weight in ours.named_parameters() if weight.requires_grad}
    truth = {name: weight.grad for name, weight in theirs.named_parameters() if weight.requires_grad}
    embedding = ours.get_base_model().transformer.word_embeddings
    assert split_off_trainable_rows(embedding)[1].ids is split_off_trainable_rows(embedding)[1].ids
    assert found.keys() == truth.keys()
    assert sum("trainable_tokens_delta" in name for name in found) == 1
    for name, grad in truth.items():
        assert (found[name] - grad).norm() <= 1e-4 * grad.norm(), name
    assert all(weight.grad is None for weight in ours.parameters() if not weight.requires_grad)


def test_an_adapter_file_holds_the_adapter_and_the_new_embedding_rows_only(trained: Path, base: str) -> None:
    weights = load_file(trained / "adapter_model.safetensors")
    rows = {name: value for name, value in weights.items() if "trainable_tokens_delta" in name}
    assert [value.shape[0] for value in rows.values()] == [len(new_tokens(base))]
    assert all(name in rows or "lora_" in name for name in weights)
    assert not (trained / "config.json").exists()
    assert not (trained / "model.safetensors").exists()
    assert (trained / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o644
    generation = json.loads((trained / "generation_config.json").read_text())
    assert generation["eos_token_id"] == load_tokenizer(base).convert_tokens_to_ids(END)
    assert json.loads((trained / "adapter_config.json").read_text())["base_model_name_or_path"] == base


def test_an_adapter_of_rank_16_is_under_5_percent_of_a_bloom_of_560_m() -> None:
    """The sizes are computed from shapes: hidden 1024, 24 layers, 250,880 tokens, four of them new."""
    with torch.device("meta"):
        model = BloomForCausalLM(BloomConfig(vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16))
        whole = sum(weight.numel() for weight in model.parameters())
        adapted = add_adapter(model, [1, 2, 3, 4], rank=16, alpha=32, dropout=0.0, target="auto")
    adapter = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert whole == 559_214_592
    assert 0.005 < adapter / whole < 0.05


def greedy(model: torch.nn.Module, tokenizer, prompt: Conversation) -> list[int]:
    """The ids of an answer of at most 24 tokens."""
    end = tokenizer.convert_tokens_to_ids(END)
    config = GenerationConfig(
        max_new_tokens=24, do_sample=False, repetition_penalty=1.0, eos_token_id=end, pad_token_id=end
    )
    ids = torch.tensor([encode_prompt(prompt, tokenizer)])
    return model.generate(input_ids=ids, generation_config=config)[0, ids.shape[1] :].tolist()


@pytest.mark.slow
def test_merged_and_unmerged_answers_are_the_same_and_the_base_is_not_touched(
    trained: Path, base: str, tmp_path: Path, outcome, capsys
) -> None:
    before = {name: (Path(base) / name).read_bytes() for name in os.listdir(base)}
    status, out, _ = outcome(merge_adapter.main, f"--adapter {trained} --output-dir {tmp_path / 'merged'}")
    assert status == 0
    assert "talk to it" in out
    rows = [json.loads(line) for line in SINGLE_TURN.read_text("utf-8").splitlines()]
    prompts = [*(Conversation((Turn(row["instruction"]),)) for row in (LEARNT[:2] + rows)[:20]), *TYPED]
    # Plain transformers and peft, the adapter beside the weights.
    plain = AutoModelForCausalLM.from_pretrained(base)
    unmerged = PeftModel.from_pretrained(plain, str(trained)).eval()
    theirs, ours = AutoTokenizer.from_pretrained(trained), load_tokenizer(str(trained))
    for prompt in prompts:
        asked = theirs.apply_chat_template(messages_of(prompt), add_generation_prompt=True).input_ids
        assert asked == encode_prompt(prompt, ours)
    expected = [greedy(unmerged, ours, prompt) for prompt in prompts]
    for path in (str(trained), str(tmp_path / "merged")):
        model, tokenizer = load(path, device="cpu")
        assert [greedy(model, tokenizer, prompt) for prompt in prompts] == expected, path
    assert reply(model, tokenizer, prompts[0], temperature=0, max_new_tokens=24) == "我是雅意。"

    (snippet,) = blocks(text_of("docs/training.md"), "python")
    snippet = snippet.replace("checkpoints/my-lora/model", str(trained))
    capsys.readouterr()
    exec(snippet.replace("bigscience/bloomz-7b1-mt", base), {})
    assert capsys.readouterr().out == "我是雅意。\n"

    # The merged model is a plain one, and differs from the base in nothing but what was adapted.
    merged, original = (
        AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tmp_path / "merged", base)
    )
    assert merged.keys() == original.keys()
    new = new_tokens(base)
    old = [token for token in range(len(original["transformer.word_embeddings.weight"])) if token not in new]
    for name, weight in original.items():
        if "word_embeddings.weight" in name or "lm_head" in name:
            assert torch.equal(merged[name][old], weight[old])
            assert not torch.equal(merged[name][new], weight[new])
        elif "layernorm" in name or "ln_f" in name or name.endswith("bias"):
            assert torch.equal(merged[name], weight), name
    assert {name: (Path(base) / name).read_bytes() for name in os.listdir(base)} == before


def losses(run_dir: Path) -> list[float]:
    states = sorted(run_dir.glob("checkpoint-*/trainer_state.json"), key=lambda path: len(path.read_text()))
    return [entry["loss"] for entry in json.loads(states[-1].read_text())["log_history"] if "loss" in entry]


def test_a_continued_adapter_gives_what_an_undisturbed_one_does(base: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", LEARNT)
    more = "--lora-rank 4 --lr 1e-2 --no-bf16 --save-steps 3 --lora-dropout 0.1"
    trainer.main.main(options(base, rows, tmp_path, "whole", f"{more} --max-steps 6"), standalone_mode=False)
    trainer.main.main(options(base, rows, tmp_path, "parts", f"{more} --max-steps 3"), standalone_mode=False)
    (tmp_path / "parts" / "model" / "adapter_config.json").unlink()
    trainer.main.main(
        options(base, rows, tmp_path, "parts", f"{more} --max-steps 6 --resume"), standalone_mode=False
    )
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert not list(tmp_path.glob("*/checkpoint-*/README.md"))  # peft's would name the base by its path
    one, other = (
        load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_frozen_weights_in_4_bits(base: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", LEARNT)
    more = "--lora-rank 4 --lr 2e-2 --max-steps 12 --save-steps 12 --load-in-4bit"
    trainer.main.main(options(base, rows, tmp_path, "run", more), standalone_mode=False)
    found = losses(tmp_path / "run")
    assert found[-1] < 0.7 * found[0]
    model, tokenizer = load(str(tmp_path / "run"), device="cpu")
    assert isinstance(reply(model, tokenizer, Conversation((Turn("你是谁"),)), max_new_tokens=2), str)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--lora-rank 4 --lora-target nope", "'nope'; there are query_key_value, dense, dense_h_"),
        (
            "--lora-rank 4 --lora-target dense,lm_head",
            "lm_head takes no adapter where batches are packed",
        ),
        ("--load-in-4bit", "--load-in-4bit: weights in 4 bits cannot be trained; give a --lora-rank as well"),
        ("--lora-rank 0", "lora-rank"),
    ],
)
def test_impossible_options_are_refused(outcome, base: str, tmp_path: Path, more: str, message: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", LEARNT)
    arguments = " ".join(options(base, rows, tmp_path, "run", f"--no-bf16 --max-steps 1 {more}"))
    status, _, err = outcome(trainer.main, arguments)
    assert status == 2
    assert message in err


def test_layers_that_have_their_weights_transposed_take_an_adapter_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Those of GPT-2."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    adapted = add_adapter(model, [], rank=2, alpha=4, dropout=0.0, target="auto")
    assert adapted.peft_config["default"].fan_in_fan_out
    assert not [str(warning.message) for warning in recwarn if "fan_in_fan_out" in str(warning.message)]


def test_blanks_beside_the_names_of_layers_are_no_part_of_them(base: str, tokenizer) -> None:
    arguments = ["--data-path", "x", "--input-model", base, "--local-output-dir", "y", "--lora-rank", "2"]
    given = trainer.main.make_context("trainer", [*arguments, "--lora-target", " query_key_value, dense "])
    target = given.params["lora_target"]
    model = add_adapter(load_model(base, tokenizer), [], rank=2, alpha=4, dropout=0.0, target=target)
    layers = model.get_base_model().transformer.h
    adapted = [name for name, _ in layers.named_modules() if name.endswith("lora_A")]
    assert adapted == [
        f"{i}.self_attention.{name}.lora_A"
        for i in range(len(layers))
        for name in ("query_key_value", "dense")
    ]


@pytest.mark.parametrize("name", ["denser", "input_layernorm", "mlp", "word_embeddings"])
def test_each_name_has_to_be_a_linear_layers(outcome, base: str, tmp_path: Path, name: str) -> None:
    arguments = f"--input-model {base} --num-gpus 1 --gpu-memory 24 --lora-rank 2 --lora-target dense,{name}"
    status, _, err = outcome(plan.main, arguments)
    there = "query_key_value, dense, dense_h_to_4h, dense_4h_to_h"
    problem = f"--lora-target dense,{name}: no linear layer is named '{name}'; there are {there}"
    assert (status, err) == (2, f"error: {problem}\n")


def test_an_adapter_is_merged_into_a_base_that_moved(
    outcome, trained: Path, base: str, tmp_path: Path
) -> None:
    adapter, moved = tmp_path / "adapter", tmp_path / "moved"
    shutil.copytree(trained, adapter)
    shutil.copytree(base, moved)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    merge = f"--adapter {adapter} --output-dir"
    status, _, err = outcome(merge_adapter.main, f"{merge} {tmp_path / 'out'}")
    assert status == 2
    assert f"{adapter}: an adapter for {tmp_path / 'gone'}, which is not there" in err
    assert "--base" in err

    status, out, _ = outcome(merge_adapter.main, f"{merge} {tmp_path / 'out'} --base {moved}")
    assert status == 0
    assert f"{moved} with {adapter}" in out
    assert (
        outcome(merge_adapter.main, f"--adapter {trained.parent} --output-dir {tmp_path / 'usual'}")[0] == 0
    )
    taught = re.compile(r"^## How it was taught\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
    of_adapter, of_merged = checked_card(trained), checked_card(tmp_path / "out")
    assert of_adapter.data.tags == ["sft", "lora"]
    assert of_merged.data.tags == ["sft"]
    assert (
        "This is `moved` (a directory) with the adapter `adapter` merged into its weights." in of_merged.text
    )
    assert taught.search(of_adapter.text)[0] == taught.search(of_merged.text)[0]
    found, usual = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "usual"))
    assert all(torch.equal(found[name], weight) for name, weight in usual.items())

    # The context is that of the run, whose record is not beside an adapter that was copied.
    for name, context in (("usual", 3000), ("out", CONTEXT)):
        assert json.loads((tmp_path / name / "config.json").read_text())["seq_length"] == context


@pytest.mark.parametrize("other", ["qwen", "wider", "adapter", "nothing"])
def test_an_adapter_is_not_merged_into_another_model(
    outcome, trained: Path, base: str, tmp_path: Path, other: str
) -> None:
    if other == "qwen":
        make_qwen(tmp_path / other)
    elif other == "wider":
        config = BloomConfig(vocab_size=2100, hidden_size=32, n_layer=2, n_head=2)
        save_model(BloomForCausalLM(config), load_base_tokenizer(base), tmp_path / other)
    elif other == "adapter":
        shutil.copytree(trained, tmp_path / other)
    arguments = f"--adapter {trained} --output-dir {tmp_path / 'out'} --base {tmp_path / other}"
    status, _, err = outcome(merge_adapter.main, arguments)
    assert status == 2
    assert err.count("\n") == 1
    assert str(tmp_path / other) in err
    assert not (tmp_path / "out").exists()


def test_a_base_that_is_an_adapter_and_an_adapter_that_is_a_base_are_refused(
    outcome, trained: Path, base: str, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", LEARNT)
    arguments = " ".join(options(str(trained), rows, tmp_path, "run", "--lora-rank 4"))
    status, _, err = outcome(trainer.main, arguments)
    assert status == 2
    assert f"error: {trained}: an adapter; merge it into its base first" in err
    status, _, err = outcome(merge_adapter.main, f"--adapter {base} --output-dir {tmp_path / 'out'}")
    assert (status, err) == (2, f"error: {base}: a whole model already, no adapter\n")
    status, _, err = outcome(merge_adapter.main, f"--adapter {trained} --output-dir {trained}")
    assert status == 2
    assert "holds something already" in err
    arguments = " ".join(
        options(base, rows, trained.parent.parent, "run", "--lora-rank 4 --no-bf16 --resume")
    )
    status, _, err = outcome(trainer.main, arguments)
    assert status == 2
    assert "LoRA of rank 8" in err
    assert "LoRA of rank 4" in err
