"""Whether a bundle's folder is what its lists of digests and its manifest say.  Nothing in it is opened by a runtime.

Every command that runs, shows or signs something of a bundle asks this first: whoever changes a file can write
`SHA256SUMS` anew, and then only the manifest, the SBOM and the model repository still disagree with it.
"""

from pathlib import Path, PurePosixPath

from tsexport.bundles.bundle import Bundle
from tsexport.bundles.checksums import MEASUREMENT_SUMS, SUMS, check_sums, read_sums
from tsexport.bundles.manifest import ArtifactEntry
from tsexport.bundles.sbom import check_sbom
from tsexport.bundles.triton_config import CONFIG, TRITON
from tsexport.errors import BundleError
from tsexport.types import joint_sha256


def check_structure(bundle: Bundle) -> int:
    """Return the number of files whose digests hold.

    Raises:
        BundleError: the folder is not what the lists and the manifest say.
    """
    files = check_sums(bundle.path)
    listed = read_sums(bundle.path)
    for entry in bundle.manifest.artifacts:
        check_entry(entry, listed, bundle.path)
    if (tables := bundle.manifest.calibration_tables) is not None and listed.get(tables.path) != tables.sha256:
        raise BundleError(f"manifest.json gives another SHA-256 for {tables.path} than {SUMS}; one of them was changed")
    _check_served(bundle.manifest.artifacts, listed)
    check_sbom(bundle.path, bundle.name, bundle.manifest, listed)
    _ = bundle.selection  # read for its own checks
    return files + len((SUMS, MEASUREMENT_SUMS))


def _check_served(entries: tuple[ArtifactEntry, ...], listed: dict[str, str]) -> None:
    """Raise BundleError where `triton/` holds a file that no artifact has, besides its README and its configurations.

    Of several versions Triton serves the newest, and a backend may run more than the model's file: so all count.
    """
    digests = {file.sha256 for entry in entries for file in entry.files}
    for name, digest in listed.items():
        parts = PurePosixPath(name).parts
        written = parts[1:] == ("README.md",) or parts[2:] == (CONFIG,)
        if parts[0] == TRITON and not written and digest not in digests:
            raise BundleError(f"{name} is none of the files of the artifacts in manifest.json; it was swapped or added")


def check_entry(entry: ArtifactEntry, listed: dict[str, str], root: Path) -> None:
    """Raise BundleError where the manifest's digests and sizes of an artifact differ from SHA256SUMS or from the files.

    `listed` is what `read_sums` returned.  The files were held against it before, and are not read again.
    """
    for file in entry.files:
        if listed.get(file.path) != file.sha256:
            raise BundleError(
                f"manifest.json gives another SHA-256 for {file.path} than {SUMS}; one of them was changed"
            )
        if (root / file.path).stat().st_size != file.size_bytes:
            raise BundleError(f"manifest.json gives another size for {file.path} than the file has")
    if joint_sha256(tuple((file.sha256, PurePosixPath(file.path).suffix) for file in entry.files)) != entry.sha256:
        raise BundleError(f"manifest.json gives a SHA-256 for artifact {entry.name} that is not that of its files")
