"""Languages that a corpus was to name and does not: folders that are no language, and codes that no registry knows.

Both are used as they are, because a corpus may have a code of its own; but a mistake in one letter makes a language more, or
speech of no language.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from pathlib import Path

from lhotse import MonoCut

from isogloss.core.languages import UNDETERMINED, nearest_languages, normalize_language
from isogloss.core.wording import counted
from isogloss.data._paths import PathLike, printable


def language_faults(cuts: Iterable[MonoCut], folder: PathLike | None = None) -> list[tuple[str, str]]:
    """Return (name, sentence) for each code that no registry knows, and each subfolder of `folder` that is taken as no language.

    `folder` is a bare folder of audio, whose first-level subfolders name the languages; None for any other form of corpus.
    """
    root = None if folder is None else Path(folder)
    codes: collections.Counter[str] = collections.Counter()
    folders: collections.Counter[str] = collections.Counter()
    for cut in cuts:
        code = cut.supervisions[0].language if cut.supervisions else None
        if code not in (None, UNDETERMINED):
            language = normalize_language(code)
            if not (language.is_known or language.is_private):
                codes[code] += 1
        elif root is not None and (name := _first_level(cut, root)) is not None:
            folders[name] += 1
    faults = []
    for code, count in sorted(codes.items()):
        faults.append(
            (
                code,
                f"is the language of {counted(count, 'utterance')}, but no registry knows it{nearest_languages(code)}",
            )
        )
    for name, count in sorted(folders.items()):
        held = f"the {counted(count, 'utterance')} in it have" if count > 1 else "the utterance in it has"
        faults.append(
            (
                printable(name),
                f"is a folder whose name is no language{nearest_languages(name)}; {held} none: rename it, or give `--language`",
            )
        )
    return faults


def _first_level(cut: MonoCut, root: Path) -> str | None:
    path = Path(cut.recording.sources[0].source)
    parts = path.relative_to(root).parts if path.is_relative_to(root) else ()
    return parts[0] if len(parts) > 1 else None
