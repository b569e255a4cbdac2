"""`sbom.cdx.json`: what a bundle is made of, and which packages made it, as CycloneDX 1.6.

    metadata.component       the bundle
    machine-learning-model   each file of each artifact, and the checkpoint, with SHA-256
    data                     the golden arrays and the calibration tables, with SHA-256
    library, platform        each package of `provenance.versions` and Python, with version and licences

A component that is a file of the bundle is named by its path.  The scope of a package says who needs it: "required" is
the selected artifact's runtime, "optional" those of the other artifacts and what reads a bundle from Python, "excluded"
what was needed to build alone.  Licences are those that packages declare (`tsexport.bundles.licences`); a model has
one only where it is the checkpoint that comes with tsexport.

Equal manifests in one environment give equal bytes: there is no time in it, and the serial number is a UUID of version
5 of the document itself.

Sources: https://cyclonedx.org/docs/1.6/json, https://github.com/package-url/purl-spec.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexport.bundles.checksums import SUMS
from tsexport.bundles.golden import INPUTS, OUTPUTS
from tsexport.bundles.licences import licences_of
from tsexport.bundles.manifest import MANIFEST, ArtifactEntry, CheckpointRecord, Manifest
from tsexport.codec import parse_json, read_plain
from tsexport.errors import BundleError
from tsexport.runtimes.registry import RUNTIMES
from tsexport.types import file_sha256

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

SBOM = "sbom.cdx.json"
MODEL, DATA = "machine-learning-model", "data"
_FILE = "file:"
_MAX_BYTES = 64 * 2**20
_NAMESPACE = uuid.UUID("6c2dd0a5-9d4f-5f53-b0c4-5d5a3f9d1c6b")
"""Of the serial numbers; any constant does."""
_NO_SERIAL = uuid.UUID(int=0)
_READERS = ("python", "tsexport", "numpy")
"""What reads a bundle from Python, besides a runtime."""


@dataclass(frozen=True)
class SbomComponent:
    """One component of a document: `licences` as text, `sha256` None where it has none.

    `reference` is its bom-ref.
    """

    name: str
    reference: str
    licences: tuple[str, ...]
    sha256: str | None

    @property
    def is_file(self) -> bool:
        """Whether it is a file of the bundle, named by its path."""
        return self.reference.startswith(_FILE)


def write_sbom(root: Path, manifest: Manifest) -> None:
    """Write the document into a bundle's folder, whose artifacts and golden arrays lie there already."""
    (root / SBOM).write_text(sbom_text(root, manifest), encoding="utf-8")


def sbom_text(root: Path, manifest: Manifest) -> str:
    """Return the document's text for the bundle in the folder `root`.

    Its packages are those of `manifest.provenance`, and their licences those of the environment that runs this.
    """
    bom = _bom(root, manifest)
    bom.serial_number = _NO_SERIAL
    bom.serial_number = uuid.uuid5(_NAMESPACE, _text(bom))
    return _text(bom)


def read_sbom(root: Path, bundle: str) -> tuple[SbomComponent, ...]:
    """Return the components of a bundle's document, without what is nested in them.

    Raises:
        BundleError: it is missing, is a link, is far too large, or is no CycloneDX document with named components.
    """
    document = parse_json(read_plain(root / SBOM, what=f"{SBOM} of {bundle}", most_bytes=_MAX_BYTES), what=SBOM)
    try:
        if document["bomFormat"] != "CycloneDX":
            raise TypeError
        return tuple(_component(one) for one in document["components"])
    except (KeyError, TypeError, AttributeError):
        raise BundleError(f"{SBOM} of {bundle} is no CycloneDX document with named components") from None


def check_sbom(root: Path, bundle: str, manifest: Manifest, listed: Mapping[str, str]) -> None:
    """Hold the document, where there is one, against the digests of the bundle.

    Args:
        root: the bundle's folder.
        bundle: the bundle's name, for messages.
        manifest: its manifest.
        listed: path -> SHA-256, as SHA256SUMS has them.

    Raises:
        BundleError: it is none, lacks a file of an artifact, or names a file that SHA256SUMS does not, or with another
            SHA-256.
    """
    if SBOM not in listed:
        return
    given = {one.name: one.sha256 for one in read_sbom(root, bundle) if one.is_file}
    for entry in manifest.artifacts:
        for file in entry.files:
            if file.path not in given:
                raise BundleError(f"{SBOM} of {bundle} does not name {file.path}, a file of the artifact {entry.name}")
    for name, sha256 in given.items():
        if name not in listed:
            raise BundleError(f"{SBOM} of {bundle} names {name}, which does not stand in {SUMS}")
        if sha256 != listed[name]:
            raise BundleError(f"{SBOM} gives another SHA-256 for {name} than {SUMS}; one of them was changed")


