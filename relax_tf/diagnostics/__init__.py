"""Is an estimator unbiased, how large is its variance, and which one should I take?

- `exact_gradient`: the true gradient of a small discrete problem, by enumeration;
- `check_unbiased`: a certificate in z-scores, against the exact gradient;
- `gradient_variance`: of a model at a frozen point, per layer and per weight;
- `GradientVariance`: the same as a Keras callback, logged during `fit`;
- `compare`: several estimators on one model and batch, as a table and a figure.
"""

from relax_tf.diagnostics.comparison import Comparison, compare
from relax_tf.diagnostics.exact import Certificate, check_unbiased, exact_gradient
from relax_tf.diagnostics.variance import (
    GradientVariance,
    GradientVarianceResult,
    gradient_variance,
)

__all__ = [
    "Certificate",
    "Comparison",
    "GradientVariance",
    "GradientVarianceResult",
    "check_unbiased",
    "compare",
    "exact_gradient",
    "gradient_variance",
]
