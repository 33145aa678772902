"""Put small faults into a copy of the sources, one at a time, and tell which of them no fast test notices.

A fault is what one of Cosmic Ray's operators makes of one place in the code. The tests of a fault are those of its room
that run its line, the quickest first; each fault is tried in a forked process that has the libraries loaded already.
"""

import argparse
import ast
import contextlib
import difflib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    'layers': (
        ['layers/*.py'],
        ['layers', 'deploy/test_known.py', 'deploy/test_condense.py', 'timm/test_classifier_keep.py',
         'sparsify/test_packing.py', 'sparsify/test_training_state.py'],
    ),
    'sparsify': (['sparsify/*.py'], ['sparsify', 'layers/test_attached.py']),
    'kernels': (['kernels/*.py'], ['kernels', 'deploy/test_rewrites.py']),
    'verify': (['deploy/verify.py'], ['deploy/test_verify.py', 'deploy/test_pipeline.py', 'deploy/test_export.py']),
    'surgery': (['sparsify/surgery/*.py'], ['surgery', 'sparsify/test_importance.py']),
    'models': (
        ['models/*.py'],
        ['test_trunks.py', 'timm/test_as_a_module.py', 'timm/test_generic.py', 'timm/test_classifier_keep.py',
         'deploy/test_condense.py', 'layers'],
    ),
}  # fmt: skip
"""For each room the files that get faults, under the package, and the tests that should notice, under ``tests``."""
SAME_BY_KIND = ('Eq_Is', 'Is_Eq', 'NotEq_IsNot', 'IsNot_NotEq')
"""Operators that change nothing for the objects of this package."""
PRELOADED = ('torch', 'torchvision', 'timm', 'timm.models', 'onnx', 'onnxruntime', 'pytest', 'numpy', 'torch.fx')
LIMIT_S = 45
"""Seconds that the tests of one fault may take together, by their times without a fault."""


