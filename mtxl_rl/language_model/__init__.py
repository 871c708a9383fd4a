"""The Memory Transformer-XL as a language model."""
