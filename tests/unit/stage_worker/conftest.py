"""Settings for the tests of the stage worker."""

import torch

# Tiny products gain nothing from threads, and lose much where other processes want the cores too.
torch.set_num_threads(1)
