"""Which jaxem writes what is kept."""

from importlib import metadata


def written_by() -> str:
    """The version of the package that is installed."""
    try:
        return metadata.version("jaxem")
    except metadata.PackageNotFoundError:
        return "unknown"
