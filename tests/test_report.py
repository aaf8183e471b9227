import errno
import json
import os
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import files
from l2ljax.report import markdown
from l2ljax.run import illustrate
from l2ljax.runtime import provenance
from l2ljax.types import L2LError


def attack(robust_acc, seconds=1.0, passes=10):
    return {"robust_acc": robust_acc, "seconds": seconds, "passes": passes}


PLAIN = {
    "method": "plain",
    "dataset": "cifar10",
    "arch": "resnet20",
    "eps": "8/255",
    "norm": "linf",
    "seed": 3,
    "epochs": 60,
    "eval_size": 10000,
    "clean_acc": 0.92345,
    "attacks": {"fgsm": attack(0.1, 1.25, 1), "pgd20": attack(0.0)},
    "worst_case_acc": 0.0,
    "train_seconds": 1234.56,
    "parameters": {"classifier": 272474, "attacker": 0},
    "versions": {"jax": "0.8.0", "flax": "0.12.0"},
    "command": "python experiments/cifar10.py --method=plain",
}
LEARNED = {
    **PLAIN,
    "method": "rnn_adv",
    "clean_acc": 0.8,
    "attacks": {"cw100": attack(0.25), "own": attack(0.5, 2003.0, 1234.5), "fgsm": attack(1.0)},
    "worst_case_acc": 0.2,
    "parameters": {"classifier": 272474, "attacker": 1350},
    "best": {"clean_acc": 0.7999, "attacks": {"own": attack(0.51)}, "worst_case_acc": 0.21},
}


def cells(text):
    """The rows of a Markdown table, without the rule under its header."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert all(set(cell) <= set("-:") and len(cell) >= 3 for cell in rows[1])
    return [rows[0], *rows[2:]]


def test_table_holds_percents_by_attack_in_order_of_first_appearance():
    assert cells(markdown.table([PLAIN, LEARNED])) == [
        ["method", "clean", "fgsm", "pgd20", "cw100", "own", "worst case"],
        ["plain", "92.34", "10.00", "0.00", "-", "-", "0.00"],
        ["rnn_adv", "80.00", "100.00", "-", "25.00", "50.00", "20.00"],
        ["rnn_adv (best on validation)", "79.99", "-", "-", "-", "51.00", "21.00"],
    ]


def test_table_orders_columns_by_the_results_given():
    assert cells(markdown.table([LEARNED, PLAIN]))[0][2:-1] == ["cw100", "own", "fgsm", "pgd20"]


def test_table_source_is_aligned():
    assert len({len(line) for line in markdown.table([PLAIN, LEARNED]).splitlines()}) == 1


def test_markdown_tells_everything_about_a_run():
    text = markdown.page(LEARNED, ["curves.png", "sub folder/adversarial_examples.png"])
    assert text.startswith("# rnn_adv: resnet20 on cifar10\n")
    assert markdown.table([LEARNED]) in text
    assert "linf, eps = 8/255 (0.03137)" in text
    assert "10,000 images, standard error of the worst case 0.40 points" in text  # sqrt(.2 * .8 / 1e4)
    alone = {**PLAIN, "attacks": {}, "worst_case_acc": None}
    assert "10,000 images\n" in markdown.page(alone) and "worst case" not in markdown.summary([alone])
    assert "60 epochs, seed 3, 1,234.6 s" in text
    assert "classifier 272,474, attacker 1,350" in text
    assert "jax 0.8.0, flax 0.12.0" in text
    assert "```\npython experiments/cifar10.py --method=plain\n```" in text
    assert "![curves](curves.png)\n\n*Returns in training" in text
    assert "![adversarial examples](sub%20folder/adversarial_examples.png)\n\n*adversarial examples*" in text
    costs = [block for block in text.split("\n\n") if block.startswith("| attack")]
    assert cells(costs[0]) == [
        ["attack", "seconds", "passes"],
        ["cw100", "1", "10"],
        ["own", "2,003", "1,234.5"],
        ["fgsm", "1", "10"],
    ]


class Page(HTMLParser):
    """The text of each element, and the images; every tag that opens closes in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.images = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.open[-1], data.strip()))


def test_the_page_for_a_browser_has_all_of_the_markdown(tmp_path):
    risky = {**LEARNED, "method": "<b>&mine", "command": "python a.py --x='<1>' --y=*z*"}
    (tmp_path / "sweep a.png").touch()
    markdown.write(tmp_path, risky, [tmp_path / "sweep a.png"])
    page = Page((tmp_path / "index.html").read_text())
    assert page.images == ["sweep%20a.png"]
    texts = dict.fromkeys(page.texts)
    assert page.texts[0] == ("title", "<b>&mine: resnet20 on cifar10")
    assert ("h1", "<b>&mine: resnet20 on cifar10") in texts and ("pre", risky["command"]) in texts
    assert ("em", "sweep a") in texts and any(tag == "li" and "1,234.6 s" in text for tag, text in texts)
    found = [text for tag, text in page.texts if tag == "td"]
    tables = [block for block in (tmp_path / "report.md").read_text().split("\n\n") if block.startswith("|")]
    assert found == [cell for block in tables for row in cells(block) for cell in row]


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["experiments/digits.py", "--attacks=a b"], "python experiments/digits.py '--attacks=a b'"),
        (["/opt/bin/l2ljax", "train", "digits"], "l2ljax train digits"),
    ],
)
def test_the_saved_command_runs_again(monkeypatch, argv, command):
    monkeypatch.setattr(sys, "argv", argv)
    assert provenance.command() == command


