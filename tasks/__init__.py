"""The stages of a run, one room each, and the science behind them."""

import logging

# Where torchao is installed, transformers imports it at each start, in every process. It then warns of its
# libraries for other GPUs, and torch of its calls: of a process that is killed those would be the last words.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
