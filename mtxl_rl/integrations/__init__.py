"""Adapters that put a torso into other frameworks' agents."""
