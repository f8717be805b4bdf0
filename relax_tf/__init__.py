"""relax_tf: train through discrete and black-box random choices, with RELAX, in Keras 3."""

from relax_tf.requirements import check_requirements

check_requirements()

from relax_tf import (  # noqa: E402
    control_variates,
    diagnostics,
    distributions,
    estimators,
    losses,
    policy_gradients,
)
from relax_tf.layers import (  # noqa: E402
    Parameters,
    StochasticBinaryLayer,
    StochasticCategoricalLayer,
    StochasticNormalLayer,
)
from relax_tf.layers.passes import Latent  # noqa: E402
from relax_tf.models import RelaxModel  # noqa: E402
from relax_tf.optimizers import RelaxOptimizer  # noqa: E402
from relax_tf.step.estimation import ModelEstimate  # noqa: E402

__version__ = "0.2.0"

__all__ = [
    "Latent",
    "ModelEstimate",
    "Parameters",
    "RelaxModel",
    "RelaxOptimizer",
    "StochasticBinaryLayer",
    "StochasticCategoricalLayer",
    "StochasticNormalLayer",
    "control_variates",
    "diagnostics",
    "distributions",
    "estimators",
    "losses",
    "policy_gradients",
]
