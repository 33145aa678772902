"""Small data sets of a user's, made from scikit-learn's digits."""

import json

import numpy
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = ('four', 'one', 'zero')
DIGITS = dict(zero=0, one=1, four=4)


def digit_images(name, count):
    """So many images of a digit, 32x32, grey."""
    digits = load_digits()
    chosen = digits.images[digits.target == DIGITS[name]][:count]
    return [Image.fromarray((image * 15.9).astype(numpy.uint8)).resize((32, 32)) for image in chosen]


def class_folders(root, count=10, parts=('train', 'val')):
    """``root/PART/CLASS/*``, or ``root/CLASS/*`` without parts."""
    for part in parts or ['']:
        for name in CLASSES:
            folder = root / part / name
            folder.mkdir(parents=True)
            for i, image in enumerate(digit_images(name, count)):
                image.convert(('L', 'RGB', 'RGBA')[i % 3]).save(folder / f'image {i}.png')
    return root


def coco(root, count=12, names=('train', 'val')):
    """``root/images/*`` and ``root/NAME.json``, one digit in an image."""
    (root / 'images').mkdir(parents=True)
    for part in names:
        images, boxes = [], []
        for i in range(count):
            name = CLASSES[i % 3]
            canvas = Image.new('RGB', (96, 64))
            canvas.paste(digit_images(name, count)[i], (8 + i, 10))
            canvas.save(root / 'images' / f'{part}{i}.jpg')
            images.append(dict(id=i, file_name=f'{part}{i}.jpg', width=96, height=64))
            boxes.append(dict(id=i + 1, image_id=i, category_id=3 + 4 * (i % 3), bbox=[8 + i, 10, 32, 32]))
        categories = [dict(id=3 + 4 * i, name=name) for i, name in enumerate(CLASSES)]
        (root / f'{part}.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root
