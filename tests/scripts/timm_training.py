"""A training script that knows timm and nothing of ours: what ``cnv2 run`` is given in the tests.

Made of the calls that timm's own training script is made of: factories for model, optimiser and schedule, an averaged
copy, a checkpoint saver, resuming.
"""

import argparse
import json
from pathlib import Path

import torch
from timm import create_model
from timm.data import create_dataset, create_loader
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument('output')
parser.add_argument('--model', default='condensenetv2')
parser.add_argument('--model-kwargs', type=json.loads, default={})
parser.add_argument('--opt', default='sgd')
parser.add_argument('--epochs', type=int, default=6)
parser.add_argument('--lr', type=float, default=0.05)
parser.add_argument('--stop-after', type=int, default=0)
parser.add_argument('--grad-accum-steps', type=int, default=1)
parser.add_argument('--model-ema', action='store_true')
parser.add_argument('--resume', default='')
parser.add_argument('--distributed', action='store_true')
parser.add_argument('--compile', action='store_true')
parser.add_argument('--amp', action='store_true')
parser.add_argument('--data-dir', default='')
parser.add_argument('--pretrained', action='store_true')
parser.add_argument('--pretrained-path', default='')
parser.add_argument('--num-classes', type=int, default=5)
parser.add_argument('--input-size', type=int, nargs=3)


def loaders(args):
    """Two loaders of made-up images; the smaller one evaluates."""
    if args.data_dir:
        return [folder_loader(args, part) for part in ('train', 'val')]
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.randn(40, 3, 8, 8, generator=generator), torch.arange(40) % 5
    train, held_out = TensorDataset(images[:28], targets[:28]), TensorDataset(images[28:], targets[28:])
    sampler = DistributedSampler(train, shuffle=False) if args.distributed else None
    return DataLoader(train, 4, sampler=sampler), DataLoader(held_out, 12)


def folder_loader(args, part):
    """A loader of class folders."""
    dataset = create_dataset('', root=args.data_dir, split=part, is_training=part == 'train')
    options = dict(is_training=part == 'train', use_prefetcher=False, num_workers=0, persistent_workers=False)
    return create_loader(dataset, tuple(args.input_size), 4, **options)


def train_one_epoch(epoch, model, loader, optimizer, scaler, ema, scheduler, args):
    """Micro-batches are accumulated; the last update of an epoch may have fewer."""
    model.train()
    updates = -(-len(loader) // args.grad_accum_steps)
    done = epoch * updates
    for index, (images, targets) in enumerate(loader, 1):
        update = index % args.grad_accum_steps == 0 or index == len(loader)
        with torch.autocast('cpu', torch.bfloat16, enabled=args.amp):
            loss = torch.nn.functional.cross_entropy(model(images), targets) / args.grad_accum_steps
        if scaler:
            scaler(loss, optimizer, parameters=model.parameters(), need_update=update)
        else:
            loss.backward()
            if update:
                optimizer.step()
        if not update:
            continue
        optimizer.zero_grad()
        done += 1
        if ema:
            ema.update(getattr(model, 'module', model), step=done)
        scheduler.step_update(num_updates=done)


@torch.inference_mode()
def accuracy(model, loader):
    """Share of right answers in percent."""
    model.eval()
    right = sum((model(images).argmax(1) == targets).sum().item() for images, targets in loader)
    return 100 * right / len(loader.dataset)


def main():
    """Train, evaluate and save each epoch."""
    args = parser.parse_args()
    if args.distributed:
        torch.distributed.init_process_group('gloo')
    primary = not args.distributed or torch.distributed.get_rank() == 0
    torch.manual_seed(0)
    given = dict(pretrained_cfg_overlay=dict(file=args.pretrained_path, num_classes=-1)) if args.pretrained_path else {}
    model = create_model(args.model, args.pretrained, num_classes=args.num_classes, **given, **args.model_kwargs)
    optimizer = create_optimizer_v2(model, args.opt, lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scaler = NativeScaler(device='cpu') if args.amp else None
    start = resume_checkpoint(model, args.resume, optimizer, scaler) if args.resume else 0
    ema = ModelEmaV3(model, decay=0.9) if args.model_ema else None
    if ema and args.resume:
        load_checkpoint(ema.module, args.resume, use_ema=True)
    trained = DistributedDataParallel(model) if args.distributed else model
    trained = torch.compile(trained, backend='eager') if args.compile else trained
    loader, held_out = loaders(args)
    scheduler, epochs = create_scheduler_v2(
        optimizer, 'cosine', args.epochs, warmup_epochs=0, updates_per_epoch=-(-len(loader) // args.grad_accum_steps)
    )
    saver = None
    if primary:
        Path(args.output).mkdir(parents=True, exist_ok=True)
        saver = CheckpointSaver(
            model, optimizer, args=args, model_ema=ema, amp_scaler=scaler, checkpoint_dir=args.output
        )
    if start:
        scheduler.step(start)
    for epoch in range(start, args.stop_after or epochs):
        train_one_epoch(epoch, trained, loader, optimizer, scaler, ema, scheduler, args)
        metric = accuracy(ema.module if ema else model, held_out)
        if saver:
            saver.save_checkpoint(epoch, metric)
        scheduler.step(epoch + 1, metric)


if __name__ == '__main__':
    main()
