"""A run's folder: rows that can be read are never lost, and what is no run's is one line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2ljax.runtime.workdir import Workdir, read_json
from l2ljax.types import L2LError

ROW = st.dictionaries(st.text(max_size=3), st.floats(), max_size=2)
NO_ROW = st.one_of(
    st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")),
    st.sampled_from([b"3", b"null", b"[1]", b'{"step": null}', b'{"step": "1"}', b'{"step": 1', b"\xff", b"[" * 9999]),
    st.sampled_from([b'{"step": 0}', b'{"step": 9' + 99 * b"9" + b"}", b'{"step": 99, "loss": 9' + 999 * b"9" + b"}"]),
    st.sampled_from(["x", True, None, [1.0], {}]).map(lambda value: json.dumps({"step": 99, "loss": value}).encode()),
    st.sampled_from(["clean", "robust"]).map(lambda name: b'{"step": 99, "val_%s_acc": 1}' % name.encode()),
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return Workdir(tmp_path_factory.mktemp("run"), {"seed": 0})


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(st.lists(ROW | NO_ROW, max_size=9), st.integers(-1, 9), st.binary(max_size=3))
def test_lines_that_cannot_be_read_lose_no_others(workdir, lines, last, end):
    rows = [{**line, "step": i + 1} for i, line in enumerate(lines) if isinstance(line, dict)]
    steps = iter(rows)
    encoded = [json.dumps(next(steps)).encode() if isinstance(line, dict) else line for line in lines]
    (workdir.path / "metrics.jsonl").write_bytes(b"\n".join([*encoded, b'{"step": 7, "lo' + end.replace(b"\n", b"")]))
    text = [json.dumps(row) for row in rows]
    assert [json.dumps(row) for row in workdir.rows()] == text
    workdir.forget_after(last)
    workdir.record([{"step": 99}])
    kept = [line for line, row in zip(text, rows, strict=True) if row["step"] <= last]
    assert (workdir.path / "metrics.jsonl").read_text().splitlines() == [*kept, '{"step": 99}']


def test_a_row_counts_once_and_has_a_number_for_each_seed(tmp_path):
    folder = Workdir(tmp_path, {}, seeds=2)
    rows = [{"step": 1, "loss": [1.0, 2.0]}, {"step": 2, "loss": [0.0, 1]}]
    others = [{"step": 1, "loss": [3.0, 3.0]}, *({"step": 3, "loss": loss} for loss in (1.0, [1.0], [1.0, "x"]))]
    folder.record([*rows, *others])
    assert folder.rows() == rows
    folder.forget_after(3)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows


def test_missing_rows_are_told(workdir, capsys):
    file = workdir.path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n{"step": 4}\n')
    workdir.forget_after(3)
    assert "lacks 1 of 3 rows, that of step 2 first" in capsys.readouterr().err
    file.unlink()
    workdir.forget_after(3)
    assert "lacks 3 of 3 rows, that of step 1 first" in capsys.readouterr().err
    workdir.record([{"step": i} for i in (1, 2, 3)])
    workdir.forget_after(3)
    assert capsys.readouterr().err == ""


def test_what_is_no_file_of_rows_or_settings_is_one_line(tmp_path):
    folder = Workdir(tmp_path, {"seed": 0})
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(L2LError, match=r"cannot read .*metrics.jsonl \(Is a directory\): move it away"):
        folder.rows()
    for content in (b"\xff\xfe\x00", b"[]", b"null", b"3", b"{", b"", b"[" * 9999):
        (tmp_path / "config.json").write_bytes(content)
        for read in (lambda: read_json(tmp_path / "config.json"), lambda: Workdir(tmp_path, {"seed": 0})):
            with pytest.raises(L2LError, match=r"cannot read .*config.json \(.*\): (give the|put back a)") as error:
                read()
            assert "\n" not in str(error.value)


def test_a_run_whose_settings_are_gone_is_not_continued(tmp_path):
    Workdir(tmp_path, {"lr": 0.1}).record([{"step": 1}])
    (tmp_path / "config.json").unlink()
    with pytest.raises(L2LError, match="holds a run, but not its config.json: put that back, or choose another"):
        Workdir(tmp_path, {"lr": 99.0})
    assert not (tmp_path / "config.json").exists()


def test_a_run_keeps_to_the_weights_that_it_began_with(tmp_path):
    Workdir(tmp_path, {})  # of an older version, which did not note them
    for _ in range(2):
        Workdir(tmp_path, {"began_with": "a"})
    with pytest.raises(L2LError, match="holds a run that began with other trained weights: choose another --workdir"):
        Workdir(tmp_path, {"began_with": "b"})
    with pytest.raises(L2LError, match="began with other demonstrations"):
        for data in "ab":
            Workdir(tmp_path, {"demonstrations": data})


def test_a_workdir_keeps_to_its_network(tmp_path):
    Workdir(tmp_path, {"network": ("0.1", "a")})
    Workdir(tmp_path, {"network": ("0.2", "b")})  # another version of JAX writes programs otherwise
    Workdir(tmp_path, {})
    Workdir(tmp_path, {"network": ("0.2", "a")})  # one without a network was there before
    with pytest.raises(L2LError, match="holds a run of another network: give the same, or another folder"):
        Workdir(tmp_path, {"network": ("0.2", "b")})
