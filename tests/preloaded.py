"""What ranks of tests need, imported once by the process that they are copies of."""

import gc
from importlib import import_module

for name in (
    "pytest",
    "torch._dynamo",
    "transformers.models.llama.modeling_llama",
    "neurofreeze.training.trainer",
    "tests.reference",
    "tests.tiny",
):
    import_module(name)
gc.freeze()  # a rank's collections need not look through it
