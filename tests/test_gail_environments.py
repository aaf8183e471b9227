"""Environments against gymnasium's, and rollouts against their definition, in the library's and in gymnasium's."""

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2ljax.gail import acrobot, environments, experts, gym_adapter, policy, rollout
from l2ljax.gail.environments import Box, Discrete
from l2ljax.types import L2LError

NAMES = ("CartPole-v0", "CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v1")


def random_action(spec, rng):
    match spec.action:
        case Discrete(n):
            return rng.integers(n)
        case Box(size):
            return rng.uniform(-3, 3, size)  # beyond what the pendulum takes: both must clip


@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_each_step_equals_gymnasiums(name):
    env, theirs, rng = environments.create(name), gymnasium.make(name).unwrapped, np.random.default_rng(0)
    with jax.enable_x64(True):
        step, ended = jax.jit(env.step), 0
        state_type = jax.eval_shape(env.reset, env.params, jax.random.key(0))
        theirs.reset(seed=0)
        # far starts, so that walls and goals are met
        for _ in range(300):
            state = jax.tree.unflatten(jax.tree.structure(state_type), list(map(jnp.float64, theirs.state)))
            action = random_action(env.spec, rng)
            state, reward, terminated = step(env.params, state, jnp.asarray(action))
            observation, their_reward, their_end, _, _ = theirs.step(action)
            np.testing.assert_allclose(jax.tree.leaves(state), theirs.state, rtol=0, atol=1e-12)
            np.testing.assert_allclose(env.observe(state), observation, rtol=0, atol=1e-6)
            assert (float(reward), bool(terminated)) == (pytest.approx(their_reward), their_end)
            if their_end:
                ended += 1
                theirs.reset(seed=ended)
    assert env.spec.horizon == gymnasium.spec(name).max_episode_steps
    assert env.spec.observation_size == theirs.observation_space.shape[0]
    assert ended >= 5 if "CartPole" in name else ended == 0


@pytest.mark.parametrize("x, v, action", [(0.48, 0.05, 2), (-1.19, -0.06, 0), (-1.2, 0.0, 0), (0.59, 0.07, 2)])
def test_mountain_car_at_wall_and_goal(x, v, action):
    env, theirs = environments.create("MountainCar-v0"), gymnasium.make("MountainCar-v0").unwrapped
    theirs.reset(seed=0)
    theirs.state = (x, v)
    state, _, terminated = env.step(env.params, environments.MountainCarState(jnp.float32(x), jnp.float32(v)), action)
    observation, _, their_end, _, _ = theirs.step(action)
    np.testing.assert_allclose(env.observe(state), observation, atol=1e-6)
    assert bool(terminated) == their_end


@pytest.mark.parametrize("action", [0, 1, 2])
@pytest.mark.parametrize("at", [(2.8, 0.3, 1.0, -0.5), (-3.1, 3.1, -12.5, 28.2), (1.2, -2.9, 12.5, -28.2)])
def test_acrobot_at_the_bar_and_at_its_largest_rates(at, action):
    env, theirs = environments.create("Acrobot-v1"), gymnasium.make("Acrobot-v1").unwrapped
    theirs.reset(seed=0)
    theirs.state = np.array(at)
    with jax.enable_x64(True):
        state, reward, terminated = env.step(env.params, acrobot.State(*map(jnp.float64, at)), action)
        _, their_reward, their_end, _, _ = theirs.step(action)
        # the remainder of an angle by a turn is exact to a few units in the last place
        np.testing.assert_allclose(state, theirs.state, rtol=0, atol=1e-10)
        assert (float(reward), bool(terminated)) == (their_reward, their_end)
        tip = -np.cos(theirs.state[0]) - np.cos(theirs.state[0] + theirs.state[1])
        assert env.potential(env.params, env.observe(state)) == pytest.approx((2 + tip) / 4)


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("CartPole-v1", [-0.05] * 4, [0.05] * 4),
        ("MountainCar-v0", [-0.6, 0], [-0.4, 0]),
        ("Acrobot-v1", [-0.1] * 4, [0.1] * 4),
        ("Pendulum-v1", [-np.pi, -1], [np.pi, 1]),
    ],
)
def test_starts_are_uniform_in_gymnasiums_bounds(name, low, high):
    env, theirs = environments.create(name), gymnasium.make(name).unwrapped
    reset = jax.jit(jax.vmap(lambda key: env.reset(env.params, key)))
    ours = np.stack(reset(jax.random.split(jax.random.key(0), 2000)), axis=1)
    many = np.array([theirs.reset(seed=s) and theirs.state for s in range(500)])
    low, high = np.array(low), np.array(high)
    for starts in (ours, many):  # the bounds are theirs too
        assert (starts >= low - 1e-6).all() and (starts <= high + 1e-6).all()
        np.testing.assert_allclose(starts.mean(0), (low + high) / 2, atol=0.1 * np.max(high - low))
        np.testing.assert_allclose(starts.std(0), (high - low) / np.sqrt(12), rtol=0.1, atol=1e-6)


