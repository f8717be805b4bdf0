"""What distributions an estimator is defined for."""

from typing import Any

from relax_tf.distributions.base import Distribution

_EXAMPLES = {
    "discrete": "'relaxed_rebar', 'relax' or 'reinforce'",
    "continuous": "'lax', 'reparameterization' or 'reinforce'",
}


def asked_by_equation_10(coupled: bool) -> tuple[str, ...]:
    """The methods of a distribution in equation 10, whose second draw may be an independent one."""
    methods = ("relax", "reparameterization_vjp", "conditional_vjp")
    return methods if coupled else (*methods, "conditional_draw")


def check_family(estimator: Any, family: type[Distribution]) -> None:
    """Raises a ValueError unless the estimator is defined for this class of distributions."""
    received = f"Received: {family.__name__}"
    kind = "discrete" if family.discrete else "continuous"
    if kind not in estimator.defined_for:
        raise ValueError(
            f"estimator {estimator.id!r} is defined for "
            f"{' and '.join(estimator.defined_for)} distributions only. {received}, which is "
            f"{kind}. Use for example {_EXAMPLES[kind]}."
        )
    if estimator.families and not issubclass(family, estimator.families):
        names = " and ".join(each.__name__ for each in estimator.families)
        raise ValueError(
            f"estimator {estimator.id!r} is defined for {names} variables only. {received}. "
            "Use estimator='rloo', which compares independent samples."
        )
    if hasattr(family, "__getattr__"):
        return  # who knows
    missing = [name for name in estimator.asks_for if not hasattr(family, name)]
    if missing:
        raise ValueError(
            f"estimator {estimator.id!r} asks more of a distribution than `rloo` and `reinforce`: "
            f"{', '.join(estimator.asks_for)}. {received}, without {', '.join(missing)}."
        )
