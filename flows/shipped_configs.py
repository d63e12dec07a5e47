"""The run configurations that come with the package."""

from pathlib import Path

FOLDER = Path(__file__).parent / "configs"


def shipped_configs() -> list[str]:
    """Their names."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def config_path(name: str) -> Path:
    """The file meant by a CONFIG argument: a path, or the name of a shipped configuration."""
    shipped = FOLDER / f"{name}.toml"
    return shipped if not Path(name).exists() and shipped.exists() else Path(name)