def test_the_fixed_cart_pole_goes_on_after_the_fall_without_reward():
    fixed, pole = environments.create("FixedCartPole"), environments.create("CartPole-v1")
    state = fixed.reset(fixed.params, jax.random.key(3))
    alone, rewards = state.pole, []
    step, step_alone = jax.jit(fixed.step), jax.jit(pole.step)
    fell = None
    for t in range(40):
        state, reward, terminated = step(fixed.params, state, 1)
        rewards.append(float(reward))
        assert not terminated
        if fell is None:
            alone, _, end = step_alone(pole.params, alone, 1)
            fell = t if end else None
            if not end:
                np.testing.assert_array_equal(fixed.observe(state), [*alone, 0])
        if fell is not None:
            np.testing.assert_array_equal(fixed.observe(state), [0, 0, 0, 0, 1])
    assert fell is not None and sum(rewards) == fell + 1 and rewards[fell] == 1 and rewards[fell + 1] == 0


def test_parameters_are_traced_and_matter():
    env, state = environments.create("CartPole-v1"), environments.CartPoleState(*jnp.full(4, 0.01))
    compiled = []

    @jax.jit
    def step(params):
        compiled.append(1)
        return env.step(params, state, 1)[0].theta_dot

    heavier = environments.create("CartPole-v1", pole_mass=0.5).params
    assert step(env.params) != step(heavier) and len(compiled) == 1


def test_an_expert_is_judged_in_the_environment_of_its_parameters(monkeypatch):
    nets, agent = agent_of(environments.create("CartPole-v1").spec)
    in_gymnasium = lambda name, *_, **__: name
    monkeypatch.setattr(experts.gym_adapter, "rollout_of", in_gymnasium)
    judge = lambda env: experts.act(jax.random.key(1), env, nets, agent, episodes=2)
    assert judge(environments.create("CartPole-v1")) == "CartPole-v1"
    other = environments.create("CartPole-v1", gravity=20.0)
    before, after = (judge(env).observations for env in (other, other._replace(params=environments.CartPoleParams())))
    assert (before[0] == after[0]).all() and (before[2] != after[2]).any()


def test_unknown_names_are_told():
    with pytest.raises(L2LError, match="choose one of CartPole-v0"):
        environments.create("CartPole")
    with pytest.raises(L2LError, match="choose among gravity"):
        environments.create("CartPole-v1", mass=1.0)


def test_a_registered_environment_has_a_name_like_any_other(monkeypatch):
    monkeypatch.setattr(environments, "ENVIRONMENTS", dict(environments.ENVIRONMENTS))
    cart_pole = environments.create("CartPole-v1")
    mine = cart_pole._replace(spec=cart_pole.spec._replace(name="Mine", gymnasium=None))
    environments.register(mine)
    assert environments.create("Mine") == mine
    with pytest.raises(L2LError, match="there is an environment Mine already"):
        environments.register(mine)
    with pytest.raises(L2LError, match="the parameters are a dict: give a NamedTuple of floats"):
        environments.register(mine._replace(params={"gravity": 9.8}))


def agent_of(spec, hidden=(8,)):
    nets = policy.networks(spec, hidden)
    size = spec.observation_size
    return nets, nets.init(jax.random.key(0), policy.Statistics(jnp.float32(1), jnp.zeros(size), jnp.ones(size)))


@pytest.fixture(scope="module", params=["ours", "gymnasium's"])
def cart_pole_rollout(request):
    """A rollout of a random policy on CartPole-v0, 200 steps in 6 columns."""
    env = environments.create("CartPole-v0")
    nets, agent = agent_of(env.spec)
    if request.param == "ours":
        collect = jax.jit(rollout.collect, static_argnames=("environment", "networks", "columns"))
        made = collect(env, env.params, nets, agent, jax.random.key(1), columns=6)
    else:
        made = gym_adapter.rollout_of("CartPole-v0", nets, agent, jax.random.key(1), episodes=6)
    return jax.tree.map(np.asarray, made)


