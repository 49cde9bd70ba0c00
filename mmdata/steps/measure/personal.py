"""`personal`: how much personal data stands in a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from mmdata.sample import Member, Modality
from mmdata.spec import Names
from mmdata.steps.base import Measure
from mmdata.steps.ingest.text import PersonalKind, Region

_COLUMNS: dict[PersonalKind, str] = {
    "email": "emails",
    "iban": "ibans",
    "card": "cards",
    "id": "ids",
    "phone": "phones",
    "ip": "ips",
}


class Personal(Measure):
    """Counts mail addresses, telephone, card, account (IBAN) and identity numbers and public IP addresses in a text.

    Numbers count where they have the form in which people write them and their check digits are right (phonenumbers,
    python-stdnum). `ingest: - text: {mask: [...]}` takes them out instead.
    """

    step: ClassVar[str] = "personal"
    version: ClassVar[int] = 2
    extras: ClassVar[tuple[str, ...]] = ("personal",)
    modality: ClassVar[Modality] = "text"
    of: Names = Field(["caption"], min_length=1, description="text members to look into")
    kinds: list[PersonalKind] = Field(list(_COLUMNS), min_length=1, description="what to look for")
    regions: list[Region] | None = Field(
        None,
        description="countries whose telephone numbers are found without their code; default: where most write the "
        "text's language",
    )

    def columns(self) -> dict[str, str]:
        """How many of each kind, and in all."""
        return dict.fromkeys([*(_COLUMNS[kind] for kind in self.kinds), "total"], "INTEGER")

    def measure(self, tool: Any, member: Member) -> Mapping[str, Any]:  # noqa: ARG002 - it needs none
        """Always works."""
        from mmdata.media.personal import find_personal, regions_of

        found = find_personal(member.text, self.kinds, regions_of(self.regions, member.lang))
        counts = Counter(one.kind for one in found)
        return {**{_COLUMNS[kind]: counts[kind] for kind in self.kinds}, "total": len(found)}
