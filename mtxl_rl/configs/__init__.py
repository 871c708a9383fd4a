"""YAML files that hold only differences from the dataclasses' defaults."""
