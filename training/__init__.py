"""Everything that makes a model: data, tokenizer, batches, training, and the saved result."""

import logging
import os
from importlib.metadata import version


def allocator_for(torch_version: str) -> str:
    """What PyTorch's allocator is told, by the version of PyTorch, such as "2.13.0+cu130".

    Segments that grow waste less of a card where batches differ in length. Pinned memory, which offload takes
    by the GB, is not rounded up to a power of two above 64 MB, where PyTorch knows that setting: an older one
    refuses to start a card over a name that it does not know.
    """
    major, minor = map(int, torch_version.split(".")[:2])
    settings = "expandable_segments:True"
    return settings + ",pinned_max_round_threshold_mb:64" if (major, minor) >= (2, 13) else settings


# PyTorch reads this when it is imported.
ALLOCATOR = allocator_for(version("torch"))
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name, which a user may have set
    os.environ.setdefault("PYTORCH_ALLOC_CONF", ALLOCATOR)


def allocator_settings() -> str | None:
    """What PyTorch's allocator was told, by the older name of its variable or by the newer one."""
    return os.environ.get("PYTORCH_CUDA_ALLOC_CONF", os.environ.get("PYTORCH_ALLOC_CONF"))


# transformers imports it through peft, needed or not; it tells of kernels that it did not find, and prints a
# line for every product in 8 bits.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
