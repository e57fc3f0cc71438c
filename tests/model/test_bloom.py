"""Our Bloom against transformers' own, in fp32 where both can be exact."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BloomConfig, DynamicCache
from transformers import BloomForCausalLM as LibraryBloom

from training.model import loss as loss_module
from training.model.bloom import BloomForCausalLM

VOCABULARY = 300


def models(heads: int = 8, hidden: int = 64, layers: int = 2, seed: int = 0, **config) -> tuple:
    """(the library's Bloom, ours) with equal weights, so large that attention is far from even."""
    torch.manual_seed(seed)
    config = BloomConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, n_layer=layers, n_head=heads,
        initializer_range=hidden**-0.5, use_cache=False,
        **{"hidden_dropout": 0.0, "attention_dropout": 0.0, **config},
    )  # fmt: skip
    library = LibraryBloom(config)
    for name, parameter in library.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    ours = BloomForCausalLM(copy.deepcopy(config))
    ours.load_state_dict(library.state_dict())
    return library.train(), ours.train()


def documents(lengths: list[int], seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Random examples of these lengths; the first half of each is its prompt, without a loss."""
    torch.manual_seed(seed)
    found = []
    for length in lengths:
        input_ids = torch.randint(0, VOCABULARY, (length,))
        labels = input_ids.clone()
        labels[: (length + 1) // 2] = -100
        found.append({"input_ids": input_ids, "labels": labels})
    return found


def end_to_end(found: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.cat([document["input_ids"] for document in found])[None],
        "labels": torch.cat([document["labels"] for document in found])[None],
        "document_lengths": torch.tensor([len(document["labels"]) for document in found]),
    }


def library_loss(library: LibraryBloom, found: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The mean loss over all supervised tokens, with each document computed alone."""
    count = sum(int((document["labels"][1:] != -100).sum()) for document in found)
    return sum(
        library(**{key: value[None] for key, value in document.items()}, num_items_in_batch=count).loss
        for document in found
    )


def assert_equal_gradients(library: torch.nn.Module, ours: torch.nn.Module, tolerance: float = 1e-5) -> None:
    """Compare the norm of the error: its largest element depends on how a processor orders its sums."""
    expected = dict(library.named_parameters())
    found = dict(ours.named_parameters())
    assert expected.keys() == found.keys()
    for name, parameter in expected.items():
        error = (parameter.grad - found[name].grad).norm()
        assert error <= tolerance * parameter.grad.norm(), name


@pytest.mark.parametrize("heads", [4, 8, 12, 16])
@pytest.mark.parametrize("lengths", [[2], [63], [64], [65], [500], [65, 2, 63, 500, 1, 64]])
def test_loss_and_gradients_are_the_librarys(heads: int, lengths: list[int]) -> None:
    library, ours = models(heads, hidden=192 if heads == 12 else 256 if heads == 16 else 64, layers=3)
    found = documents(lengths)
    expected = library_loss(library, [document for document in found if len(document["labels"]) > 1])
    loss = ours(**end_to_end(found)).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    loss.backward()
    assert_equal_gradients(library, ours)


def test_logits_are_those_of_each_document_alone() -> None:
    library, ours = models()
    found = documents([1, 7, 1, 300, 64])
    batch = end_to_end(found)
    del batch["labels"]
    with torch.no_grad():
        together = ours(**batch).logits.split(batch["document_lengths"].tolist(), dim=1)
        for document, logits in zip(found, together, strict=True):
            expected = library(document["input_ids"][None]).logits
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lengths", [[1], [1, 1], [5]])
def test_a_batch_without_a_supervised_token_has_loss_0_and_gradients(lengths: list[int]) -> None:
    _, ours = models()
    batch = end_to_end(documents(lengths))
    batch["labels"][:] = -100
    loss = ours(**batch).loss
    assert loss.item() == 0
    loss.backward()
    assert all((parameter.grad == 0).all() for parameter in ours.parameters())


def test_slices_of_the_head_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = models()
    found = documents([100, 51])
    whole = ours(**end_to_end(found)).loss
    whole.backward()
    sliced = copy.deepcopy(ours)
    sliced.zero_grad()
    monkeypatch.setattr(loss_module, "TOKEN_MULTIPLE", 7)
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 20 * VOCABULARY)
    monkeypatch.setattr(loss_module, "LOGITS_IN_CACHE", 4 * VOCABULARY)
    assert loss_module.tokens_at_once(VOCABULARY) == 14
    loss = sliced(**end_to_end(found)).loss
    assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
    loss.backward()
    assert_equal_gradients(ours, sliced)


