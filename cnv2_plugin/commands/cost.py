"""``cnv2 cost``: parameters and multiply-adds of a variant, of the parts of a config, or beside published figures."""

import argparse

from ._output import print_table
from ._usage import UsageError, add_input_option

PRINTS_TABLES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('arch', nargs='?', help='timm name, such as condensenetv2_a, or OpenMMLab config (file or '
                        'cnv2_plugin::NAME)')  # fmt: skip
    parser.add_argument('--all', action='store_true', help='every variant beside the published figures')
    add_input_option(parser)
    parser.add_argument('--deploy', action='store_true', help='the condensed form only')


def run(args: argparse.Namespace) -> None:
    from ..analysis.cost import cost_table

    if args.all == bool(args.arch):
        raise UsageError('give one variant, such as condensenetv2_a, or a config, or --all.')
    if args.all:
        header, rows = _published_rows(args.input)
        print_table('Every variant after pruning, beside the published figures', header, rows, args.markdown)
    elif args.arch.endswith('.py') or '::' in args.arch:
        title, header, rows = _parts_of_config(args)
        print_table(title, header, rows, args.markdown)
    else:
        training = None if args.deploy else count_variant(args.arch, False, args.input)
        forms = dict(training=training, pruned=training.pruned) if training else {}
        forms['condensed'] = count_variant(args.arch, True, args.input)
        print_table(f'{args.arch}, one image', *cost_table(forms), args.markdown)


def count_variant(name: str, deploy: bool, input_size=None):
    """Cost of a variant built through timm, in training or condensed form."""
    import timm

    from ..analysis import count_cost
    from ..archs import find_variant

    variant = find_variant(name)
    size = tuple(input_size or variant.input_size)
    model = timm.create_model(name, deploy=deploy, in_chans=size[0], device='meta')
    return count_cost(model, size, linear_bias=variant.family == 'CondenseNet')


def _parts_of_config(args: argparse.Namespace) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows: backbone, neck and head of a config's model apart."""
    from ..analysis import count_cost
    from ..models.modes import in_eval
    from ..toolkits.openmmlab.deploy_files import build, deployed_config
    from ..toolkits.openmmlab.runner_config import load_config
    from ._config_models import Features, compared_views, input_size_of

    cfg = load_config(args.arch)
    size = tuple(args.input or input_size_of(cfg))
    model = in_eval(build(deployed_config(cfg) if args.deploy else cfg))
    parts: list = [model.backbone, Features(model)]
    *_, whole = compared_views(model)[1].values()
    if whole is not Features:
        parts.append(whole(model))
    costs = [count_cost(part, size) for part in parts]
    forms = dict(condensed=costs) if args.deploy else {'as trained': costs, 'pruned': [cost.pruned for cost in costs]}
    rows = [['backbone'], ['neck'], ['head'], ['all']] if len(parts) == 3 else [['backbone'], ['neck'], ['both']]
    for counted in forms.values():
        sums = [(0, 0), *((cost.params, cost.mult_adds) for cost in counted)]
        own = [(after[0] - before[0], after[1] - before[1]) for before, after in zip(sums, sums[1:])]
        for row, (params, work) in zip(rows, [*own, sums[-1]]):
            row += [f'{params:,}', f'{work / 1e6:.2f}', f'{work / sums[-1][1]:.1%}']
    if len(parts) == 2:
        heads = sum(parameter.numel() for parameter in model.parameters()) - costs[-1].params
        rows.append(['head', *[f'{heads:,}', 'for each box', ''] * len(forms)])
    figures = ('parameters', 'multiply-adds (M)', 'share')
    header = ['', *(f'{figure}, {form}' for form in forms for figure in figures)]
    return f'{args.arch}, one image {"x".join(map(str, size))}', header, rows


def _published_rows(input_size):
    from tqdm import tqdm

    from ..archs import VARIANTS

    header = ['variant', 'params (M)', 'published', 'diff', "mult-adds, authors' (M)", 'published', 'diff',
              'mult-adds, plain (M)', 'note']  # fmt: skip
    rows = []
    for name, variant in tqdm(VARIANTS.items(), desc='counting', leave=False, disable=None):
        cost = count_variant(name, False, input_size)
        published = variant.published
        params, counted, plain = cost.params_pruned, cost.authors_count, cost.mult_adds_pruned
        note = published.note if published else ''
        if published and published.halved_classifier:
            arch = variant.arch
            features = 2 * arch.growth[0] + sum(layers * growth for layers, growth in zip(arch.layers, arch.growth))
            dropped = variant.num_classes * features // 2
            params, counted, plain = params - dropped, counted - dropped, plain - dropped
            note = 'counted as published, with half of the classifier inputs dropped'
        row = [name, f'{params / 1e6:.3f}', '-', '-', f'{counted / 1e6:.2f}', '-', '-', f'{plain / 1e6:.2f}', note]
        if published:
            row[2:4] = [f'{published.params:g}', f'{params / published.params / 1e4 - 100:+.1f} %']
            row[5:7] = [f'{published.mult_adds:g}', f'{counted / published.mult_adds / 1e4 - 100:+.1f} %']
        rows.append(row)
    return header, rows
