"""The page: shorter schedules say so, cells compare like with like, costs and figures stand beside the papers'."""

import json

from papers import compare, overview, plan, records, tables
from papers.targets import TABLES

FULL = {
    "method": "pgd_adv", "dataset": "mnist", "arch": "small_cnn", "epochs": 100, "train_size": None, "optimizer": "sgd",
    "lr": 0.01, "batch_size": 128, "options": {"steps": 10, "step_size": 0.075},
    "command": "python experiments/mnist.py",
}  # fmt: skip


def record(table="rnn_adv:table3", row="AdvTrain", seed=0, images=1000, training=FULL, **values):
    cells = {name.replace("_", "-"): {"value": v, "images": images, "command": "judge"} for name, v in values.items()}
    return {"table": table, "row": row, "seed": seed, "values": cells, "training": dict(training)}


def test_a_shorter_schedule_says_so_and_only_that_one_does():
    table, row = TABLES["rnn_adv:table3"], ("rnn_adv:table3", "AdvTrain")
    assert compare.shortened(FULL, *row) == "as in the paper"
    short = {**FULL, "epochs": 6, "train_size": 20_000, "optimizer": "adam", "lr": 0.001}
    said = compare.shortened(short, *row)
    for words in (
        "6 of 100 epochs",
        "20,000 of 60,000 training images",
        "optimizer adam instead of sgd",
        "lr 0.001 instead of 0.01",
    ):
        assert words in said
    generator = {**FULL, "method": "l2l_da", "options": {"attacker_width": 16}}
    assert "attacker width 16 instead of 64" in compare.shortened(generator, "rnn_adv:table3", "L2LDA")
    assert (
        compare.shortened({**FULL, "options": {**FULL["options"], "clean_weight": 0.3}}, *row)
        == "clean weight 0.3 instead of 0"
    )
    assert "resnet20 instead of wrn_34_10" in compare.shortened({**FULL, "arch": "resnet20"}, "l2l:table2", "PGM Net")
    here = {**FULL, "dataset": "cifar10"}
    said_of_l2l = compare.shortened(here, "l2l:table2", "Grad L2L")
    assert "schedule joint instead of alternating" in said_of_l2l
    learns = {**here, "method": "grad_l2l", "attacker_lr": 0.5}
    assert "attacker lr 0.5 instead of" in compare.shortened(learns, "l2l:table2", "Grad L2L")
    assert "attacker" not in compare.shortened({**learns, "method": "pgd_adv"}, "l2l:table2", "PGM Net")
    alternating = compare.shortened({**here, "schedule": "alternating", "eps": "8/255"}, "l2l:table2", "Grad L2L")
    assert "schedule" not in alternating.replace("lr schedule", "") and "8/255 instead of 0.031" in alternating
    assert "59,000 of 60,000 training images" in compare.shortened({**FULL, "val_size": 1000}, *row)
    assert "the last state instead of the best on the test images" in said_of_l2l and "plain steps" not in said_of_l2l
    begun = {**FULL, "method": "l2l_da", "arch": "lenet5", "warmup": 0.5, "batch_size": 50}
    assert "600 plain steps first instead of 1,000" in compare.shortened(begun, "l2l_da:table2-mnist", "L2L-DA")
    text = compare.section("rnn_adv:table3", table, [record(training=short, PGD_10=0.9)])
    assert "as in the paper" not in text and "6 of 100 epochs" in text


def test_rows_are_counted_with_and_without_all_that_is_planned(monkeypatch):
    row = ("rnn_adv:table3", "AdvTrain")  # of several parts
    some, *_ = (part for part in plan.PARTS if (part.table, part.row) == row)
    whole = plan.rnn_figure3("AdvTrain")
    for kept, counts in ((lambda part: part in (some, whole), (2, 1)), (lambda part: False, (0, 0))):
        monkeypatch.setattr(records, "is_kept", kept)
        text = compare.elsewhere([record()])
        assert f"figures {counts[0]} have results of the runs that are planned for them, {counts[1]} of these" in text
    assert "1 more have results of earlier runs" in text