@pytest.mark.parametrize("vocabulary", [2008, 49_152, 128_256, 151_936, 250_880])
def test_a_slice_has_a_multiple_of_512_tokens(vocabulary: int) -> None:
    """A card's matrix products are slower with other numbers of rows."""
    tokens = loss_module.tokens_at_once(vocabulary)
    assert tokens > 0
    assert tokens % 512 == 0


class Products(TorchDispatchMode):
    """Records the types of the factors of each matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            self.types |= {factor.dtype for factor in args[-2:]}
        return function(*args, **(kwargs or {}))


def test_under_autocast_the_heads_products_are_in_bf16_and_add_up_in_float32(monkeypatch) -> None:
    torch.manual_seed(0)
    head, hidden = loss_module.Head(64, VOCABULARY, bias=False), torch.randn(200, 64)
    targets = torch.randint(0, VOCABULARY, (200,))
    torch.nn.functional.cross_entropy(head(hidden), targets, reduction="sum").backward()
    expected, head.weight.grad = head.weight.grad, None
    monkeypatch.setattr(loss_module, "TOKEN_MULTIPLE", 1)
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 2 * VOCABULARY)  # 100 products to add up
    monkeypatch.setattr(loss_module, "ROWS_AT_ONCE", 128)
    with Products() as products, torch.autocast("cpu", torch.bfloat16):
        head(hidden, targets).backward()
    assert products.types == {torch.bfloat16}
    error = (head.weight.grad - expected).norm() / expected.norm()
    assert error < 3e-3  # added up in bf16 it is 1e-2


def test_a_second_backward_fails_instead_of_giving_other_gradients() -> None:
    _, ours = models()
    loss = ours(**end_to_end(documents([9]))).loss
    loss.backward(retain_graph=True)
    with pytest.raises(AttributeError):
        loss.backward()


def test_the_sum_over_micro_batches_is_the_mean_over_all_their_tokens() -> None:
    library, ours = models()
    found = documents([40, 9, 120])
    count = int((end_to_end(found)["labels"] != -100).sum())
    library_loss(library, found).backward()
    for part in (found[:1], found[1:]):
        ours(**end_to_end(part), num_items_in_batch=count).loss.backward()
    assert_equal_gradients(library, ours)


def test_with_gradient_checkpointing_the_gradients_are_the_same() -> None:
    library, ours = models()
    found = documents([40, 9, 120])
    library_loss(library, found).backward()
    ours.activation_checkpointing_enable({"use_reentrant": False})
    ours(**end_to_end(found)).loss.backward()
    assert_equal_gradients(library, ours)


def test_dropout_drops_and_is_seeded() -> None:
    _, ours = models(hidden_dropout=0.1, attention_dropout=0.2)
    batch = end_to_end(documents([40, 9]))

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return ours(**batch).loss.item()

    assert loss(1) == loss(1) != loss(2)
    ours.eval()
    assert loss(1) == loss(2)


@pytest.fixture(scope="module")
def in_bf16() -> tuple:
    """(the library's Bloom in float32, the library's in bf16, ours in bf16) with the same rounded weights."""
    library, ours = models(heads=12, hidden=192, layers=2)
    exact = copy.deepcopy(library).eval()
    library, ours = library.bfloat16().eval(), ours.bfloat16().eval()
    for model in (library, ours):
        exact.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    return exact, library, ours


@pytest.fixture(scope="module")
def of_900_tokens(in_bf16: tuple) -> tuple:
    """(a document, its logits in float32, the relative error of the library's logits in bf16)"""
    exact, library, _ = in_bf16
    (document,) = documents([900])
    with torch.no_grad():
        expected, theirs = (model(document["input_ids"][None]).logits for model in (exact, library))
    return document, expected, relative_error(theirs, expected)


def relative_error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return ((logits.float() - expected).norm() / expected.norm()).item()


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1000, 4000])
def test_in_bf16_the_error_is_no_larger_than_the_librarys_own(
    in_bf16: tuple, of_900_tokens: tuple, offset: int
) -> None:
    _, _, ours = in_bf16
    document, expected, their_error = of_900_tokens
    before = documents([offset], seed=2) if offset else []
    batch = end_to_end([*before, document])
    del batch["labels"]
    with torch.no_grad():
        logits = ours(**batch).logits[:, offset:]
    assert relative_error(logits, expected) <= their_error


