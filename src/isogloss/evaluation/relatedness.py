"""Which languages are near one another: families and branches, groups that are confused, and the regions of FLEURS-102.

Languages are BCP-47 primary subtags. The groups are small on purpose: languages that listeners and systems confuse because
they share most of their words and sounds, not whole families.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from isogloss.core.errors import DataError
from isogloss.core.languages import normalize_language

_GROUPS = (
    *("bs hr sr cnr sh", "bg mk", "cs sk", "be ru uk", "da nb nn no sv", "fo is", "af nl", "lb de gsw"),
    *("ast es gl pt", "ca oc", "br cy", "lt lv", "et fi", "id ms", "jv su", "ceb fil tl war", "hi ur", "as bn"),
    *("pa sd", "mr ne", "fa tg prs", "ckb ku kmr", "az tr tk", "kk ky", "tt ba", "uz ug", "lo th"),
    *("xh zu ss nr", "nso st tn", "rw rn", "kam ki", "ti am", "yue zh cmn", "mi haw"),
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


# Family / branch / group: what Glottolog and Ethnologue agree on, no finer than the first three levels that tell languages apart
_FAMILIES = {
    "Indo-European / Balto-Slavic / East Slavic": "be ru uk rue",
    "Indo-European / Balto-Slavic / South Slavic": "bg bs hr mk sl sr cnr sh",
    "Indo-European / Balto-Slavic / West Slavic": "cs pl sk hsb dsb csb szl",
    "Indo-European / Balto-Slavic / Baltic": "lt lv ltg",
    "Indo-European / Germanic / North Germanic": "da fo is nb nn no sv",
    "Indo-European / Germanic / West Germanic": "af de en fy gsw lb nds nl sco vls yi",
    "Indo-European / Romance / Western Romance": "an ast ca es ext fr gl kea lad oc pt rm wa",
    "Indo-European / Romance / Italo-Romance": "co it nap pms scn sc vec lmo",
    "Indo-European / Romance / Eastern Romance": "ro rup",
    "Indo-European / Celtic / Brythonic": "br cy kw",
    "Indo-European / Celtic / Goidelic": "ga gd gv",
    "Indo-European / Greek": "el",
    "Indo-European / Armenian": "hy hyw",
    "Indo-European / Albanian": "sq",
    "Indo-European / Iranian / Western Iranian": "ckb fa kmr ku lki mzn pes prs tg zza",
    "Indo-European / Iranian / Eastern Iranian": "os ps",
    "Indo-European / Indo-Aryan / Eastern": "as bn bho mai or",
    "Indo-European / Indo-Aryan / Central": "hi ur gu pa raj",
    "Indo-European / Indo-Aryan / Northwestern": "sd skr ks",
    "Indo-European / Indo-Aryan / Southern": "mr kok si dv",
    "Indo-European / Indo-Aryan / Northern": "ne",
    "Uralic / Finnic": "et fi krl olo vep vro",
    "Uralic / Hungarian": "hu",
    "Uralic / Mordvin": "mdf myv",
    "Uralic / Mari": "mhr mrj",
    "Uralic / Permic": "kv udm",
    "Uralic / Saami": "se sma smn sms",
    "Turkic / Oghuz": "az tk tr gag",
    "Turkic / Kipchak": "ba crh kk ky tt",
    "Turkic / Karluk": "ug uz",
    "Turkic / Siberian": "sah tyv",
    "Turkic / Chuvash": "cv",
    "Mongolic": "mn bxr xal",
    "Kartvelian": "ka xmf",
    "Northwest Caucasian": "ab ady kbd",
    "Northeast Caucasian": "ce av lez",
    "Basque": "eu",
    "Afro-Asiatic / Semitic / Arabic": "ar arb mt aeb ary arz apc acm ajp",
    "Afro-Asiatic / Semitic / Hebrew": "he",
    "Afro-Asiatic / Semitic / Ethiopic": "am ti tig",
    "Afro-Asiatic / Cushitic": "om so",
    "Afro-Asiatic / Berber": "kab taq ttq thv zgh shi rif",
    "Afro-Asiatic / Chadic": "ha",
    "Atlantic-Congo / Bantu / Nguni": "nr ss xh zu nd",
    "Atlantic-Congo / Bantu / Sotho-Tswana": "nso st tn",
    "Atlantic-Congo / Bantu / Great Lakes": "lg nyn rn rw cgg",
    "Atlantic-Congo / Bantu / Northeast Coast": "sw swh",
    "Atlantic-Congo / Bantu / Central Kenya": "kam ki",
    "Atlantic-Congo / Bantu / Zone C": "ln mdw",
    "Atlantic-Congo / Bantu / Luba": "lu lua kg",
    "Atlantic-Congo / Bantu / Southeast": "ny sn ts ve bem",
    "Atlantic-Congo / Bantu / Southwest": "kmb umb",
    "Atlantic-Congo / Volta-Niger": "ee fon ig yo",
    "Atlantic-Congo / Kwa": "ak tw fat",
    "Atlantic-Congo / Senegambian": "ff fuc ful wo",
    "Atlantic-Congo / Gur": "mos dag",
    "Mande": "bm dyu",
    "Nilotic": "luo din nus",
    "Dravidian / South": "kn ml ta tcy",
    "Dravidian / South-Central": "te",
    "Sino-Tibetan / Sinitic": "cmn hak nan wuu yue zh",
    "Sino-Tibetan / Burmese": "my",
    "Sino-Tibetan / Bodish": "bo dz",
    "Sino-Tibetan / Kuki-Chin-Naga": "nst lus mni",
    "Tai-Kadai": "lo th shn",
    "Austroasiatic / Vietic": "vi",
    "Austroasiatic / Khmer": "km",
    "Austroasiatic / Munda": "sat",
    "Hmong-Mien": "hmn mww",
    "Austronesian / Philippine": "ceb fil ilo pag pam tl war hil",
    "Austronesian / Malayic": "id min ms zsm",
    "Austronesian / Javanese": "jv",
    "Austronesian / Sundanese": "su",
    "Austronesian / Malagasy": "mg plt",
    "Austronesian / Polynesian": "haw mi sm to",
    "Japonic": "ja",
    "Koreanic": "ko",
    "Tupian": "gn gug",
    "Quechuan": "qu quz quy",
    "Aymaran": "ay",
    "Uto-Aztecan": "nah nhe azz",
    "Mayan": "yua quc",
}
_CLASSIFICATION = {
    language: tuple(family.split(" / ")) for family, languages in _FAMILIES.items() for language in languages.split()
}


def classification_of(label: str) -> tuple[str, ...] | None:
    """Return family, branch and group of a language, by its first subtag; None where the small table here has it not."""
    return _CLASSIFICATION.get(label.partition("-")[0])


def read_classification(path: Path | str) -> dict[str, tuple[str, ...]]:
    """Read a table of classifications: a header, then a language code and its family, branch, … from the top, in .csv or .tsv.

    Trailing cells may be empty. A line without a family or with an unknown code is a `DataError` with its number.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".tsv"):
        raise DataError(f"{path}: must be a .csv or .tsv table: language, family, branch, …")
    found: dict[str, tuple[str, ...]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = list(csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from None
    for number, cells in enumerate(lines[1:], 2):
        if not any(cell.strip() for cell in cells):
            continue
        code, *levels = (cell.strip() for cell in cells)
        while levels and not levels[-1]:
            levels.pop()
        if not levels or not all(levels):
            raise DataError(f"{path}:{number}: must be a language and its levels from the top, none of them empty")
        try:
            found[normalize_language(code).tag] = tuple(levels)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None
    if not found:
        raise DataError(f"{path}: has no languages under its header")
    return found


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