def test_a_cell_is_ours_the_papers_and_the_difference():
    table = TABLES["rnn_adv:table3"]
    seeds = [record(PGD_10=0.9, Natural=0.5), record(seed=1, PGD_10=0.92, Natural=0.99)]
    assert compare.cell("PGD-10", table, "AdvTrain", seeds) == "91.00 [90.00, 92.00] / 94.89 (-3.89)"
    assert compare.cell("PGD-100", table, "AdvTrain", seeds) == "- / 94.28"
    seeds[0]["values"]["pgd100"] = {"value": 0.1, "images": 10, "command": "judge"}
    assert compare.cell("pgd100", table, "AdvTrain", seeds) == "10.00 (1 seed)"
    text = compare.section("rnn_adv:table3", table, seeds)
    assert "PGD-10 (1,000)" in text


def test_seeds_of_other_budgets_have_a_line_of_their_own():
    table = TABLES["rnn_adv:table3"]
    seeds = [record(PGD_10=0.8), record(seed=1, training={**FULL, "epochs": 12}, PGD_10=0.9)]
    lines = [line for line in compare.section("rnn_adv:table3", table, seeds).splitlines() if "AdvTrain" in line]
    assert [("80.00 /" in line, "90.00 /" in line) for line in lines] == [(True, False), (False, True)]


def test_a_scale_that_is_the_papers_as_shown_is_not_a_difference():
    run = plan.mnist(plan.AS_PRINTED, 0).about | {"eps": "0.3", "norm": "linf", "options": {"scale": 3.3333}}
    assert "scale" not in compare.shortened(run, "rnn_adv:table3", plan.AS_PRINTED)


def test_what_the_paper_did_without_is_said():
    run = plan.mnist("AdvTrain", 0).about | {"eps": "0.3", "norm": "linf", "ema": 0.999, "awp": None}
    said = compare.shortened(run, "rnn_adv:table3", "AdvTrain")
    assert "ema 0.999 instead of none" in said and "awp" not in said


def test_no_difference_stands_between_different_data_sets():
    table = TABLES["rnn_adv:table3"]
    seeds = [record(training={**FULL, "dataset": "digits"}, PGD_10=0.9)]
    assert compare.cell("PGD-10", table, "AdvTrain", seeds) == "90.00 / 94.89, another data set"


def test_costs_stand_beside_the_papers_in_both_forms(tmp_path):
    def cells(text):
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]

    rows = {"plain": ([1.0, 2.0], 10), "grad_l2l": ([2.0, 6.0], 20), "grad_l2l:alternating": ([5.0, 10.0], 34)}
    speed = [
        {
            "method": method,
            "program": "l2ljax",
            "seconds": seconds,
            "flops": flops,
            "batch_size": 8,
            "attacker_parameters": 120,
        }
        for method, (seconds, flops) in rows.items()
    ]
    speed.append({**speed[1], "program": "torch", "seconds": [9.0, 9.0]})
    about = {"machine": "a machine", "devices": 1, "date": "today"}
    (tmp_path / "costs_wrn_34_10.json").write_text(json.dumps({**about, "speed": speed}))
    text = compare.costs(tmp_path)
    assert "a machine, 1 device(s), today: a step of plain on 8 images takes 1.5 s." in text
    said = cells(text)
    assert ["grad_l2l", "2", "2.00", "2.50 (2.00-3.00)", "5.80"] in said  # 617.5 s / 106.5 s
    assert ["grad_l2l, alternating", "4", "3.40", "5.00 (5.00-5.00)", "5.80"] in said
    assert ["two_step_l2l", "3", "-", "-", "7.56"] in said
    assert ["rnn_trades", "-", "-", "1.65", "-", "120"] in said  # 443.52 s / 268.5 s; not measured


