"""A network that hears of its slide: what it is told, how far that goes, and that nothing told changes nothing."""

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from wsi_pipeline.base.errors import ModelError
from wsi_pipeline.models.architectures.registry import build_network
from wsi_pipeline.models.architectures.slide_condition import (
    LEAST_PATCHES,
    SHIFT,
    UNHEARD_FROM,
    KnownSlides,
    SlideConditioned,
    Slides,
    head_inputs,
    shrunk_covariance,
    with_slide_inputs,
)

SMALL = {"widths": [4, 8], "blocks": [1, 1], "squeeze": 2}


@pytest.fixture
def network() -> SlideConditioned:
    """One that says something of each slide, as after training, and knows some slides."""
    torch.manual_seed(0)
    network = build_network("residual_cnn", slide_condition={"hidden": 6}, **SMALL).eval()
    assert isinstance(network, SlideConditioned)
    last = network.condition[-1]
    torch.nn.init.normal_(last.weight, std=0.7)
    torch.nn.init.normal_(last.bias, std=0.3)
    network.know_slides(network.features(images(160)).reshape(20, 8, -1).mean(dim=1))
    return network


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 20, 20, generator=torch.Generator().manual_seed(seed))


def one_slide(count: int, known: float = 1.0) -> Slides:
    return Slides(torch.zeros(count, dtype=torch.int64), torch.ones(count), torch.tensor([known]))


def test_a_new_network_says_the_same_of_every_slide():
    torch.manual_seed(0)
    fresh = build_network("residual_cnn", slide_condition={"hidden": 6}, **SMALL).eval()
    torch.testing.assert_close(fresh(images(12), one_slide(12)), fresh(images(12)))


