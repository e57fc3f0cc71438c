"""What bf16 leaves of ALiBi: the bias that attention sees, and what becomes of a model's logits.

`python -m tests.benchmarks.report --only alibi --only bf16` measures both.
"""

import math

import torch
from transformers import BloomConfig, DynamicCache, PreTrainedModel
from transformers import BloomForCausalLM as LibraryBloom
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from training.card.exactness import relative_error
from training.card.scale import Sizes, bloom_of
from training.model.bloom import BloomForCausalLM, alibi_columns, alibi_slopes

# Where in a document the bias is looked at, and over how many neighbouring keys.
OFFSETS = (0, 256, 512, 1024, 2048, 4096, 8192, 16_384)
KEYS = 128

# Those of bloomz-7b1.
HEADS, WIDTH = 32, 128

# The rounding of a number, as a share of it: half the distance to the next one.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}

# A sum of six products is rounded five times, its factor once, and three parts of a slope leave a rest.
ROUNDINGS_OF_OURS = 7

# The model whose logits are compared, and how many tokens it reads at a time.
MODEL = Sizes(hidden=256, heads=8, layers=2, vocabulary=1024)
CHUNK = 256


def bias_errors() -> list[dict[str, float]]:
    """The largest error of the bias between two keys of a stretch, over all heads, at each offset.

    Softmax sees differences of biases only. Each is compared with slope * (distance of the keys) in float64.
    "one number each" stands for columns in which slope and position are one bf16 number each.
    """
    slopes = alibi_slopes(HEADS).double()
    config = BloomConfig(n_head=HEADS, hidden_size=HEADS * WIDTH)
    found = []
    for offset in OFFSETS:
        positions = torch.arange(offset, offset + KEYS)
        right = slopes[:, None] * (positions - positions[-1])
        mask = torch.ones(1, offset + KEYS, dtype=torch.int64)
        of_library = build_alibi_tensor(mask, HEADS, torch.bfloat16)[:, 0, offset:]
        columns = alibi_columns(positions, config, torch.bfloat16)
        # The kernel adds the products of two bf16 numbers, each exact, up in float32.
        products = columns.query.float()[:, None] * columns.key[:, 0].float()
        ours = products.sum(dim=-1) / math.sqrt(WIDTH)
        naive = slopes.bfloat16().float()[:, None] * positions.bfloat16().float()

        def error(bias: torch.Tensor, right: torch.Tensor = right) -> float:
            bias = bias.double()
            return (bias - bias[:, -1:] - right).abs().max().item()

        largest = slopes.max().item() * (offset + KEYS - 1)
        found.append({
            "offset": offset,
            "library": error(of_library),
            "library bound": 2 * ROUNDING[torch.bfloat16] * largest,
            "one number each": error(naive),
            "ours": error(ours),
            "ours bound": 2 * ROUNDINGS_OF_OURS * ROUNDING[torch.float32] * largest,
        })  # fmt: skip
    return found


@torch.no_grad()
def logit_errors(offsets: tuple[int, ...] = OFFSETS) -> list[dict[str, float]]:
    """How far the logits along one long document are from the library's in float32.

    The weights are bf16 numbers in every model. A line has the relative errors of the logits of CHUNK tokens
    that begin at an offset.
    """
    tokens = torch.randint(
        MODEL.vocabulary, (1, offsets[-1] + CHUNK), generator=torch.Generator().manual_seed(0)
    )
    ways: dict[str, tuple[type[LibraryBloom], torch.dtype]] = {
        "library, float32": (LibraryBloom, torch.float32),
        "library, bf16": (LibraryBloom, torch.bfloat16),
        "ours, bf16": (BloomForCausalLM, torch.bfloat16),
        "ours, float32": (BloomForCausalLM, torch.float32),
    }
    found: list[dict[str, float]] = [{"offset": offset} for offset in offsets]
    right: list[torch.Tensor] = []
    for name, (model_class, dtype) in ways.items():
        logits = logits_at(bloom_of(MODEL, model_class, dtype, torch.device("cpu")).eval(), tokens, offsets)
        right = right or logits
        if logits is right:
            continue
        for line, expected, of_way in zip(found, right, logits, strict=True):
            line[name] = relative_error(of_way, expected)
    return found


def logits_at(model: PreTrainedModel, tokens: torch.Tensor, offsets: tuple[int, ...]) -> list[torch.Tensor]:
    """The logits of the CHUNK tokens that begin at each offset, read in chunks with a KV cache."""
    cache, kept = DynamicCache(), []
    for start in range(0, tokens.shape[1], CHUNK):
        logits = model(tokens[:, start : start + CHUNK], past_key_values=cache, use_cache=True).logits
        if start in offsets:
            kept.append(logits[0].float())
    return kept
