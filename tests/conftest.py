"""What holds for every test."""

import matplotlib as mpl
import torch

mpl.use("agg")  # no window, whatever the machine has

# The problems of the tests are tiny: a second thread would only wait for its core when the machine is busy.
torch.set_num_threads(1)
