"""Reactions by name: what is done once a trigger has fired."""

from neurofreeze.guard.reactions.base import Reaction
from neurofreeze.guard.reactions.blend import Blend
from neurofreeze.guard.reactions.flag import Flag
from neurofreeze.guard.reactions.reflect import Reflect
from neurofreeze.guard.reactions.refuse import Refuse

REACTIONS: dict[str, type[Flag] | type[Refuse] | type[Reflect] | type[Blend]] = {
    reaction.name: reaction for reaction in (Flag, Refuse, Reflect, Blend)
}

__all__ = ["REACTIONS", "Blend", "Flag", "Reaction", "Reflect", "Refuse"]
