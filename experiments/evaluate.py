"""Judge a model: `python experiments/evaluate.py --victim=WORKDIR|module:function --attacks=standard,paper`."""

from l2ljax.run.judge import main

if __name__ == "__main__":
    main()
