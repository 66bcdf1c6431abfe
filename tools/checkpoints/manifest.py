"""manifest.json and NOTICE: where a checkpoint came from, what was changed, its licence, and its files' hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub import metadata_load
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml import YAMLError

from checkpoints.layout import MODEL_CARD
from tiny_sd_engine.errors import CheckpointError

MANIFEST = "manifest.json"
NOTICE = "NOTICE"
_OPEN_RAIL_M = "creativeml-openrail-m"
_OPEN_RAIL_M_URL = "https://huggingface.co/spaces/CompVis/stable-diffusion-license"


class Source(BaseModel):
    """What a checkpoint was made from."""

    model_config = ConfigDict(frozen=True)

    name: str
    """A repository's address, or a folder's name."""
    revision: str | None = None
    """The commit, of a repository."""

    def __str__(self) -> str:
        return f"{self.name}, revision {self.revision}" if self.revision else self.name


class File(BaseModel):
    """One file of the checkpoint."""

    sha256: str
    change: str | None = None
    """How it differs from the source's; None: it does not."""
    made_from: dict[str, str] = {}
    """The source's files that a changed one was made from, and the SHA-256 of each."""


class Manifest(BaseModel):
    """All that is known about a checkpoint's files; the manifest itself is not one of them."""

    source: Source
    licence: str | None
    """As the model card names it."""
    precision: str
    left_out: list[str]
    """Components of the source that are not here."""
    files: dict[str, File]


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint, None if it has none. Raises :class:`CheckpointError` for one that is broken."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise CheckpointError(path, f"is not a manifest of this tool: {str(error).splitlines()[0]}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest into the checkpoint's folder."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2, exclude_defaults=True) + "\n", encoding="utf-8")


def check_manifest(folder: Path, manifest: Manifest) -> None:
    """Raise :class:`CheckpointError` naming the first file that is not as the manifest says."""
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(path, f"missing; {MANIFEST} lists it")
        if sha256(path) != file.sha256:
            raise CheckpointError(path, f"is not the file that {MANIFEST} lists: its SHA-256 is another")


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stated_licence(folder: Path) -> str | None:
    """The licence that the model card in a folder names, None if it names none."""
    try:
        card = metadata_load(folder / MODEL_CARD) or {}
    except (OSError, ValueError, YAMLError):
        return None
    licence = card.get("license_name") or card.get("license")
    return str(licence) if licence else None


def notice(manifest: Manifest) -> str:
    """The text that goes with the files to whoever gets them: their origin, what was changed, their licence."""
    changes = [f"- {name}: {file.change}" for name, file in manifest.files.items() if file.change]
    return "\n".join(
        [
            f"Made from {manifest.source}",
            "",
            "Files that are not as their authors published them:",
            *(changes or ["- none"]),
            "",
            f"Left out: {', '.join(manifest.left_out) or 'nothing'}. {MANIFEST} has the SHA-256 of every file.",
            "",
            *_licence_terms(manifest.licence),
            "",
        ]
    )


def _licence_terms(licence: str | None) -> list[str]:
    if licence is None:
        return ["The source names no licence. Find out what its authors allow before you use or pass on these files."]
    if licence != _OPEN_RAIL_M:
        return [f"Licence, as the source names it: {licence}"]
    return [
        f"Licence: CreativeML Open RAIL-M, {_OPEN_RAIL_M_URL}",
        "",
        "In short; the licence's own words count:",
        "- Its use-based restrictions (paragraph 5, Attachment A) bind everybody who uses these weights, also through",
        "  a service. Put them into your terms and give your users notice of them.",
        "- Whoever gets the weights, changed or not, gets a copy of the licence.",
        "- Changed files are marked as changed, as above, and the authors' notices are kept.",
        "- Nothing here means that the authors of the original endorse this copy, a service with it, or who runs one.",
    ]
