"""Train an attacker on a fixed classifier: `python experiments/attack.py --attacker=advgan --victim=WORKDIR`."""

from l2ljax.adversary import main

if __name__ == "__main__":
    main()
