"""Where data come from: the cache, a download, what tensorflow-datasets prepared; a network that is silent."""

import hashlib
import http.server
import io
import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from l2ljax.data import NAMES, load, remote
from l2ljax.data.sources import SOURCES
from l2ljax.types import L2LError
from tests.data_files import TEST_28, TEST_32, TRAIN_28, TRAIN_32, check, forget_checksums, idx_files


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    forget_checksums(monkeypatch)


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    """No cache, nothing prepared."""
    monkeypatch.setenv("L2LJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def test_no_data_and_no_network_is_one_error_with_the_ways_on(empty_machine, monkeypatch):
    def fail(url, md5, folder):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(remote, "fetch", fail)
    for name in (name for name in NAMES if SOURCES[name].downloads):
        with pytest.raises(L2LError) as error:
            load(name)
        url = next(iter(SOURCES[name].downloads))
        for part in (
            url,
            "--data-dir",
            "experiments/digits.py",
            "network",
            "no route to host",
            SOURCES[name].npm,
        ):
            assert part in str(error.value)
        assert "\n" not in str(error.value)


class Server:
    """An HTTP server on this machine; `files` by path."""

    def __init__(self, files):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                content, size = files.get(self.path, (None, 0))
                if content is None:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_download_is_checked_kept_and_not_repeated(empty_machine, monkeypatch):
    files = {f"/{name}": (content, len(content)) for name, content in idx_files(gz=True).items()}
    good = dict(files)
    first, *_, last = files
    with Server(files) as server:
        md5s = {server.url + path: hashlib.md5(content).hexdigest() for path, (content, _) in files.items()}
        monkeypatch.setitem(SOURCES, "mnist", SOURCES["mnist"]._replace(downloads=md5s, checksums={}))
        cache = empty_machine / "cache" / "mnist"
        for bad in (
            (b"<html>", 6),
            (good[last][0][:-5], good[last][1]),
            (None, 0),
        ):  # wrong, cut off, missing
            files[last] = bad
            with pytest.raises(L2LError, match=f"fetching {server.url}{last} failed"):
                load("mnist")
            assert sorted(path.name for path in cache.iterdir()) == sorted(path[1:] for path in list(files)[:3])
        files[last], files[first] = good[last], (None, 0)  # what is there is not fetched again
        check(load("mnist"), TRAIN_28, TEST_28)
    check(load("mnist"), TRAIN_28, TEST_28)  # and nothing needs the server now


def test_silent_server_is_given_up_soon(empty_machine, monkeypatch):
    monkeypatch.setattr(remote, "_PATIENCE", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cifar-10-binary.tar.gz"
        monkeypatch.setitem(SOURCES, "cifar10", SOURCES["cifar10"]._replace(downloads={url: "0" * 32}))
        begin = time.monotonic()
        with pytest.raises(L2LError, match=r"failed \((TimeoutError: )?no (answer|connection)|ReadTimeout"):
            load("cifar10")
        assert time.monotonic() - begin < 3
    assert not list((empty_machine / "cache").rglob("*.gz"))


def test_silent_name_server_is_given_up_soon(empty_machine, monkeypatch):
    """Name look-ups know no timeout of requests'."""
    over = threading.Event()

    def getaddrinfo(*args, **kwargs):
        over.wait(20)
        raise socket.gaierror("gave up")

    monkeypatch.setattr(remote, "_PATIENCE", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    begin = time.monotonic()
    with pytest.raises(L2LError, match="no answer in"):
        load("cifar10")
    assert time.monotonic() - begin < 3
    over.set()


def example(features):
    """A serialized tf.train.Example of byte strings and integers, field by field."""

    def varint(n):
        return (bytes([n & 127 | 128]) + varint(n >> 7)) if n > 127 else bytes([n])

    def field(number, content):
        return bytes([number << 3 | 2]) + varint(len(content)) + content

    def value(v):
        return field(1, field(1, v)) if isinstance(v, bytes) else field(3, field(1, varint(v)))

    entries = (field(1, key.encode()) + field(2, value(v)) for key, v in features.items())
    return field(1, b"".join(field(1, entry) for entry in entries))


def write_prepared(folder, splits, *, text, image, classes):
    """A data set as tensorflow-datasets prepares it, in DATASET/VERSION: splits of records {text, "image", "label"}."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder.mkdir(parents=True)
    for name, records in splits.items():
        file = folder / f"{folder.parent.name}-{name}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for record in records:
            writer.write(example(record))
        writer.close()
    info = {
        "name": folder.parent.name,
        "version": folder.name,
        "fileFormat": "array_record",
        "splits": [
            {"name": name, "numBytes": "1", "shardLengths": [str(len(records))],
             "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"}
            for name, records in splits.items()
        ],
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    core = "tensorflow_datasets.core.features"
    features = {
        text: {"pythonClassName": f"{core}.text_feature.Text", "text": {}},
        "image": {"pythonClassName": f"{core}.image_feature.Image", "image": {"dtype": "uint8", **image}},
        "label": {
            "pythonClassName": f"{core}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(classes)},
        },
    }
    names = {"pythonClassName": f"{core}.features_dict.FeaturesDict", "featuresDict": {"features": features}}
    (folder / "features.json").write_text(json.dumps(names))


def test_reads_what_tensorflow_datasets_prepared_in_the_official_order(empty_machine):
    from PIL import Image

    def records(name, split):
        for i in reversed(range(len(split.labels))):
            png = io.BytesIO()
            Image.fromarray(split.images[i]).save(png, "PNG")
            yield {"id": f"{name}_{i:05d}".encode(), "image": png.getvalue(), "label": int(split.labels[i])}

    folder = empty_machine / "tfds" / "cifar10" / "3.0.2"
    splits = {name: list(records(name, split)) for name, split in (("train", TRAIN_32), ("test", TEST_32))}
    image = {"shape": {"dimensions": ["32", "32", "3"]}, "encodingFormat": "png"}
    write_prepared(folder, splits, text="id", image=image, classes=10)
    check(load("cifar10"), TRAIN_32, TEST_32)
    check(load("cifar10", empty_machine / "tfds"), TRAIN_32, TEST_32)
    assert "tensorflow" not in sys.modules
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(L2LError, match=r"prepared data set in .*3\.0\.2 cannot be read"):
        load("cifar10")


def test_import_is_light():
    heavy = "tensorflow_datasets sklearn pooch PIL scipy requests"
    code = f"import sys, l2ljax.data; sys.exit(' '.join(m for m in {heavy.split()} if m in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_digits_have_no_folder():
    with pytest.raises(L2LError, match="digits come with scikit-learn and have no data folder: leave it out"):
        load("digits", "somewhere")
