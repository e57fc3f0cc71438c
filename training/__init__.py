"""Everything that makes a model: data, tokenizer, batches, training, and the saved result."""

import logging

# transformers imports it through peft, needed or not; it tells of kernels that it did not find, and prints a
# line for every product in 8 bits.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
