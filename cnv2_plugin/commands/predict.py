"""``cnv2 predict``: answer with a deployed ONNX file, without PyTorch."""

import argparse
import json
import os
import sys
from pathlib import Path

SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('file', metavar='FILE', help='ONNX file that cnv2 deploy or cnv2 export wrote')
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE', help='images, or folders of them')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder for PNGs with the answers drawn into them')
    parser.add_argument('--json', dest='as_json', action='store_true', help='print JSON, and nothing else')
    parser.add_argument('--top', type=int, default=5, help='classes to name (default: 5)')
    parser.add_argument('--threshold', type=float, default=0.3, help='score that objects exceed (default: 0.3)')
    parser.add_argument('--threads', type=int, help='threads of the processor (default: all)')
    parser.add_argument('--quiet', action='store_true', help='no progress')


def run(args: argparse.Namespace) -> int:
    """Answer for every image that can be read, and name the others at the end."""
    from ..serving import Model
    from ..serving.drawing import draw
    from ..serving.images import open_image
    from ._usage import UsageError, check_paths

    if args.top < 1 or not 0 <= args.threshold < 1:
        raise UsageError(
            f'--top is {args.top} and --threshold {args.threshold}; they take 1 or more, and 0 to below 1.'
        )
    model = Model(args.file, args.threads)
    paths, empty = _images(args.images)
    names = _names(paths)
    if args.out:
        check_paths([args.out / name for name in names.values()], [args.file, *paths])
        args.out.mkdir(parents=True, exist_ok=True)
    answers = {}
    failures = {str(path): f'{path} holds no images ({", ".join(SUFFIXES)}); leave it out.' for path in empty}
    for i, path in enumerate(paths, 1):
        if not args.quiet and sys.stderr.isatty():
            print(f'\r{i} of {len(paths)}', end='\n' if i == len(paths) else '', file=sys.stderr)
        try:
            image = open_image(path)
        except ValueError as error:
            failures[str(path)] = str(error)
            continue
        answer = model(image, args.top, args.threshold)
        answers[str(path)] = answer.to_dict()
        if args.out:
            _save(draw(image, answer), args.out / names[path])
        if not args.as_json:
            print(f'{path}: {_line(answers[str(path)])}')
    if args.as_json:
        print(json.dumps(dict(file=args.file, kind=model.about.kind, answers=answers, failures=failures), indent=1))
    for text in failures.values():
        print(f'cnv2 predict: {text}', file=sys.stderr)
    if failures:
        print(f'cnv2 predict: {len(failures)} of {len(paths) + len(empty)} images have no answer.', file=sys.stderr)
    return 1 if failures else 0


def _images(given: list[Path]) -> tuple[list[Path], list[Path]]:
    """The given images and those in given folders, and the folders that hold none."""
    found: list[Path] = []
    empty: list[Path] = []
    for path in given:
        inside = sorted(p for p in path.rglob('*') if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        found += inside
        empty += [] if inside else [path]
    if not found:
        raise ValueError(f'{empty[0]} holds no images ({", ".join(SUFFIXES)}); give a folder with some.')
    return list(dict.fromkeys(found)), empty


def _names(paths: list[Path]) -> dict[Path, str]:
    """Names of PNGs, each its own."""
    names, taken = {}, set()
    for path in paths:
        name, i = f'{path.stem}.png', 1
        while name in taken:
            name, i = f'{path.stem}-{i}.png', i + 1
        taken.add(name)
        names[path] = name
    return names


def _save(image, path: Path) -> None:
    """Write a PNG whole or not at all."""
    part = path.with_suffix('.png.part')
    try:
        image.save(part, 'PNG')
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _line(answer: dict) -> str:
    if 'shares' in answer:
        return ', '.join(f'{name} {share:.1%}' for name, share in zip(answer['names'], answer['shares']))
    boxes = [' at ' + ' '.join(f'{side:.0f}' for side in box) for box in answer.get('boxes', [])]
    boxes = boxes or [''] * len(answer['names'])
    rows = [f'{name} {score:.3f}{box}' for name, score, box in zip(answer['names'], answer['scores'], boxes)]
    return ', '.join(rows) or 'nothing'
