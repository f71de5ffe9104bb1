"""Products: the models of a profile, each through the gates to its alias, one of them to champion.

What a product is held against: the one that is to be champion against the champion, unless that is
another product, which somebody chose to replace; it then, and every other one, against the version
that its alias names; where there is none yet, against the champion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mlops.errors import GateError, UsageError
from mlops.improve.ledger import Ledger, Version, check_alias
from mlops.loop.experiment import set_alias
from mlops.loop.promote import Promotion, admit, promote
from mlops.loop.recipe import champion_made
from mlops.loop.report import Report, Silent
from mlops.settings import Settings, read_settings
from mlops.usecase import Product, Profile, UseCase
from mlops.usecases import find


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """What became of the products of a profile, by alias.

    `product` is the one that is to be champion, and `promotion` what came of that, None where it
    was refused. `answering` has the versions that the aliases name now, `refused` those that gates
    kept out, with the reason.
    """

    use_case: str
    profile: str
    product: str
    promotion: Promotion | None
    answering: dict[str, int]
    refused: dict[str, str]

    def check(self) -> None:
        """Raise `GateError` if a gate refused one, with the reasons and who answers instead."""
        if not self.refused:
            return
        still = ", ".join(f"{alias} is version {n}" for alias, n in self.answering.items())
        raise GateError(
            "; ".join(self.refused.values()),
            f"under their aliases answer: {still or 'none of the products'}; overrule with: "
            f'mlops promote {self.use_case} VERSION --force --reason "…", '
            f"or mlops alias {self.use_case} ALIAS VERSION",
        )


def declared_profile(use_case: UseCase, name: str) -> Profile:
    """Return the profile of that name.

    Raises `UsageError` that lists those there are, or says what is wrong with its declaration.
    """
    try:
        profile = use_case.profile(name)
    except KeyError:
        known = ", ".join(f"{one.name} ({minutes(one)})" for one in use_case.profiles)
        raise UsageError(
            f"{use_case.name} has no profile {name!r}", f"declared are: {known or 'none'}"
        ) from None
    declared = {one.name for one in (*use_case.candidates, *use_case.on_demand)}
    where = f"correct it where {use_case.name} is declared"
    if not profile.products:
        raise UsageError(f"the profile {name} has no product", where)
    for product in profile.products:
        check_alias(product.alias)
        if product.candidate not in declared:
            raise UsageError(
                f"product {product.alias} of the profile {name} is {product.candidate!r}, which is "
                "no candidate",
                where,
            )
    return profile


def introduce(use_case: UseCase, name: str, settings: Settings, report: Report) -> None:
    """Say what a training in that profile gives and takes. Raises `UsageError` if it cannot be."""
    profile = declared_profile(use_case, name)
    champion_product(profile, settings)
    report.say(f"{use_case.name}: profile {name}: {profile.says} ({minutes(profile)})")


def numbered(use_case: UseCase, profile: str, registered: Sequence[Version]) -> dict[str, int]:
    """Return the number of each product's version, by alias; they stand in the products' order."""
    products = use_case.profile(profile).products if profile else ()
    return {
        product.alias: version.version
        for product, version in zip(products, registered, strict=False)
    }


def minutes(profile: Profile) -> str:
    return f"about {profile.minutes:g} minute{'s' * (profile.minutes != 1)} on two cores"


def champion_product(profile: Profile, settings: Settings) -> Product:
    """Return the product that is to be champion: the one that is set, else the first.

    Raises `UsageError` for a setting that names none of them.
    """
    asked = settings.champion_product
    for product in profile.products:
        if asked in {"", product.alias}:
            return product
    known = ", ".join(product.alias for product in profile.products)
    raise UsageError(
        f"CHAMPION_PRODUCT={asked} is no product of the profile {profile.name}",
        f"set it to one of {known}, or unset it",
    )


def settle(
    name: str,
    profile: str,
    versions: Mapping[str, int],
    *,
    champion: bool = True,
    automatic: bool = False,
    reason: str = "",
    settings: Settings | None = None,
    report: Report | None = None,
) -> Settled:
    """Ask the gates about these versions, by alias, and let those that pass answer.

    The product that is to be champion is promoted, unless `champion` is false: then it is left
    alone. One that is refused leaves its alias where it is. Raises `ChampionMovedError` when
    another promotion came first, and what `promote` raises but for `GateError`.
    """
    settings = settings or read_settings()
    report = report or Silent()
    use_case = find(name)
    declared = declared_profile(use_case, profile)
    first = champion_product(declared, settings).alias
    against = _against(use_case, first, settings)
    promotion, refused = None, {}
    # The champion last: until then each is held against the one that there was.
    order = [one.alias for one in declared.products if one.alias != first] + [first] * champion
    with report.steps(f"{name}: asking the gates", len(order)) as advance:
        for alias in order:
            advance(alias)
            try:
                if alias == first:
                    promotion = promote(
                        name,
                        versions[alias],
                        automatic=automatic,
                        reason=reason,
                        against=against.get(alias),
                        settings=settings,
                        report=report,
                    )
                elif _aliases(name, settings).get(alias) != versions[alias]:
                    said = admit(
                        name, versions[alias], against=against.get(alias), settings=settings
                    )
                    why = reason or f"product of the profile {profile}: the gates let it pass"
                    set_alias(
                        name, alias, versions[alias], reason=why, evidence=said, settings=settings
                    )
            except GateError as error:
                refused[alias] = f"{alias}: {error.message}"
    there = _aliases(name, settings)
    answering = {p.alias: there[p.alias] for p in declared.products if p.alias in there}
    return Settled(name, profile, first, promotion, answering, refused)


def _against(use_case: UseCase, first: str, settings: Settings) -> dict[str, int]:
    """Return which version each product is held against; those that are left out: the champion."""
    _, made = champion_made(use_case, settings)
    found = _aliases(use_case.name, settings)
    if use_case.product_of(made) in {"", first}:
        found.pop(first, None)
    return found


def _aliases(name: str, settings: Settings) -> dict[str, int]:
    with Ledger(settings.state_database) as ledger:
        return ledger.aliases(name)
