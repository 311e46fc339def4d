"""Languages that a corpus was to name and does not: folders that are no language, and codes that no registry knows.

Both are used as they are, because a corpus may have a code of its own; but a mistake in one letter makes a language more, or
speech of no language.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from pathlib import Path

from lhotse import MonoCut

from isogloss.core.errors import DataError
from isogloss.core.languages import UNDETERMINED, nearest_languages, normalize_language
from isogloss.core.wording import counted
from isogloss.data._paths import PathLike, printable


def language_faults(cuts: Iterable[MonoCut], folder: PathLike | None = None) -> list[tuple[str, str]]:
    """Return (name, sentence) for each code that no registry knows or that is none, and each subfolder of `folder` that is no language.

    `folder` is a bare folder of audio, whose first-level subfolders name the languages; None for any other form of corpus. Where
    none of them does, they are speakers or parts, and one sentence about `folder` stands for all.
    """
    root = None if folder is None else Path(folder)
    codes: collections.Counter[str] = collections.Counter()
    no_codes: dict[str, str] = {}
    num_named = 0
    folders: collections.Counter[str] = collections.Counter()
    for cut in cuts:
        code = cut.supervisions[0].language if cut.supervisions else None
        if code not in (None, UNDETERMINED):
            code = str(code)
            num_named += 1
            try:
                language = normalize_language(code)
            except DataError as error:  # cuts that were made in Python: nothing looked at their codes
                no_codes[code] = str(error)
                codes[code] += 1
            else:
                codes[code] += not (language.is_known or language.is_private)
        elif root is not None and (name := _first_level(cut, root)) is not None:
            folders[name] += 1
    faults = []
    for code, count in sorted((+codes).items()):
        reason = no_codes.get(code) or f"no registry knows it{nearest_languages(code)}"
        faults.append((printable(code[:100]), f"is the language of {counted(count, 'utterance')}, but {reason}"))
    if root is not None and folders and not num_named:
        return [*faults, (printable(root), _without_languages(folders))]
    for name, count in sorted(folders.items()):
        held = f"the {counted(count, 'utterance')} in it have" if count > 1 else "the utterance in it has"
        faults.append(
            (
                printable(name),
                f"is a folder whose name is no language{nearest_languages(name)}; {held} none: rename it, or give `--language`",
            )
        )
    return faults


def _without_languages(folders: collections.Counter[str]) -> str:
    first = f"`{printable(min(folders))}`" + (f" and {len(folders) - 1:,} more" if len(folders) > 1 else "")
    total = folders.total()
    held = f"the {counted(total, 'utterance')} below it have" if total > 1 else "the utterance below it has"
    return f"has no subfolder that is named after a language, only {first}; {held} none: give `--language`"


def _first_level(cut: MonoCut, root: Path) -> str | None:
    path = Path(cut.recording.sources[0].source)
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    return parts[0] if len(parts) > 1 else None
