"""The licences of installed packages, as their own metadata declares them.

The first of these that says anything counts (https://packaging.python.org/specifications/core-metadata):

    License-Expression     an SPDX expression
    License                where it is a name; some packages put the whole text there
    Classifier             those of "License :: ", which name a licence and often no version of it

A name that stands for one licence of the SPDX list (https://spdx.org/licenses) becomes its identifier; any other stays
the name that it is.  Nothing is guessed: "Apache Software License" does not say which version.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, metadata
from types import MappingProxyType

_LONGEST_NAME = 100
_SPDX: Mapping[str, str] = MappingProxyType(
    {
        "3-clause bsd license": "BSD-3-Clause",
        "apache 2.0": "Apache-2.0",
        "apache license 2.0": "Apache-2.0",
        "apache license, version 2.0": "Apache-2.0",
        "bsd 3-clause": "BSD-3-Clause",
        "isc license (iscl)": "ISC",
        "mit license": "MIT",
        "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
        "the unlicense (unlicense)": "Unlicense",
    }
)
_OF_PYTHON = "Python-2.0.1"
"""CPython's, which is no package: https://docs.python.org/3/license.html, https://spdx.org/licenses/Python-2.0.1"""


def licences_of(distribution: str) -> tuple[str, ...]:
    """Return the licences that an installed package declares: SPDX expressions, identifiers or names.

    "python" is the interpreter.  () for a package that declares none, and for one that is not installed.
    """
    if distribution == "python":
        return (_OF_PYTHON,)
    try:
        found = metadata(distribution).json
    except PackageNotFoundError:
        return ()
    if expression := found.get("license_expression"):
        return (str(expression),)
    name = str(found.get("license", "")).strip()
    if name and name.upper() != "UNKNOWN" and len(name) <= _LONGEST_NAME and name.isprintable():
        return (_SPDX.get(name.lower(), name),)
    classifiers = [text.split(" :: ") for text in found.get("classifier", ()) if text.startswith("License :: ")]
    names = [parts[-1] for parts in classifiers if parts[1:] != ["OSI Approved"]]
    return tuple(dict.fromkeys(_SPDX.get(one.lower(), one) for one in names))
