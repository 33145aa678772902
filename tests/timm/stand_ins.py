"""What stands in tests for what is not on this machine."""

from pathlib import Path


def in_the_hub(folder: Path, monkeypatch) -> str:
    """Have timm find a folder where it would ask the hub; returns the name under which it does."""
    monkeypatch.setattr('timm.models._hub.hf_hub_download', lambda repo_id, filename, **_: str(folder / filename))
    return 'hf-hub:someone/something'
