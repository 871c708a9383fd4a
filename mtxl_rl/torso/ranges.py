"""Ranges of options, for the configurations' own checks."""


def check_at_least(config: object, least: int, *names: str, prefix: str = "") -> None:
    """Raise ValueError where a field is below `least`, or is not a number."""
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ValueError(f"{prefix}{name}={value} must be {least} or more")
