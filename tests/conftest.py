"""What holds for every test."""

import torch

# The problems of the tests are tiny: a second thread would only wait for its core when the machine is busy.
torch.set_num_threads(1)
