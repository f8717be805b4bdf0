"""Learned control variates: the networks `r_phi`, and the mark that keeps `phi` apart."""

from relax_tf.control_variates.marks import is_control_variate, mark_control_variates
from relax_tf.control_variates.mlp import MLP, default_networks
from relax_tf.control_variates.network import (
    ControlVariate,
    build_network,
    by_backpropagation,
    differentiate_network,
    evaluate_network,
    evaluate_outputs,
)

__all__ = [
    "MLP",
    "ControlVariate",
    "build_network",
    "by_backpropagation",
    "default_networks",
    "differentiate_network",
    "evaluate_network",
    "evaluate_outputs",
    "is_control_variate",
    "mark_control_variates",
]