# --- reading ---------------------------------------------------------------------------------------------------------


def _component(plain: Mapping[str, Any]) -> SbomComponent:
    hashes = {one["alg"]: one["content"] for one in plain.get("hashes", ())}
    return SbomComponent(
        name=_text_of(plain["name"]),
        reference=_text_of(plain.get("bom-ref", "")),
        licences=tuple(_licence(one) for one in plain.get("licenses", ())),
        sha256=hashes.get("SHA-256"),
    )


def _text_of(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _licence(choice: Mapping[str, Any]) -> str:
    licence = choice.get("license", {})
    return str(choice.get("expression") or licence.get("id") or licence["name"])


# --- writing ---------------------------------------------------------------------------------------------------------


def _bom(root: Path, manifest: Manifest) -> "Bom":
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.lifecycle import LifecyclePhase, PredefinedLifecycle
    from cyclonedx.model.tool import ToolRepository

    versions = manifest.provenance.versions
    packages = {name: _package(name, version, _scope(name, manifest)) for name, version in versions.items()}
    files = {one.name: one for one in _files(root, manifest)}
    bundle = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=manifest.name,
        bom_ref="bundle",
        description=f"{manifest.model.name} for {manifest.target.name}",
    )
    bom = Bom(components=[*packages.values(), *files.values(), *_checkpoint(manifest.provenance.checkpoint)])
    bom.metadata.component = bundle
    bom.metadata.lifecycles = [PredefinedLifecycle(LifecyclePhase.BUILD)]
    writer = Component(
        type=ComponentType.APPLICATION, name="tsexport", version=versions.get("tsexport"), bom_ref="tool"
    )
    bom.metadata.tools = ToolRepository(components=[writer])
    bom.register_dependency(bundle, files.values())
    for entry in manifest.artifacts:
        needed = [packages[name] for name in _packages_of(entry.runtimes) if name in packages]
        for file in entry.files:
            bom.register_dependency(files[file.path], needed)
    return bom


def _text(bom: "Bom") -> str:
    from cyclonedx.output.json import JsonV1Dot6

    document = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"]  # the library gives every document the time of now
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _package(name: str, version: str, scope: str) -> "Component":
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    interpreter = name == "python"
    return Component(
        type=ComponentType.PLATFORM if interpreter else ComponentType.LIBRARY,
        name=name,
        version=version,
        bom_ref=f"package:{name}",
        purl=PackageURL("generic" if interpreter else "pypi", name=name, version=version),
        scope=ComponentScope(scope),
        licenses=_declared(name),
    )


def _scope(package: str, manifest: Manifest) -> str:
    if package in _packages_of((manifest.selected.runtime,)):
        return "required"
    others = _packages_of(runtime for entry in manifest.artifacts for runtime in entry.runtimes)
    return "optional" if package in (*others, *_READERS) else "excluded"


def _packages_of(runtimes: Iterable[str]) -> tuple[str, ...]:
    """Return the packages of runtimes; a third party's runtime does not say its own."""
    packages = {row.name: row.package for row in RUNTIMES}
    return tuple(dict.fromkeys(packages[name] for name in runtimes if name in packages))


def _declared(package: str) -> "list[License]":
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model.license import LicenseAcknowledgement

    factory, declared = LicenseFactory(), LicenseAcknowledgement.DECLARED
    return [factory.make_from_string(text, license_acknowledgement=declared) for text in licences_of(package)]


def _files(root: Path, manifest: Manifest) -> "Iterator[Component]":
    """Yield the files of the artifacts, of the golden arrays and of the calibration tables."""
    for entry in manifest.artifacts:
        for file in entry.files:
            yield _file(MODEL, file.path, file.sha256, entry)
    for name in (INPUTS, OUTPUTS):
        yield _file(DATA, name, file_sha256(root / name))
    if (tables := manifest.calibration_tables) is not None:
        yield _file(DATA, tables.path, tables.sha256)


def _file(kind: str, path: str, sha256: str, entry: ArtifactEntry | None = None) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    told = {"artifact": entry.name, "format": entry.format, "precision": entry.precision} if entry else {}
    return Component(
        type=ComponentType(kind),
        name=path,
        bom_ref=f"{_FILE}{path}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
        properties=[Property(name=f"tsexport:{key}", value=value) for key, value in told.items()],
    )


def _checkpoint(record: CheckpointRecord | None) -> "Iterator[Component]":
    """Yield the checkpoint that all artifacts come from, where there is one; it is no file of the bundle."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    if record is not None:
        yield Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            name=record.name,
            bom_ref="checkpoint",
            description=f"the checkpoint that the artifacts were made from, not in the bundle; see {MANIFEST}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=record.sha256)] if record.sha256 else (),
            licenses=_declared("tsexport") if record.reference else (),
        )
