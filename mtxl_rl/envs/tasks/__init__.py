"""Built-in memory tasks."""
