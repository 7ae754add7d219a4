"""The npm packages the data set is made from: names, versions, check sums, reading."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import pathlib
import subprocess
import tarfile
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Package:
    """One npm package at one version.

    Attributes:
      name: on the npm registry.
      version: the exact version.
      integrity: base64 SHA-512 of its tarball, as the registry publishes it.
    """

    name: str
    version: str
    integrity: str

    @property
    def file_name(self) -> str:
        """What ``npm pack`` calls the tarball."""
        return f"{self.name}-{self.version}.tgz"


NOTO = Package(
    "emoji-datasource-google",
    "16.0.0",
    "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
TWEMOJI = Package(
    "emoji-datasource-twitter",
    "16.0.0",
    "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
)
FLUENT = Package(
    "fluentui-emoji",
    "1.3.0",
    "JTXXwqIie2rWTgOkIJDJxr0WtwTz2WU4kdOq8buLVThYwQ264aFR2jdTyuon2oEbLqqGMT64zI4btyn1saB2xw==",
)
EMOJIBASE = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
ALL = (NOTO, TWEMOJI, FLUENT, EMOJIBASE)


def fetch(folder: pathlib.Path, package: Package) -> None:
    """Download a tarball with ``npm pack`` unless it is there already.

    Raises:
      RuntimeError: npm is missing or failed.
    """
    if (folder / package.file_name).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    try:
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{' '.join(command)!r} failed in {folder}: {error}") from error


def verify(folder: pathlib.Path, package: Package) -> None:
    """Check that a tarball is there and is byte for byte the one the data set is defined by.

    Raises:
      FileNotFoundError: it is not there.
      ValueError: its check sum differs.
    """
    path = folder / package.file_name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; pass --fetch, or run `npm pack {package.name}@{package.version}` "
            f"in {folder}"
        )
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != package.integrity:
        raise ValueError(
            f"{path} has SHA-512 {digest}, expected {package.integrity}; fetch into another folder"
        )


def read(
    folder: pathlib.Path, package: Package, wanted: Callable[[str], str | None]
) -> dict[str, bytes]:
    """Read files out of a tarball in one pass.

    Args:
      folder: where the tarball is.
      package: which one.
      wanted: maps a path inside the package to the key to return it under, None to skip it.

    Returns:
      File contents by key.
    """
    found: dict[str, bytes] = {}
    with tarfile.open(folder / package.file_name, "r:gz") as archive:
        for member in archive:
            if not member.isfile():
                continue
            key = wanted(member.name.removeprefix("package/"))
            file = archive.extractfile(member) if key is not None else None
            if key is not None and file is not None:
                found[key] = file.read()
    return found
