"""Procedures and transformations by their written forms, such as ``best-of-4`` and ``exp(10)``."""

import re
from fractions import Fraction

from infalign.controlled import Controlled
from infalign.errors import InvalidValue
from infalign.mixture import Mixture
from infalign.poisson import BestOfPoisson
from infalign.procedures import BestOfN, Procedure, Standard, WorstOfN
from infalign.transformation import Transformation
from infalign.transforms import Exponential, Gaussian, Identity, Log

NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?"
PROCEDURES = "standard, best-of-N or worst-of-N with N from 1 to 999999, or best-of-poisson(MU) with MU > 0"
MIXTURES = f"{PROCEDURES}; or several of these, such as standard+best-of-4 or 2*best-of-4+worst-of-4"
TRANSFORMATIONS = "identity, log, exp(T) with T other than 0 such as exp(10) or exp(-10), optimal, or gaussian"
WEIGHT = r"[0-9]{1,6}(?:\.[0-9]{1,6})?"
CONTROLLED = re.compile(r"controlled-([1-9][0-9]{0,5})x([1-9][0-9]{0,5})")
PLAIN: dict[str, type[Transformation]] = {"identity": Identity, "log": Log, "gaussian": Gaussian}
"""Transformations without a parameter, by their written forms."""


def parse_procedure(text: str) -> Procedure:
    """Make the procedure of a written form.

    Args:
        text: ``standard``, ``best-of-N``, ``worst-of-N`` or ``best-of-poisson(MU)``.

    Returns:
        The procedure. Its ``str`` is the written form.

    Raises:
        InvalidValue: The text is none of these forms, or its number is out of range. The form of controlled decoding is
            refused too, since its selected quantile has no closed form. :func:`parse_decoding` reads it. A mixture is
            refused as well, since an answer is decoded by one procedure. :func:`parse_mixture` reads it.

    Examples:
        >>> from infalign import parse_procedure
        >>> parse_procedure("best-of-4")
        BestOfN(n=4)
    """
    if text == "standard":
        return Standard()
    if match := re.fullmatch(r"(best|worst)-of-([1-9][0-9]{0,5})", text):
        n = int(match[2])
        return BestOfN(n) if match[1] == "best" else WorstOfN(n)
    if match := re.fullmatch(rf"best-of-poisson\(({NUMBER})\)", text):
        return BestOfPoisson(float(match[1]))
    if CONTROLLED.fullmatch(text):
        reason = "controlled decoding is for requests alone, as its selected quantile has no closed form"
        raise InvalidValue("procedure", text, f"{PROCEDURES}; {reason}")
    if "+" in text.partition("(")[0] or "*" in text:
        reason = "a mixture is for alignment alone, as an answer is decoded by one procedure"
        raise InvalidValue("procedure", text, f"{PROCEDURES}; {reason}")
    raise InvalidValue("procedure", text, PROCEDURES)


def parse_mixture(text: str) -> Mixture:
    """Make what a policy is aligned for of a written form.

    Args:
        text: What :func:`parse_procedure` reads, or several of these with ``+`` between them. A weight may stand before
            each, with ``*`` between them; without it, it is 1. Only the ratios of the weights count.

    Returns:
        The mixture, which one procedure is too. Its ``str`` is the written form in its normal spelling.

    Raises:
        InvalidValue: A part is none of these forms, or a number is out of range.

    Examples:
        >>> from infalign import parse_mixture
        >>> str(parse_mixture("worst-of-4+standard+best-of-4"))
        'standard+best-of-4+worst-of-4'
        >>> str(parse_mixture("0.5*worst-of-4+best-of-4")), str(parse_mixture("best-of-4"))
        ('2*best-of-4+worst-of-4', 'best-of-4')
    """
    procedures, weights = [], []
    for part in re.split(r"\+(?![^(]*\))", text):  # the exponent of best-of-poisson(1e+2) has a plus too
        weight, star, form = part.rpartition("*")
        if star and not re.fullmatch(WEIGHT, weight):
            raise InvalidValue("procedure", text, f"{MIXTURES}, with weights of at most six digits")
        try:
            procedures.append(parse_procedure(form))
        except InvalidValue as error:
            if error.param == "procedure":
                reason = error.requirement.removeprefix(PROCEDURES)
                raise InvalidValue("procedure", text, f"{MIXTURES}{reason}") from error
            raise
        weights.append(Fraction(weight or 1))
    return Mixture(tuple(procedures), tuple(weights))


def parse_decoding(text: str) -> Procedure | Controlled:
    """Make what answers are decoded by of a written form.

    Args:
        text: What :func:`parse_procedure` reads, or ``controlled-KxM``: blocks of M tokens, each the best of K.

    Returns:
        The procedure. Its ``str`` is the written form.

    Raises:
        InvalidValue: The text is none of these forms, or its number is out of range.

    Examples:
        >>> from infalign import parse_decoding
        >>> parse_decoding("controlled-4x16")
        Controlled(k=4, block=16)
    """
    if match := CONTROLLED.fullmatch(text):
        return Controlled(int(match[1]), int(match[2]))
    return parse_procedure(text)


def parse_transformation(
    text: str, procedure: Procedure | Mixture | None = None, *, kl: float | None = None, beta: float | None = None
) -> Transformation:
    """Make the transformation of a written form.

    Args:
        text: ``identity``, ``log``, ``exp(T)``, ``gaussian`` or ``optimal``.
        procedure: The procedure or mixture that ``optimal`` is the optimum for. Other forms ignore it, ``kl`` and
            ``beta``.
        kl: KL divergence in nats at which to solve for ``optimal``.
        beta: KL penalty at which to solve for ``optimal``, instead of ``kl``.

    Returns:
        The transformation.

    Raises:
        InvalidValue: The text is none of these forms, or ``optimal`` comes without a procedure and a KL or β.
        NotConverged: The optimum was not found.

    Examples:
        >>> from infalign import parse_transformation
        >>> parse_transformation("exp(10)")
        Exponential(t=10.0)
    """
    if text in PLAIN:
        return PLAIN[text]()
    if match := re.fullmatch(rf"exp\(({NUMBER})\)", text):
        return Exponential(float(match[1]))
    if text == "optimal":
        from infalign.optimum import optimal  # its solvers take a while to import

        if procedure is None or (kl is None and beta is None):
            raise InvalidValue("transformation", text, "optimal together with a procedure and a KL")
        return optimal(procedure, kl=kl, beta=beta)
    raise InvalidValue("transformation", text, TRANSFORMATIONS)


def check_transformation(text: str) -> str:
    """Check that a text is the written form of a transformation, without solving for ``optimal``.

    Args:
        text: The written form.

    Returns:
        The form in its normal spelling.

    Raises:
        InvalidValue: The text is no such form.
    """
    return text if text == "optimal" else str(parse_transformation(text))
