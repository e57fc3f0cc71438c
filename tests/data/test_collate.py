import pytest
import torch
from transformers import AutoModelForCausalLM

from training.data.collate import collate, collate_padded
from training.model.bloom import BloomForCausalLM

EXAMPLES = [
    {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
    {"input_ids": [7, 8], "labels": [-100, 8]},
]


def test_a_batch_as_drawn() -> None:
    """
    position    0 1 2 3 4                     document_lengths       3 2
    input_ids   7 8 9 7 8                     supervised_positions   1 2 4
    labels      . 8 9 . 8      . = -100
    """
    batch = collate(EXAMPLES)
    assert batch.pop("document_lengths") == [3, 2]
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[7, 8, 9, 7, 8]],
        "labels": [[-100, 8, 9, -100, 8]],
        "supervised_positions": [1, 2, 4],
    }


def test_the_first_token_of_an_example_is_predicted_from_nothing() -> None:
    first = {"input_ids": [7, 8], "labels": [7, 8]}
    one = {"input_ids": [9], "labels": [9]}
    assert collate([first, one, first])["supervised_positions"].tolist() == [1, 4]


def test_a_padded_batch_as_drawn() -> None:
    """
    input_ids       7 8 9      labels    . 8 9      attention_mask   1 1 1
                    7 8 0                . 8 .                       1 1 0        . = -100
    """
    batch = {name: tensor.tolist() for name, tensor in collate_padded(EXAMPLES).items()}
    assert batch == {
        "input_ids": [[7, 8, 9], [7, 8, 0]],
        "labels": [[-100, 8, 9], [-100, 8, -100]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
    }


@pytest.mark.parametrize("make", [collate, collate_padded])
def test_no_examples_are_a_batch_that_teaches_nothing(base: str, make) -> None:
    model_class = BloomForCausalLM if make is collate else AutoModelForCausalLM
    model = model_class.from_pretrained(base)
    loss = model(**make([]), num_items_in_batch=5).loss
    loss.backward()
    assert loss.item() == 0
    assert model.get_input_embeddings().weight.grad.abs().max() == 0


def test_the_loss_of_a_batch_is_the_mean_over_its_supervised_tokens(base: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    losses = []
    for example in EXAMPLES:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(example["labels"][1:])
        losses += [
            loss.item() for loss in torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        ]
    expected = sum(losses) / len(losses)
    padded = model(**collate_padded(EXAMPLES)).loss.item()
    end_to_end = BloomForCausalLM.from_pretrained(base)(**collate(EXAMPLES)).loss.item()
    assert padded == pytest.approx(expected, rel=1e-5)
    assert end_to_end == pytest.approx(expected, rel=1e-5)
