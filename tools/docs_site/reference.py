"""The reference: a page for each public package, from its docstrings, and one for the commands, from their parsers."""

import argparse
from collections import defaultdict
from pathlib import Path

import griffe

PACKAGE = 'cnv2_plugin'
BESIDE = {
    'archs': (),
    'analysis': ('analysis.report',),
    'deploy': ('deploy.quantize',),
    'models': ('models.base',),
    'toolkits.openmmlab': ('toolkits.openmmlab.backbone', 'toolkits.openmmlab.sfr_fpn'),
    'toolkits.timm': (
        'toolkits.timm.condensenet',
        'toolkits.timm.shufflenet',
        'toolkits.timm.head',
        'toolkits.timm.hub',
    ),
}
"""Modules whose public names belong to a page although its ``__init__`` does not list them."""


def api_pages(root: Path) -> dict[str, str]:
    """Pages by address. A name that several packages offer stands where it is defined; the others point there."""
    loaded = griffe.load(PACKAGE, search_paths=[str(root)], resolve_aliases=True)
    offers = {package.path: _offered(package) for package in _packages(loaded)}
    home: dict[str, str] = {}
    for package in sorted(offers, key=len):
        for item in offers[package]:
            held = home.setdefault(item.canonical_path, package)
            if _inside(item, package) and not _inside(item, held):
                home[item.canonical_path] = package
    pages = {}
    for package, items in offers.items():
        own = [item for item in items if home[item.canonical_path] == package]
        if own:
            borrowed = [item for item in items if item not in own]
            pages[package] = [_block(package, 1, 'members: false'), *map(_name_block, own), *_pointers(borrowed)]
    for short, modules in BESIDE.items():
        page = pages.setdefault(f'{PACKAGE}.{short}', [_block(f'{PACKAGE}.{short}', 1)])
        page += [_block(f'{PACKAGE}.{module}', 2) for module in modules]
    return {_address(package): _page(package, parts) for package, parts in sorted(pages.items())}


def _packages(package: griffe.Module) -> list[griffe.Module]:
    inner = [_packages(m) for m in package.modules.values() if not m.is_alias and m.is_init_module]
    return [package, *(found for part in inner for found in part)]


def _offered(package: griffe.Module) -> list[griffe.Object]:
    """What ``__all__`` lists; where a module has the name of what it holds, the latter is meant."""
    members = [package[name] for name in package.exports or () if name in package.members]
    targets = [(m, m.final_target if m.is_alias else m) for m in members]
    return [target[m.name] if target.is_module and m.name in target.members else m for m, target in targets]


def _inside(item: griffe.Object, package: str) -> bool:
    return item.canonical_path.startswith(f'{package}.')


def _address(package: str) -> str:
    return f'reference/{package.removeprefix(f"{PACKAGE}.")}.md'


def _page(package: str, parts: list[str]) -> str:
    return '\n\n'.join([f'---\ntitle: {package.removeprefix(f"{PACKAGE}.")}\n---', *parts]) + '\n'


def _name_block(item: griffe.Object) -> str:
    return _block(item.path, 2, 'show_root_full_path: false')


def _block(path: str, level: int, *options: str) -> str:
    """A directive of mkdocstrings."""
    lines = ''.join(f'      {option}\n' for option in (f'heading_level: {level}', *options))
    return f'::: {path}\n    options:\n{lines}'


def _pointers(items: list[griffe.Object]) -> list[str]:
    """A sentence for each package whose names are offered here too."""
    elsewhere = defaultdict(list)
    for item in items:
        elsewhere[item.canonical_path.split('.')[1]].append(f'[`{item.name}`][{item.canonical_path}]')
    return [f'Also here, from `{PACKAGE}.{room}`: {", ".join(names)}.' for room, names in elsewhere.items()]


def command_page() -> str:
    """``cnv2`` with all commands, their usage and options."""
    from cnv2_plugin.cli import build_parser

    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    parts = ['# Command line', parser.description, _usage(parser), _options(parser)]
    for name, command in commands.choices.items():
        parts += [f'## cnv2 {name}', f'{_plain(command.description)}.', _usage(command), _options(command)]
    return '\n\n'.join(parts) + '\n'


def _usage(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=84)
    return f'```text\n{parser.format_usage().strip()}\n```'


def _options(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog)
    rows = ['| argument | meaning |', '|---|---|']
    for action in parser._actions:
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction):
            shown = formatter._format_action_invocation(action).replace('|', r'\|')
            rows.append(
                f'| `{shown}` | {_plain(formatter._expand_help(action) if action.help else "")}{_default(action)} |'
            )
    return '\n'.join(rows)


def _default(action: argparse.Action) -> str:
    if action.default in (None, False, argparse.SUPPRESS, []) or 'default' in (action.help or ''):
        return ''
    value = ' '.join(map(str, action.default)) if isinstance(action.default, (list, tuple)) else action.default
    return f' (default: `{value}`)'


def _plain(text: str) -> str:
    """Text of a help string that Markdown shows as it is."""
    for sign in '\\`*_[]<>|':
        text = text.replace(sign, f'\\{sign}')
    return text
