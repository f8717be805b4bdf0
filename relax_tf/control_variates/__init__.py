"""Learned control variates: the networks `r_phi`, and the mark that keeps `phi` apart."""

from relax_tf.control_variates.marks import (  # noqa: F401 (for the package itself)
    is_control_variate,
    mark_control_variates,
)
from relax_tf.control_variates.mlp import MLP, default_networks  # noqa: F401
from relax_tf.control_variates.network import (  # noqa: F401
    ControlVariate,
    build_network,
    by_backpropagation,
    differentiate_network,
    evaluate_network,
    evaluate_outputs,
)
from relax_tf.control_variates.quadratic import QuadraticSlopes  # noqa: F401

__all__ = ["MLP", "ControlVariate"]
