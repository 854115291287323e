"""``align``: one command for every stage.

Nothing heavy is imported here, so that help and mistakes in a recipe show at once: torch and its
kin load inside the commands, after the settings are known to be right.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps import arguments as kinds
from apps import plan_command
from apps.named_files import check_files, hub_ids
from apps.shipped import find_recipe
from apps.stages import STAGES as STAGES
from apps.stages import run_stage

if TYPE_CHECKING:
    from align.config import RunSettings

STUDIES = {
    "rlhf": "SFT, SFT+, RLHF and Fact-RLHF on the built-in world",
    "vision": "when facts matter: reward models with weaker and weaker eyes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    The exit status is 0, 2 for a mistake in the input, 130 when interrupted; 1 where a command that looks
    for bad records has found some, 3 where rounds wait for labels.
    """
    arguments = _spelled(list(sys.argv[1:] if argv is None else argv))
    debug = os.environ.get("ALIGN_DEBUG", "0") not in ("", "0")
    try:
        args = _parse(arguments)
        return args.command(args) or 0
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_how_to_continue(arguments)}", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError) as error:
        if debug or not _is_message(error):
            raise
        print(f"align: error: {_message(error)}", file=sys.stderr)
        return 2


def _is_message(error: Exception) -> bool:
    """Whether an error is the user's to mend: files, disk, network, or an error class of this project."""
    ours = ("data", "align", "evals", "apps")
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in ours