def main() -> None:
    """Trace the tests, try a sample of faults, print the survivors and a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sample', type=int, default=40, help='faults of each room (default: 40)')
    parser.add_argument('--seed', type=int, default=0, help='of the sample (default: 0)')
    parser.add_argument('--room', nargs='+', choices=ROOMS, default=list(ROOMS), help='rooms (default: all)')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='begin no fault after these')
    parser.add_argument('--folder', type=Path, default=ROOT / 'work_dirs/mutate', help='of the copy and the results')
    parser.add_argument('--again', action='store_true', help='try the survivors again, with the tests as they are now')
    parser.add_argument('--report', action='store_true', help='print what was found so far, and try nothing')
    args = parser.parse_args()
    end = time.monotonic() + args.minutes * 60
    results = args.folder / f'results-{args.seed}.jsonl'
    found, missed = _read(results), []
    if args.again:
        missed = [result for result in found.values() if 'diff' in result]
        found = {key: result for key, result in found.items() if 'diff' not in result}
    if not args.report:
        tree = _copy(args.folder / 'tree')
        _preload(tree)
        traces = {room: _trace(room, tree, args.folder) for room in args.room}
        faults = {room: _sample(room, tree, args.sample, args.seed) for room in args.room}
        if args.again:
            faults = {room: [fault for fault in missed if fault['room'] == room] for room in args.room}
        queues = {room: iter(faults[room]) for room in args.room}
        while queues and time.monotonic() < end:
            for room, queue in list(queues.items()):
                fault = next((f for f in queue if _key(f) not in found), None)
                if fault is None:
                    del queues[room]
                    continue
                found[_key(fault)] = result = _try(fault, traces[room], tree)
                with results.open('a') as file:
                    file.write(json.dumps(result) + '\n')
    _report([r for r in found.values() if r['room'] in args.room])


def _read(path: Path) -> dict[str, dict]:
    lines = path.read_text().splitlines() if path.is_file() else []
    return {_key(result): result for result in map(json.loads, lines)}


def _key(fault: dict) -> str:
    return f'{fault["file"]} {fault["operator"]} {fault["place"]} {fault["occurrence"]}'


def _copy(tree: Path) -> Path:
    """Copy what git knows and what was built to where faults are put in."""
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    built = [str(p.relative_to(ROOT)) for p in (ROOT / 'cnv2_plugin').rglob('*.so')]
    shutil.rmtree(tree, ignore_errors=True)
    for name in [*listed.stdout.splitlines(), *built]:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    return tree


def _preload(tree: Path) -> None:
    """Load what every test needs but not this package, which each fork loads with its fault."""
    os.environ.update(PYTHONDONTWRITEBYTECODE='1', PYTHONPATH=str(tree), OMP_NUM_THREADS='1')
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or '.').resolve() not in (ROOT, ROOT / 'tools'))]
    os.chdir(tree)
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            __import__(name)
    assert not any(name.startswith('cnv2_plugin') for name in sys.modules), 'the package is loaded already'


class _Tracer:
    """A plugin of pytest that notes which lines each test runs, and how long it takes."""

    def __init__(self, wanted: list[Path]) -> None:
        import coverage

        self.files = [str(path) for path in wanted]
        self.coverage = coverage.Coverage(data_file=None, include=self.files, config_file=False, messages=False)
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report) -> None:  # noqa: ANN001
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if report.outcome != 'passed':
            self.failed.add(report.nodeid)

    def lines(self, tree: Path) -> dict[str, dict[str, list[str]]]:
        data = self.coverage.get_data()
        found = {file: data.contexts_by_lineno(file) for file in data.measured_files()}
        return {str(Path(file).relative_to(tree)): lines for file, lines in found.items()}


def _trace(room: str, tree: Path, folder: Path) -> dict:
    """Which tests of a room pass, for how long, and by which lines of it they come; kept in a file for each path."""
    seconds: dict[str, float] = {}
    lines: dict[str, dict[str, list[str]]] = {}
    for tests in ROOMS[room][1]:
        path = folder / f'trace-{room}-{tests.replace("/", ".")}.json'
        sources = [p for glob in ROOMS[room][0] for p in (tree / 'cnv2_plugin').glob(glob)]
        given = [*sources, *(tree / 'tests').glob(f'{tests}/*.py' if '.' not in tests else tests)]
        if not path.is_file() or path.stat().st_mtime < max(p.stat().st_mtime for p in given):
            print(f'tracing tests/{tests} for {room}', flush=True)
            _fork(partial(_traced, sources, tests, tree, path), 3600, path.with_suffix('.log'))
        found = json.loads(path.read_text())
        seconds.update(found['seconds'])
        for file, by_line in found['lines'].items():
            for line, names in by_line.items():
                lines.setdefault(file, {}).setdefault(line, []).extend(names)
    return dict(seconds=seconds, lines=lines)


def _traced(sources: list[Path], tests: str, tree: Path, path: Path) -> int:
    import pytest

    tracer = _Tracer(sources)
    tracer.coverage.start()
    pytest.main([f'tests/{tests}', '-q', '-p', 'no:cacheprovider'], plugins=[tracer])
    tracer.coverage.stop()
    good = {name: s for name, s in tracer.seconds.items() if name not in tracer.failed}
    path.write_text(json.dumps(dict(seconds=good, lines=tracer.lines(tree))))
    return 0


def _fork(run, seconds: float, log: Path) -> int | None:  # noqa: ANN001
    """The exit code of a function in a process of its own; None where it took too long."""
    child = os.fork()
    if not child:
        os.setsid()
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = 70
        try:
            code = int(run())
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < end:
        pid, value = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(value) if pid else None
        time.sleep(0.05 if status is None else 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return status


def _sample(room: str, tree: Path, size: int, seed: int) -> list[dict]:
    """Faults at different places, drawn evenly over the places of a room; those of a larger sample come after."""
    places: dict[tuple, list[dict]] = {}
    for glob in ROOMS[room][0]:
        for path in sorted((tree / 'cnv2_plugin').glob(glob)):
            for fault in _faults(room, path, tree):
                places.setdefault((fault['file'], *fault['place']), []).append(fault)
    rng = random.Random(f'{room} {seed}')
    order = sorted(places)
    rng.shuffle(order)
    return [rng.choice(places[place]) for place in order[:size]]


def _faults(room: str, path: Path, tree: Path) -> Iterator[dict]:
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = path.read_text()
    parsed, lines, passed_over = get_ast(source), source.splitlines(), _without_effect(ast.parse(source))
    for name in operator_names():
        if get_operator(name).arguments() or name.endswith(SAME_BY_KIND):
            continue
        operator = get_operator(name)()
        positions = ((s, e) for node in ast_nodes(parsed) for s, e in operator.mutation_positions(node))
        for occurrence, (start, stop) in enumerate(positions):
            if not any(first <= start and stop <= last for first, last in passed_over):
                text = lines[start[0] - 1].strip()
                fault = dict(room=room, file=str(path.relative_to(tree)), operator=name.split('/')[-1], text=text)
                yield dict(fault, full=name, occurrence=occurrence, line=start[0], place=[*start, *stop])


def _without_effect(parsed: ast.Module) -> list[tuple]:
    """Where code does nothing when run: annotations, sentences of errors, options of dataclasses."""
    found: list[ast.AST | None] = []
    for node in ast.walk(parsed):
        if isinstance(node, ast.arg | ast.AnnAssign):
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            found.append(node.returns)
        elif isinstance(node, ast.JoinedStr):
            found.append(node)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            found.extend(node.exc.args)
        elif isinstance(node, ast.ClassDef):
            found.extend(d for d in node.decorator_list if isinstance(d, ast.Call) and 'dataclass' in ast.unparse(d))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):  # an alias of a type
            found.extend([node.value] if isinstance(node.value.value, ast.Name) and _is_type(node.value.value) else [])
    return [((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in found if n is not None]


def _is_type(name: ast.Name) -> bool:
    return name.id[:1].isupper() or name.id in ('tuple', 'list', 'dict', 'type')


def _try(fault: dict, trace: dict, tree: Path) -> dict:
    """Run the tests of one fault: killed, survived, timeout, or untested where no test runs its line."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    path = tree / fault['file']
    source = path.read_text()
    mutant = mutate_code(source, get_operator(fault['full'])(), fault['occurrence'])
    lines = trace['lines'].get(fault['file'], {})
    on_line = [lines.get(str(line), []) for line in range(fault['place'][0], fault['place'][2] + 1)]
    tests = {t for found in on_line for t in found if t in trace['seconds']}
    if not tests and any('' in found for found in on_line):  # runs at import
        tests = {t for found in lines.values() for t in found if t in trace['seconds']}
    chosen, seconds = [], 0.0
    for test in sorted(tests, key=trace['seconds'].get):
        seconds += trace['seconds'][test]
        if seconds > LIMIT_S and chosen:
            break
        chosen.append(test)

    def run() -> int:
        import pytest

        return pytest.main([*chosen, '-x', '-q', '-p', 'no:cacheprovider', '--no-header'])

    began, outcome = time.monotonic(), 'untested'
    log = tree.parent / 'last.log'
    if chosen:
        path.write_text(mutant)
        try:
            code = _fork(run, 60 + 6 * seconds, log)
        finally:
            path.write_text(source)
        outcome = 'timeout' if code is None else 'survived' if code == 0 else 'killed'
    result = dict(fault, outcome=outcome, tests=len(chosen), seconds=round(time.monotonic() - began, 1))
    if outcome in ('survived', 'untested'):
        diff = difflib.unified_diff(source.splitlines(), mutant.splitlines(), fault['file'], outcome, lineterm='', n=1)
        result['diff'] = '\n'.join(diff)
        print(f'{result["diff"]}\n', flush=True)
    elif code not in (None, 1):
        result['note'] = f'exit {code}: ' + ' '.join(log.read_text(errors='replace').split()[-12:])
    print(f'{outcome}: {fault["file"]}:{fault["line"]} {fault["operator"]}, {result["seconds"]} s', flush=True)
    return result


def _report(results: list[dict]) -> None:
    for result in results:
        if 'diff' in result:
            print(f'\n{result["diff"]}')
    print('\n| room | faults | noticed | survived | survivors |\n|---|---|---|---|---|')
    rooms = [room for room in ROOMS if any(r['room'] == room for r in results)]
    for room in [*rooms, 'all']:
        own = [r for r in results if room in (r['room'], 'all')]
        left = sum(r['outcome'] in ('survived', 'untested') for r in own)
        print(f'| {room} | {len(own)} | {len(own) - left} | {left} | {left / max(len(own), 1):.0%} |')


if __name__ == '__main__':
    main()
