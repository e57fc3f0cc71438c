"""The attention of packed batches, with the card's kernel in a stand-in that asserts what it demands."""

import inspect

import pytest
import torch
from accelerate.utils import send_to_device
from torch.nn.attention.varlen import varlen_attn
from transformers import BloomConfig

from tests.model.test_bloom import assert_equal_gradients, documents, library_loss, models
from training.data.collate import collate
from training.model import attention
from training.model.attention import attend_in_documents, documents_of, has_one_kernel
from training.model.bloom import BloomForCausalLM


def dense_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scale: float
) -> torch.Tensor:
    """Attention with all scores of all tokens, of which those in one document and not later are kept."""
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    seen = (document[:, None] == document) & torch.ones(len(document), len(document)).tril().bool()
    of_head = torch.arange(query.shape[1]) // (query.shape[1] // key.shape[1])
    scores = scale * torch.einsum("qhw,khw->hqk", query, key[:, of_head])
    return torch.einsum("hqk,khw->qhw", scores.where(seen, -torch.inf).softmax(dim=-1), value[:, of_head])


def stand_in(*args, **kwargs) -> torch.Tensor:
    """What `varlen_attn` computes; its own types of q, k and v are left out, since the tests are exact."""
    call = inspect.signature(varlen_attn).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    query, key, value, starts = (given[name] for name in ("query", "key", "value", "cu_seq_q"))
    assert query.dim() == key.dim() == value.dim() == 3
    assert query.dtype == key.dtype == value.dtype
    assert query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256
    assert query.shape[-1] % 8 == 0
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    assert given["cu_seq_k"] is starts
    assert starts.dtype == torch.int32
    assert starts[0] == 0
    assert starts[-1] == len(query) == len(key) == len(value)
    assert type(given["max_q"]) is type(given["max_k"]) is int
    assert given["max_q"] == given["max_k"] == starts.diff().max()
    assert given["window_size"] == (-1, 0)  # a list would not be causal
    assert given["enable_gqa"] == (query.shape[1] != key.shape[1])
    assert ("enable_gqa" in kwargs) == given["enable_gqa"]
    assert given["seqused_k"] is given["block_table"] is given["return_aux"] is None
    return dense_attention(query, key, value, starts.diff().tolist(), given["scale"])


def stand_in_of_torch_2_11(*args, **kwargs) -> torch.Tensor:
    """With that torch, a card may be checked too; its kernel is not told that heads share a key."""
    assert "enable_gqa" not in kwargs
    grouped = {"enable_gqa": True} if args[0].shape[1] != args[1].shape[1] else {}
    return stand_in(*args, **kwargs, **grouped)


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine of a card, here."""
    monkeypatch.setattr(attention, "has_one_kernel", lambda query, dropout: dropout == 0)


@pytest.fixture
def with_stand_in(on_a_card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", stand_in)


def test_with_the_engine_of_a_card_a_bloom_is_the_librarys(with_stand_in: None) -> None:
    library, ours = (model.double() for model in models(heads=4, hidden=64, layers=2))
    found = documents([65, 2, 63, 500, 1, 64])
    expected = library_loss(library, [document for document in found if len(document["labels"]) > 1])
    loss = ours(**collate(found)).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    loss.backward()
    assert_equal_gradients(library, ours, tolerance=1e-6)
    with torch.no_grad():
        batch = collate(found)
        together = ours(batch["input_ids"], document_lengths=batch["document_lengths"]).logits
        alone = torch.cat([library(document["input_ids"][None]).logits for document in found], dim=1)
    assert (together - alone).norm() <= 1e-6 * alone.norm()  # the library's softmax is in float32


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("engine", ["loop", "card", "card with torch 2.11"])
def test_grouped_heads_in_either_engine(
    engine: str, groups: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine != "loop":
        request.getfixturevalue("with_stand_in")
    if engine == "card with torch 2.11":
        monkeypatch.setattr(attention, "varlen_attn", stand_in_of_torch_2_11)
        monkeypatch.setattr(attention, "IS_TOLD_OF_GROUPS", False)
    torch.manual_seed(0)
    lengths = [1, 7, 64, 2]
    made = [torch.randn(74, heads, 16, dtype=torch.float64) for heads in (6, groups, groups)]
    theirs, ours = ([x.clone().requires_grad_() for x in made] for _ in range(2))
    expected = dense_attention(*theirs, lengths, scale=0.3)
    found = attend_in_documents(*ours, documents_of(lengths, torch.device("cpu")), scale=0.3)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_dropout_keeps_to_the_engine_that_has_it(with_stand_in: None) -> None:
    _, ours = models(attention_dropout=0.5)
    batch = collate(documents([40, 9]))
    assert ours(**batch).loss.item() != ours(**batch).loss.item()
    ours.eval()
    assert ours(**batch).loss.item() == ours(**batch).loss.item()


@pytest.mark.parametrize("positions_given", [True, False])
def test_a_step_asks_a_card_for_nothing(on_a_card: None, monkeypatch, positions_given: bool) -> None:
    """Tensors on the meta device have no values: torch refuses whatever would have to wait for them."""
    monkeypatch.setattr(BloomForCausalLM, "_compute_dtype", lambda self, hidden_states: torch.bfloat16)
    with torch.device("meta"):
        model = BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4))
        model.bfloat16().train()
    batch = send_to_device(collate(documents([40, 1, 9])), torch.device("meta"))
    batch["num_items_in_batch"] = torch.tensor(20, device="meta")
    if not positions_given:
        del batch["supervised_positions"]
        with pytest.raises(NotImplementedError, match="nonzero"):
            model(**batch)
        return
    model(**batch).loss.backward()
    assert all(weight.grad.shape == weight.shape for weight in model.parameters())


class OnCard:
    """What `has_one_kernel` looks at in a query."""

    is_cuda, device = True, "cuda:0"

    def __init__(self, dtype: torch.dtype, width: int) -> None:
        self.dtype, self.shape = dtype, (9, 4, width)


@pytest.mark.parametrize(
    ("query", "dropout", "capability", "expected"),
    [
        (OnCard(torch.bfloat16, 136), 0.0, (8, 0), True),
        (OnCard(torch.float16, 256), 0.0, (12, 0), True),
        (OnCard(torch.bfloat16, 136), 0.1, (8, 0), False),
        (OnCard(torch.float32, 136), 0.0, (8, 0), False),
        (OnCard(torch.bfloat16, 264), 0.0, (8, 0), False),
        (OnCard(torch.float16, 136), 0.0, (7, 5), False),
        (torch.zeros(9, 4, 136, dtype=torch.bfloat16), 0.0, (8, 0), False),
    ],
)
def test_where_there_is_one_kernel(monkeypatch, query, dropout, capability, expected: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_one_kernel(query, dropout) is expected


def test_cudnn_makes_no_plan_for_each_shape() -> None:
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_lengths_that_are_not_the_batchs_are_refused(on_a_card: None) -> None:
    """The card's kernel would read what lies behind the batch."""
    heads = torch.zeros(13, 4, 16)
    for lengths in ([9, 5], [9, 3]):
        with pytest.raises(AssertionError, match="13 tokens"):
            attend_in_documents(*3 * [heads], documents_of(lengths, heads.device), scale=1.0)
