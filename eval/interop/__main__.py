"""``python -m ckcontrol.eval.interop``: the command line of lm-evaluation-harness, which then knows our model."""

from .harness_model import main

if __name__ == "__main__":
    main()
