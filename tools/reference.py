"""Writes the pages of docs/reference that follow from the code.

python -m tools.reference docs/reference
"""

import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import click

import infalign
import training.config
from infalign.cli import COMMANDS
from infalign.cli import infalign as commands
from server.options import option_name
from server.settings import Settings
from tools.http_reference import write_errors, write_http
from tools.markdown import Schema, cell, default, page, prose, slug, table, take_notes, values
from tools.reward_kinds import write_reward_kinds
from training.configs import SHIPPED
from training.identity import IMMATERIAL

TOPICS = {
    "Address and callers": "host port keys cors_origins audit_log",
    "Requests": "max_n limit_n max_requests deadline drain max_body_kib max_header_kib max_connections idle_timeout",
    "Adaptive N": "regret_share",
    "Reasoning and tools": "reasoning_parser tool_parser",
    "Engines": "max_sequences dtype compile block_size reward_step_tokens on_engine_failure engine_silence",
    "Engines by vLLM's names": "engines policy_engine reference_engine reward_engine scorer_engine",
    "Engines on CPU": "kv_cache_mib engine_threads",
    "Engines on GPU": "gpu_memory reference_gpu_memory scorer_gpu_memory",
    "vLLM servers elsewhere": "policy_urls reward_urls reference_urls scorer_urls remote_timeout",
    "Calibration on demand": "calibration_concurrency calibration_store calibration_store_mib",
    "Rewards": "trust_rewards",
    "Adapters": "bundles max_adapters",
    "Logs and traces": "log_format log_level log_text otlp_endpoint",
}
"""Topics of the options of ``infalign serve``, with the settings of each."""
MODULES = {
    "Calibration": "calibration table combination pooling goodness",
    "Procedures": "procedures poisson controlled mixture",
    "Transformations": "transformation transforms optimum live",
    "Policies and win rates": "policies frontier",
    "Estimates from samples": "estimators",
    "Over-optimisation": "overoptimisation judge_record",
    "Stopping rules": "stopping cost",
    "Prefix scorers": "prefix_scorer quantile_law rejection rehearsal rejection_fit",
    "Budgets of a batch": "budgets",
    "Bundles": "bundle manifest bundling",
    "Procedures and transformations as text": "parsing",
    "Errors": "errors",
}
"""Topics of the Python API, with the modules of each."""
ATTACKS = ("hits", "detectors", "forecasts", "attacks")
"""The modules about attack success, whose names are imported from the modules themselves."""


def write_cli() -> str:
    """The page of the commands."""
    summaries = [(f"[`infalign {name}`](#infalign-{name})", text) for name, (_, text) in COMMANDS.items()]
    parts = [
        "# Command line",
        "`infalign -h` lists the commands, `infalign COMMAND -h` explains one, and `infalign --version` prints the "
        "version. A mistake in a command line is reported in one line on stderr, with exit code 2. Ctrl-C ends a "
        "command with exit code 130. Bundles and runs are stored in `$INFALIGN_HOME`, which is `~/.cache/infalign` by "
        "default.",
        table("command, what it does", summaries),
    ]
    for name, (module, _) in COMMANDS.items():
        command: click.Command = getattr(import_module(module), name)
        context = click.Context(command, click.Context(commands, info_name="infalign"), info_name=name)
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        parts += [f"## infalign {name}", prose(command.help), f"```text\n{usage}\n```"]
        options = [option for option in command.params if isinstance(option, click.Option)]
        if name == "serve":
            options = [option for option in options if option.name not in Settings.model_fields]
        parts.append(table("option, value, default, meaning", [option_row(option, context) for option in options]))
        if name == "serve":
            parts.append("The other options have [a page of their own](serve-options.md).")
    return page(parts)


def option_row(option: click.Option, context: click.Context) -> Iterable[str]:
    """The row of an option of a command."""
    _, notes = take_notes((option.get_help_record(context) or ("", ""))[1])
    usual = [f"`{note.removeprefix('default: ')}`" for note in notes if note.startswith("default: ")]
    empty = "required" if option.required else "off" if option.is_flag else "none"
    kind = f"{option_value(option)}; may be repeated" if option.multiple else option_value(option)
    return (
        ", ".join(f"`{name}`" for name in option.opts),
        kind,
        *(usual or [empty]),
        cell(take_notes(option.help or "")[0]),
    )


def option_value(option: click.Option) -> str:
    """Say in words which values an option takes."""
    if option.is_flag:
        return "flag"
    if option.metavar:
        return f"`{option.metavar}`"
    match option.type:
        case click.Choice(choices=choices):
            return values({"enum": list(choices)})
        case click.IntRange() | click.FloatRange() as kind:
            limits = {"exclusiveMinimum" if kind.min_open else "minimum": kind.min, "maximum": kind.max}
            limits = {key: limit for key, limit in limits.items() if limit is not None}
            return values({"type": "integer" if isinstance(kind, click.IntRange) else "number"} | limits)
    return "path" if isinstance(option.type, click.Path) else option.type.name