def test_every_figure_has_a_caption():
    drawn = [*illustrate.FIGURES, "training", "perturbations", "curves"]
    assert set(drawn) == set(markdown.CAPTIONS)


@pytest.mark.parametrize(("p", "n", "points"), [(0.5, 100, "5.00"), (0.9, 1000, "0.95"), (0.0, 10, "0.00")])
def test_standard_error(p, n, points):
    text = markdown.page({**PLAIN, "worst_case_acc": p, "eval_size": n})
    assert f"standard error of the worst case {points} points" in text


def test_write_round_trips_and_links_only_figures_that_exist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figure = tmp_path / "run" / "curves.png"
    figure.parent.mkdir()
    figure.write_bytes(b"")
    scalars = {
        **LEARNED,
        "clean_acc": np.float32(0.5),
        "seed": np.int64(3),
        "worst_case_acc": jnp.float32(0.25),
    }
    markdown.write(tmp_path / "run", scalars, [figure, tmp_path / "run" / "absent.png"])
    plain = {**LEARNED, "clean_acc": 0.5, "worst_case_acc": 0.25}
    text = (tmp_path / "run" / "report.json").read_text()
    assert json.loads(text) == plain
    assert text.startswith('{\n  "method"')
    assert (tmp_path / "run" / "report.md").read_text() == markdown.page(plain, ["curves.png"])
    markdown.write("run", PLAIN, ["run/curves.png"])  # paths from the current folder, over the earlier report
    assert json.loads((tmp_path / "run" / "report.json").read_text()) == PLAIN
    assert "(curves.png)" in (tmp_path / "run" / "report.md").read_text()
    assert sorted(os.listdir(tmp_path / "run")) == ["curves.png", "index.html", "report.json", "report.md"]


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_open(name):
    """An `open` for which the disk is full when the file of that name is half written."""

    def opened(path, mode):
        if name in str(path):
            path.write_bytes(b"{ half")
            path = "/dev/full"
        return open(path, mode)

    return opened


@pytest.mark.parametrize("fault", ["write report.json", "write report.md", "fsync", "replace"])
def test_earlier_report_survives_a_full_disk(tmp_path, monkeypatch, fault):
    markdown.write(tmp_path, PLAIN)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if fault.startswith("write"):
        if not os.path.exists("/dev/full"):
            pytest.skip("this system has no /dev/full")
        monkeypatch.setattr(files, "open", full_disk_open(fault.split()[1]), raising=False)
    else:
        monkeypatch.setattr(os, fault, no_space)
    with pytest.raises(L2LError, match="No space left on device") as error:
        markdown.write(tmp_path, LEARNED)
    assert "\n" not in str(error.value)
    assert str(tmp_path / ("report.md" if fault == "write report.md" else "report.json")) in str(error.value)
    assert "free space there" in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before  # and no temporary file


def test_a_file_in_place_of_the_folder_is_an_error_in_one_line(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(L2LError, match="cannot write"):
        markdown.write(tmp_path / "run", PLAIN)


def test_what_cannot_be_checked_in_a_ball_is_said():
    """In l1 there is no Square to search without gradients."""
    checks = [SimpleNamespace(name=name, verdict="ok", figure="1 %") for name in list(markdown.CHECKLIST.values())[:3]]
    known = {"attacks": {}, "norm": "l1", "eps_value": 2.0, "images": 9, "seeds": [0], "black_box": {}, "command": "C"}
    about = dict.fromkeys(("name", "architecture", "dataset", "clean_acc", "eps"), "x")
    page = markdown.judgement({**about, "provenance": known}, checks)
    assert page.count("not checked: no attack for it in l1 balls") == len(markdown.CHECKLIST) - 3


def test_a_row_of_one_class_says_so():
    """A constant network keeps its accuracy under every attack."""
    result = {"method": "m", "clean_acc": 0.3, "attacks": {}, "worst_case_acc": 0.3, "classes_predicted": 10}
    best = {**result, "classes_predicted": 1}
    lines = markdown.table([{**result, "best": best}]).splitlines()
    assert "one class" not in lines[2] and "m (best on validation), which predicts one class" in lines[3]
