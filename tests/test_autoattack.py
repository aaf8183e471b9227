"""AutoAttack whole: its parts in order, exact on linear models, survivors only, resumed to the same bits."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax import attacks, data, threat
from l2ljax.attacks import ensemble
from l2ljax.evaluate import evaluate, loop, run_in_turn, run_standard_evaluation, standard
from l2ljax.types import L2LError

RNG = np.random.RandomState(0)
SHAPE, K, N = (4, 4, 1), 5, 20
X = RNG.uniform(0.3, 0.7, (N, *SHAPE)).astype(np.float32)  # so far from 0 and 1 that the box does not bind
WEIGHTS = jnp.asarray(RNG.normal(0, 1, (16, K)), jnp.float32)
KEY = jax.random.key(0)


def linear(weights, x):
    return (x - 0.5).reshape(len(x), -1) @ weights


LOGITS_FN = jax.tree_util.Partial(linear, WEIGHTS)
Y = np.asarray(LOGITS_FN(X)).argmax(1)
Y_MIXED = np.where(np.arange(N) % 7 == 3, (Y + 1) % K, Y)  # some are misclassified from the start


def distances(order):
    """The exact distance [N] to the nearest decision boundary in the norm dual to `order`."""
    logits, w = np.asarray(LOGITS_FN(X)), np.asarray(WEIGHTS)
    gaps = logits[np.arange(N), Y][:, None] - logits
    norms = np.stack([np.linalg.norm(w[:, [y]] - w, ord=order, axis=0) for y in Y])
    return np.where(np.arange(K) == Y[:, None], np.inf, gaps / np.where(norms > 0, norms, 1)).min(1)


@pytest.fixture
def short(monkeypatch):
    """The same attacks with fewer steps."""
    standard = ensemble.VERSIONS["standard"].attacks
    few = {"apgd-ce": {"steps": 20}, "apgd-t": {"steps": 20}, "fab-t": {"steps": 20}, "square": {"queries": 100}}
    versions = {"standard": ensemble.Version({name: (make, few[name]) for name, (make, _) in standard.items()})}
    versions["rand"] = ensemble.VERSIONS["rand"]
    monkeypatch.setattr(ensemble, "VERSIONS", versions)


def test_the_standard_version_has_its_attacks_in_order():
    found = [name for name, _ in ensemble.stages(threat.linf(0.1), "standard", num_classes=10)]
    assert found == ["apgd-ce", *["apgd-t"] * 9, *["fab-t"] * 9, "square"]
    assert len(ensemble.stages(threat.linf(0.1), "standard", num_classes=5)) == 1 + 4 + 4 + 1
    plus = [name for name, _ in ensemble.stages(threat.linf(0.1), "plus", num_classes=4)]
    assert list(dict.fromkeys(plus)) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    with pytest.raises(L2LError, match="version=extra: give standard or fast or plus or rand"):
        attacks.autoattack(threat.linf(0.1), "extra")


@pytest.mark.parametrize("norm, order", [("linf", 1), ("l2", 2)])
@pytest.mark.parametrize("form", ["pure", "host"])
def test_linear_models_fall_exactly_within_their_distance(short, norm, order, form):
    exact = distances(order)
    eps = float(np.median(exact))
    clear = np.abs(exact / eps - 1) > 0.01
    ball = threat.BALLS[norm](eps)
    if form == "pure":
        x_adv = np.asarray(jax.jit(attacks.autoattack(ball))(LOGITS_FN, KEY, X, Y_MIXED))
        robust = np.asarray(LOGITS_FN(x_adv)).argmax(1) == Y_MIXED
        robust &= Y == Y_MIXED
    else:
        found = run_standard_evaluation(LOGITS_FN, X, Y_MIXED, ball=ball, key=KEY, batch_size=8)
        x_adv, robust = found.x_adv, found.robust
        assert found.clean_acc == (Y == Y_MIXED).mean()
        assert found.robust_acc == robust.mean() == list(found.after.values())[-1]
        assert list(found.after.values()) == sorted(found.after.values(), reverse=True)
    right = Y == Y_MIXED
    np.testing.assert_array_equal(robust[right & clear], (exact > eps)[right & clear])
    assert not robust[~right].any()
    assert np.asarray(ball.norm(jnp.asarray(x_adv - X))).max() <= eps * (1 + 1e-5)
    unchanged = (x_adv == X).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(unchanged, robust | ~right)  # the clean image where nothing was found or needed


def test_only_survivors_are_attacked_and_batches_have_few_sizes(monkeypatch):
    seen = []

    def fools(rows):
        """An attack that fools the examples whose first pixel is among those of `rows`."""
        marked = jnp.asarray(X[rows, 0, 0, 0])

        def attack(logits_fn, key, x, y):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)[:, 0, 0, 0]), x)
            chosen = (x[:, 0, 0, 0][:, None] == marked).any(axis=1).reshape(-1, 1, 1, 1)
            return jnp.where(chosen, 1 - x, x)

        return jax.tree_util.Partial(attack)

    todo = [("first", fools([0, 1, 2, 5])), ("second", fools([0, 7]))]
    monkeypatch.setattr(standard, "stages", lambda *args, **kwargs: todo)
    found = run_standard_evaluation(LOGITS_FN, X, Y, ball=threat.linf(1.0), key=KEY, batch_size=16)
    assert {len(batch) for batch in seen} <= set(range(2, 17, 2))
    pixels = X[:, 0, 0, 0]
    assert [len(batch) for batch in seen] == [16, 4, 16]  # 20 stand at first, then 16
    first, second = seen[:2], seen[2:]
    assert set(np.concatenate(first)) == set(pixels)
    assert set(np.concatenate(second)) == set(np.delete(pixels, [0, 1, 2, 5]))
    np.testing.assert_array_equal(np.flatnonzero(~found.robust), [0, 1, 2, 5, 7])
    assert found.after == {"first": 16 / 20, "second": 15 / 20}


@pytest.mark.parametrize("calls", [0, 1, 4, 9])
def test_a_killed_evaluation_goes_on_to_the_same_bits(short, monkeypatch, tmp_path, calls):
    ball = threat.linf(float(np.median(distances(1))))
    whole = run_standard_evaluation(LOGITS_FN, X, Y, ball=ball, key=KEY, batch_size=8)
    attack, count = loop._attack, [0]

    def dies(*args, **how):
        count[0] += 1
        if count[0] > calls:
            raise KeyboardInterrupt
        return attack(*args, **how)

    monkeypatch.setattr(standard, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(loop, "_attack", dies)
    file = tmp_path / "state.npz"
    with pytest.raises(KeyboardInterrupt):
        run_standard_evaluation(LOGITS_FN, X, Y, ball=ball, key=KEY, batch_size=8, state_path=file)
    count[0] = -(10**6)
    resumed = run_standard_evaluation(LOGITS_FN, X, Y, ball=ball, key=KEY, batch_size=8, state_path=file)
    np.testing.assert_array_equal(resumed.x_adv, whole.x_adv)
    np.testing.assert_array_equal(resumed.robust, whole.robust)
    assert resumed.after == whole.after
    monkeypatch.setattr(loop, "_attack", None)  # nothing is left to do, and nothing is done again
    again = run_standard_evaluation(LOGITS_FN, X, Y, ball=ball, key=KEY, batch_size=8, state_path=file)
    np.testing.assert_array_equal(again.x_adv, whole.x_adv)


def test_runs_of_a_stopping_attack_go_on_to_the_same_bits(monkeypatch, tmp_path):
    """Killed at each batch in turn, within the first run and in later ones."""
    ball = threat.linf(float(np.median(distances(1))))
    named = {name: attacks.create(name, ball) for name in ("margin12+first+restarts3", "pgd5")}
    how = {"key": KEY, "batch_size": 8, "state_path": tmp_path / "state.npz"}
    whole = run_in_turn(LOGITS_FN, X, Y, named, key=KEY, batch_size=8)
    attack, asked = loop._attack, []

    def dies_after_one(*args):
        if asked:
            raise KeyboardInterrupt
        asked.append(args)
        return attack(*args)

    monkeypatch.setattr(standard, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(loop, "_attack", dies_after_one)
    resumed, kills = None, -1
    while resumed is None:
        asked.clear()
        kills += 1
        with contextlib.suppress(KeyboardInterrupt):
            resumed = run_in_turn(LOGITS_FN, X, Y, named, **how)
    assert kills > 6
    np.testing.assert_array_equal(resumed.x_adv, whole.x_adv)
    assert resumed.after == whole.after and list(whole.after) == list(named)


def test_a_state_of_another_evaluation_is_refused(short, tmp_path):
    file = tmp_path / "state.npz"
    options = {"ball": threat.linf(0.01), "key": KEY, "batch_size": 8, "state_path": file}
    run_standard_evaluation(LOGITS_FN, X, Y, **options)
    for change in ({"ball": threat.linf(0.02)}, {"ball": threat.l2(0.01)}, {"key": jax.random.key(1)}):
        with pytest.raises(L2LError, match="state of another evaluation"):
            run_standard_evaluation(LOGITS_FN, X, Y, **{**options, **change})
    with pytest.raises(L2LError, match="state of another evaluation"):
        run_standard_evaluation(jax.tree_util.Partial(linear, 2 * WEIGHTS), X, Y, **options)
    whole = file.read_bytes()
    at = whole.index(b"PK\x01\x02")  # a record of the directory: its version and flags follow
    newer, encrypted = (whole[: at + i] + b"\xff" + whole[at + i + 1 :] for i in (6, 8))
    for damaged in (b"", whole[:200], whole[:-1], whole[:300] + bytes(100) + whole[400:], newer, encrypted):
        file.write_bytes(damaged)
        with pytest.raises(L2LError, match=r"state.npz is no evaluation's state \([^\n]*\): delete it"):
            run_standard_evaluation(LOGITS_FN, X, Y, **options)


def test_a_state_belongs_to_a_closures_weights(short, tmp_path):
    """A function has no arrays that a checksum sees: its logits tell, up to the rounding of another batch size."""
    options = {"ball": threat.linf(0.01), "key": KEY, "state_path": tmp_path / "state.npz"}
    trained = lambda weights: lambda x: linear(weights, x)
    one = run_standard_evaluation(trained(WEIGHTS), X, Y, batch_size=8, **options)
    again = run_standard_evaluation(trained(WEIGHTS * (1 + 1e-6)), X, Y, batch_size=20, **options)
    np.testing.assert_array_equal(again.x_adv, one.x_adv)
    for other in (WEIGHTS * 1.01, jnp.pad(WEIGHTS, ((0, 0), (0, 1)), constant_values=-1)):
        with pytest.raises(L2LError, match="state of another evaluation"):
            run_standard_evaluation(trained(other), X, Y, batch_size=8, **options)


def test_a_state_belongs_to_the_attacks_arrays(tmp_path):
    """An attacker that is trained anew, and a surrogate, keep their names."""

    def shifted(by, logits_fn, key, x, y):
        return x + by

    def found(attack, **how):
        return run_in_turn(LOGITS_FN, X, Y, {"own": attack}, key=KEY, state_path=tmp_path / "state.npz", **how)

    pgd, ball = attacks.create("pgd2", threat.linf(0.1)), threat.linf(0.1)
    for make in (
        lambda scale: jax.tree_util.Partial(shifted, np.float32(0.01 * scale)),
        lambda scale: attacks.transfer(pgd, jax.tree_util.Partial(linear, scale * WEIGHTS)),
        lambda scale: attacks.transfer(jax.tree_util.Partial(shifted, np.float32(0.01 * scale)), LOGITS_FN),
        lambda scale: attacks.create(f"pgd{2 + scale}+first", ball),
    ):
        (tmp_path / "state.npz").unlink(missing_ok=True)
        one = found(make(1))
        np.testing.assert_array_equal(found(make(1)).x_adv, one.x_adv)
        with pytest.raises(L2LError, match=r"another evaluation \(.*attacks.*\): delete it"):
            found(make(2))


def test_bad_input_is_told_and_edge_cases_are_answered(short):
    options = {"ball": threat.linf(0.05), "key": KEY}
    nan = X.copy()
    nan[0, 0, 0, 0] = np.nan
    with pytest.raises(L2LError, match="images hold NaN"):
        run_standard_evaluation(LOGITS_FN, nan, Y, **options)
    with pytest.raises(L2LError, match="NaN logits"):
        run_standard_evaluation(lambda x: LOGITS_FN(x) * jnp.nan, X, Y, **options)
    with pytest.raises(L2LError, match="logits are"):
        run_standard_evaluation(lambda x: x, X, Y, **options)
    with pytest.raises(L2LError, match="labels reach from"):
        run_standard_evaluation(LOGITS_FN, X, Y + K, **options)
    with pytest.raises(L2LError, match="probabilities"):
        run_standard_evaluation(lambda x: jax.nn.softmax(LOGITS_FN(x)), X, Y, **options)
    with pytest.raises(L2LError, match="standard has no attack apple: choose from apgd-ce"):
        run_standard_evaluation(LOGITS_FN, X, Y, only=["square", "apple"], **options)
    with pytest.raises(L2LError, match="no examples"):
        run_standard_evaluation(LOGITS_FN, X[:0], Y[:0], **options)
    none_right = run_standard_evaluation(LOGITS_FN, X, (Y + 1) % K, **options)
    assert none_right.clean_acc == none_right.robust_acc == 0
    np.testing.assert_array_equal(none_right.x_adv, X)
    one = run_standard_evaluation(LOGITS_FN, X[:1], Y[:1], **options)
    assert one.robust_acc in (0, 1)
    identity = run_standard_evaluation(LOGITS_FN, X, Y_MIXED, ball=threat.linf(0.0), key=KEY)
    assert identity.robust_acc == identity.clean_acc
    np.testing.assert_array_equal(identity.x_adv, X)


def test_an_evaluation_goes_on_with_another_number_of_devices(short, monkeypatch, tmp_path):
    """The default batch size follows the devices, and does not belong to a state."""
    ball = threat.linf(float(np.median(distances(1))))
    options = {"ball": ball, "key": KEY, "only": ["apgd-ce"]}
    whole = run_standard_evaluation(LOGITS_FN, X, Y, batch_size=8, **options)
    attack, left = loop._attack, [2]

    def dies(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return attack(*args)

    monkeypatch.setattr(standard, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(loop, "_attack", dies)
    monkeypatch.setattr(standard, "default_batch_size", lambda shape: 8)
    with pytest.raises(KeyboardInterrupt):
        run_standard_evaluation(LOGITS_FN, X, Y, state_path=tmp_path / "state.npz", **options)
    monkeypatch.setattr(standard, "default_batch_size", lambda shape: 4)
    monkeypatch.setattr(loop, "_attack", attack)
    resumed = run_standard_evaluation(LOGITS_FN, X, Y, state_path=tmp_path / "state.npz", **options)
    np.testing.assert_array_equal(resumed.robust, whole.robust)
    np.testing.assert_allclose(resumed.x_adv, whole.x_adv, atol=1e-6)


def test_models_of_few_classes_get_the_evaluation_that_is_possible(short):
    options, begun = {"ball": threat.linf(0.05), "key": KEY}, []
    for classes, version, able in (
        (2, "standard", ["apgd-ce", "fab-t", "square"]),
        (3, "standard", ["apgd-ce", "fab-t", "square"]),
        (2, "rand", ["apgd-ce"]),
    ):
        model = lambda x, *keys, k=classes: LOGITS_FN(x)[:, :k]
        y = np.asarray(model(X)).argmax(axis=1)
        with pytest.raises(
            L2LError, match=rf"has {classes} classes and apgd-(t|dlr) needs .*only=\{able}".replace("'", ".")
        ):
            run_standard_evaluation(model, X, y, version=version, progress=begun.append, **options)
        with pytest.raises(L2LError, match=f"has {classes} classes and"):
            attacks.autoattack(threat.linf(0.05), version)(model, KEY, X, y)
        if (classes, version) == (2, "standard"):
            found = run_standard_evaluation(model, X, y, only=able, **options)
            assert list(found.after) == able and found.robust_acc < 1
    assert not begun
    assert list(run_standard_evaluation(LOGITS_FN, X, Y, only="square", **options).after) == ["square"]


def test_plus_names_its_attacks_without_dlr():
    ensemble.check_attacks("plus", threat.linf(0.1), classes=3, only=["apgd-dlr", "fab"])
    with pytest.raises(L2LError, match=r"apgd-dlr needs 3, apgd-t needs 4.*\['apgd-ce', 'fab', 'square', 'fab-t'\]"):
        ensemble.check_attacks("plus", threat.linf(0.1), classes=2)
    with pytest.raises(L2LError, match="apgd-t needs 4: choose another attack"):
        ensemble.check_attacks("standard", threat.linf(0.1), classes=2, only=["apgd-t"])


def test_attacks_that_leave_the_ball_are_refused():
    """Each norm, however little it leaves beyond rounding; and what stays inside passes."""
    for norm, ball in (("linf", threat.linf(0.05)), ("l2", threat.l2(0.2))):
        for factor in (0.9, 1.0, 1.01, 5.0):
            move = threat.BALLS[norm](min(factor * ball.eps, 1))
            far = {"far": lambda f, key, x, y, move=move: move.project(x + 1, x)}
            for judge in (
                lambda **options: run_in_turn(LOGITS_FN, X, Y, **options),
                lambda **options: evaluate(LOGITS_FN, (X, Y), **options),
            ):
                if factor <= 1:
                    judge(attacks=far, key=KEY, ball=ball)
                else:
                    with pytest.raises(L2LError, match=f"far went .* away, out of the {norm} ball of eps = "):
                        judge(attacks=far, key=KEY, ball=ball)


def test_transfer_attacks_the_surrogate():
    other = jax.tree_util.Partial(linear, -WEIGHTS)
    pgd = attacks.create("pgd5", threat.linf(0.1))
    black_box = attacks.transfer(pgd, other)
    np.testing.assert_array_equal(black_box(LOGITS_FN, KEY, X, Y), pgd(other, KEY, X, Y))


def test_a_cascade_takes_the_first_success_per_example():
    def move(rows, value):
        chosen = jnp.isin(jnp.arange(N), jnp.asarray(rows)).reshape(-1, 1, 1, 1)
        return lambda logits_fn, key, x, y: jnp.where(chosen, (1 - x) * value, x)

    x_adv = np.asarray(attacks.cascade([move([0, 1], 1.0), move([1, 2, 3], 0.99)])(LOGITS_FN, KEY, X, Y_MIXED))
    np.testing.assert_allclose(x_adv[:2], 1 - X[:2])
    np.testing.assert_allclose(x_adv[2], 0.99 * (1 - X[2]))
    assert Y_MIXED[3] != Y[3]
    np.testing.assert_array_equal(x_adv[3:], X[3:])  # example 3 was misclassified before, the others are not fooled


NOISE = 1e-3


def noisy(weights, x, keys):
    """`linear` on images with noise of their own keys."""
    return linear(weights, x + NOISE * jax.vmap(lambda k: jax.random.normal(k, SHAPE))(keys))


def test_the_version_rand_averages_gradients_over_draws_of_the_model(short):
    """The pure form and the host's agree with the closed form for examples that the noise does not carry across."""
    exact = distances(1)
    ball = threat.linf(float(np.median(exact)))
    model = jax.tree_util.Partial(noisy, WEIGHTS)
    clear = np.abs(exact - ball.eps) > 4 * NOISE  # at least four standard deviations, as a linf distance
    assert clear.sum() >= N / 2
    found = run_standard_evaluation(model, X, Y, ball=ball, version="rand", key=KEY, batch_size=8)
    x_adv = np.asarray(jax.jit(attacks.autoattack(ball, "rand"))(model, KEY, X, Y))
    for robust in (found.robust, (x_adv == X).all(axis=(1, 2, 3))):
        np.testing.assert_array_equal(robust[clear], (exact > ball.eps)[clear])
    assert list(found.after) == ["apgd-ce", "apgd-dlr"]


