"""An evaluation script that knows timm and nothing of ours: what ``cnv2 run`` is given in the tests.

Made of the calls that timm's own scripts for validation and inference are made of: a model with its checkpoint, the
settings of its images, a folder of pictures through timm's loader, a table of the best classes.
"""

import argparse
import json

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model, load_checkpoint
from timm.utils import AverageMeter, accuracy

parser = argparse.ArgumentParser()
parser.add_argument('data')
parser.add_argument('--model', default='condensenetv2')
parser.add_argument('--model-kwargs', type=json.loads, default={})
parser.add_argument('--checkpoint', required=True)
parser.add_argument('--use-ema', action='store_true')
parser.add_argument('--input-size', type=int, nargs=3)
parser.add_argument('--results')


@torch.inference_mode()
def main():
    """Print the accuracy as JSON and write each picture's class and logit."""
    args = parser.parse_args()
    model = create_model(args.model, num_classes=5, **args.model_kwargs)
    load_checkpoint(model, args.checkpoint, use_ema=args.use_ema)
    settings = resolve_data_config(vars(args), model=model)
    settings['crop_pct'] = 1.0
    dataset = create_dataset('', root=args.data, split='val')
    workers = dict(num_workers=0, persistent_workers=False)
    loader = create_loader(dataset, batch_size=4, device=torch.device('cpu'), **workers, **settings)
    model.eval()
    top1, best = AverageMeter(), []
    for images, targets in loader:
        logits = model(images)
        top1.update(accuracy(logits, targets)[0].item(), images.size(0))
        best += zip(*(part.squeeze(1).tolist() for part in logits.topk(1)))
    if args.results:
        with open(args.results, 'w') as file:
            json.dump(dict(zip(loader.dataset.filenames(), best)), file)
    print(json.dumps(dict(top1=top1.avg)))


if __name__ == '__main__':
    main()
