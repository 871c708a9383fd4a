"""The systems that `peers.py` compares, one module and one process each."""
