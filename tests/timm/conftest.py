"""One thread: the machine is shared, and the networks are small."""

import pytest
import torch


@pytest.fixture(autouse=True, scope='session')
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