def test_what_is_told_of_a_slide_is_another_last_layer(network):
    """Trained with slides or given a head, the numbers are the same."""
    x = images(24)
    with torch.no_grad():
        features = network.features(x).numpy()
        head = network.head_of(features)
        told = network(x, one_slide(24))
        weight, bias = map(torch.from_numpy, head)
        given = with_slide_inputs(network)(x, weight, bias)
    assert (told - network(x)).abs().max() > 0.05
    torch.testing.assert_close(given, told, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(features @ head.weight.T + head.bias, told.numpy(), atol=1e-5)


def test_of_a_slide_of_which_nothing_is_known_the_network_says_its_own(network):
    x = images(10)
    torch.testing.assert_close(network(x, one_slide(10, known=0.0)), network(x))
    few = network.features(x[: LEAST_PATCHES - 1]).detach().numpy()
    assert network.head_of(few) is None
    weight, bias = head_inputs(network, None)
    np.testing.assert_array_equal(weight, network.core.head.weight.detach().numpy())
    np.testing.assert_array_equal(bias, network.core.head.bias.detach().numpy())


def test_slides_in_a_batch_hear_only_of_themselves(network):
    x = images(20)
    which = torch.arange(20) % 2
    both = network(x, Slides(which, torch.ones(20), torch.ones(2)))
    for slide in (0, 1):
        own = network(x[which == slide], one_slide(10))
        torch.testing.assert_close(both[which == slide], own, atol=1e-5, rtol=1e-5)


def test_only_counted_patches_say_what_the_slide_is(network):
    x = images(20)
    counted = (torch.arange(20) < 10).float()
    told = network(x, Slides(torch.zeros(20, dtype=torch.int64), counted, torch.ones(1)))
    torch.testing.assert_close(told[:10], network(x[:10], one_slide(10)), atol=1e-5, rtol=1e-5)


def test_the_condition_fades_out_far_from_all_training_slides(network):
    known, own = network.known, network.own_head()
    step = torch.linalg.solve(known.whitening, torch.ones_like(known.centre)) * known.far

    def moved(distance: float) -> float:
        mean = (known.centre + distance * step).numpy()
        assert network.distance_of(np.tile(mean, (LEAST_PATCHES, 1))) == pytest.approx(distance, rel=0.01)
        head = network.head_of(np.tile(mean, (LEAST_PATCHES, 1)))
        return float(np.abs(head.weight - own.weight).max())

    assert moved(0.9) > 0.01
    assert moved(UNHEARD_FROM - 0.01) < 0.2 * moved(1.0)
    assert moved(UNHEARD_FROM + 0.01) == pytest.approx(0, abs=1e-6)
    assert moved(50.0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("slides", "width"), [(200, 60), (30, 50), (12, 6)])
def test_the_covariance_is_shrunk_as_scikit_learn_does_it(slides, width):
    random = np.random.default_rng(width)
    values = random.standard_normal((slides, width)) @ random.standard_normal((width, width))
    values -= values.mean(axis=0)
    expected = LedoitWolf(assume_centered=True).fit(values).covariance_
    np.testing.assert_allclose(shrunk_covariance(torch.from_numpy(values)).numpy(), expected, atol=1e-10)


def correlated(slides: int, seed: int, width: int = 6) -> torch.Tensor:
    """Mean features that go together: each slide's are a value of its own, and little else."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(slides, 1, generator=random) + 0.1 * torch.randn(slides, width, generator=random)


@pytest.mark.parametrize("width", [6, 150])
def test_slides_of_the_same_kind_are_near_and_one_whose_features_part_company_is_far(width):
    known = KnownSlides(width)
    known.learn(correlated(180, 0, width))
    assert 0.002 < (known.distance(correlated(2000, 1, width)) > 1).float().mean() < 0.06
    # None of its features leaves the range that it has on training slides.
    assert known.distance(torch.tensor([[1.0, -1.0]]).repeat(1, width // 2))[0] > 3


@pytest.mark.parametrize(
    "means", [torch.ones(2, 4), torch.eye(4)[:2], torch.eye(4)[:3], torch.ones(12, 4), correlated(10, 0, 4)]
)
def test_of_few_slides_or_slides_alike_the_distance_is_a_number_and_far_is_far(means):
    known = KnownSlides(4)
    known.learn(means)
    assert known.distance(means).isfinite().all()
    assert (known.distance(means) <= 1.3).all()
    assert (known.distance(means + 100) > 1.5).all()


def test_weights_that_knew_each_feature_s_spread_are_heard_as_they_were(network):
    spread = torch.linspace(0.5, 2, len(network.known.centre))
    new = {"known.whitening", "known.unheard_from"}
    state = {name: values for name, values in network.state_dict().items() if name not in new}
    network.load_state_dict(state | {"known.spread": spread})
    far, own = spread * network.known.far, network.own_head()

    def moved(distance: float) -> float:
        mean = (network.known.centre + distance * far)[None]
        assert float(network.distance(mean)) == pytest.approx(distance, rel=1e-3)
        return float(np.abs(network.head_of(mean.numpy().repeat(LEAST_PATCHES, 0)).weight - own.weight).max())

    # It faded out from 1 to 2 then.
    assert moved(1.0) > moved(1.5) > 0.005
    assert moved(2.01) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shape", [(), (9,), (1_000_000,), (8, 8)])
def test_a_spread_of_another_shape_is_refused_before_it_takes_memory(network, shape):
    state = {name: values for name, values in network.state_dict().items() if name != "known.whitening"}
    with pytest.raises(RuntimeError, match=r"known\.spread"):
        network.load_state_dict(state | {"known.spread": torch.ones(shape)})


@pytest.mark.parametrize(
    ("name", "value"), [("whitening", 3e38), ("whitening", -1e38), ("far", 0.0), ("far", -1.0)]
)
def test_whatever_a_file_says_of_known_slides_the_distance_is_a_number(network, name, value):
    getattr(network.known, name).fill_(value)
    features = network.features(images(9, seed=5)).detach().numpy()
    assert 0 <= network.distance_of(features) < 2e6
    assert all(np.isfinite(part).all() for part in network.head_of(features))


def test_however_loud_the_condition_it_goes_no_further_than_its_bounds(network):
    torch.nn.init.normal_(network.condition[-1].weight, std=1e3)
    network.known.far.fill_(1e9)
    head = network.head_of(network.features(images(9)).detach().numpy())
    own = network.own_head()
    assert np.abs(head.weight).max() <= np.abs(own.weight).max() * 1.75 * np.exp(0.5) + 1e-5
    assert abs(head.bias[0] - own.bias[0]) <= np.abs(own.bias).max() * (np.exp(0.5) - 1) + 1e-5
    assert np.abs(head.bias[1] - own.bias[1]) <= SHIFT + np.abs(own.bias).max() * (np.exp(0.5) - 1) + 1e-5


def test_gradients_stay_numbers_where_a_slide_counts_nothing(network):
    slides = Slides(torch.arange(12) % 2, (torch.arange(12) % 2).float(), torch.tensor([0.0, 1.0]))
    network.train()(images(12), slides).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_other_architectures_refuse_it():
    with pytest.raises(ModelError, match="slide_condition goes with residual_cnn"):
        build_network("cancernet", input_px=50, slide_condition={"hidden": 4})