def test_a_model_without_noise_is_no_model_for_rand():
    model = jax.tree_util.Partial(linear, WEIGHTS)
    with pytest.raises(L2LError, match=r"is called as logits_fn\(x, keys \[B\]\), which this one refuses: give one"):
        run_standard_evaluation(model, X, Y, ball=threat.linf(0.1), version="rand", key=KEY, batch_size=8)


def test_each_attack_meets_noise_of_its_own():
    """Attacks that do nothing: what stands against k of them is what the noise of k + 1 passes leaves right."""
    loud = lambda x, keys: linear(WEIGHTS, x + jax.vmap(lambda k: jax.random.normal(k, SHAPE))(keys))
    none = {name: lambda f, keys, x, y: x for name in "ab"}
    images, labels = np.tile(X, (50, 1, 1, 1)), np.tile(Y, 50)
    found = run_in_turn(loud, images, labels, none, key=KEY, stochastic=True, batch_size=500)
    right = jax.vmap(lambda key: loud(X, jax.random.split(key, N)).argmax(axis=1) == Y)(jax.random.split(KEY, 1000))
    expected = [(np.asarray(right).mean(axis=0) ** passes).mean() for passes in (1, 2, 3)]
    np.testing.assert_allclose([found.clean_acc, *found.after.values()], expected, atol=0.06)  # four deviations


