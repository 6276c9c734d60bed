"""What processes combine: running statistics, averaged plainly or over all batches."""

import torch

import snzoo
from snzoo.processes import Processes
from snzoo.recipes import Recipe
from snzoo.training.config import TrainingConfig
from snzoo.training.state import average_buffers
from snzoo.training.step import Stepper
from snzoo.training.validation import combine_statistics


class Together(Processes):
    """This process, beside one whose values were gathered before."""

    other: object

    def gather(self, value):
        return [value, self.other]


def together(other):
    processes = Together(0, 2)
    object.__setattr__(processes, "other", other)
    return processes


def test_running_statistics_become_the_means_of_the_processes():
    recipe: Recipe = snzoo.get_info("resnet18v1_sn_clothing").recipe
    network = snzoo.create_model("resnet18v1_bn", width=8, num_classes=2)
    alone = Processes()
    stepper = Stepper(network, recipe, TrainingConfig(""), torch.device("cpu"), alone)
    for buffer in network.buffers():
        buffer.fill_(1)
    other = {name: torch.full_like(b, 3) for name, b in network.named_buffers()}
    average_buffers(stepper, alone)
    assert all((buffer == 1).all() for buffer in network.buffers())
    average_buffers(stepper, together(other))
    for name, buffer in network.named_buffers():
        assert (buffer == (1 if name.endswith("tracked") else 2)).all()


def test_batch_averages_of_two_halves_are_those_of_all_batches():
    model = snzoo.nn.SwitchNorm2d(4).double()
    scale = torch.arange(1, 5)[:, None, None]
    batches = list(torch.randn(6, 5, 4, 3, 3, dtype=torch.float64) * scale)
    halves = []
    for part in (batches, batches[:3], batches[3:]):
        snzoo.nn.update_bn_statistics(model, part)
        halves.append((model.running_mean.clone(), model.running_var.clone()))
    expected = halves[0]
    model.running_mean.copy_(halves[1][0])
    model.running_var.copy_(halves[1][1])
    combine_statistics(model, together([halves[2]]))
    torch.testing.assert_close(model.running_mean, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.running_var, expected[1], rtol=1e-12, atol=1e-12)
