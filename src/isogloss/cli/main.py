"""`isogloss VERB …`: each verb is one module of this folder, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys

from isogloss import __version__
from isogloss.core.errors import IsoglossError
from isogloss.core.os_errors import explain

VERBS = {
    "demo": "the whole chain on real recordings, in minutes; ends in an HTML report",
    "corpus": "prepare, import, audit, segment, split, stats, shard, synthesize",
    "pretrain": "train an encoder on unlabelled speech, from a recipe",
    "adapt": "make a model good for languages and channels from their audio alone",
    "finetune": "train a task (asr, …) on a model, from labelled speech",
    "predict": "let a fine-tuned model transcribe or classify a corpus, and score it",
    "label": "make units for a corpus: features of a layer, or MFCC, and k-means",
    "probe": "measure frozen features: phones, CTC phones, language identification",
    "abx": "measure how well features tell phones apart",
    "languages": "language by language: overlap of sub-networks, lesions, gain by hours, transfer, forgetting",
    "evaluate": "score hypotheses against references, with confidence intervals",
    "benchmark": "train and measure many systems on the same recordings",
    "extract": "write an encoder's features to disk",
    "convert": "turn a Hugging Face or fairseq checkpoint into an isogloss folder",
    "export": "write a folder that `transformers` opens",
    "recipes": "list, copy and check the recipes that come with isogloss",
    "doctor": "versions, devices, codecs, disk",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one verb and leave with an honest exit code.

    A user's mistake (`IsoglossError`), and a path that the operating system refuses, are one sentence on standard error; `--debug`
    shows where it came from.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        sys.exit(_run(arguments))
    except IsoglossError as error:
        if debug:
            raise
        sys.stderr.write(f"isogloss: {' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        # typer leaves with 130 and without a word
        if isinstance(getattr(leaving.__context__, "__cause__", None), KeyboardInterrupt):
            sys.stderr.write("isogloss: interrupted\n")
        raise
    except KeyboardInterrupt:
        sys.stderr.write("isogloss: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has left (`isogloss … | head`): nothing more to say, and nothing to flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        told = None if debug or _is_ours(error) else explain(error)
        if told is None:
            raise
        sys.stderr.write(f"isogloss: {' '.join(told.split())} (`--debug` shows where it happened)\n")
        sys.exit(1)


def _is_ours(error: OSError) -> bool:
    """Return whether the path lies in the program itself: no user can mend that."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    return isinstance(error.filename, str) and os.path.abspath(error.filename).startswith(package + os.sep)  # noqa: PTH100


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        sys.stdout.write(_help())
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"isogloss {__version__}\n")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        from isogloss.core.lookup import nearest

        sys.stderr.write(f"isogloss: there is no verb `{verb}`; {nearest(verb, list(VERBS))}\n")
        return 2
    app = importlib.import_module(f"isogloss.cli.{verb}").app
    app(args=rest, prog_name=f"isogloss {verb}")
    return 0


def _help() -> str:
    width = max(map(len, VERBS))
    lines = [
        "usage: isogloss VERB [OPTIONS]",
        "",
        "Speech representations for languages with much audio and little else:",
        "corpus → pretrain → adapt → transfer → measure.",
        "",
        *(f"  {verb:<{width}}  {text}" for verb, text in VERBS.items()),
        "",
        "`isogloss VERB --help` tells what a verb takes; `--debug` shows the traceback of an error; `--version`.",
    ]
    return "\n".join(lines) + "\n"
