"""Files of the Hugging Face hub, by huggingface_hub; nothing of a repository is run."""

from pathlib import Path

INSTALL = "pip install -r requirements-hub.txt"


class HubError(Exception):
    """Why a file cannot be had: the package, the network, the repository; without its name."""


def hub_file(repository: str, file: str, revision: str | None = None) -> Path | None:
    """One file of a repository of models, where huggingface_hub keeps it; None: it has none.

    A file that is there is not fetched again. Raises HubError.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise _missing() from error
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError: not here, and no network
        raise HubError(
            f"{file} of {repository} is not in the local cache, and the hub cannot be reached; run "
            "again with a network"
        ) from error
    except EntryNotFoundError:
        return None
    except Exception as error:  # requests', httpx' and the hub's own, and OSError
        raise HubError(f"{file} of {repository} could not be downloaded: {_why(error)}") from error


def hub_parquet(repository: str, folder: Path) -> None:
    """Brings the parquet files of a data set's repository into a folder; what is there stays.

    A killed call is resumed by the next. Raises HubError.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise _missing() from error
    try:
        snapshot_download(
            repository, repo_type="dataset", allow_patterns=["*.parquet"], local_dir=folder
        )
    except Exception as error:  # requests', httpx' and the hub's own, and OSError
        raise HubError(f"{repository} could not be downloaded: {_why(error)}") from error


def _missing() -> HubError:
    return HubError(f"needs the package huggingface_hub, not installed; {INSTALL}")


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
