"""Every error a user can cause. Each message says what was found, what was expected and what to do."""

from __future__ import annotations


class NeuroFreezeError(Exception):
    """Base of all errors this library raises on purpose; the command line prints it as one line."""


class ArchitectureError(NeuroFreezeError):
    """A model whose neurons cannot be mapped."""


class MaskError(NeuroFreezeError):
    """A malformed neuron mask, or a mask that belongs to another model."""


class FreezeError(NeuroFreezeError):
    """Freezing cannot be guaranteed, or a frozen element changed."""


class ConfigError(NeuroFreezeError):
    """A configuration value that is unknown or out of range."""


class ModelError(NeuroFreezeError):
    """A model or tokenizer that cannot be found or loaded."""


class DataError(NeuroFreezeError):
    """A data file that is missing, empty, without the expected columns, or overlapping another split."""


class RunError(NeuroFreezeError):
    """A run folder that does not hold what a stage needs, or holds another run."""


class OtherRankError(NeuroFreezeError):
    """Another rank failed while this rank waited for it; that rank reports the error itself."""


class JudgeError(NeuroFreezeError):
    """A judge of answers that cannot be loaded or asked."""


class GuardError(NeuroFreezeError):
    """A gate or filter that is malformed or for another model, or a way of generating that it cannot guard."""


class NeuroFreezeWarning(UserWarning):
    """Something is allowed but probably not meant."""
