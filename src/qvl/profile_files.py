"""Where profiles are looked for: a path, the user's config folder, then those that come with qvl."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qvl.errors import UsageError, suggest

_ENDINGS = (".yaml", ".yml")


@dataclass(frozen=True)
class ProfileFile:
    """One YAML file. Two are equal when they are the same file."""

    path: Path
    shipped: bool = False

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def label(self) -> str:
        """How messages name the file: a shipped one is nothing the user could open and edit."""
        return f"profile {self.stem}" if self.shipped else str(self.path)

    def load(self) -> Mapping[Any, Any]:
        """The file's keys and values, unchecked. Raises UsageError."""
        import yaml

        try:
            data = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UsageError(f"{self.label}: no such profile file") from None
        except OSError as error:
            raise UsageError(f"{self.label}: cannot be read ({error.strerror or error})") from None
        except UnicodeDecodeError:
            raise UsageError(f"{self.label}: not UTF-8 text") from None
        except yaml.YAMLError as error:
            raise UsageError(f"{self.label}: not valid YAML ({' '.join(str(error).split())})") from None
        if data is None:
            return {}
        if not isinstance(data, dict):
            raise UsageError(f"{self.label}: keys with values were expected, not {type(data).__name__}")
        return data


def config_home() -> Path | None:
    """The user's folder for qvl: `$QVL_CONFIG_HOME`, else `qvl` where the platform keeps configuration.

    None where there is no home folder, as in a container whose user has neither $HOME nor an entry in passwd.
    """
    try:
        if own := os.environ.get("QVL_CONFIG_HOME"):
            return Path(own).expanduser()
        if sys.platform == "win32":
            return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "qvl"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Application Support" / "qvl"
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "qvl"
    except RuntimeError:
        return None


def find(profile: str | Path) -> ProfileFile:
    """The file of a profile given by name or path. Raises UsageError with the nearest name."""
    if _is_path(profile):
        return _from_path(_expanded(profile))
    return _by_name(str(profile), _candidates(str(profile)), "")


def find_parent(profile: str, child: ProfileFile) -> ProfileFile:
    """What `extends: profile` in `child` means.

    A path is relative to the child's folder. A shipped profile extends shipped ones only, so that a user's own `2b`
    does not change `7b`. A user's `2b` that extends `2b` means the shipped one.
    """
    if _is_path(profile):
        return _from_path(child.path.parent / _expanded(profile))
    files = list(_candidates(profile))
    if child.shipped:
        files = [file for file in files if file.shipped]
    elif child in files:
        files = files[files.index(child) + 1 :] or [child]
    return _by_name(profile, iter(files), f"{child.label}: extends: ")


def known_files() -> list[ProfileFile]:
    """Every profile that has a name: the user's, then the shipped ones that no user's file hides."""
    files: dict[str, ProfileFile] = {}
    for folder, shipped in _folders():
        try:
            found = [path for path in folder.iterdir() if path.suffix in _ENDINGS]
        except OSError:  # not there, or somebody else's home folder
            continue
        for path in sorted(found, key=lambda path: _natural(path.stem)):
            files.setdefault(path.stem, ProfileFile(path.resolve(), shipped))
    return list(files.values())


def _folders() -> Iterator[tuple[Path, bool]]:
    """Where profiles have names, the user's first; and whether they come with qvl."""
    if (home := config_home()) is not None:
        yield home / "profiles", False
    yield _shipped_folder(), True


@cache
def _shipped_folder() -> Path:
    from importlib.resources import files

    # Neither a wheel nor an editable install zips the package, so its folder is a real one.
    return Path(str(files("qvl._profiles"))).resolve()


def _is_path(profile: str | Path) -> bool:
    return isinstance(profile, Path) or profile.endswith(_ENDINGS) or "/" in profile or os.sep in profile


def _from_path(path: Path) -> ProfileFile:
    path = path.resolve()
    return ProfileFile(path, shipped=path.parent == _shipped_folder())


def _expanded(profile: str | Path) -> Path:
    return Path(os.path.expanduser(profile))  # noqa: PTH111 -- Path.expanduser raises for an unknown ~user


def _candidates(name: str) -> Iterator[ProfileFile]:
    for folder, shipped in _folders():
        for ending in _ENDINGS:
            path = folder / f"{name}{ending}"
            if os.path.isfile(path):  # noqa: PTH113 -- Path.is_file raises where the folder may not be looked into
                yield ProfileFile(path.resolve(), shipped)


def _by_name(name: str, files: Iterator[ProfileFile], where: str) -> ProfileFile:
    file = next(files, None)
    if file is None:
        known = [known.stem for known in known_files()]
        other_case = [stem for stem in known if stem.lower() == name.lower()]
        near = suggest(other_case[0] if other_case else name, known) or f"; there are {', '.join(known)}"
        raise UsageError(f"{where}no profile '{name}'{near}")
    return file


def _natural(text: str) -> list[tuple[int, str]]:
    """2b before 7b before 72b."""
    return [(int(digits or -1), rest) for digits, rest in re.findall(r"(\d*)(\D*)", text)]
