"""The order in which unlabelled images are shown: unsure ones first, and one of a kind before a second."""

import numpy as np

from reprise.labels.next import teaching_order


def test_an_unsure_image_of_each_kind_comes_before_a_second_of_one_and_sure_ones_come_last():
    sure, unsure = [0.99, 0.01], [0.52, 0.48]
    probabilities = np.array([sure, unsure, unsure, unsure, sure])
    kinds = np.array([[1.0, 0], [1, 0], [1, 0.01], [0, 1], [0, 1]])
    assert teaching_order(probabilities, kinds, 5)[:2] in ([1, 3], [2, 3])
    assert set(teaching_order(probabilities, kinds, 3)[:2]).isdisjoint({0, 4})
    assert sorted(teaching_order(probabilities, kinds, 99)) == [0, 1, 2, 3, 4]


def test_distances_are_those_of_the_gradients():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(4), 30)
    features = random.normal(size=(30, 5))
    gradients = (probabilities - np.eye(4)[probabilities.argmax(1)])[:, :, None] * features[:, None, :]
    gradients = gradients.reshape(30, -1)
    chosen = [int((gradients**2).sum(1).argmax())]
    while len(chosen) < 10:
        far = ((gradients[:, None] - gradients[chosen]) ** 2).sum(2)
        far = np.minimum(far.min(1), (gradients**2).sum(1))
        far[chosen] = -1
        chosen.append(int(far.argmax()))
    assert teaching_order(probabilities, features, 10) == chosen
