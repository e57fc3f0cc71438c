"""A model's weights: loaded, fitted to the tokenizer, run, adapted, saved."""