def _message(error: Exception) -> str:
    """One error's text; what the system says of a path gets the form of our own errors."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fspath(error.filename)}: {error.strerror.lower()}; check the path and its permissions"
    return str(error)


def _how_to_continue(arguments: list[str]) -> str:
    if arguments[:1] and arguments[0] in STAGES:
        resume = [] if "--resume" in arguments else ["--resume"]
        return f"continue with: {shlex.join(['align', *arguments, *resume])}"
    return f"start again with: {shlex.join(['align', *arguments])}"


# --- the parser ---


def _spelled(arguments: list[str]) -> list[str]:
    """``eval run`` is ``eval``; ``eval score``, ``compare`` and ``report`` are commands of their own, and so
    are ``reward audit`` and ``ppo page``."""
    if arguments[:2] == ["eval", "run"]:
        return ["eval", *arguments[2:]]
    if arguments[:1] == ["eval"] and arguments[1:2] in (["score"], ["compare"], ["report"]):
        return [f"eval-{arguments[1]}", *arguments[2:]]
    if arguments[:2] == ["reward", "audit"]:
        return ["reward-audit", *arguments[2:]]
    if arguments[:2] == ["ppo", "page"]:
        return ["ppo-page", *arguments[2:]]
    return arguments


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = _parser(with_data=arguments[:1] == ["data"], with_annotate=arguments[:1] == ["annotate"])
    args, extra = parser.parse_known_args(arguments)
    # argparse leaves key=value arguments over when an option stands before them.
    if extra and hasattr(args, "overrides") and not any(text.startswith("-") for text in extra):
        args.overrides += extra
    elif extra:
        parser.error(f"unrecognized arguments: {' '.join(extra)}; see: align {arguments[0]} --help")
    return args


def _parser(with_data: bool, with_annotate: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="align",
        description="Align large multimodal models so that they stop claiming what the image does not show.",
        epilog="ALIGN_DEBUG=1 shows the traceback behind an error message.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, stage in STAGES.items():
        prog = f"align {name.replace('-', ' ')}"
        words = stage.help.capitalize() + "."
        _add_stage(commands.add_parser(name, prog=prog, help=stage.help, description=words), name)
    _add_data(commands, with_data)
    _add_annotate(commands, with_annotate)

    words = "two evaluations on the items that both answered, paired"
    compare = commands.add_parser("eval-compare", prog="align eval compare", help=words, description=words)
    compare.add_argument("first", type=Path, metavar="RUN", help="an evaluation's folder")
    compare.add_argument("second", type=Path, metavar="BASELINE", help="another's; it is subtracted")
    compare.add_argument(
        "--output", type=Path, default=Path("runs/compare"), metavar="DIR", help="default: %(default)s"
    )
    compare.set_defaults(command=_compare)

    words = "finished evaluations of several models on one page, and as Markdown"
    report = commands.add_parser("eval-report", prog="align eval report", help=words, description=words)
    report.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN", help="an evaluation's folder, and what to call its model"
    )
    report.add_argument(
        "--output", type=Path, default=Path("runs/report"), metavar="DIR", help="default: %(default)s"
    )
    report.add_argument(
        "--pictures", type=kinds.whole, default=12, metavar="N",
        help="items of each benchmark shown with their picture (default: %(default)s)",
    )  # fmt: skip
    report.set_defaults(command=_report)

    words = "a PPO run's page again: its curves, and rollouts with their pictures and rewards"
    page = commands.add_parser("ppo-page", prog="align ppo page", help=words, description=words)
    page.add_argument("run", type=Path, metavar="RUN", help="the run directory")
    page.add_argument("--images", metavar="DIR", help="the image root, where the run's own is not here")
    page.set_defaults(command=_ppo_page)

    demo = commands.add_parser("demo", help="the whole chain on the built-in world, from scratch")
    words = "a miniature of half a minute, whose figures mean nothing"
    demo.add_argument("--quick", action="store_true", help=words)
    words = "default: runs/demo, with --quick runs/demo-quick"
    demo.add_argument("--output", type=Path, metavar="DIR", help=words)
    demo.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    demo.set_defaults(command=_demo)

    listing = "\n".join(f"  {name:10} {text}" for name, text in STUDIES.items())
    study = commands.add_parser(
        "study",
        help="reproduce a claim in miniature, with several seeds and intervals",
        description=f"studies:\n{listing}\n\nalign study NAME --help shows a study's own options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_argument("name", choices=list(STUDIES), metavar="NAME")
    study.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the study")
    study.set_defaults(command=_study)
    return parser


def _add_stage(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE.yaml", help="a file, or a shipped recipe by name such as llava15_7b/sft"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings over the recipe's, e.g. optim.lr=3e-5"
    )
    parser.add_argument("--output", metavar="DIR", help="the run directory")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument(
        "--dry-run", action="store_true", help="check settings and data, print the plan, stop"
    )
    parser.add_argument("--limit", type=kinds.count, metavar="N", help="use the first N records only")
    if name in ("eval", "eval-score"):
        words = "MMHal's judge prompt, in place of our own wording"
        parser.add_argument("--judge-prompt", metavar="FILE", help=words)
    if name == "eval-score":
        parser.add_argument("--answers", metavar="FILE", help="a file of answers to all the benchmarks")
    if name == "eval-score":
        parser.usage = "align eval score [RECIPE.yaml] [key=value ...] --answers FILE --output DIR [options]"
    if name == "ppo":
        plan_command.add_arguments(parser)
    if name == "eval":
        parser.epilog = "See also: align eval score, compare and report, each with --help."
    if name == "reward":
        parser.epilog = "See also: align reward audit --help."
    if name == "ppo":
        parser.epilog = "See also: align ppo page RUN, which builds a run's page after the fact."
    parser.set_defaults(command=_run_stage, stage=name)


def _add_data(commands: Any, complete: bool) -> None:
    """``align data``; its own commands load only when it is asked for."""
    if not complete:
        commands.add_parser("data", help="convert, inspect and make data")
        return
    from apps import data_commands, world_commands

    groups = data_commands.add_parser(commands)
    world_commands.add_parser(groups)
    commands.choices["data"].set_defaults(command=_data)


def _add_annotate(commands: Any, complete: bool) -> None:
    """``align annotate``; its own commands load only when it is asked for."""
    if not complete:
        commands.add_parser("annotate", help="people compare two responses: serve, export, check")
        return
    from apps.annotate.commands import add_parser

    add_parser(commands)


# --- the commands ---


def _run_stage(args: argparse.Namespace) -> int:
    from align import config

    stage = STAGES[args.stage]
    recipe, overrides = find_recipe(args.recipe), list(args.overrides)
    if recipe is None:
        overrides.insert(0, args.recipe)
    if args.output is not None:
        overrides.append(f"output={_quoted(args.output)}")
    if args.limit is not None:
        overrides.append(f"{stage.limit}={args.limit}")
    for key in ("judge_prompt", "answers"):
        if (value := getattr(args, key, None)) is not None:
            overrides.append(f"{key}={_quoted(value)}")
    overrides += [f"{key}=true" for key in ("resume", "dry_run") if getattr(args, key)]
    settings = config.resolve(getattr(config, stage.settings), recipe, overrides)
    if getattr(args, "plan", False):
        return plan_command.run(settings, args)
    from apps.annotate.training import exported

    with exported(args.stage, settings) as settings:
        return _run_resolved(args, settings)


def _run_resolved(args: argparse.Namespace, settings: Any) -> int:
    if settings.dry_run:
        print(_plan(args.stage, settings), flush=True)
    check_files(settings)
    if settings.threads:
        # Before torch is imported: it reads the number once.
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    result = run_stage(args.stage, settings)
    if int(os.environ.get("RANK") or 0):
        # one of several processes: the first one tells
        return 0
    if settings.dry_run:
        print("dry run: settings and data are fine; nothing was computed")
        for key, name in hub_ids(settings):
            told = f"{key} {name!r} is no folder here: it is taken as a Hub id, and was not looked up"
            print(told, file=sys.stderr)
    elif args.stage == "rounds":
        return _show_rounds(result, args)
    elif result is not None:
        if args.stage in ("eval", "eval-score"):
            _show_figures(result)
        if args.stage == "reward-audit":
            _show_findings(result)
        print(f"done: {result}")
    return 0


def _show_figures(folder: Path) -> None:
    from apps.eval_page import headlines
    from data.jsonl import read_json

    print("\n".join(headlines(read_json(folder / "results.json")["benchmarks"])))
    print(f"the page: {folder / 'report.html'}")


def _show_rounds(result: Any, args: argparse.Namespace) -> int:
    """Where the policy is; or what is waited for and how to go on, with exit status 3."""
    from apps.rounds.words import ended, waiting

    if isinstance(result, Path):
        print("\n".join(ended(result)))
        print(f"done: {result}")
        return 0
    given = [*args.overrides, *(["--output", args.output] if args.output is not None else [])]
    given += ["--limit", str(args.limit)] if args.limit is not None else []
    print("\n".join(waiting(result, shlex.join(["align", "rounds", args.recipe, *given, "--resume"]))))
    return 3


def _show_findings(folder: Path) -> None:
    from apps.audit_words import headlines

    print("\n".join(headlines(folder)))
    print(f"the page: {folder / 'report.html'}")


def _quoted(text: str) -> str:
    """Text as a quoted YAML scalar, so that ``--output 2026`` stays text."""
    return "'" + text.replace("'", "''") + "'"


def _plan(name: str, settings: RunSettings) -> str:
    import yaml

    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"# align {name}, with every setting resolved\n{text}"


def _data(args: argparse.Namespace) -> int:
    from apps import world_commands

    # data_commands names its own run; what it does not know belongs to the world.
    return getattr(args, "run", world_commands.run)(args) or 0


def _report(args: argparse.Namespace) -> int:
    from apps import eval_report

    folder = eval_report.run(args.runs, args.output, args.pictures)
    print(f"done: {folder / 'report.html'}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    from apps import compare
    from data.jsonl import read_json

    folder = compare.run(args.first, args.second, args.output)
    print("\n".join(compare.in_short(read_json(folder / "compare.json"))))
    print(f"done: {folder / 'compare.html'}")
    return 0


def _ppo_page(args: argparse.Namespace) -> int:
    from apps import rollout_page

    print(f"done: {rollout_page.write_page(args.run, images=args.images)}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from apps import demo

    output = args.output or Path("runs/demo-quick" if args.quick else "runs/demo")
    demo.run(output=output, seed=args.seed, quick=args.quick)
    return 0


def _study(args: argparse.Namespace) -> int:
    return importlib.import_module(f"apps.studies.{args.name}").main(args.arguments) or 0


if __name__ == "__main__":
    sys.exit(main())
