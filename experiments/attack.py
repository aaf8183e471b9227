"""Train an attacker on a fixed classifier: `python experiments/attack.py --attacker=advgan --victim=WORKDIR`."""

from l2ljax.run.adversary import main

if __name__ == "__main__":
    main()
