"""Steering vectors: how they are found, stored and added to what a decoder block gives."""

from neurofreeze.guard.steering.directions import difference_in_means, principal_direction
from neurofreeze.guard.steering.vector import SteeringVector

__all__ = ["SteeringVector", "difference_in_means", "principal_direction"]
