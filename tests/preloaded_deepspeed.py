"""DeepSpeed with its operators, which are built: loaded once by the process that ranks of tests are copies of."""

import gc
from importlib import import_module

from tests import deepspeed_operators

for name in ("deepspeed.runtime.zero.stage3", "deepspeed.runtime.zero.muon.muon_optimizer"):
    import_module(name)
deepspeed_operators.load()
gc.freeze()