def test_attacks_in_turn_leave_what_each_alone_leaves(tmp_path):
    ball = threat.linf(float(np.median(distances(1))))
    named = {name: attacks.create(name, ball) for name in ("fgsm", "margin5")}
    both = run_in_turn(LOGITS_FN, X, Y_MIXED, named, key=KEY, batch_size=8)
    alone = [run_in_turn(LOGITS_FN, X, Y_MIXED, {name: a}, key=KEY).robust for name, a in named.items()]
    split = data.Split((255 * X).round().astype(np.uint8), Y_MIXED)
    rows = evaluate(LOGITS_FN, split, {"fgsm": named["fgsm"]}, key=KEY).attacks
    np.testing.assert_array_equal(alone[0], rows["fgsm"].correct)
    np.testing.assert_array_equal(both.robust, alone[0] & alone[1])
    file = tmp_path / "state.npz"
    run_in_turn(LOGITS_FN, X, Y_MIXED, named, key=KEY, about=(ball.eps,), state_path=file)
    with pytest.raises(L2LError, match="state of another evaluation"):
        run_in_turn(LOGITS_FN, X, Y_MIXED, named, key=KEY, about=(2 * ball.eps,), state_path=file)


def test_nothing_compiles_again_after_the_first_batch_of_a_size(short):
    """Nor for other weights, nor in another call with the same ball."""
    ball, weights = threat.linf(float(np.median(distances(1)))), WEIGHTS
    run_standard_evaluation(LOGITS_FN, X, Y, ball=ball, key=KEY, batch_size=20, only=["apgd-ce", "apgd-t"])
    before = loop._compiled.cache_info().misses
    for scale in (1.0, 1.01):
        model = jax.tree_util.Partial(linear, scale * weights)
        run_standard_evaluation(model, X, Y, ball=ball, key=KEY, batch_size=20, only=["apgd-ce", "apgd-t"])
    assert loop._compiled.cache_info().misses == before > 0


def test_batches_of_large_images_are_smaller_on_a_cpu():
    sizes = [standard.default_batch_size(shape) for shape in ((8, 8, 1), (32, 32, 3), (224, 224, 3), (999, 999, 3))]
    assert sizes == [250, 32, 8, 8]
