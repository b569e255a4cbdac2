"""Which commit a result belongs to: that of the git repository the command was called in."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 30.0


@dataclass(frozen=True)
class Commit:
    """A commit by its full hash; `modified` says that tracked files differ from it."""

    sha: str
    modified: bool


def commit_here(folder: Path) -> Commit | None:
    """Return the commit that is checked out in a folder, None where there is no repository, no commit or no git."""
    sha = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if not sha:
        return None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Commit(sha, bool(status))


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