def test_no_transition_of_a_rollout_is_made_up(cart_pole_rollout):
    r, env = cart_pole_rollout, environments.create("CartPole-v0")
    assert r.observations.shape == (201, 6, 4) and r.actions.shape == r.rewards.shape == r.ends.shape == (200, 6)
    step = jax.vmap(jax.vmap(lambda s, a: env.step(env.params, environments.CartPoleState(*s), a)))
    after, _, terminated = jax.jit(step)(r.observations[:-1], r.actions)
    np.testing.assert_array_equal(r.ends, np.asarray(terminated) | (r.times[:-1] == 199))
    go_on = ~r.ends
    np.testing.assert_allclose(np.stack(after, axis=-1)[go_on], r.observations[1:][go_on], atol=1e-6)
    np.testing.assert_array_equal(r.times[1:], np.where(r.ends, 0, r.times[:-1] + 1))
    starts = np.concatenate([r.observations[0], r.observations[1:][r.ends]])
    assert (np.abs(starts) <= 0.05).all() and len(np.unique(starts, axis=0)) == len(starts) > 30
    assert (r.times[0] == 0).all() and (r.rewards == 1).all() and set(np.unique(r.actions)) == {0, 1}


def test_columns_differ_and_the_first_episodes_are_what_counts(cart_pole_rollout):
    r = cart_pole_rollout
    lengths = r.ends.argmax(axis=0) + 1
    np.testing.assert_array_equal(rollout.episode_returns(r), lengths)
    assert len(set(lengths)) > 1


def test_an_episode_ends_at_the_horizon():
    env = environments.create("MountainCar-v0")
    nets, agent = agent_of(env.spec)
    r = jax.jit(lambda k: rollout.collect(env, env.params, nets, agent, k, columns=2))(jax.random.key(0))
    np.testing.assert_array_equal(r.ends.sum(axis=1), 2 * (np.arange(200) == 199))
    np.testing.assert_array_equal(r.times[:, 0], [*range(200), 0])


def test_a_state_may_be_a_vector():
    """Each column starts anew on its own, whatever shape the state has: two columns, and a state of two numbers."""

    def start(params, key):
        return jnp.stack([jax.random.randint(key, (), 0, 4).astype(float), jax.random.uniform(key)])

    def step(params, state, action):
        return state + jnp.array([1.0, 0.0]), 1.0, state[0] >= 5

    spec = environments.Spec("Count", None, 2, Discrete(2), 10, sign=1, solved=0.0, stride=1)
    env = environments.Environment(spec, environments.CartPoleParams(), start, step, lambda state: state)
    nets, agent = agent_of(spec)
    r = jax.jit(lambda k: rollout.collect(env, env.params, nets, agent, k, columns=2))(jax.random.key(0))
    before, after = r.observations[:-1], r.observations[1:]
    np.testing.assert_array_equal(r.ends, before[..., 0] >= 5)
    np.testing.assert_array_equal(after[~r.ends], before[~r.ends] + np.array([1.0, 0.0]))
    assert (after[r.ends][:, 0] < 4).all() and (r.ends[:, 0] != r.ends[:, 1]).any()


def test_actions_follow_the_policy():
    """The frequencies of actions are the policy's probabilities, and noise of 0 gives the likeliest."""
    p = policy.categorical(1, 3)
    logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))
    drawn = p.act(jnp.broadcast_to(logits, (20000, 3)), p.draw(jax.random.key(0), (20000,)))
    np.testing.assert_allclose(np.bincount(drawn) / 20000, [0.2, 0.5, 0.3], atol=0.015)
    assert p.act(logits, jnp.zeros(3)) == 1


class State(NamedTuple):
    agent: policy.Agent
    key: jax.Array


def test_gymnasiums_environments_run_the_same_loop():
    """Any with discrete actions: the learner sees rollouts of the agent, keys go on, metrics are [seeds, length]."""
    spec = gym_adapter.GymEnvironments("Acrobot-v1", columns=2, sign=-1).spec
    assert (spec.action, spec.horizon, spec.observation_size, spec.sign) == (Discrete(3), 500, 6, -1)
    envs = gym_adapter.GymEnvironments("MountainCar-v0", columns=2, sign=-1)
    nets, agent = agent_of(envs.spec)

    def learn(key, state, made, data):
        return state, {"x": made.observations[0, 0, 0] * data, "reward": made.rewards.sum()}

    states = State(jax.tree.map(lambda a: jnp.stack([a, a]), agent), jax.random.split(jax.random.key(0)))
    keys = jax.random.key_data(states.key)
    states, metrics = gym_adapter.iterations(envs, nets, learn, columns=2, length=2)(None, states, 1.0)
    assert metrics["x"].shape == (2, 2) and len(np.unique(metrics["x"])) == 4 and (metrics["reward"] == -400).all()
    assert (jax.random.key_data(states.key) != keys).any()


@pytest.mark.parametrize("name, message", [("Nothing-v0", "no Nothing"), ("Blackjack-v1", "limit|observes")])
def test_unsupported_environments_are_told(name, message):
    with pytest.raises(L2LError, match=message):
        gym_adapter.GymEnvironments(name, columns=1, sign=1)
