"""Checkpoints from a Hugging Face hub: what is needed of a repository, at one commit, unharmed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling

from checkpoints.layout import choose
from checkpoints.manifest import Source, sha256
from tiny_sd_engine.errors import CheckpointError


class FetchError(Exception):
    """A repository could not be fetched. The message says why, and what to do."""


@dataclass(frozen=True)
class Download:
    """What was fetched of a repository."""

    folder: Path
    """In the hub's cache; it may hold files that somebody else fetched."""
    source: Source


def fetch(repository: str, revision: str, endpoint: str | None, on_start: Callable[[str, int, int], None]) -> Download:
    """Download the files of a checkpoint into the hub library's cache, with its progress bars, and check their hashes.

    A connection that breaks is taken up again where it broke. What an earlier run has fetched whole is not fetched
    again. ``on_start`` is told the commit, the number of files and their bytes before the download starts.

    Raises :class:`FetchError`, and :class:`CheckpointError` for a repository that lacks a file.
    """
    hub = (endpoint or ENDPOINT).rstrip("/")
    with _explaining(repository, revision, hub):
        info = HfApi(endpoint=hub).model_info(repository, revision=revision, files_metadata=True)
        published = {file.rfilename: file for file in info.siblings or []}
        layout = choose(published.keys(), Path(repository))
        on_start(str(info.sha), len(layout.files), sum(published[name].size or 0 for name in layout.files))
        # One by one: the library's own download of many files is deaf to Ctrl-C until all that it has begun are there.
        paths = [Path(hf_hub_download(repository, name, revision=info.sha, endpoint=hub)) for name in layout.files]
    for path, name in zip(paths, layout.files, strict=True):
        _check(path, published[name])
    folder = paths[layout.files.index("model_index.json")].parent
    return Download(folder, Source(name=f"{hub}/{repository}", revision=info.sha))


@contextmanager
def _explaining(repository: str, revision: str, hub: str) -> Iterator[None]:
    """Turn the many things that can go wrong into one sentence with what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except GatedRepoError as error:
        raise FetchError(
            f"{repository}: its authors ask you to accept their terms first; do so at {hub}/{repository}, "
            "then set HF_TOKEN to a token of yours"
        ) from error
    except RepositoryNotFoundError as error:
        raise FetchError(f"{repository}: {hub} has no such repository, or HF_TOKEN does not open it") from error
    except RevisionNotFoundError as error:
        raise FetchError(f"{repository}: has no revision {revision!r}; a branch, a tag or a commit is one") from error
    except HFValidationError as error:
        raise FetchError(f"{repository!r} is no repository's name; one looks like segmind/tiny-sd") from error
    except OfflineModeIsEnabled as error:
        raise FetchError("HF_HUB_OFFLINE is set, which forbids the network; unset it to fetch") from error
    except HfHubHTTPError as error:
        raise FetchError(f"{hub} answered {error.response.status_code}; try again later") from error
    except (httpx2.TransportError, httpx2.InvalidURL, LocalEntryNotFoundError) as error:
        raise FetchError(
            f"{hub} cannot be reached or broke off: {_first_line(error)}; what is there already is kept, so try again"
        ) from error
    except Exception as error:  # an answer that is none of a hub's, a full disk
        raise FetchError(f"{repository} from {hub}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _check(path: Path, published: RepoSibling) -> None:
    """Compare a file with the hash that the hub lists. One that differs is removed, so that it is fetched again."""
    listed, found = (published.lfs.sha256, sha256(path)) if published.lfs else (published.blob_id, _git_name(path))
    if listed not in {found, None}:  # some mirrors list none
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise FetchError(f"{published.rfilename} came damaged: its hash is not the one that the hub lists; fetch again")


def _git_name(path: Path) -> str:
    """The hash by which git, and so the hub, knows a file that is not large."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
