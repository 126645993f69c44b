"""The moving average, by hand and by the names it follows."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.ema_teacher import EMATeacher


class Network(nn.Module):
    """Parameters, buffers, and a token of the student's alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.mask_token = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.linear(x))
        return out


def move(student: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += by


def test_starts_as_a_copy_of_its_own() -> None:
    student = Network()
    student.norm.running_mean.add_(2.0)  # type: ignore[union-attr]
    teacher = EMATeacher(student, 0.9)
    for name, value in teacher.module.state_dict().items():
        assert torch.equal(value, student.state_dict()[name])
        assert value.data_ptr() != student.state_dict()[name].data_ptr()
    move(student, 1.0)
    assert not torch.equal(teacher.module.linear.weight, student.linear.weight)


def test_average_by_hand() -> None:
    """From 1 towards a student at 3, then at 5, with m = 0.9 throughout: 1.2, then 1.58."""
    student = nn.Linear(1, 1)
    nn.init.ones_(student.weight)
    teacher = EMATeacher(student, 0.9, final_momentum=0.9)
    found = []
    for value in (3.0, 5.0):
        nn.init.constant_(student.weight, value)
        teacher.update(0, 10)
        found.append(teacher.module.weight.item())
    assert found == pytest.approx([1.2, 1.58])


def test_momentum_goes_from_start_to_end_in_a_cosine() -> None:
    """Of ten steps: 0.5 at the first, 0.75 in the middle, 1 at the end, where nothing moves."""
    student = nn.Linear(1, 1, bias=False)
    teacher = EMATeacher(student, 0.5)
    for step, moved in ((0, 0.5), (5, 0.25), (10, 0.0)):
        nn.init.ones_(student.weight)
        nn.init.zeros_(teacher.module.weight)
        teacher.update(step, 10)
        assert teacher.module.weight.item() == pytest.approx(moved)


def test_follows_what_it_was_copied_from_and_nothing_that_came_later() -> None:
    """iBOT gives its student a head of its own after the copy."""
    student = Network()
    teacher = EMATeacher(student, 0.75, 0.75)
    before = {name: p.clone() for name, p in teacher.module.named_parameters()}
    student.later = nn.Linear(1, 1)
    move(student, 4.0)
    teacher.update(0, 1)
    for name, value in teacher.module.named_parameters():
        torch.testing.assert_close(value, before[name] + 1.0)
    assert len(teacher.pairs) == len(before)


@pytest.mark.parametrize("momentum", [-0.1, 1.5])
def test_a_momentum_that_is_none_is_refused(momentum: float) -> None:
    with pytest.raises(UserError, match=f"--method.momentum {momentum} must lie between 0 and 1"):
        EMATeacher(Network(), momentum)


def test_a_parameter_with_two_names_moves_once() -> None:
    """A head shared by two outputs (iBOT)."""
    student = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    student[1].weight = student[0].weight
    teacher = EMATeacher(student, 0.5, 0.5)
    before = teacher.module[0].weight.clone()
    move(student, 1.0)
    teacher.update(0, 1)
    torch.testing.assert_close(teacher.module[0].weight, before + 0.5)
    assert teacher.module[1].weight is teacher.module[0].weight


def test_buffers_are_its_own() -> None:
    """Batch norm in training mode: batch statistics in the output, running ones from what the teacher saw."""
    torch.manual_seed(0)
    student = Network()
    teacher = EMATeacher(student, 0.0, 0.0)
    x = torch.randn(64, 3) + 5
    output = teacher(x)
    assert output.mean(0).abs().max() < 1e-5
    seen = teacher.module.norm.running_mean.clone()
    assert not torch.equal(seen, student.norm.running_mean)
    teacher.update(0, 1)
    assert torch.equal(teacher.module.norm.running_mean, seen)
    assert teacher.module.norm.num_batches_tracked == 1


def test_has_no_gradient() -> None:
    student = Network()
    teacher = EMATeacher(student, 0.9)
    x = torch.randn(4, 3, requires_grad=True)
    assert not teacher(x).requires_grad
    (student(x) - teacher(x)).square().sum().backward()
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    teacher.update(0, 1)
    assert student.linear.weight.grad is not None


def test_has_no_stochastic_depth() -> None:
    """In training mode its output does not vary, while its student's does."""
    torch.manual_seed(0)
    student = Backbone(BackboneOptions("vit_pico_patch4_32", drop_path=0.5))
    teacher = EMATeacher(student, 0.9).train()
    images = torch.rand(8, 3, 32, 32)
    assert torch.equal(teacher(images), teacher(images))
    assert torch.equal(teacher(images), student.eval()(images))
    student.train()
    assert not torch.equal(student(images), student(images))


def test_a_copy_of_both_follows_its_own_student() -> None:
    both = nn.ModuleDict({"student": nn.Linear(1, 1)})
    both["teacher"] = EMATeacher(both["student"], 0.5, 0.5)
    copied = copy.deepcopy(both)
    before = both["teacher"].module.weight.clone()
    move(copied["student"], 1.0)
    copied["teacher"].update(0, 1)
    torch.testing.assert_close(copied["teacher"].module.weight, before + 0.5)
    assert torch.equal(both["teacher"].module.weight, before)


def test_loaded_weights_are_followed() -> None:
    both = nn.ModuleDict({"student": nn.Linear(1, 1)})
    both["teacher"] = EMATeacher(both["student"], 0.0, 0.0)
    both.load_state_dict({name: torch.full_like(value, 7.0) for name, value in both.state_dict().items()})
    both.double()
    move(both["student"], 1.0)
    both["teacher"].update(0, 1)
    assert both["teacher"].module.weight.item() == 8.0
