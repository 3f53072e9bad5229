"""The configs that are shipped, and how `--config` finds one of them or a file."""

from pathlib import Path

from wsi_pipeline.base.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def config_folder() -> Path:
    """The folder of the shipped configs.

    It lies in the installed package, as `wsi_pipeline.configs`. In a clone, used in place or installed with
    `--editable`, it lies beside the package.
    """
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def config_names() -> list[str]:
    """The names of the shipped configs, as `tile_idc` and `train/resnet18`, in order."""
    folder = config_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def find_config(name_or_path: str | Path) -> Path:
    """The file that is meant: an existing file, else the shipped config of that name.

    Raises ConfigError, with all names, when it is neither.
    """
    path = Path(name_or_path)
    try:
        if path.exists() and not path.is_dir():  # a file, or a pipe: --config <(...)
            return path
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    names = config_names()
    if path.as_posix() in names:
        return config_folder() / f"{path.as_posix()}.yaml"
    raise ConfigError(
        f"{name_or_path}: found neither such a file nor a shipped config of that name; expected a YAML file "
        "or one of: "
        f"{', '.join(names) or f'(none, as {config_folder()} is missing: install the package again)'}"
    )
