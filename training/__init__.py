"""Everything that makes a model: data, tokenizer, batches, training, and the saved result."""

import logging
import os

# PyTorch reads this when it is imported. Segments that grow waste less of a card where batches differ in
# length; pinned memory, which offload takes by the GB, is not rounded up to a power of two above 64 MB.
ALLOCATOR = "expandable_segments:True,pinned_max_round_threshold_mb:64"
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # the older name, which a user may have set
    os.environ.setdefault("PYTORCH_ALLOC_CONF", ALLOCATOR)

# transformers imports it through peft, needed or not; it tells of kernels that it did not find, and prints a
# line for every product in 8 bits.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