def test_it_is_saved_as_the_librarys_class(tmp_path) -> None:
    library, ours = models()
    ours.save_pretrained(tmp_path)
    assert ours.config.architectures == ["BloomForCausalLM"]
    loaded = LibraryBloom.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == library.state_dict().keys()
    for name, value in library.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    again = BloomForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.transformer.word_embeddings.weight


def test_generation_is_the_librarys_token_for_token() -> None:
    library, ours = models()
    library, ours = library.eval(), ours.eval()
    prompts = [document["input_ids"] for document in documents([20, 7])]
    longest = max(map(len, prompts))
    batch = {
        "input_ids": torch.stack([torch.cat([torch.zeros(longest - len(p), dtype=int), p]) for p in prompts]),
        "attention_mask": torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts]).long(),
    }
    options = {
        "max_new_tokens": 30,
        "do_sample": False,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    for inputs in ({"input_ids": prompts[0][None]}, batch):
        expected = library.generate(**inputs, **options)
        assert torch.equal(ours.generate(**inputs, **options), expected)


@pytest.mark.parametrize("padding", [[0], [0, 3], [5, 2]])
@pytest.mark.parametrize("heads", [8, 12])
def test_tokens_after_others_in_the_cache_have_the_librarys_logits(heads: int, padding: list[int]) -> None:
    """Tokens are given in pieces, the first of which may be padded on the left, and once all together."""
    library, ours = (model.eval() for model in models(heads, hidden=192 if heads == 12 else 64))
    torch.manual_seed(0)
    input_ids = torch.randint(0, VOCABULARY, (len(padding), 40))
    mask = torch.stack([torch.arange(40) >= count for count in padding]).long()
    with torch.no_grad():
        expected = library(input_ids, attention_mask=mask).logits
        cache = DynamicCache()
        for start, end in ((0, 20), (20, 21), (21, 39), (39, 40)):
            logits = ours(input_ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache).logits
            for row, count in enumerate(padding):
                first = max(start, count)
                torch.testing.assert_close(logits[row, first - start :], expected[row, first:end])
        cache.crop(-15)
        one = ours(input_ids[:, 25:], attention_mask=mask, past_key_values=cache, logits_to_keep=1).logits
    torch.testing.assert_close(one, expected[:, -1:])


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1500])
def test_in_bf16_the_error_after_a_cache_is_no_larger_than_the_librarys_own(
    in_bf16: tuple, offset: int
) -> None:
    input_ids = documents([offset + 300])[0]["input_ids"][None]
    with torch.no_grad():
        logits = []
        for model in in_bf16:
            cache = DynamicCache()
            if offset:
                model(input_ids[:, :offset], past_key_values=cache, use_cache=True)
            logits.append(model(input_ids[:, offset:], past_key_values=cache, use_cache=True).logits)
    expected, theirs, found = logits
    assert relative_error(found, expected) <= relative_error(theirs, expected)


def test_a_document_that_is_too_long_is_refused() -> None:
    _, ours = models()
    with pytest.raises(ValueError, match="at most 65536"):
        ours(input_ids=torch.zeros(1, 1, dtype=int), document_lengths=torch.tensor([2**16 + 1]))
