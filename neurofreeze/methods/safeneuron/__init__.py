"""SafeNeuron (arXiv 2602.12158): preference training that cannot put its safety into the same few neurons again.

The neurons that answer to harm are found and frozen, and the model is trained by DPO, so that others must learn to
refuse; neurons that answer to harm in the result are frozen too, and it is trained again.
"""

from neurofreeze.methods.safeneuron.identify import SafetyNeurons, identify

__all__ = ["SafetyNeurons", "identify"]
