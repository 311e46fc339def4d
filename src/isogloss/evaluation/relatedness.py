"""Which languages are near one another: groups that are confused, and the regions of FLEURS-102.

Languages are BCP-47 primary subtags. The groups are small on purpose: languages that listeners and systems confuse because
they share most of their words and sounds, not whole families.
"""

from __future__ import annotations

from collections.abc import Sequence

_GROUPS = (
    *("bs hr sr cnr sh", "bg mk", "cs sk", "be ru uk", "da nb nn no sv", "fo is", "af nl", "lb de gsw"),
    *("ast es gl pt", "ca oc", "br cy", "lt lv", "et fi", "id ms", "jv su", "ceb fil tl war", "hi ur", "as bn"),
    *("pa sd", "mr ne", "fa tg prs", "ckb ku kmr", "az tr tk", "kk ky", "tt ba", "uz ug", "lo th"),
    *("xh zu ss nr", "nso st tn", "rw rn", "kam ki", "ti am", "yue zh cmn", "mi haw", "he yi"),
)
_GROUP_OF = {language: group.split()[0] for group in _GROUPS for language in group.split()}

# FLEURS (arXiv 2205.12446, table 1), with the subtags that `normalize_language` makes of its folder names
_REGIONS = {
    "Western Europe": "ast bs ca hr da nl en fi fr gl de el hu is ga it kea lb mt nb oc pt es sv cy",
    "Eastern Europe": "hy be bg cs et ka lv lt mk pl ro ru sr sk sl uk",
    "Central Asia, Middle East, North Africa": "ar az he kk ky mn ps fa ckb tg tr uz",
    "Sub-Saharan Africa": "af am ff lg ha ig kam ln luo nso ny om sn so sw umb wo xh yo zu",
    "South Asia": "as bn gu hi kn ml mr ne or pa sd ta te ur",
    "South-East Asia": "my ceb fil id jv km lo ms mi th vi",
    "China, Japan, Korea": "yue zh ja ko",
}
FLEURS_REGIONS: dict[str, tuple[str, ...]] = {name: tuple(languages.split()) for name, languages in _REGIONS.items()}
_REGION_OF = {language: region for region, languages in FLEURS_REGIONS.items() for language in languages}
_REGION_OF |= {"no": "Western Europe", "cmn": "China, Japan, Korea"}


def group_of(label: str) -> str:
    """Return the group of confusable languages that a class belongs to, by its first subtag; its own where it is in none.

    Varieties of one language (`ar-EG`, `ar-MA`) are a group.
    """
    language = label.partition("-")[0]
    return _GROUP_OF.get(language, language)


def groups_of(labels: Sequence[str]) -> list[str]:
    """Return the group of each class."""
    return [group_of(label) for label in labels]


def region_of(label: str) -> str | None:
    """Return the region that FLEURS-102 counts a language to, None for a language that it has not."""
    return _REGION_OF.get(label.partition("-")[0])
