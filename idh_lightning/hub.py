"""Files at the Hugging Face Hub, from its cache or over the network."""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

HUB = "hf://"
"""How the place of a model at the hub begins: hf://owner/name, or hf://owner/name@revision."""


class UnreachableError(OSError):
    """A file is neither in the cache nor to be had from the hub."""


def hub_file(repository: str, name: str, revision: str | None = None) -> Path:
    """Local copy of a file at the hub, from the cache or downloaded, without waiting for a network that is absent.

    Raises:
        UnreachableError: If it cannot be had; its text says why.
    """
    host = urlparse(huggingface_hub.constants.ENDPOINT).hostname or ""
    try:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if not getproxies():
            # The hub's client retries for most of a minute before it gives up; a name that does not resolve is final.
            socket.getaddrinfo(host, 443)
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError as error:
        raise UnreachableError(f"no answer from the hub: {_line(error)}") from error
    except RepositoryNotFoundError as error:
        raise UnreachableError("the hub has no model of this name, or it is private") from error
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise UnreachableError(f"the hub has no {name} there, or not in this revision") from error
    except HFValidationError as error:
        raise UnreachableError(f"no name of a model: {_line(error)}") from error
    except (OSError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        said = "its address is not found" if isinstance(error, socket.gaierror) else _line(error)
        raise UnreachableError(f"no answer from the hub: {said}") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