def write_serve_options() -> str:
    """The page of the server's settings."""
    fields = Settings.model_json_schema()["properties"]
    _check_same({field for names in TOPICS.values() for field in names.split()}, set(fields))
    parts = [
        "# Server options",
        "These are the options of `infalign serve`. Each of them can be set in the environment instead; if both are "
        "given, the command line wins. Commas separate the entries of a list, and its option may be repeated. So may "
        "what takes `KEY=VALUE`, which is a YAML mapping in the environment ([Engine settings](../guides/engines.md)). "
        "There are no other settings: everything else is part of the bundle.",
    ]
    for topic, names in TOPICS.items():
        rows = []
        for name in names.split():
            text, notes = take_notes(fields[name]["description"])
            usual = notes[0].removeprefix("default: ") if notes else default(fields[name], required=False)
            kind = {"boolean": "flag", "object": "`KEY=VALUE`"}.get(fields[name].get("type"), values(fields[name]))
            rows.append((f"`{option_name(name)}`", f"`INFALIGN_{name.upper()}`", kind, usual, cell(text)))
        parts += [f"## {topic}", table("option, environment variable, value, default, meaning", rows)]
    return page(parts)


def write_config() -> str:
    """The page of the training config."""
    schema = training.config.Config.model_json_schema()
    shipped = [(f"`{path.stem}`", first_comment(path)) for path in sorted(SHIPPED.glob("*.yaml"))]
    parts = [
        "# Training config",
        "A config is a YAML file, or one of those that are shipped. This page writes a key with dots: `ctrl.target_kl` "
        "is the key `target_kl` of the section `ctrl`. `infalign train CONFIG --set ctrl.target_kl=1` sets it from the "
        "command line. Unknown keys are refused. ○ marks keys that do not change what a stage produces: after a change "
        "of one, no stage runs again.",
        "## Shipped configs",
        table("config, what it is", shipped),
        "## The run",
        config_table("Config", schema, ""),
    ]
    for path, name in sections(schema, schema, ""):
        section = schema["$defs"][name]
        level = "##" if "." not in path else "###"
        parts += [f"{level} {path}", prose(section.get("description")), config_table(name, section, f"{path}.")]
    return page(parts)


def first_comment(path: Path) -> str:
    """The first sentence of the comment at the top of a config."""
    line = path.read_text(encoding="utf-8").split("\n")[0]
    return cell(line.removeprefix("#").split(". ")[0].split("; ")[0].rstrip(":"))


def section_of(field: Schema) -> tuple[str, str] | None:
    """The model of the section that a field holds, and brackets if it is a list of them. None if it holds a value."""
    for part in (field, *field.get("anyOf", ())):
        for reference, mark in ((part.get("$ref"), ""), (part.get("items", {}).get("$ref"), "[]")):
            if reference:
                return reference.rpartition("/")[2], mark
    return None


def sections(root: Schema, schema: Schema, prefix: str) -> Iterator[tuple[str, str]]:
    """The dotted path and the model of every section below one, in order."""
    for key, field in schema["properties"].items():
        if found := section_of(field):
            name, mark = found
            yield f"{prefix}{key}{mark}", name
            yield from sections(root, root["$defs"][name], f"{prefix}{key}{mark}.")


def config_table(model: str, schema: Schema, prefix: str) -> str:
    """The table of the keys of one section."""
    rows = []
    for key, field in schema["properties"].items():
        path, found = f"{prefix}{key}", section_of(field)
        mark = " ○" if IMMATERIAL in getattr(training.config, model).model_fields[key].metadata else ""
        kind = f"[{'list of sections' if found[1] else 'section'}](#{slug(path)})" if found else values(field)
        usual = "its defaults" if found and field.get("default") else default(field, key in schema.get("required", ()))
        rows.append((f"`{path}`{mark}", kind, usual, cell(field.get("description"))))
    return table("key, value, default, meaning", rows)


def write_python() -> str:
    """The page of the Python API. mkdocstrings fills in the docstrings when it builds the site."""
    parts = [
        "# Python API",
        "The package `infalign` is the method on NumPy arrays. It needs no torch, vLLM or HTTP. These are its public "
        "names; import them as in `from infalign import Calibration`.",
    ]
    _check_same(
        {name for names in MODULES.values() for home in names.split() for name in infalign._HOMES[home]},
        set(infalign.__all__),
    )
    for topic, modules in MODULES.items():
        paths = {name: f"infalign.{home}.{name}" for home in modules.split() for name in infalign._HOMES[home]}
        lines = {name: (inspect.getdoc(getattr(infalign, name)) or "").split("\n")[0] for name in paths}
        parts += [f"## {topic}", table("name, what it is", [(f"[`{n}`][{paths[n]}]", cell(lines[n])) for n in paths])]
        parts += [f"::: {path}" for path in (["infalign.estimators"] if modules == "estimators" else paths.values())]
    parts += [
        "## Attack success",
        "These names are imported from their modules, as in `from infalign.hits import pooled_rate`. "
        "[Attack success](../guides/attack-success.md) shows how to use them.",
        *(f"::: infalign.{module}" for module in ATTACKS),
    ]
    return page(parts)


def _check_same(listed: set[str], existing: set[str]) -> None:
    if listed != existing:
        raise ValueError(f"tools/reference.py: not listed, or not there: {', '.join(sorted(listed ^ existing))}")


PAGES = {
    "cli.md": write_cli,
    "serve-options.md": write_serve_options,
    "config.md": write_config,
    "http.md": write_http,
    "errors.md": write_errors,
    "reward-kinds.md": write_reward_kinds,
    "python.md": write_python,
}
"""The pages that are generated, and what writes each."""


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Write every page into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in PAGES.items():
        (folder / name).write_text(write(), encoding="utf-8")


if __name__ == "__main__":
    main()
