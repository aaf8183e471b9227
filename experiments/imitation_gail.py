"""GAIL of HumanCompatibleAI's imitation, timed in its own environment: `python imitation_gail.py CartPole-v1 100000`.

gail_speed.py calls it. PPO with its defaults trains the expert and is the generator; the output is a line of JSON.
"""

import importlib.metadata
import json
import sys
import time

import gymnasium
import numpy as np
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data import rollout
from imitation.data.wrappers import RolloutInfoWrapper
from imitation.rewards.reward_nets import BasicRewardNet
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv


def main(name: str, steps: int) -> None:
    """Train an expert, collect ten trajectories, then time GAIL for `steps` steps of eight environments."""
    venv = DummyVecEnv([lambda: RolloutInfoWrapper(gymnasium.make(name)) for _ in range(8)])
    expert = PPO("MlpPolicy", venv, seed=0).learn(50_000)
    demonstrations = rollout.rollout(
        expert, venv, rollout.make_sample_until(min_episodes=10), rng=np.random.default_rng(0)
    )
    trainer = GAIL(
        demonstrations=demonstrations,
        demo_batch_size=1024,
        venv=venv,
        gen_algo=PPO("MlpPolicy", venv, seed=0),
        reward_net=BasicRewardNet(venv.observation_space, venv.action_space),
        allow_variable_horizon=True,
    )
    began = time.perf_counter()
    trainer.train(steps)
    seconds = time.perf_counter() - began
    packages = ("imitation", "stable-baselines3", "torch")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    print(json.dumps({"name": versions, "steps_per_second": steps / seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
