"""What each kind of operator takes of an ONNX file's time, by ONNX Runtime's own profiler."""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime


def operator_times(file: Path, size: tuple[int, int, int] = (3, 224, 224), calls: int = 30) -> dict[str, float]:
    """Milliseconds by kind of operator, the least of each node over the calls; one image, one thread."""
    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = f'{folder}/profile'
        session = onnxruntime.InferenceSession(str(file), options, providers=['CPUExecutionProvider'])
        feed = {session.get_inputs()[0].name: np.random.default_rng(0).standard_normal((1, *size)).astype(np.float32)}
        for _ in range(calls):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        if event.get('cat') == 'Node' and event['name'].endswith('kernel_time'):
            nodes[event['args']['op_name'], event['name']].append(event['dur'])
    total: Counter[str] = Counter()
    for (kind, _), times in nodes.items():
        total[kind] += min(times)
    return {kind: time / 1e3 for kind, time in total.most_common()}


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', type=Path)
    times = operator_times(parser.parse_args().file)
    for kind, milliseconds in times.items():
        print(f'{kind:24}{milliseconds:8.3f} ms {100 * milliseconds / sum(times.values()):6.1f} %')