def test_the_overview_has_means_over_seeds_at_the_passes_of_the_methods(tmp_path):
    def run(method, *accuracies):
        about = {"method": method, "dataset": "digits", "arch": "digits_cnn", "eps": "0.2", "epochs": 60}
        about |= {"eval_size": 96}
        return [about | {"attacks": {"pgd100": {"robust_acc": accuracy}}} for accuracy in accuracies]

    rows = {"plain": run("plain", 0.0), "pgd_adv": run("pgd_adv", 0.5, 0.7), "rnn_adv": run("rnn_adv", 0.8)}
    rows["n_fgsm"] = run("n_fgsm", 0.4)
    rows["rnn_adv, phi frozen at its start"] = run("rnn_adv", 0.1)
    (tmp_path / "digits_methods.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "papers").mkdir()
    for seed, (accuracy, epochs) in enumerate(((0.3, 10), (0.5, 10), (0.6, 100))):
        training = {"method": "pgd_adv", "dataset": "cifar10", "arch": "resnet20", "eps": "8/255", "epochs": epochs}
        training |= {"train_size": 25_000, "options": {"steps": 2}}
        record = {"table": "t", "row": "r with AWP", "seed": seed, "training": training}
        (tmp_path / "papers" / f"{seed}.json").write_text(
            json.dumps({**record, "values": {"pgd100": {"value": accuracy, "images": 1000}}})
        )
    found = overview.points(tmp_path)
    digits, *_, cifar, _ = overview.PANELS
    assert [(p.panel, p.label, p.passes, round(p.accuracy, 6)) for p in found] == [
        (digits, "pgd_adv", 660, 0.6), (digits, "rnn_adv", 660, 0.8), (digits, "n_fgsm", 120, 0.4),
        (cifar, "pgd_adv with AWP", 15, 0.4), (cifar, "pgd_adv with AWP", 150, 0.6),
    ]  # fmt: skip
    errors = [0.1414, 0.0408, 0.05, 0.1414, 0.0155]  # of two seeds, of 96 images, ...
    assert [round(p.error, 4) for p in found] == errors
    rows = {f"{name}, eps {eps}": run(m, a) for eps, a in (("0.1", 0.5), ("0.2", 0.25)) for name, m in
            {"N-FGSM": "n_fgsm", "RNN-Adv, 3 steps": "rnn_adv"}.items()}  # fmt: skip
    rows = {
        name: [one | {"clean_acc": 1, "worst_case_acc": 0, "eval_size": 9} for one in runs]
        for name, runs in rows.items()
    }
    table = tables.tell({"rows": rows}).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (table[2], *table[4:])]
    assert cells == [
        ["attack in training", "passes a step", "eps 0.1", "eps 0.2"], ["N-FGSM", "2", "50.00 ± 0.00", "25.00 ± 0.00"],
        ["RNN-Adv, 3 steps", "4", "50.00 ± 0.00", "25.00 ± 0.00"],
    ]  # fmt: skip
    overview.draw(tmp_path / "passes.png", found)
    assert (tmp_path / "passes.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_the_speed_and_strength_scripts_are_told():
    row = {
        "seconds": {"ours": 2.0, "them 1": 5.0}, "compile_seconds": 3.0, "robust": {"ours": 3, "them 1": 4},
        "differing": 1,
    }  # fmt: skip
    found = {"machine": "M", "date": "D", "command": "C", "about": "A", "images": 8, "autoattack": [row]}
    text = tables.autoattack(found)
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells == ["0", "3", "4", "1", "2.0", "5.0", "2.50", "3.0"] and "them 1" in text
    curve = {"largest": [0.5, 1.0, 2.5, 3.0, 2.0], "spread": [0.0, 0.1, 0.25]}
    found = {"eval_size": 1000, "command": "C", "panels": {"robust": {"PGD": curve}}}
    row = next(line for line in tables.strength(found).splitlines() if "PGD" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "robust",
        "PGD",
        "0.500",
        "1.000",
        "2.500",
        "2.000",
        "0.250",
    ]
