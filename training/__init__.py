"""Everything that makes a model: data, tokenizer, batches, training, and the saved result."""
